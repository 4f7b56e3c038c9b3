//! The API's nouns, one file each, and what they share.

pub(super) mod agents;
pub(super) mod auth;
pub(super) mod books;
pub(super) mod cases;
pub(super) mod configs;
pub(super) mod enrolment;
pub(super) mod events;
pub(super) mod findings;
pub(super) mod hub;
pub(super) mod rules;
pub(super) mod users;
pub(super) mod watch;
pub(super) mod webhooks;

use super::access::Caller;
use crate::app::people::principal::Scope;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use picket_protocol::hub::ProblemCode;
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

/// The longest document that the API takes, in bytes.
pub(in crate::api::people) const BODY_MAX: usize = 1 << 20;

/// Parts of the path, read into what they should be.
pub(super) struct InPath<T>(pub(super) T);

/// Parameters behind the question mark, read into what they should be.
pub(super) struct InQuery<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let read: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        // No such id can be: there is no such thing.
        read.map(|Path(value)| Self(value)).map_err(|error| Refusal::new(ProblemCode::NotFound, error.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for InQuery<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let read: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        read.map(|Query(value)| Self(value)).map_err(|error| Refusal::new(ProblemCode::Invalid, error.body_text()))
    }
}

/// Which agents a caller may see, asked once for each.
pub(super) struct Visible<'a> {
    hub: &'a Hub,
    scope: Option<&'a Scope>,
    known: HashMap<Uuid, bool>,
}

impl<'a> Visible<'a> {
    pub(super) fn new(hub: &'a Hub, caller: &'a Caller) -> Self {
        Self::of(hub, Some(&caller.scope))
    }

    /// By a permission that is not the route's own; with none nothing is visible.
    pub(super) fn of(hub: &'a Hub, scope: Option<&'a Scope>) -> Self {
        Self { hub, scope, known: HashMap::new() }
    }

    /// Whether the caller may see what is about this agent; what is about none, only who may see everything.
    pub(super) async fn agent(&mut self, agent: Option<Uuid>) -> Outcome<bool> {
        let Some(scope) = self.scope else { return Ok(false) };
        if *scope == Scope::Everything {
            return Ok(true);
        }
        let Some(agent) = agent else { return Ok(false) };
        if let Some(known) = self.known.get(&agent) {
            return Ok(*known);
        }
        let found = self.hub.db.agent(self.hub.tenant, agent).await?;
        let visible = found.is_some_and(|agent| scope.holds(&agent.tags));
        self.known.insert(agent, visible);
        Ok(visible)
    }
}

/// The tags of which an agent must have one for the caller to see it; `None` for who sees everything. Lists are asked for
/// within them: what is left out after a page was cut would still show in its length and its cursor.
pub(super) fn within(caller: &Caller) -> Option<BTreeSet<String>> {
    match &caller.scope {
        Scope::Everything => None,
        Scope::Tags(tags) => Some(tags.clone()),
    }
}

/// That there is no such thing, or none that one may see: the same words for both.
pub(super) fn absent(what: &str) -> Refusal {
    Refusal::new(ProblemCode::NotFound, format!("there is no such {what}, or you may not see it"))
}

/// A text of a request, within its bounds.
///
/// # Errors
/// `invalid`, with the field.
pub(super) fn text(field: &str, text: &str, max: usize) -> Outcome<String> {
    let is_fine = text.chars().count() <= max && !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
    if is_fine && !text.trim().is_empty() {
        return Ok(text.to_owned());
    }
    let detail = format!("{field} has 1 to {max} characters, and no control characters");
    Err(Refusal::new(ProblemCode::Invalid, detail))
}
