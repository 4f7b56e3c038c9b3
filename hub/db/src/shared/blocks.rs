//! Blocks over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, by};
use super::{Engine, Row, Store, params};
use crate::{Block, BlockSubject, Blocks, Page, PageRequest, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;

const COLUMNS: &str = "kind, value, until, reason, created_at, created_by";
const ORDER: Order = by("blocks", &[("kind", Key::Text), ("value", Key::Text)]);

fn block(row: &Row) -> Result<Block> {
    let value = row.text(1)?;
    let subject = row.word(0, |kind| match kind {
        "address" => Some(BlockSubject::Address(value.clone())),
        "principal" => Some(BlockSubject::Principal(value.clone())),
        _ => None,
    })?;
    Ok(Block {
        subject,
        until: row.opt_time(2)?,
        reason: row.text(3)?,
        created_at: row.time(4)?,
        created_by: row.text(5)?,
    })
}

#[async_trait]
impl<E: Engine> Blocks for Store<E> {
    async fn block(&self, tenant: TenantId, new: &Block) -> Result<Block> {
        let new = new.clone();
        self.engine
            .write("block somebody", move |tx| {
                let (kind, value) = new.subject.parts();
                let sql = format!(
                    "INSERT INTO blocks (tenant_id, kind, value, until, reason, created_at, created_by) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant_id, kind, value) DO UPDATE SET \
                     until = CASE WHEN blocks.until IS NULL OR excluded.until IS NULL THEN NULL \
                     WHEN excluded.until > blocks.until THEN excluded.until ELSE blocks.until END, \
                     reason = excluded.reason RETURNING {COLUMNS}"
                );
                let values = params![tenant, kind, value, new.until, &new.reason, new.created_at, &new.created_by];
                block(&tx.row(&sql, values)?.ok_or_else(|| tx.not_found("block"))?)
            })
            .await
    }

    async fn unblock(&self, tenant: TenantId, subject: &BlockSubject) -> Result<bool> {
        let subject = subject.clone();
        self.engine
            .write("let somebody in again", move |tx| {
                let (kind, value) = subject.parts();
                tx.changes(
                    "DELETE FROM blocks WHERE tenant_id = $1 AND kind = $2 AND value = $3",
                    params![tenant, kind, value],
                )
            })
            .await
    }

    async fn blocked(&self, tenant: TenantId, subject: &BlockSubject, now: Timestamp) -> Result<Option<Block>> {
        let subject = subject.clone();
        self.engine
            .read("look for a block", move |tx| {
                let (kind, value) = subject.parts();
                let sql = format!(
                    "SELECT {COLUMNS} FROM blocks WHERE tenant_id = $1 AND kind = $2 AND value = $3 \
                     AND (until IS NULL OR until > $4)"
                );
                tx.row(&sql, params![tenant, kind, value, now])?.as_ref().map(block).transpose()
            })
            .await
    }

    async fn blocks(&self, tenant: TenantId, now: Timestamp, page: &PageRequest) -> Result<Page<Block>> {
        let page = page.clone();
        self.engine
            .read("list blocks", move |tx| {
                let mut select = Select::new(COLUMNS, "blocks", tenant);
                select.when("(until IS NULL OR until > ?)", now);
                select.page(tx, &ORDER, &page, block)
            })
            .await
    }
}
