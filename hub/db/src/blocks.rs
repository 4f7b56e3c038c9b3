//! Blocks: addresses and principals that are turned away for a while.

use crate::{Page, PageRequest, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

/// Who is turned away.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockSubject {
    /// An address, in the form the hub counts by (one of IPv4, or a prefix of IPv6).
    Address(String),
    /// A principal.
    Principal(String),
}

impl BlockSubject {
    /// `address` or `principal`, and which.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Address(value) => ("address", value),
            Self::Principal(value) => ("principal", value),
        }
    }
}

/// That somebody is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Who.
    pub subject: BlockSubject,
    /// Until when; none for good.
    pub until: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// Since when.
    pub created_at: Timestamp,
    /// By whom; `hub` for what no person did.
    pub created_by: String,
}

/// What is kept of blocks.
#[async_trait]
pub trait Blocks {
    /// Turns somebody away. Who is already stays so for the longer of the two times, with the newer reason.
    async fn block(&self, tenant: TenantId, block: &Block) -> Result<Block>;

    /// Lets them in again; says whether they were turned away.
    async fn unblock(&self, tenant: TenantId, subject: &BlockSubject) -> Result<bool>;

    /// Whether they are turned away at `now`.
    async fn blocked(&self, tenant: TenantId, subject: &BlockSubject, now: Timestamp) -> Result<Option<Block>>;

    /// Who is turned away at `now`, by kind and value.
    async fn blocks(&self, tenant: TenantId, now: Timestamp, page: &PageRequest) -> Result<Page<Block>>;
}
