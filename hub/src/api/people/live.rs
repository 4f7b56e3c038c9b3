//! `/api/v1/ws/{events,findings,agents}`: what happens, as it happens.
//!
//! Events and findings come in the order of commits, each with a cursor: a viewer that was cut off goes on where it was, at
//! its own pace, until it has seen everything. From then on it is live, and a viewer that reads slower than things happen is
//! not waited for: what does not fit its queue is counted, and it is told how much it missed as soon as there is room; with
//! the last cursor it can read that later.
//!
//! Of agents there is no order of commits: their cursor is the hub's time, and who goes on behind one is told of every agent
//! that may have changed since then, of some again.

mod viewer;

pub use viewer::ViewerCounters;

use super::access::Caller;
use super::guarded::Guarded;
use super::rest::{InQuery, Visible, within};
use super::words::SeverityWord;
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::extract::{Extension, Request, State};
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Agent, AgentFilter, AgentStatus, PageRequest, Position, Shard};
use picket_protocol::hub::ProblemCode;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use utoipa::IntoParams;
use utoipa_axum::routes;
use uuid::Uuid;
use viewer::{Out, Told, from_our_pages, serve};

/// Rows of one look at the database.
const RUN: u32 = 500;
/// At most so often a viewer looks.
const PACE: Duration = Duration::from_millis(250);
/// How long a viewer looks anyway, for what replicas stored.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How far replicas' clocks and the length of a transaction may put an agent's change before the time it was told at.
const APART: SignedDuration = SignedDuration::from_secs(60);

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

    #[test]
    fn a_cursor_of_agents_is_a_time_and_nothing_else() {
        let time: Timestamp = "2026-11-22T12:00:00.000001Z".parse().unwrap();
        assert_eq!(time_of(&cursor_at(time)).unwrap(), time);
        for wrong in ["", "0-0", "x", "99999999999999999999", "9223372036854775807"] {
            assert_eq!(time_of(wrong).unwrap_err().code(), ProblemCode::Invalid, "{wrong}");
        }
    }
}
