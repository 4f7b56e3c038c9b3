//! Deliveries: what is to be told to others (webhooks), kept in the same transaction as what it tells of.

use crate::basics::words;
use crate::{Page, PageRequest, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

words! {
    /// Where a delivery stands.
    DeliveryState {
        /// It is to be tried when its time has come.
        Waiting = "waiting",
        /// The other side took it.
        Done = "done",
        /// It was given up.
        Failed = "failed",
    }
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct NewDelivery {
    /// Its id; one that is there already is not queued again.
    pub id: Uuid,
    /// To whom: the name of a webhook in the configuration.
    pub target: String,
    /// What: JSON.
    pub payload: Value,
    /// Not before.
    pub due: Timestamp,
}

/// Something that is or was to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// What.
    pub delivery: NewDelivery,
    /// Where it stands; `due` of a waiting one is the next attempt.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it was queued.
    pub created_at: Timestamp,
}

/// What is kept of deliveries.
#[async_trait]
pub trait Deliveries {
    /// Queues deliveries by themselves.
    async fn enqueue_deliveries(&self, tenant: TenantId, deliveries: &[NewDelivery], now: Timestamp) -> Result<()>;

    /// Takes up to `limit` that are due, that nobody else has, and that are not for one of `except`; until `lease_until`
    /// they are the holder's. Each counts as an attempt.
    async fn claim_deliveries(
        &self,
        tenant: TenantId,
        holder: &str,
        now: Timestamp,
        lease_until: Timestamp,
        limit: u32,
        except: &[String],
    ) -> Result<Vec<Delivery>>;

    /// It was taken; says whether the holder still had it.
    async fn delivery_done(&self, tenant: TenantId, id: Uuid, holder: &str, now: Timestamp) -> Result<bool>;

    /// It went wrong: tried again at `next`, or given up. Says whether the holder still had it.
    async fn delivery_failed(
        &self,
        tenant: TenantId,
        id: Uuid,
        holder: &str,
        error: &str,
        next: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<bool>;

    /// Queues one that was given up or taken again, as if it were new; says whether there was one.
    async fn redeliver(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<bool>;

    /// Deliveries in this state, or all, the newest first.
    async fn deliveries(
        &self,
        tenant: TenantId,
        state: Option<DeliveryState>,
        page: &PageRequest,
    ) -> Result<Page<Delivery>>;
}
