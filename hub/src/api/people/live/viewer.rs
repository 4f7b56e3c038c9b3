//! Who looks at a live view: its queue and what did not fit there, its socket, and whether it may still look.

use super::super::access::Caller;
use super::super::rest::agents::AgentView;
use super::super::rest::events::EventView;
use super::super::rest::findings::FindingView;
use crate::api::websocket::{self, Socket};
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::server::told_to_stop;
use crate::state::Hub;
use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use picket_protocol::hub::ProblemCode;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tungstenite::Message;

/// Viewers at a time.
const MAX_VIEWERS: u64 = 200;
/// Items that wait for one viewer.
const QUEUE: usize = 512;
/// How often a viewer is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);
/// How often it is asked whether a viewer may still look.
const ASK_WHETHER: Duration = Duration::from_secs(5);
/// How long one message may take to be written. It bounds how long a viewer is waited for, too.
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// The longest message that a viewer may send; there is nothing that it has to say.
const MAX_MESSAGE: usize = 4 << 10;

/// What viewers cost.
#[derive(Debug, Default)]
pub struct ViewerCounters {
    /// Who looks.
    pub open: AtomicU64,
    /// Items that did not fit a viewer's queue.
    pub dropped: AtomicU64,
}

/// A message to a viewer.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Told {
    /// From here on it is live.
    Ready {
        /// Where to go on later.
        cursor: String,
    },
    /// An event.
    Event { cursor: String, item: Box<EventView> },
    /// A finding that is new or changed.
    Finding { cursor: String, item: Box<FindingView> },
    /// An agent that came, went or changed.
    Agent { cursor: String, item: Box<AgentView> },
    /// So many items were left out for this viewer.
    Dropped { count: u64 },
}

/// What waits for a viewer: a bounded queue that says how much did not fit.
pub(super) struct Out {
    queue: mpsc::Sender<Told>,
    dropped: u64,
    /// Whether the viewer has caught up: from then on it is not waited for.
    is_live: bool,
    counters: Arc<ViewerCounters>,
}

impl Out {
    fn new(queue: mpsc::Sender<Told>, counters: Arc<ViewerCounters>) -> Self {
        Self { queue, dropped: 0, is_live: false, counters }
    }

    /// Queues a message; says whether the viewer is still there.
    pub(super) async fn tell(&mut self, told: Told) -> bool {
        if !self.is_live {
            return self.tell_in_time(told).await;
        }
        if self.dropped > 0
            && let Ok(room) = self.queue.try_reserve()
        {
            room.send(Told::Dropped { count: std::mem::take(&mut self.dropped) });
        }
        match self.queue.try_send(told) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped += 1;
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Queues a message once there is room. Who takes nothing is cut off by [`WRITE_LIMIT`].
    pub(super) async fn tell_in_time(&mut self, told: Told) -> bool {
        self.tell_of_dropped().await && self.queue.send(told).await.is_ok()
    }

    /// Says how much was left out, once there is room.
    async fn tell_of_dropped(&mut self) -> bool {
        if self.dropped == 0 {
            return true;
        }
        let Ok(room) = self.queue.reserve().await else { return false };
        room.send(Told::Dropped { count: std::mem::take(&mut self.dropped) });
        true
    }

    /// That it is live from here on: said once.
    pub(super) async fn ready(&mut self, cursor: String) -> bool {
        if std::mem::replace(&mut self.is_live, true) {
            return true;
        }
        self.tell_in_time(Told::Ready { cursor }).await
    }

    /// Waits for news. A viewer that missed something hears of it meanwhile: maybe nothing happens for hours.
    pub(super) async fn until<T>(&mut self, news: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(news);
        tokio::select! {
            news = &mut news => return Some(news),
            is_there = self.tell_of_dropped(), if self.dropped > 0 => if !is_there {
                return None;
            },
        }
        Some(news.await)
    }
}

/// Returns when the viewer may not look any more, or not at the same as before: a live view outlives no permission.
async fn may_no_more(hub: &Hub, caller: &Caller, action: Action) {
    loop {
        tokio::time::sleep(ASK_WHETHER).await;
        match hub.scope_now(&caller.principal, action).await {
            Ok(scope) if scope.as_ref() == Some(&caller.scope) => {}
            Ok(_) => return,
            // The database cannot be asked: nor can it tell anything to look at.
            Err(refusal) => tracing::warn!(%refusal, "whether a viewer may still look is not known"),
        }
    }
}

/// Answers with a `WebSocket`, and lets `look` tell its viewer until that is gone, may look no more, or the hub stops.
///
/// # Errors
/// `overloaded` when as many look already as may.
pub(super) fn serve<F, Fut>(
    hub: Arc<Hub>,
    request: Request,
    caller: Caller,
    action: Action,
    look: F,
) -> Outcome<Response>
where
    F: FnOnce(Arc<Hub>, Caller, Out) -> Fut + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    let Some(seat) = Seat::take(&hub.viewers) else {
        let detail = format!("{MAX_VIEWERS} viewers look already");
        return Err(Refusal::new(ProblemCode::Overloaded, detail).after(Duration::from_secs(30)));
    };
    let tasks = hub.tasks.clone();
    websocket::upgrade(request, &tasks, MAX_MESSAGE, move |socket| async move {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let out = Out::new(queue, Arc::clone(&seat.0));
        let stop = hub.stop.clone();
        tokio::select! {
            // Ends when the viewer is gone: then nobody takes what is told, and the other ends, too.
            () = speak(socket, waiting, stop) => {}
            () = may_no_more(&hub, &caller, action) => tracing::info!(who = caller.key(), "a viewer may look no more"),
            looked = look(Arc::clone(&hub), caller.clone(), out) => {
                if let Err(refusal) = looked {
                    tracing::warn!(%refusal, "a viewer is cut off");
                }
            }
        }
        drop(seat);
    })
}

/// A viewer's place among [`MAX_VIEWERS`], free again when it is dropped: however the view ends.
struct Seat(Arc<ViewerCounters>);

impl Seat {
    fn take(counters: &Arc<ViewerCounters>) -> Option<Self> {
        let one_more = |open| (open < MAX_VIEWERS).then_some(open + 1);
        let taken = counters.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| Self(Arc::clone(counters)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends what waits, and finds out whether the viewer is still there.
async fn speak(mut socket: Socket, mut waiting: mpsc::Receiver<Told>, mut stop: watch::Receiver<bool>) {
    let mut ping = tokio::time::interval(PING);
    ping.reset();
    let mut answered = true;
    loop {
        let message = tokio::select! {
            told = waiting.recv() => match told {
                // Strings, numbers and JSON: nothing of it can fail.
                Some(told) => Message::text(serde_json::to_string(&told).unwrap_or_default()),
                None => break,
            },
            heard = socket.next() => match heard {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {
                    answered = true;
                    continue;
                }
            },
            _ = ping.tick() => {
                if !std::mem::replace(&mut answered, false) {
                    break;
                }
                Message::Ping(bytes::Bytes::new())
            }
            () = told_to_stop(&mut stop) => break,
        };
        if !matches!(tokio::time::timeout(WRITE_LIMIT, socket.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
    let closing = async {
        let _ = socket.close(None).await;
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), closing).await;
}

/// Refuses a page of somebody else's that makes a browser look.
pub(super) fn from_our_pages(request: &Request) -> Outcome<()> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = header(ORIGIN) else { return Ok(()) };
    let host = header(HOST).unwrap_or_default();
    if origin.strip_prefix("https://") == Some(host) {
        return Ok(());
    }
    Err(Refusal::new(ProblemCode::Forbidden, "a WebSocket is opened from the hub's own pages only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(room: usize) -> (Out, mpsc::Receiver<Told>) {
        let (queue, waiting) = mpsc::channel(room);
        (Out::new(queue, Arc::default()), waiting)
    }

    fn item() -> Told {
        Told::Dropped { count: 0 }
    }

    #[tokio::test]
    async fn what_does_not_fit_a_live_viewers_queue_is_counted_and_told_though_nothing_more_happens() {
        let (mut out, mut waiting) = out(2);
        out.is_live = true;
        for _ in 0..5 {
            assert!(out.tell(item()).await);
        }
        assert_eq!((out.dropped, out.counters.dropped.load(Ordering::Relaxed)), (3, 3));
        let counters = Arc::clone(&out.counters);
        let idle = tokio::spawn(async move { out.until(std::future::pending::<()>()).await });
        for wanted in [0, 0, 3] {
            assert!(matches!(waiting.recv().await, Some(Told::Dropped { count }) if count == wanted));
        }
        idle.abort();
        assert_eq!(counters.dropped.load(Ordering::Relaxed), 3, "what is told is not left out again");
    }

    #[tokio::test]
    async fn who_catches_up_is_waited_for_and_hears_when_it_has() {
        let (mut out, mut waiting) = out(1);
        let telling = tokio::spawn(async move {
            for _ in 0..100 {
                assert!(out.tell(item()).await);
            }
            assert!(out.ready("7".to_owned()).await);
            out.dropped
        });
        for _ in 0..100 {
            assert!(matches!(waiting.recv().await, Some(Told::Dropped { count: 0 })));
        }
        assert!(matches!(waiting.recv().await, Some(Told::Ready { cursor }) if cursor == "7"));
        assert_eq!(telling.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn who_is_gone_is_told_nothing_more() {
        let (mut out, waiting) = out(1);
        drop(waiting);
        assert!(!out.tell(item()).await);
        out.is_live = true;
        assert!(!out.tell(item()).await);
        out.dropped = 1;
        assert_eq!(out.until(std::future::pending::<()>()).await, None);
    }

    #[test]
    fn there_are_so_many_seats_and_each_is_free_again_when_its_viewer_is_gone() {
        let counters = Arc::new(ViewerCounters::default());
        let mut seats: Vec<Seat> = std::iter::from_fn(|| Seat::take(&counters)).collect();
        assert_eq!(seats.len() as u64, MAX_VIEWERS);
        seats.pop();
        assert!(Seat::take(&counters).is_some());
        drop(seats);
        assert_eq!(counters.open.load(Ordering::Relaxed), 0);
    }
}
