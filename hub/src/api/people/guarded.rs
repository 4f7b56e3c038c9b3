//! Routes, each with what it needs of who asks.

use super::access;
use super::idempotency;
use super::lasting::lasting;
use super::openapi;
use crate::app::people::principal::Action;
use crate::state::Hub;
use axum::Router;
use axum::middleware::from_fn_with_state;
use std::sync::Arc;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

/// What a route needs of who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Nothing: it proves by itself who asks, or tells what everybody may know.
    Nothing,
    /// That they said who they are.
    Somebody,
    /// This permission.
    Permission(Action),
}

/// What one route needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    /// The path, with its parameters in braces.
    pub path: String,
    /// The method in capitals.
    pub method: &'static str,
    /// What it needs.
    pub needs: Needs,
}

/// Routes that nobody reaches without what stands beside them.
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
        self.add(Needs::Permission(action), routes)
    }

    /// Adds routes that everybody reaches who has said who they are.
    #[must_use]
    pub fn route_for_all(self, routes: UtoipaMethodRouter<Arc<Hub>>) -> Self {
        self.add(Needs::Somebody, routes)
    }

    /// Adds routes that are open to everybody. Each is to say why in a comment, and stands in the list of the tests.
    #[must_use]
    pub fn route_for_nobody(self, routes: UtoipaMethodRouter<Arc<Hub>>) -> Self {
        self.add(Needs::Nothing, routes)
    }

    fn add(mut self, needs: Needs, (schemas, mut paths, methods): UtoipaMethodRouter<Arc<Hub>>) -> Self {
        for (path, item) in &mut paths.paths {
            for (method, operation) in openapi::operations(item) {
                openapi::guard(operation, method, needs);
                self.guards.push(Guard { path: path.clone(), method, needs });
            }
        }
        let methods = match needs {
            Needs::Nothing => methods,
            Needs::Somebody => methods
                .layer(from_fn_with_state(self.hub.tasks.clone(), lasting))
                .layer(from_fn_with_state((Arc::clone(&self.hub), None), access::allowed)),
            // A key is somebody's own, and so comes after who asks. What needs no permission has none: a password's hash in
            // the database would be one more place to guess it.
            Needs::Permission(action) => methods
                .layer(from_fn_with_state(Arc::clone(&self.hub), idempotency::once))
                .layer(from_fn_with_state(self.hub.tasks.clone(), lasting))
                .layer(from_fn_with_state((Arc::clone(&self.hub), Some(action)), access::allowed)),
        };
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
