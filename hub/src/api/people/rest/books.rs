//! `/api/v1/agents/{agent_id}/books`: whether everything that an agent saw is accounted for.

use super::agents::seen;
use super::{InPath, InQuery};
use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::api::people::page::{PageQuery, Paged};
use crate::app::books::{sums, told, unaccounted};
use crate::app::people::principal::Action;
use crate::refusal::Outcome;
use crate::state::Hub;
use axum::Json;
use axum::extract::{Extension, State};
use jiff::Timestamp;
use picket_hub_db::{Page, Totals};
use picket_protocol::hub::StreamLedger;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

/// The routes.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes.route(Action::AgentsRead, routes!(books))
}

/// The books of one stream of events: an agent's boot.
#[derive(Serialize, ToSchema)]
struct StreamBookView {
    /// Which boot.
    boot_id: Uuid,
    /// For how many events the stored rows stand.
    stored: u64,
    /// How many events are missing, as gaps told.
    gaps: u64,
    /// Rows stored.
    records: u64,
    /// Rows that came again.
    duplicates: u64,
    /// What the agent says that happened; absent if it has not told.
    emitted: Option<u64>,
    /// What still waits on the machine, with gaps that it has not told yet.
    waiting: Option<u64>,
    /// `emitted - stored - gaps - waiting`: 0 when all is accounted for; below 0 for what was stored after the agent
    /// counted; above 0, events are lost.
    unaccounted: Option<i64>,
    /// When the last batch came; absent if none did.
    last_seen: Option<Timestamp>,
}

/// An agent's books: `stored + gaps + waiting = emitted`, for each stream. Those that the agent tells of and of which nothing
/// came stand at the end.
#[utoipa::path(get, path = "/api/v1/agents/{agent_id}/books", tag = "agents", params(("agent_id" = Uuid, Path), PageQuery),
    responses((status = 200, body = Paged<StreamBookView>)))]
async fn books(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    InPath(id): InPath<Uuid>,
    InQuery(page): InQuery<PageQuery>,
) -> Outcome<Json<Paged<StreamBookView>>> {
    let agent = seen(&hub, &caller, id).await?;
    let told = told(agent.report.ledger.as_ref());
    let books = hub.db.stream_books(hub.tenant, id, &page.request()?).await?;
    let (next, mut views) = (books.next, Vec::with_capacity(books.items.len()));
    views.extend(books.items.iter().map(|book| balance(book.boot_id, book.totals, Some(book.last_seen), &told)));
    if next.is_none() {
        let known = hub.totals_of(id, &told).await?;
        let unheard = told.iter().filter(|ledger| !known.contains_key(&ledger.boot_id));
        views.extend(unheard.map(|ledger| balance(ledger.boot_id, Totals::default(), None, &told)));
    }
    Ok(Json(Paged::of(Page { items: views, next }, Some)))
}

/// The hub's books of a stream beside the agent's.
fn balance(boot_id: Uuid, totals: Totals, last_seen: Option<Timestamp>, told: &[StreamLedger]) -> StreamBookView {
    let ledger = told.iter().find(|ledger| ledger.boot_id == boot_id);
    let sums = ledger.map(sums);
    StreamBookView {
        boot_id,
        stored: totals.stored,
        gaps: totals.gaps,
        records: totals.records,
        duplicates: totals.duplicates,
        emitted: sums.map(|(emitted, _)| emitted),
        waiting: sums.map(|(_, waiting)| waiting),
        unaccounted: ledger.map(|ledger| unaccounted(ledger, &totals)),
        last_seen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_stored_missing_and_waiting_is_what_was_emitted_or_the_difference_shows() {
        let boot = Uuid::nil();
        let ledger = |emitted: u64, queued: u64, untold: u64| -> Vec<StreamLedger> {
            let class = json!({"emitted": emitted, "acknowledged": 0, "queued": queued});
            vec![
                serde_json::from_value(json!({"boot_id": boot, "classes": {"normal": class}, "untold": untold}))
                    .unwrap(),
            ]
        };
        let totals = Totals { stored: 70, gaps: 20, records: 60, duplicates: 3, rejected: 0 };
        let unaccounted = |told: &[StreamLedger]| balance(boot, totals, None, told).unaccounted;
        assert_eq!(unaccounted(&ledger(100, 6, 4)), Some(0));
        assert_eq!(unaccounted(&ledger(101, 6, 4)), Some(1), "one is lost");
        assert_eq!(unaccounted(&ledger(95, 6, 4)), Some(-5), "stored after the agent counted");
        assert_eq!(unaccounted(&[]), None, "the agent has not told");
    }
}
