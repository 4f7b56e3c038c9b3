//! `/api/v1/ws/{events,findings,agents}`: what happens, as it happens.
//!
//! Events and findings come in the order of commits, each with a cursor: a viewer that was cut off goes on where it was, at
//! its own pace, until it has seen everything. From then on it is live, and a viewer that reads slower than things happen is
//! not waited for: what does not fit its queue is counted, and it is told how much it missed as soon as there is room; with
//! the last cursor it can read that later.
//!
//! Of agents there is no order of commits: their cursor is the hub's time, and who goes on behind one is told of every agent
//! that may have changed since then, of some again.

use super::access::Caller;
use super::guarded::Guarded;
use super::rest::events::EventView;
use super::rest::findings::FindingView;
use super::rest::{InQuery, Visible, agents::AgentView, within};
use super::words::SeverityWord;
use crate::api::websocket::{self, Socket};
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::server::told_to_stop;
use crate::state::Hub;
use axum::extract::{Extension, Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Agent, AgentFilter, AgentStatus, PageRequest, Position, Shard};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tungstenite::Message;
use utoipa::IntoParams;
use utoipa_axum::routes;
use uuid::Uuid;

/// Viewers at a time.
pub const MAX_VIEWERS: u64 = 200;
/// Items that wait for one viewer.
const QUEUE: usize = 512;
/// Rows of one look at the database.
const RUN: u32 = 500;
/// At most so often a viewer looks.
const PACE: Duration = Duration::from_millis(250);
/// How long a viewer looks anyway, for what replicas stored.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often a viewer is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);
/// How often it is asked whether a viewer may still look.
const ASK_WHETHER: Duration = Duration::from_secs(5);
/// How far replicas' clocks and the length of a transaction may put an agent's change before the time it was told at.
const APART: SignedDuration = SignedDuration::from_secs(60);
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

/// The routes.
pub(super) fn routes(routes: Guarded) -> Guarded {
    routes
        .route(Action::EventsRead, routes!(events))
        .route(Action::FindingsRead, routes!(findings))
        .route(Action::AgentsRead, routes!(agents))
}

/// Which part of what happens.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct LiveQuery {
    /// Go on behind this cursor, instead of with what happens from now on. Agents that may have changed since then are told
    /// of, some of them again.
    cursor: Option<String>,
    /// Of this agent only.
    agent_id: Option<Uuid>,
    /// Events of this type only.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Findings as bad as this only.
    #[param(inline)]
    severity: Option<SeverityWord>,
    /// Findings in this state, or agents in this status only.
    state: Option<String>,
}

/// A message to a viewer.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Told {
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

/// Events as they are stored, over a WebSocket: `{"kind": "event", "cursor": …, "item": …}`.
#[utoipa::path(get, path = "/api/v1/ws/events", tag = "live", params(LiveQuery),
    responses((status = 101, description = "It is a WebSocket now")))]
async fn events(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(query): InQuery<LiveQuery>,
    request: Request,
) -> Outcome<Response> {
    from_our_pages(&request)?;
    let start = match &query.cursor {
        Some(cursor) => cursor.parse()?,
        None => hub.db.events_horizon(hub.tenant).await?,
    };
    serve(hub, request, caller, Action::EventsRead, move |hub, caller, out| async move {
        tell_events(&hub, &caller, &query, start, out).await
    })
}

/// Findings as they are made and changed, over a WebSocket: `{"kind": "finding", "cursor": …, "item": …}`.
#[utoipa::path(get, path = "/api/v1/ws/findings", tag = "live", params(LiveQuery),
    responses((status = 101, description = "It is a WebSocket now")))]
async fn findings(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(query): InQuery<LiveQuery>,
    request: Request,
) -> Outcome<Response> {
    from_our_pages(&request)?;
    let start = match &query.cursor {
        Some(cursor) => cursor.parse()?,
        None => hub.db.findings_horizon(hub.tenant).await?,
    };
    serve(hub, request, caller, Action::FindingsRead, move |hub, caller, out| async move {
        tell_findings(&hub, &caller, &query, start, out).await
    })
}

/// Agents as they come, go and change, over a WebSocket: `{"kind": "agent", "cursor": …, "item": …}`.
#[utoipa::path(get, path = "/api/v1/ws/agents", tag = "live", params(LiveQuery),
    responses((status = 101, description = "It is a WebSocket now")))]
async fn agents(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(query): InQuery<LiveQuery>,
    request: Request,
) -> Outcome<Response> {
    from_our_pages(&request)?;
    let start = query.cursor.as_deref().map(time_of).transpose()?;
    serve(hub, request, caller, Action::AgentsRead, move |hub, caller, out| async move {
        tell_agents(&hub, &caller, &query, start, out).await
    })
}

/// Refuses a page of somebody else's that makes a browser look.
fn from_our_pages(request: &Request) -> Outcome<()> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = header(ORIGIN) else { return Ok(()) };
    let host = header(HOST).unwrap_or_default();
    if origin.strip_prefix("https://") == Some(host) {
        return Ok(());
    }
    Err(Refusal::new(ProblemCode::Forbidden, "a WebSocket is opened from the hub's own pages only"))
}

/// What waits for a viewer: a bounded queue that says how much did not fit.
struct Out {
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
    async fn tell(&mut self, told: Told) -> bool {
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
    async fn tell_in_time(&mut self, told: Told) -> bool {
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
    async fn ready(&mut self, cursor: String) -> bool {
        if std::mem::replace(&mut self.is_live, true) {
            return true;
        }
        self.tell_in_time(Told::Ready { cursor }).await
    }

    /// Waits for news. A viewer that missed something hears of it meanwhile: maybe nothing happens for hours.
    async fn until<T>(&mut self, news: impl Future<Output = T>) -> Option<T> {
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

fn serve<F, Fut>(hub: Arc<Hub>, request: Request, caller: Caller, action: Action, look: F) -> Outcome<Response>
where
    F: FnOnce(Arc<Hub>, Caller, Out) -> Fut + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    let counters = Arc::clone(&hub.viewers);
    if counters.open.load(Ordering::Relaxed) >= MAX_VIEWERS {
        let detail = format!("{MAX_VIEWERS} viewers look already");
        return Err(Refusal::new(ProblemCode::Overloaded, detail).after(Duration::from_secs(30)));
    }
    let tasks = hub.tasks.clone();
    websocket::upgrade(request, &tasks, MAX_MESSAGE, move |socket| async move {
        counters.open.fetch_add(1, Ordering::Relaxed);
        let (queue, waiting) = mpsc::channel(QUEUE);
        let out = Out::new(queue, Arc::clone(&counters));
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
        counters.open.fetch_sub(1, Ordering::Relaxed);
    })
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

async fn tell_events(hub: &Hub, caller: &Caller, query: &LiveQuery, start: Position, mut out: Out) -> Outcome<()> {
    let mut wake = hub.wake.subscribe();
    let shards = query.kind.as_deref().map(|kind| vec![Shard::of(kind)]).unwrap_or_default();
    let mut position = start;
    loop {
        wake.borrow_and_update();
        let tail = hub.db.events_after(hub.tenant, position, &shards, RUN).await?;
        // Asked anew: an agent may have got other tags.
        let mut visible = Visible::new(hub, caller);
        for event in tail.events {
            let wanted = query.agent_id.is_none_or(|agent| agent == event.agent)
                && query.kind.as_ref().is_none_or(|kind| *kind == event.kind);
            if wanted && visible.agent(Some(event.agent)).await? {
                let cursor = event.position.to_string();
                if !out.tell(Told::Event { cursor, item: Box::new(event.into()) }).await {
                    return Ok(());
                }
            }
        }
        position = tail.next;
        if tail.at_end && !(out.ready(position.to_string()).await && out.until(news(&mut wake)).await.is_some()) {
            return Ok(());
        }
    }
}

async fn tell_findings(hub: &Hub, caller: &Caller, query: &LiveQuery, start: Position, mut out: Out) -> Outcome<()> {
    let mut wake = hub.found.subscribe();
    let mut position = start;
    loop {
        wake.borrow_and_update();
        let tail = hub.db.findings_after(hub.tenant, position, RUN).await?;
        let mut visible = Visible::new(hub, caller);
        let is_last = tail.findings.len() < RUN as usize;
        for finding in tail.findings {
            let wanted = query.agent_id.is_none_or(|agent| finding.agent == Some(agent))
                && query.severity.is_none_or(|severity| severity.0 == finding.severity)
                && query.state.as_ref().is_none_or(|state| state == finding.state.as_str());
            if wanted && visible.agent(finding.agent).await? {
                let cursor = finding.changed.to_string();
                if !out.tell(Told::Finding { cursor, item: Box::new(finding.into()) }).await {
                    return Ok(());
                }
            }
        }
        position = tail.next;
        if is_last && !(out.ready(position.to_string()).await && out.until(news(&mut wake)).await.is_some()) {
            return Ok(());
        }
    }
}

/// Until it is worth looking again.
async fn news(wake: &mut watch::Receiver<u64>) {
    tokio::time::sleep(PACE).await;
    let _ = tokio::time::timeout(LOOK_AGAIN, wake.changed()).await;
}

async fn tell_agents(
    hub: &Hub,
    caller: &Caller,
    query: &LiveQuery,
    start: Option<Timestamp>,
    mut out: Out,
) -> Outcome<()> {
    let mut changes = hub.agent_changes.subscribe();
    // Everything up to then is told: what comes later waits in `changes`.
    let mut told_to = hub.clock.now();
    let mut behind = start;
    loop {
        if let Some(since) = behind.take()
            && !tell_agents_since(hub, caller, query, since, &mut out).await?
        {
            return Ok(());
        }
        if !out.ready(cursor_at(told_to)).await {
            return Ok(());
        }
        let Some(change) = out.until(changes.recv()).await else { return Ok(()) };
        let agent = match change {
            Ok(agent) => agent,
            // Which agents that were is not known any more, nor whether this viewer may see them: all are looked at.
            Err(RecvError::Lagged(_)) => {
                behind = Some(told_to);
                told_to = hub.clock.now();
                continue;
            }
            Err(RecvError::Closed) => return Ok(()),
        };
        if changes.is_empty() {
            // This one is the last that happened: whatever was before it is told, too.
            told_to = hub.clock.now();
        }
        if query.agent_id.is_some_and(|wanted| wanted != agent) {
            continue;
        }
        let Some(found) = hub.db.agent(hub.tenant, agent).await? else { continue };
        let wanted = query.state.as_ref().is_none_or(|state| state == found.status.as_str());
        if wanted && caller.scope.holds(&found.tags) {
            let cursor = cursor_at(told_to);
            if !out.tell(Told::Agent { cursor, item: Box::new(found.into()) }).await {
                return Ok(());
            }
        }
    }
}

/// Tells of every agent that may have changed since then; says whether the viewer is still there.
async fn tell_agents_since(
    hub: &Hub,
    caller: &Caller,
    query: &LiveQuery,
    since: Timestamp,
    out: &mut Out,
) -> Outcome<bool> {
    let (cursor, since) = (cursor_at(since), since.checked_sub(APART).unwrap_or(Timestamp::MIN));
    let filter = AgentFilter { within: within(caller), ..AgentFilter::default() };
    let mut request = PageRequest::first(RUN);
    loop {
        let page = hub.db.agents(hub.tenant, &filter, &request).await?;
        for agent in page.items {
            let wanted = query.agent_id.is_none_or(|wanted| wanted == agent.id)
                && query.state.as_ref().is_none_or(|state| state == agent.status.as_str());
            if wanted && may_have_changed(&agent, since) {
                // Only when all are told is it time to go on from a later one.
                let told = Told::Agent { cursor: cursor.clone(), item: Box::new(agent.into()) };
                if !out.tell_in_time(told).await {
                    return Ok(false);
                }
            }
        }
        let Some(next) = page.next else { return Ok(true) };
        request = PageRequest::after(next, RUN);
    }
}

/// Whether an agent came, went or changed since then, as far as its row tells: when it fell silent is not in it.
fn may_have_changed(agent: &Agent, since: Timestamp) -> bool {
    agent.updated_at >= since
        || match agent.status {
            AgentStatus::Offline => true,
            AgentStatus::Online => agent.report.last_seen.is_none_or(|last| last >= since),
            AgentStatus::Enrolled | AgentStatus::Retired => false,
        }
}

/// The cursor of agents: the hub's time, in microseconds since 1970.
fn cursor_at(time: Timestamp) -> String {
    time.as_microsecond().to_string()
}

fn time_of(cursor: &str) -> Outcome<Timestamp> {
    let time = cursor.parse().ok().and_then(|number| Timestamp::from_microsecond(number).ok());
    time.ok_or_else(|| Refusal::new(ProblemCode::Invalid, "the cursor is not one that a live view of agents gave out"))
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
    fn a_cursor_of_agents_is_a_time_and_nothing_else() {
        let time: Timestamp = "2026-11-22T12:00:00.000001Z".parse().unwrap();
        assert_eq!(time_of(&cursor_at(time)).unwrap(), time);
        for wrong in ["", "0-0", "x", "99999999999999999999", "9223372036854775807"] {
            assert_eq!(time_of(wrong).unwrap_err().code(), ProblemCode::Invalid, "{wrong}");
        }
    }
}
