//! Idempotency keys over SQL.

use super::{Engine, Row, Store, Tx, params};
use crate::{Idempotency, IdempotencyKeys, IdempotentRequest, KeptResponse, Result, TenantId};
use async_trait::async_trait;

const BODY_MAX_BYTES: usize = 1 << 20;

fn kept(row: &Row) -> Result<Option<KeptResponse>> {
    Ok(match row.opt_int(4)? {
        Some(status) => {
            let status = u16::try_from(status).unwrap_or_default();
            Some(KeptResponse { status, headers: row.json(5)?, body: row.bytes(6)? })
        }
        None => None,
    })
}

fn begin(tx: &mut dyn Tx, tenant: TenantId, request: &IdempotentRequest) -> Result<Idempotency> {
    let made = tx.changes(
        "INSERT INTO idempotency (tenant_id, principal, key, request_hash, attempt, locked_until, expires_at) \
         VALUES ($1, $2, $3, $4, 1, $5, $6) ON CONFLICT DO NOTHING",
        params![
            tenant,
            &request.principal,
            &request.key,
            request.request_hash,
            request.locked_until,
            request.expires_at,
        ],
    )?;
    if made {
        return Ok(Idempotency::New(1));
    }
    let row = tx.row(
        "SELECT request_hash, attempt, locked_until, expires_at, status, headers, body FROM idempotency \
         WHERE tenant_id = $1 AND principal = $2 AND key = $3 /*pg FOR UPDATE pg*/",
        params![tenant, &request.principal, &request.key],
    )?;
    // It was abandoned between the two statements: whoever did so is done with it.
    let Some(row) = row else { return Ok(Idempotency::InProgress) };
    let over = row.time(3)? <= request.now;
    if !over {
        if row.hash(0)? != request.request_hash {
            return Ok(Idempotency::Mismatch);
        }
        if let Some(response) = kept(&row)? {
            return Ok(Idempotency::Replay(response));
        }
        if row.time(2)? > request.now {
            return Ok(Idempotency::InProgress);
        }
    }
    let attempt = row.int(1)? + 1;
    tx.execute(
        "UPDATE idempotency SET request_hash = $4, attempt = $5, locked_until = $6, expires_at = $7, status = NULL, \
         headers = NULL, body = NULL WHERE tenant_id = $1 AND principal = $2 AND key = $3",
        params![
            tenant,
            &request.principal,
            &request.key,
            request.request_hash,
            attempt,
            request.locked_until,
            request.expires_at,
        ],
    )?;
    Ok(Idempotency::New(attempt))
}

#[async_trait]
impl<E: Engine> IdempotencyKeys for Store<E> {
    async fn begin_request(&self, tenant: TenantId, request: &IdempotentRequest) -> Result<Idempotency> {
        let request = request.clone();
        self.engine.write("begin a request", move |tx| begin(tx, tenant, &request)).await
    }

    async fn finish_request(
        &self,
        tenant: TenantId,
        principal: &str,
        key: &str,
        attempt: i64,
        response: &KeptResponse,
    ) -> Result<bool> {
        let (principal, key, response) = (principal.to_owned(), key.to_owned(), response.clone());
        self.engine
            .write("keep an answer", move |tx| {
                if response.body.len() > BODY_MAX_BYTES {
                    return Err(tx.invalid(format!("an answer of more than {BODY_MAX_BYTES} bytes is not kept")));
                }
                tx.changes(
                    "UPDATE idempotency SET status = $5, headers = $6, body = $7 \
                     WHERE tenant_id = $1 AND principal = $2 AND key = $3 AND attempt = $4 AND status IS NULL",
                    params![tenant, &principal, &key, attempt, response.status, &response.headers, &response.body,],
                )
            })
            .await
    }

    async fn abandon_request(&self, tenant: TenantId, principal: &str, key: &str, attempt: i64) -> Result<bool> {
        let (principal, key) = (principal.to_owned(), key.to_owned());
        self.engine
            .write("abandon a request", move |tx| {
                tx.changes(
                    "DELETE FROM idempotency \
                     WHERE tenant_id = $1 AND principal = $2 AND key = $3 AND attempt = $4 AND status IS NULL",
                    params![tenant, &principal, &key, attempt],
                )
            })
            .await
    }
}
