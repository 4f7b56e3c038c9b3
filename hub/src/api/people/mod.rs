//! What people and their programs ask of the hub.

use crate::refusal::Refusal;
use crate::state::Hub;
use axum::Router;
use picket_protocol::hub::ProblemCode;
use std::sync::Arc;

/// The routes for people and programs.
pub fn router(hub: &Arc<Hub>) -> Router {
    Router::new().fallback(nothing_here).with_state(Arc::clone(hub))
}

async fn nothing_here() -> Refusal {
    Refusal::new(ProblemCode::NotFound, "there is nothing at this path; the API is described at /api/docs")
}
