//! `/api/v1/ws/{events,findings,agents}`: what happens, as it happens.
//!
//! Events and findings come in the order of commits, each with a cursor: a viewer that was cut off goes on where it was.
//! A viewer that reads slower than things happen is never waited for: what does not fit its queue is counted, and it is
//! told how much it missed; with the last cursor it can read that later.

use super::access::Caller;
use super::guarded::Guarded;
use super::rest::events::EventView;
use super::rest::findings::FindingView;
use super::rest::{InQuery, Visible, agents::AgentView};
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
use picket_hub_db::{Position, Shard};
use picket_protocol::hub::ProblemCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
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
/// How long one message may take to be written.
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
    /// Go on behind this cursor, instead of with what happens from now on.
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
        /// Where to go on later; absent for agents, of which there is no order.
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    },
    /// An event.
    Event { cursor: String, item: Box<EventView> },
    /// A finding that is new or changed.
    Finding { cursor: String, item: Box<FindingView> },
    /// An agent that came, went or changed.
    Agent { item: Box<AgentView> },
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

/// Agents as they come, go and change, over a WebSocket: `{"kind": "agent", "item": …}`.
#[utoipa::path(get, path = "/api/v1/ws/agents", tag = "live", params(LiveQuery),
    responses((status = 101, description = "It is a WebSocket now")))]
async fn agents(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InQuery(query): InQuery<LiveQuery>,
    request: Request,
) -> Outcome<Response> {
    from_our_pages(&request)?;
    serve(hub, request, caller, Action::AgentsRead, move |hub, caller, out| async move {
        tell_agents(&hub, &caller, &query, out).await
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
    counters: Arc<ViewerCounters>,
}

impl Out {
    /// Queues a message; says whether the viewer is still there.
    fn tell(&mut self, told: Told) -> bool {
        if self.dropped > 0 {
            match self.queue.try_send(Told::Dropped { count: self.dropped }) {
                Ok(()) => self.dropped = 0,
                Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
            }
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
}

/// Returns when the viewer may not look any more, or not at the same as before: a live view outlives no permission.
async fn may_no_more(hub: &Hub, caller: &Caller, action: Action) {
    let since = hub.clock.now();
    loop {
        tokio::time::sleep(ASK_WHETHER).await;
        match hub.scope_now(&caller.principal, since, action).await {
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
        let out = Out { queue, dropped: 0, counters: Arc::clone(&counters) };
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
    let mut is_live = false;
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
                if !out.tell(Told::Event { cursor, item: Box::new(event.into()) }) {
                    return Ok(());
                }
            }
        }
        position = tail.next;
        if tail.at_end {
            if !std::mem::replace(&mut is_live, true) && !out.tell(Told::Ready { cursor: Some(position.to_string()) }) {
                return Ok(());
            }
            tokio::time::sleep(PACE).await;
            let _ = tokio::time::timeout(LOOK_AGAIN, wake.changed()).await;
        }
    }
}

async fn tell_findings(hub: &Hub, caller: &Caller, query: &LiveQuery, start: Position, mut out: Out) -> Outcome<()> {
    let mut wake = hub.found.subscribe();
    let mut position = start;
    let mut is_live = false;
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
                if !out.tell(Told::Finding { cursor, item: Box::new(finding.into()) }) {
                    return Ok(());
                }
            }
        }
        position = tail.next;
        if is_last {
            if !std::mem::replace(&mut is_live, true) && !out.tell(Told::Ready { cursor: Some(position.to_string()) }) {
                return Ok(());
            }
            tokio::time::sleep(PACE).await;
            let _ = tokio::time::timeout(LOOK_AGAIN, wake.changed()).await;
        }
    }
}

async fn tell_agents(hub: &Hub, caller: &Caller, query: &LiveQuery, mut out: Out) -> Outcome<()> {
    let mut changes = hub.agent_changes.subscribe();
    if !out.tell(Told::Ready { cursor: None }) {
        return Ok(());
    }
    loop {
        let agent = match changes.recv().await {
            Ok(agent) => agent,
            Err(tokio::sync::broadcast::error::RecvError::Lagged(count)) => {
                out.dropped += count;
                continue;
            }
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
        };
        if query.agent_id.is_some_and(|wanted| wanted != agent) {
            continue;
        }
        let Some(found) = hub.db.agent(hub.tenant, agent).await? else { continue };
        let wanted = query.state.as_ref().is_none_or(|state| state == found.status.as_str());
        if wanted && caller.scope.holds(&found.tags) && !out.tell(Told::Agent { item: Box::new(found.into()) }) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_a_viewers_queue_is_counted_and_told() {
        let (queue, mut waiting) = mpsc::channel(2);
        let mut out = Out { queue, dropped: 0, counters: Arc::default() };
        let ready = || Told::Ready { cursor: None };
        for _ in 0..5 {
            assert!(out.tell(ready()));
        }
        assert_eq!((out.dropped, out.counters.dropped.load(Ordering::Relaxed)), (3, 3));
        waiting.try_recv().unwrap();
        waiting.try_recv().unwrap();
        assert!(out.tell(ready()));
        assert!(matches!(waiting.try_recv(), Ok(Told::Dropped { count: 3 })));
        assert!(matches!(waiting.try_recv(), Ok(Told::Ready { .. })));
        drop(waiting);
        assert!(!out.tell(ready()));
    }
}
