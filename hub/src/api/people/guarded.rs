//! Routes, each with the permission that it needs.

use super::access;
use super::openapi;
use crate::app::people::principal::Action;
use crate::state::Hub;
use axum::Router;
use axum::middleware::from_fn_with_state;
use std::sync::Arc;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

/// What one route needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    /// The path, with its parameters in braces.
    pub path: String,
    /// The method in capitals.
    pub method: &'static str,
    /// The permission; `None` for what everybody may who is somebody.
    pub action: Option<Action>,
}

/// Routes that nobody reaches without the permission that stands beside them.
pub struct Guarded {
    hub: Arc<Hub>,
    router: OpenApiRouter<Arc<Hub>>,
    guards: Vec<Guard>,
}

impl Guarded {
    /// No routes yet.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub, router: OpenApiRouter::with_openapi(openapi::document()), guards: Vec::new() }
    }

    /// Adds the routes of a noun.
    #[must_use]
    pub fn merge(self, routes: impl FnOnce(Self) -> Self) -> Self {
        routes(self)
    }

    /// Adds routes that need `action`.
    #[must_use]
    pub fn route(self, action: Action, routes: UtoipaMethodRouter<Arc<Hub>>) -> Self {
        self.add(Some(action), routes)
    }

    /// Adds routes that everybody reaches who has said who they are.
    #[must_use]
    pub fn route_for_all(self, routes: UtoipaMethodRouter<Arc<Hub>>) -> Self {
        self.add(None, routes)
    }

    fn add(mut self, action: Option<Action>, (schemas, mut paths, methods): UtoipaMethodRouter<Arc<Hub>>) -> Self {
        for (path, item) in &mut paths.paths {
            for (method, operation) in openapi::operations(item) {
                openapi::guard(operation, action);
                self.guards.push(Guard { path: path.clone(), method, action });
            }
        }
        let methods = methods.layer(from_fn_with_state((Arc::clone(&self.hub), action), access::allowed));
        self.router = self.router.routes((schemas, paths, methods));
        self
    }

    /// What each route needs.
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// The routes, and their description.
    pub fn into_parts(self) -> (Router<Arc<Hub>>, OpenApi) {
        self.router.split_for_parts()
    }
}
