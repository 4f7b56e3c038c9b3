//! `/health` and `/metrics`, for who may see how the hub is doing.

use crate::api::people::access::Caller;
use crate::api::people::guarded::Guarded;
use crate::app::people::principal::Action;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use picket_localapi::exposition;
use picket_protocol::hub::ProblemCode;
use std::sync::Arc;
use utoipa_axum::routes;

/// The routes. They concern the whole hub: a permission for a tag is none.
pub(in crate::api::people) fn routes(routes: Guarded) -> Guarded {
    routes.route(Action::HubRead, routes!(health)).route(Action::HubRead, routes!(metrics))
}

/// Every check of this replica.
#[utoipa::path(get, path = "/health", tag = "hub", responses(
    (status = 200, description = "Healthy", body = Object),
    (status = 503, description = "A check fails", body = Object)))]
async fn health(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Outcome<Response> {
    caller.everywhere()?;
    Ok(hub.watched.api(&hub).health())
}

/// The metrics of this replica, in Prometheus' text format or in OpenMetrics.
#[utoipa::path(get, path = "/metrics", tag = "hub",
    responses((status = 200, body = String, content_type = "text/plain")))]
async fn metrics(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Outcome<Response> {
    caller.everywhere()?;
    exposition(&hub.watched.metrics, &headers).ok_or_else(|| {
        Refusal::new(
            ProblemCode::Invalid,
            "there is no JSON form of the metrics; ask for text/plain, or see /api/v1/hub",
        )
    })
}
