//! What every database promises: one set of tests, run against each.
#![expect(clippy::disallowed_methods, reason = "tests look at files directly")]
#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod agents;
mod audit;
mod bench;
mod cases;
mod configs;
mod enrolment;
mod events;
mod faults;
mod findings;
mod judge;
mod moving;
mod outage;
mod people;
mod portable;
mod retention;
mod rules;
mod small;
mod tailing;
mod taken_back;

/// Runs each test against each database.
macro_rules! contract {
    ($(async fn $name:ident($bench:ident) $body:block)+) => {
        $(async fn $name($bench: $crate::bench::Bench) $body)+

        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::bench::Bench::sqlite().await).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::bench::Bench::postgres().await).await;
            })+
        }
    };
}
pub(crate) use contract;
