//! What people and their programs ask of the hub: the API under `/api/v1`, described at `/api/openapi.json`.
//!
//! Every route stands in a [`Guarded`] list with what it needs of who asks. Beside them, open to everybody, are only the
//! description (`/api/openapi.json`, `/api/docs`) and the probes (`/livez`, `/readyz`): [`router`] adds them. Who asks is found
//! out once ([`access`]); what they may see of it is in the [`Caller`] that a handler gets.

pub(crate) mod access;
pub(crate) mod guarded;
mod headers;
pub(crate) mod idempotency;
mod lasting;
mod limits;
pub(crate) mod live;
mod openapi;
pub(crate) mod page;
mod problem;
pub(crate) mod rest;
mod suspicion;
pub(crate) mod words;

pub use access::Caller;
pub use guarded::{Guard, Guarded, Needs};
pub use limits::RequestRates;
pub use live::ViewerCounters;
pub use problem::ProblemView;
pub use suspicion::Suspicions;

use crate::refusal::Refusal;
use crate::state::Hub;
use crate::watch::measured;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use picket_protocol::hub::ProblemCode;
use std::sync::Arc;

/// The routes for people and programs.
pub fn router(hub: &Arc<Hub>) -> Router {
    let (routes, document) = routes(hub).into_parts();
    let described = openapi::router(&document);
    let inner = Router::new()
        .merge(routes)
        .with_state(Arc::clone(hub))
        .merge(described)
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_that_method);
    inner
        .layer(from_fn_with_state(Arc::clone(hub), suspicion::noticed))
        .layer(from_fn_with_state(Arc::clone(hub), access::found_out))
        // An orchestrator's probe says no name and has no rate.
        .merge(hub.watched.api(hub).probes())
        .layer(from_fn_with_state(Arc::clone(hub), headers::secured))
        .layer(from_fn_with_state("hub_api", super::cause::correlated))
        .layer(from_fn(super::body::read_on))
        .layer(from_fn_with_state((hub.watched.requests.clone(), "api"), measured))
}

/// Every route of the API, with what it needs of who asks.
pub fn routes(hub: &Arc<Hub>) -> Guarded {
    Guarded::new(Arc::clone(hub))
        .merge(rest::auth::routes)
        .merge(rest::agents::routes)
        .merge(rest::books::routes)
        .merge(rest::events::routes)
        .merge(rest::findings::routes)
        .merge(rest::rules::routes)
        .merge(rest::cases::routes)
        .merge(rest::enrolment::routes)
        .merge(rest::configs::routes)
        .merge(rest::users::routes)
        .merge(rest::webhooks::routes)
        .merge(rest::hub::routes)
        .merge(rest::watch::routes)
        .merge(live::routes)
}

async fn nothing_here() -> Refusal {
    Refusal::new(ProblemCode::NotFound, "there is nothing at this path; the API is described at /api/docs")
}

async fn not_that_method() -> Refusal {
    Refusal::new(ProblemCode::MethodNotAllowed, "this path is asked with another method; see /api/docs")
}
