//! Certificates over SQL.

use super::cursor::{Key, Order};
use super::select::{Select, by, newest};
use super::{Engine, Row, Store, Tx, params};
use crate::{
    AgentStatus, Certificate, Certificates, NewCertificate, Page, PageRequest, Result, Revocation, Revoked, Sha256,
    TenantId,
};
use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

const COLUMNS: &str = "serial, agent_id, key_hash, issuer, pem, not_before, not_after, issued_at, superseded_at, \
    revoked_at, revoked_reason, revoked_by";
const NEWEST: Order = newest("certificates", &[("issued_at", Key::Time), ("serial", Key::Text)]);
const ENDING: Order = by("certificates_ending", &[("not_after", Key::Time), ("serial", Key::Text)]);
const REVOKED: Order = by("revocations", &[("revoked_at", Key::Time), ("serial", Key::Text)]);

fn revocation(row: &Row, at: usize) -> Result<Option<Revocation>> {
    Ok(match row.opt_time(at)? {
        Some(time) => Some(Revocation { at: time, reason: row.text(at + 1)?, by: row.text(at + 2)? }),
        None => None,
    })
}

fn certificate(row: &Row) -> Result<Certificate> {
    Ok(Certificate {
        issued: NewCertificate {
            serial: row.text(0)?,
            agent: row.uuid(1)?,
            key_hash: row.hash(2)?,
            issuer: row.text(3)?,
            pem: row.text(4)?,
            not_before: row.time(5)?,
            not_after: row.time(6)?,
            issued_at: row.time(7)?,
        },
        superseded_at: row.opt_time(8)?,
        revoked: revocation(row, 9)?,
    })
}

pub(super) fn find(tx: &mut dyn Tx, tenant: TenantId, serial: &str, lock: bool) -> Result<Option<Certificate>> {
    let lock = if lock { "/*pg FOR UPDATE pg*/" } else { "" };
    let sql = format!("SELECT {COLUMNS} FROM certificates WHERE tenant_id = $1 AND serial = $2 {lock}");
    tx.row(&sql, params![tenant, serial])?.as_ref().map(certificate).transpose()
}

/// Notes a certificate.
pub(super) fn insert(tx: &mut dyn Tx, tenant: TenantId, new: &NewCertificate) -> Result<()> {
    let made = tx.changes(
        "INSERT INTO certificates (tenant_id, serial, agent_id, key_hash, issuer, pem, not_before, not_after, issued_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
        params![
            tenant,
            &new.serial,
            new.agent,
            new.key_hash,
            &new.issuer,
            &new.pem,
            new.not_before,
            new.not_after,
            new.issued_at,
        ],
    )?;
    if made { Ok(()) } else { Err(tx.conflict(format!("certificate {}", new.serial))) }
}

fn renew(tx: &mut dyn Tx, tenant: TenantId, new: &NewCertificate, previous: &str) -> Result<()> {
    // The agent first, as whoever retires it does.
    let agent = super::agents::find(tx, tenant, new.agent, true)?;
    let agent = agent.ok_or_else(|| tx.not_found(format!("agent {}", new.agent)))?;
    if agent.status == AgentStatus::Retired {
        return Err(tx.conflict(format!("agent {}", new.agent)));
    }
    let old = find(tx, tenant, previous, true)?.filter(|old| old.issued.agent == new.agent);
    let old = old.ok_or_else(|| tx.not_found(format!("certificate {previous} of agent {}", new.agent)))?;
    if old.revoked.is_some() {
        return Err(tx.conflict(format!("certificate {previous}")));
    }
    insert(tx, tenant, new)?;
    tx.execute(
        "UPDATE certificates SET superseded_at = $4 WHERE tenant_id = $1 AND agent_id = $2 AND serial <> $3 \
         AND superseded_at IS NULL",
        params![tenant, new.agent, &new.serial, new.issued_at],
    )
    .map(drop)
}

/// Makes all certificates of an agent void; gives the serial numbers of those that were not yet.
pub(super) fn revoke_all(tx: &mut dyn Tx, tenant: TenantId, agent: Uuid, why: &Revocation) -> Result<Vec<String>> {
    let rows = tx.query(
        "UPDATE certificates SET revoked_at = $3, revoked_reason = $4, revoked_by = $5 \
         WHERE tenant_id = $1 AND agent_id = $2 AND revoked_at IS NULL RETURNING serial",
        params![tenant, agent, why.at, &why.reason, &why.by],
    )?;
    rows.iter().map(|row| row.text(0)).collect()
}

#[async_trait]
impl<E: Engine> Certificates for Store<E> {
    async fn insert_certificate(&self, tenant: TenantId, certificate: &NewCertificate) -> Result<()> {
        let new = certificate.clone();
        self.engine.write("note a certificate", move |tx| insert(tx, tenant, &new)).await
    }

    async fn renew_certificate(&self, tenant: TenantId, certificate: &NewCertificate, previous: &str) -> Result<()> {
        let (new, previous) = (certificate.clone(), previous.to_owned());
        self.engine.write("renew a certificate", move |tx| renew(tx, tenant, &new, &previous)).await
    }

    async fn certificate(&self, tenant: TenantId, serial: &str) -> Result<Option<Certificate>> {
        let serial = serial.to_owned();
        self.engine.read("read a certificate", move |tx| find(tx, tenant, &serial, false)).await
    }

    async fn certificates_of(&self, tenant: TenantId, agent: Uuid, page: &PageRequest) -> Result<Page<Certificate>> {
        let page = page.clone();
        self.engine
            .read("list certificates", move |tx| {
                let mut select = Select::new(COLUMNS, "certificates", tenant);
                select.when("agent_id = ?", agent);
                select.page(tx, &NEWEST, &page, certificate)
            })
            .await
    }

    async fn certificates_by_key(&self, tenant: TenantId, key_hash: &Sha256) -> Result<Vec<Certificate>> {
        let key_hash = *key_hash;
        self.engine
            .read("find certificates by key", move |tx| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM certificates WHERE tenant_id = $1 AND key_hash = $2 \
                     ORDER BY issued_at DESC, serial DESC LIMIT 100"
                );
                tx.query(&sql, params![tenant, key_hash])?.iter().map(certificate).collect()
            })
            .await
    }

    async fn certificates_ending(&self, tenant: TenantId, before: Timestamp, limit: u32) -> Result<Vec<Certificate>> {
        self.engine
            .read("find certificates that end", move |tx| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM certificates WHERE tenant_id = $1 AND superseded_at IS NULL \
                     AND revoked_at IS NULL AND not_after < $2 ORDER BY not_after, serial LIMIT $3"
                );
                tx.query(&sql, params![tenant, before, limit])?.iter().map(certificate).collect()
            })
            .await
    }

    async fn certificates_of_others(
        &self,
        tenant: TenantId,
        issuer: &str,
        since: Timestamp,
        page: &PageRequest,
    ) -> Result<Page<Certificate>> {
        let (issuer, page) = (issuer.to_owned(), page.clone());
        self.engine
            .read("find certificates of another authority", move |tx| {
                let mut select = Select::new(COLUMNS, "certificates", tenant);
                select
                    .and("superseded_at IS NULL AND revoked_at IS NULL")
                    .and(
                        "EXISTS (SELECT 1 FROM agents a WHERE a.tenant_id = certificates.tenant_id \
                         AND a.id = certificates.agent_id AND a.status <> 'retired')",
                    )
                    .when("issuer <> ?", &issuer)
                    .when("not_after >= ?", since);
                select.page(tx, &ENDING, &page, certificate)
            })
            .await
    }

    async fn revoke_certificate(&self, tenant: TenantId, serial: &str, why: &Revocation) -> Result<bool> {
        let (serial, why) = (serial.to_owned(), why.clone());
        self.engine
            .write("revoke a certificate", move |tx| {
                let done = tx.changes(
                    "UPDATE certificates SET revoked_at = $3, revoked_reason = $4, revoked_by = $5 \
                     WHERE tenant_id = $1 AND serial = $2 AND revoked_at IS NULL",
                    params![tenant, &serial, why.at, &why.reason, &why.by],
                )?;
                if !done && find(tx, tenant, &serial, false)?.is_none() {
                    return Err(tx.not_found(format!("certificate {serial}")));
                }
                Ok(done)
            })
            .await
    }

    async fn revoke_certificates_of(&self, tenant: TenantId, agent: Uuid, why: &Revocation) -> Result<Vec<String>> {
        let why = why.clone();
        self.engine.write("revoke an agent's certificates", move |tx| revoke_all(tx, tenant, agent, &why)).await
    }

    async fn revocations(&self, tenant: TenantId, since: Timestamp, page: &PageRequest) -> Result<Page<Revoked>> {
        let page = page.clone();
        self.engine
            .read("list revocations", move |tx| {
                let mut select = Select::new(
                    "serial, agent_id, not_after, revoked_at, revoked_reason, revoked_by",
                    "certificates",
                    tenant,
                );
                select.and("revoked_at IS NOT NULL").when("revoked_at >= ?", since);
                select.page(tx, &REVOKED, &page, |row| {
                    let why = Revocation { at: row.time(3)?, reason: row.text(4)?, by: row.text(5)? };
                    Ok(Revoked { serial: row.text(0)?, agent: row.uuid(1)?, not_after: row.time(2)?, revocation: why })
                })
            })
            .await
    }
}
