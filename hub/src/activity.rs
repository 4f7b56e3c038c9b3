//! Whether anything is asked on a connection.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What is asked on one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Activity(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: AtomicU64,
    changed: Notify,
}

/// A request that is under way; over when it is dropped, however that comes.
struct UnderWay(Activity);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.0.changed.notify_one();
    }
}

impl Activity {
    fn begin(&self) -> UnderWay {
        self.0.open.fetch_add(1, Ordering::AcqRel);
        self.0.changed.notify_one();
        UnderWay(self.clone())
    }

    /// Returns once nothing was under way for `limit`.
    pub(crate) async fn idle_for(&self, limit: Duration) {
        loop {
            let quiet = tokio::time::timeout(limit, self.0.changed.notified()).await.is_err();
            if quiet && self.0.open.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }
}

/// Counts a request while it is answered.
pub(crate) async fn counted(State(activity): State<Activity>, request: Request, next: Next) -> Response {
    let _under_way = activity.begin();
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_nothing_was_asked_for_a_while_and_not_while_an_answer_takes_long() {
        let activity = Activity::default();
        let limit = Duration::from_secs(30);
        let began = tokio::time::Instant::now();
        let under_way = activity.begin();
        let idle = {
            let activity = activity.clone();
            tokio::spawn(async move { activity.idle_for(limit).await })
        };
        tokio::time::advance(Duration::from_secs(100)).await;
        drop(under_way);
        idle.await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(130), "{:?}", began.elapsed());
    }
}
