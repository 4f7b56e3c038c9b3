//! Real builds, a vendor, a release server and throw-away installations, for tests only.
//!
//! A test reads as a story: a [`Vendor`] publishes builds of the real binary, a [`ReleaseServer`] (or a [`FakeGitHub`])
//! offers them, a [`Prefix`] installs and updates. Nothing here is a stand-in for the product; only the faults are made on purpose.
//! Waiting is for conditions ([`wait_until`]), never for a length of time.

mod builds;
mod machine;
mod nats;
pub mod postgres;
mod prefix;
mod server;
pub mod stores;
mod vendor;

pub use builds::{Build, Fault, build, this_target};
pub use machine::{Machine, inside};
pub use nats::NatsServer;
pub use prefix::{Prefix, Ran, Watched};
pub use server::github::FakeGitHub;
pub use server::proxy::ConnectProxy;
pub use server::{Behaviour, Identity, ReleaseServer};
pub use vendor::Vendor;

use std::time::{Duration, Instant};

/// How long a condition may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
///
/// # Panics
/// After [`PATIENCE`], naming what was waited for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
