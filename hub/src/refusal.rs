//! What a request comes to when it comes to nothing: a problem with a code, for whoever asked.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use picket_hub_db::DbError;
use picket_pki::PkiError;
use picket_protocol::hub::{PROBLEM_MEDIA_TYPE, Problem, ProblemCode};
use std::time::Duration;

/// A request that is refused, or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub Box<Problem>);

/// What the application's functions return.
pub type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    /// With this code and these words.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(code, detail)))
    }

    /// Asks to come back after `wait`, rounded up to seconds.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.0.retry_after = Some(seconds.max(1));
        self
    }

    /// With the hub's time, for a side whose clock may be off.
    #[must_use]
    pub fn at(mut self, now: jiff::Timestamp) -> Self {
        self.0.hub_time = Some(now);
        self
    }

    /// The code.
    pub fn code(&self) -> ProblemCode {
        self.0.code
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refusal {}

impl From<DbError> for Refusal {
    /// What the database says is for the log; who asked hears whether it is worth to ask again.
    fn from(error: DbError) -> Self {
        match &error {
            DbError::NotFound { object, .. } => Self::new(ProblemCode::NotFound, format!("there is no {object}")),
            DbError::Conflict { object, .. } => {
                Self::new(ProblemCode::Conflict, format!("{object} was changed meanwhile; read it again"))
            }
            DbError::Invalid { why, .. } => Self::new(ProblemCode::Invalid, why.clone()),
            DbError::Busy { .. } => {
                Self::new(ProblemCode::Overloaded, "the hub's database is busy").after(Duration::from_secs(1))
            }
            DbError::Unavailable { retry, .. } => {
                tracing::warn!(%error, "the database cannot be reached");
                Self::new(ProblemCode::StorageUnavailable, "the hub's database cannot be reached").after(*retry)
            }
            _ => {
                tracing::error!(%error, "the database failed");
                Self::new(ProblemCode::StorageUnavailable, "the hub's database failed; its log says why")
                    .after(Duration::from_secs(10))
            }
        }
    }
}

/// What the database's failure means for an **agent**. Nothing that the database says is about what the agent sent: that
/// was looked at before, and an agent that hears `invalid` gives up the events it sent. So it hears to come again.
pub fn storage(error: DbError) -> Refusal {
    match &error {
        DbError::Invalid { .. } => {
            tracing::error!(%error, "the database refused what an agent sent");
            Refusal::new(ProblemCode::StorageUnavailable, "the hub's database refused to store this; its log says why")
                .after(Duration::from_secs(10))
        }
        _ => error.into(),
    }
}

impl From<PkiError> for Refusal {
    fn from(error: PkiError) -> Self {
        tracing::error!(%error, "a certificate could not be made");
        Self::new(ProblemCode::Internal, "the hub could not make a certificate; its log says why")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.0.retry_after;
        // Strings and numbers: nothing of it can fail.
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // For the layer that counts refusals by code.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_its_status_its_code_and_when_to_come_back() {
        let refusal = Refusal::new(ProblemCode::Overloaded, "busy").after(Duration::from_millis(1200));
        let response = refusal.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_MEDIA_TYPE);
    }

    #[test]
    fn nothing_that_the_database_says_makes_an_agent_give_up_what_it_sent() {
        let why = "invalid byte sequence for encoding \"UTF8\" (22021)".to_owned();
        let refusal = storage(DbError::Invalid { operation: "store events", why });
        assert_eq!((refusal.code(), refusal.0.status), (ProblemCode::StorageUnavailable, 503));
        assert!(refusal.0.retry_after.is_some() && !refusal.to_string().contains("22021"), "{refusal}");
        let busy = storage(DbError::Busy { operation: "store events", why: String::new() });
        assert_eq!(busy.code(), ProblemCode::Overloaded);
    }

    #[test]
    fn what_the_database_says_of_itself_is_not_told_to_who_asked() {
        let error = DbError::Io { operation: "read", why: "secret path /var/x".into() };
        let refusal = Refusal::from(error);
        assert_eq!(refusal.code(), ProblemCode::StorageUnavailable);
        assert!(!refusal.to_string().contains("/var/x"));
    }
}
