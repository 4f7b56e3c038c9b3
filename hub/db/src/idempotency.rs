//! Idempotency keys: the answer to a request that may be sent twice.

use crate::{Result, Sha256, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;

/// A request under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotentRequest {
    /// Who sends it: keys of different principals are different keys.
    pub principal: String,
    /// The key they gave it.
    pub key: String,
    /// The SHA-256 over method, path and body.
    pub request_hash: Sha256,
    /// When, by the hub's clock.
    pub now: Timestamp,
    /// Until when it counts as in progress, if nobody finishes it: whoever did it may have died.
    pub locked_until: Timestamp,
    /// Until when the answer is kept.
    pub expires_at: Timestamp,
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptResponse {
    /// Its status.
    pub status: u16,
    /// Its headers: a JSON object.
    pub headers: Value,
    /// Its body.
    pub body: Vec<u8>,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Idempotency {
    /// Do it, then [`IdempotencyKeys::finish_request`]. The number is the right to do so.
    New(i64),
    /// Somebody does it just now.
    InProgress,
    /// It was done: this was the answer.
    Replay(KeptResponse),
    /// The key was given to another request.
    Mismatch,
}

/// What is kept of idempotency keys.
#[async_trait]
pub trait IdempotencyKeys {
    /// Begins a request, or says what became of it. A key whose time is over is a new one.
    async fn begin_request(&self, tenant: TenantId, request: &IdempotentRequest) -> Result<Idempotency>;

    /// Keeps the answer; says whether `attempt` still had the right to.
    async fn finish_request(
        &self,
        tenant: TenantId,
        principal: &str,
        key: &str,
        attempt: i64,
        response: &KeptResponse,
    ) -> Result<bool>;

    /// Forgets a request that came to nothing, so that it may be sent again; says whether `attempt` still had the right to.
    async fn abandon_request(&self, tenant: TenantId, principal: &str, key: &str, attempt: i64) -> Result<bool>;
}
