//! Deliveries over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, newest};
use super::{Engine, Row, Store, Tx, Value, params};
use crate::{Deliveries, Delivery, DeliveryState, NewDelivery, PAGE_MAX, Page, PageRequest, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

const COLUMNS: &str = "id, target, payload, due, state, attempts, last_error, created_at";
const NEWEST: Order = newest("deliveries", &[("created_at", Key::Time), ("id", Key::Uuid)]);

fn delivery(row: &Row) -> Result<Delivery> {
    Ok(Delivery {
        delivery: NewDelivery { id: row.uuid(0)?, target: row.text(1)?, payload: row.json(2)?, due: row.time(3)? },
        state: row.word(4, DeliveryState::from_word)?,
        attempts: row.small(5)?,
        last_error: row.opt_text(6)?,
        created_at: row.time(7)?,
    })
}

/// Queues deliveries within a transaction that changes what they tell of.
pub(super) fn enqueue(tx: &mut dyn Tx, tenant: TenantId, deliveries: &[NewDelivery], now: Timestamp) -> Result<()> {
    for new in deliveries {
        tx.execute(
            "INSERT INTO deliveries (tenant_id, id, target, payload, due, state, attempts, created_at) \
             VALUES ($1, $2, $3, $4, $5, 'waiting', 0, $6) ON CONFLICT DO NOTHING",
            params![tenant, new.id, &new.target, &new.payload, new.due, now],
        )?;
    }
    Ok(())
}

#[async_trait]
impl<E: Engine> Deliveries for Store<E> {
    async fn enqueue_deliveries(&self, tenant: TenantId, deliveries: &[NewDelivery], now: Timestamp) -> Result<()> {
        let deliveries = deliveries.to_vec();
        self.engine.write("queue deliveries", move |tx| enqueue(tx, tenant, &deliveries, now)).await
    }

    async fn claim_deliveries(
        &self,
        tenant: TenantId,
        holder: &str,
        now: Timestamp,
        lease_until: Timestamp,
        limit: u32,
        except: &[String],
    ) -> Result<Vec<Delivery>> {
        let (holder, except) = (holder.to_owned(), except.to_vec());
        self.engine
            .write("claim deliveries", move |tx| {
                let mut values = params![tenant, now, &holder, lease_until, limit.clamp(1, PAGE_MAX)].to_vec();
                let places: Vec<String> = (1..=except.len()).map(|n| format!("${}", values.len() + n)).collect();
                values.extend(except.iter().map(Value::from));
                let others = match places.as_slice() {
                    [] => String::new(),
                    places => format!("AND target NOT IN ({})", places.join(", ")),
                };
                let sql = format!(
                    "UPDATE deliveries SET holder = $3, held_until = $4, attempts = attempts + 1 \
                     WHERE tenant_id = $1 AND id IN (SELECT id FROM deliveries WHERE tenant_id = $1 \
                     AND state = 'waiting' AND due <= $2 AND (held_until IS NULL OR held_until <= $2) {others} \
                     ORDER BY due, id LIMIT $5 /*pg FOR UPDATE SKIP LOCKED pg*/) RETURNING {COLUMNS}"
                );
                let rows = tx.query(&sql, &values)?;
                let mut claimed = rows.iter().map(delivery).collect::<Result<Vec<_>>>()?;
                claimed.sort_by_key(|one| (one.delivery.due, one.delivery.id));
                Ok(claimed)
            })
            .await
    }

    async fn delivery_done(&self, tenant: TenantId, id: Uuid, holder: &str, now: Timestamp) -> Result<bool> {
        let holder = holder.to_owned();
        self.engine
            .write("note a delivery", move |tx| {
                tx.changes(
                    "UPDATE deliveries SET state = 'done', due = $4, holder = NULL, held_until = NULL, last_error = NULL \
                     WHERE tenant_id = $1 AND id = $2 AND holder = $3 AND state = 'waiting'",
                    params![tenant, id, &holder, now],
                )
            })
            .await
    }

    async fn delivery_failed(
        &self,
        tenant: TenantId,
        id: Uuid,
        holder: &str,
        error: &str,
        next: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<bool> {
        let (holder, error) = (holder.to_owned(), error.to_owned());
        self.engine
            .write("note a failed delivery", move |tx| {
                let state = if next.is_some() { DeliveryState::Waiting } else { DeliveryState::Failed };
                tx.changes(
                    "UPDATE deliveries SET state = $4, due = $5, last_error = $6, holder = NULL, held_until = NULL \
                     WHERE tenant_id = $1 AND id = $2 AND holder = $3 AND state = 'waiting'",
                    params![tenant, id, &holder, state.as_str(), next.unwrap_or(now), &error],
                )
            })
            .await
    }

    async fn redeliver(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<bool> {
        self.engine
            .write("queue a delivery again", move |tx| {
                tx.changes(
                    "UPDATE deliveries SET state = 'waiting', due = $3, attempts = 0, holder = NULL, held_until = NULL \
                     WHERE tenant_id = $1 AND id = $2 AND state <> 'waiting'",
                    params![tenant, id, now],
                )
            })
            .await
    }

    async fn deliveries(
        &self,
        tenant: TenantId,
        state: Option<DeliveryState>,
        page: &PageRequest,
    ) -> Result<Page<Delivery>> {
        let page = page.clone();
        self.engine
            .read("list deliveries", move |tx| {
                let mut select = Select::new(COLUMNS, "deliveries", tenant);
                select.when_some("state = ?", state.map(DeliveryState::as_str));
                select.page(tx, &NEWEST, &page, delivery)
            })
            .await
    }
}
