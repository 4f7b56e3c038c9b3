//! A change that has begun is done to its end, though whoever asked for it hangs up.
//!
//! With a connection that is gone ends whatever was done for it, wherever it stands: between the entry in the audit log and
//! the deed, between a deed and the note of it, between rules that are put in force and what has to be looked at again for
//! them. So what may change something runs by itself, and whoever asked waits for it.

use crate::refusal::{Outcome, Refusal};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use picket_protocol::hub::ProblemCode;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Lets a request run by itself, unless its method says that it changes nothing (RFC 9110 §9.2.1).
///
/// # Errors
/// `internal` when it came to no end.
pub(super) async fn lasting(State(tasks): State<TaskTracker>, request: Request, next: Next) -> Outcome<Response> {
    if request.method().is_safe() {
        return Ok(next.run(request).await);
    }
    let doing = tasks.spawn(next.run(request).in_current_span());
    let broken = "the request came to no end; the hub's log says why";
    doing.await.map_err(|_| Refusal::new(ProblemCode::Internal, broken))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::Notify;
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn what_changes_something_goes_on_when_whoever_asked_is_gone_and_what_only_looks_does_not() {
        for (method, goes_on) in [("GET", false), ("POST", true), ("DELETE", true)] {
            let (begun, go, done) =
                (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
            let work = {
                let (begun, go, done) = (Arc::clone(&begun), Arc::clone(&go), Arc::clone(&done));
                move || async move {
                    begun.notify_one();
                    go.notified().await;
                    done.store(true, Ordering::SeqCst);
                }
            };
            let tasks = TaskTracker::new();
            let route = get(work.clone()).delete(work.clone()).post(work);
            let router = Router::new().route("/", route).layer(from_fn_with_state(tasks.clone(), lasting));
            let request = Request::builder().method(method).uri("/").body(Body::empty()).unwrap();
            let asking = tokio::spawn(router.oneshot(request));
            begun.notified().await;
            asking.abort();
            assert!(asking.await.unwrap_err().is_cancelled(), "{method}");
            go.notify_one();
            tasks.close();
            tasks.wait().await;
            assert_eq!(done.load(Ordering::SeqCst), goes_on, "{method}");
        }
    }
}
