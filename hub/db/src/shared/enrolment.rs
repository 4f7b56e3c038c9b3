//! Enrolment over SQL, and the decision who is let in.

use super::cursor::{Key, Order};
use super::select::{Select, newest};
use super::{Engine, Row, Store, Tx, Value, agents, certificates, params};
use crate::{
    Backend, EnrolOutcome, EnrolRequest, EnrolToken, Enrolled, Enrolment, EnrolmentState, Hidden, Network, NewAgent,
    NewCertificate, NewEnrolToken, Page, PageRequest, REPLAY_WINDOW, Result, TenantId,
};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use uuid::Uuid;

const TOKEN: &str = "id, secret_hash, label, tags, max_uses, uses, needs_approval, allowed, created_at, created_by, \
    expires_at, revoked_at";
const USE: &str = "id, token_id, state, agent_id, key_hash, name, type, address, csr, serial, asked_at, decided_at, \
    decided_by, answered_at";
/// That a token has one of the tags for which `?` stands.
fn has_tag(backend: Backend) -> &'static str {
    match backend {
        Backend::Sqlite => "EXISTS (SELECT 1 FROM json_each(enrol_tokens.tags) AS has WHERE has.value IN (?))",
        Backend::Postgres => {
            "EXISTS (SELECT 1 FROM json_array_elements_text(enrol_tokens.tags) AS has (tag) WHERE has.tag IN (?))"
        }
    }
}

const TOKENS: Order = newest("tokens", &[("created_at", Key::Time), ("id", Key::Uuid)]);
const USES: Order = newest("enrolments", &[("asked_at", Key::Time), ("id", Key::Uuid)]);

fn token(row: &Row) -> Result<EnrolToken> {
    let allowed: Vec<String> = row.words(7)?;
    Ok(EnrolToken {
        id: row.uuid(0)?,
        secret_hash: Hidden(row.hash(1)?),
        label: row.text(2)?,
        tags: row.words(3)?,
        max_uses: row.small(4)?,
        uses: row.small(5)?,
        needs_approval: row.bool(6)?,
        allowed: allowed.iter().map(|text| text.parse()).collect::<Result<_>>()?,
        created_at: row.time(8)?,
        created_by: row.text(9)?,
        expires_at: row.time(10)?,
        revoked_at: row.opt_time(11)?,
    })
}

fn enrolled(row: &Row) -> Result<Enrolled> {
    Ok(Enrolled {
        id: row.uuid(0)?,
        token: row.uuid(1)?,
        state: row.word(2, EnrolmentState::from_word)?,
        agent: row.opt_uuid(3)?,
        key_hash: row.hash(4)?,
        name: row.text(5)?,
        kind: row.text(6)?,
        address: row.text(7)?,
        csr: row.text(8)?,
        serial: row.opt_text(9)?,
        asked_at: row.time(10)?,
        decided_at: row.opt_time(11)?,
        decided_by: row.opt_text(12)?,
    })
}

/// A use of the token by the same key, and when its certificate was first given out.
struct Earlier {
    enrolled: Enrolled,
    answered_at: Option<Timestamp>,
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// This is the answer, and nothing is to be done.
    Answer(EnrolOutcome),
    /// Give out what was stored for this use.
    GiveAgain,
    /// Let it in.
    LetIn,
    /// Let it wait.
    Wait,
}

/// Decides: the secret first, so that nothing is told to who does not have it; then what was decided for this very key;
/// then whether the token may be used once more.
fn decide(token: Option<&EnrolToken>, earlier: Option<&Earlier>, request: &EnrolRequest) -> Verdict {
    let Some(token) = token.filter(|token| token.secret_hash == request.secret_hash) else {
        return Verdict::Answer(EnrolOutcome::Unknown);
    };
    if token.revoked_at.is_some() {
        return Verdict::Answer(EnrolOutcome::Revoked);
    }
    if !token.allowed.is_empty() && !token.allowed.iter().any(|network| network.holds(request.address)) {
        return Verdict::Answer(EnrolOutcome::AddressRefused);
    }
    if let Some(Earlier { enrolled, answered_at }) = earlier {
        let window = SignedDuration::try_from(REPLAY_WINDOW).unwrap_or(SignedDuration::MAX);
        match enrolled.state {
            EnrolmentState::Accepted if answered_at.is_none_or(|at| request.now.duration_since(at) < window) => {
                return Verdict::GiveAgain;
            }
            EnrolmentState::Pending => {
                return Verdict::Answer(EnrolOutcome::PendingApproval { enrolment: enrolled.id });
            }
            EnrolmentState::Denied => return Verdict::Answer(EnrolOutcome::Denied),
            EnrolmentState::Accepted | EnrolmentState::Expired => {}
        }
    }
    if token.expires_at <= request.now {
        return Verdict::Answer(EnrolOutcome::Expired { at: token.expires_at });
    }
    if token.uses >= token.max_uses {
        return Verdict::Answer(EnrolOutcome::UsedUp);
    }
    if token.needs_approval { Verdict::Wait } else { Verdict::LetIn }
}

fn find_token(tx: &mut dyn Tx, tenant: TenantId, id: Uuid, lock: bool) -> Result<Option<EnrolToken>> {
    let lock = if lock { "/*pg FOR UPDATE pg*/" } else { "" };
    let sql = format!("SELECT {TOKEN} FROM enrol_tokens WHERE tenant_id = $1 AND id = $2 {lock}");
    tx.row(&sql, params![tenant, id])?.as_ref().map(token).transpose()
}

fn consume(tx: &mut dyn Tx, tenant: TenantId, request: &EnrolRequest) -> Result<EnrolOutcome> {
    if request.certificate.key_hash == [0; 32] {
        return Err(tx.invalid("the certificate names no key"));
    }
    let token = find_token(tx, tenant, request.token, true)?;
    let sql = format!(
        "SELECT {USE} FROM enrolments WHERE tenant_id = $1 AND token_id = $2 AND key_hash = $3 \
         ORDER BY asked_at DESC, id DESC LIMIT 1"
    );
    let row = tx.row(&sql, params![tenant, request.token, request.certificate.key_hash])?;
    let earlier = match &row {
        Some(row) => Some(Earlier { enrolled: enrolled(row)?, answered_at: row.opt_time(13)? }),
        None => None,
    };
    match (decide(token.as_ref(), earlier.as_ref(), request), token, earlier) {
        (Verdict::Answer(outcome), ..) => Ok(outcome),
        (Verdict::GiveAgain, _, Some(earlier)) => give_again(tx, tenant, &earlier.enrolled, request),
        (verdict @ (Verdict::LetIn | Verdict::Wait), Some(token), _) => admit(tx, tenant, &token, &verdict, request),
        // Cannot be: the first needs an earlier use, the others a token.
        (Verdict::GiveAgain | Verdict::LetIn | Verdict::Wait, ..) => Ok(EnrolOutcome::Unknown),
    }
}

fn give_again(tx: &mut dyn Tx, tenant: TenantId, use_: &Enrolled, request: &EnrolRequest) -> Result<EnrolOutcome> {
    let serial = use_.serial.clone().unwrap_or_default();
    let certificate = certificates::find(tx, tenant, &serial, false)?;
    let (Some(agent), Some(certificate)) = (use_.agent, certificate) else {
        return Err(tx.conflict(format!("enrolment {}", use_.id)));
    };
    if certificate.revoked.is_some() {
        return Ok(EnrolOutcome::Revoked);
    }
    tx.execute(
        "UPDATE enrolments SET answered_at = coalesce(answered_at, $3) WHERE tenant_id = $1 AND id = $2",
        params![tenant, use_.id, request.now],
    )?;
    Ok(EnrolOutcome::Replay { agent, serial, pem: certificate.issued.pem })
}

fn make_agent(
    tx: &mut dyn Tx,
    tenant: TenantId,
    token: &EnrolToken,
    (name, kind): (&str, &str),
    certificate: &NewCertificate,
    now: Timestamp,
) -> Result<()> {
    let new = NewAgent {
        id: certificate.agent,
        name: name.to_owned(),
        kind: kind.to_owned(),
        tags: token.tags.clone(),
        config: serde_json::json!({}),
    };
    if !agents::create(tx, tenant, &new, now)? {
        return Err(tx.conflict(format!("agent {}", new.id)));
    }
    certificates::insert(tx, tenant, certificate)
}

fn admit(
    tx: &mut dyn Tx,
    tenant: TenantId,
    token: &EnrolToken,
    verdict: &Verdict,
    request: &EnrolRequest,
) -> Result<EnrolOutcome> {
    let certificate = &request.certificate;
    tx.execute(
        "UPDATE enrol_tokens SET uses = uses + 1 WHERE tenant_id = $1 AND id = $2",
        params![tenant, request.token],
    )?;
    let at_once = *verdict == Verdict::LetIn;
    if at_once {
        make_agent(tx, tenant, token, (&request.name, &request.kind), certificate, request.now)?;
    }
    // One that waits has no agent yet, so that its id is free to name the use.
    let id = certificate.agent;
    let state = if at_once { EnrolmentState::Accepted } else { EnrolmentState::Pending };
    let decided = at_once.then_some(request.now);
    let made = tx.changes(
        "INSERT INTO enrolments (tenant_id, id, token_id, state, agent_id, key_hash, name, type, address, csr, serial, \
         asked_at, answered_at, decided_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13) \
         ON CONFLICT DO NOTHING",
        params![
            tenant,
            id,
            request.token,
            state.as_str(),
            at_once.then_some(certificate.agent),
            certificate.key_hash,
            &request.name,
            &request.kind,
            request.address.to_string(),
            if at_once { "" } else { request.csr.as_str() },
            at_once.then_some(certificate.serial.as_str()),
            request.now,
            decided,
        ],
    )?;
    if !made {
        return Err(tx.conflict(format!("enrolment {id}")));
    }
    Ok(if at_once {
        EnrolOutcome::New { agent: certificate.agent }
    } else {
        EnrolOutcome::PendingApproval { enrolment: id }
    })
}

fn find_use(tx: &mut dyn Tx, tenant: TenantId, id: Uuid, lock: bool) -> Result<Option<Enrolled>> {
    let lock = if lock { "/*pg FOR UPDATE pg*/" } else { "" };
    let sql = format!("SELECT {USE} FROM enrolments WHERE tenant_id = $1 AND id = $2 {lock}");
    tx.row(&sql, params![tenant, id])?.as_ref().map(enrolled).transpose()
}

/// The use with this id, if it waits, its token locked first, as a request does.
fn waiting(tx: &mut dyn Tx, tenant: TenantId, id: Uuid) -> Result<(Enrolled, EnrolToken)> {
    let missing = |tx: &mut dyn Tx| tx.not_found(format!("enrolment {id}"));
    let seen = find_use(tx, tenant, id, false)?.ok_or_else(|| missing(tx))?;
    let token = find_token(tx, tenant, seen.token, true)?.ok_or_else(|| missing(tx))?;
    let found = find_use(tx, tenant, id, true)?.ok_or_else(|| missing(tx))?;
    if found.state != EnrolmentState::Pending {
        return Err(tx.conflict(format!("enrolment {id}")));
    }
    Ok((found, token))
}

fn settle(
    tx: &mut dyn Tx,
    tenant: TenantId,
    id: Uuid,
    state: EnrolmentState,
    certificate: Option<&NewCertificate>,
    by: &str,
    now: Timestamp,
) -> Result<()> {
    tx.execute(
        "UPDATE enrolments SET state = $3, agent_id = $4, serial = $5, decided_by = $6, decided_at = $7, csr = '' \
         WHERE tenant_id = $1 AND id = $2",
        params![
            tenant,
            id,
            state.as_str(),
            certificate.map(|one| one.agent),
            certificate.map(|one| one.serial.as_str()),
            by,
            now,
        ],
    )
    .map(drop)
}

#[async_trait]
impl<E: Engine> Enrolment for Store<E> {
    async fn create_enrol_token(&self, tenant: TenantId, new: &NewEnrolToken, now: Timestamp) -> Result<EnrolToken> {
        let new = new.clone();
        self.engine
            .write("make an enrolment token", move |tx| {
                if new.max_uses == 0 || new.expires_at <= now {
                    return Err(tx.invalid("a token that could never be used is not made"));
                }
                let allowed: Vec<String> = new.allowed.iter().map(Network::to_string).collect();
                let row = tx.row(
                    &format!(
                        "INSERT INTO enrol_tokens (tenant_id, id, secret_hash, label, tags, max_uses, uses, \
                         needs_approval, allowed, created_at, created_by, expires_at) \
                         VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING RETURNING {TOKEN}"
                    ),
                    params![
                        tenant,
                        new.id,
                        new.secret_hash.0,
                        &new.label,
                        &new.tags,
                        new.max_uses,
                        new.needs_approval,
                        Value::Json(serde_json::Value::from(allowed).to_string()),
                        now,
                        &new.created_by,
                        new.expires_at,
                    ],
                )?;
                token(&row.ok_or_else(|| tx.conflict(format!("enrolment token {}", new.id)))?)
            })
            .await
    }

    async fn enrol_token(&self, tenant: TenantId, id: Uuid) -> Result<Option<EnrolToken>> {
        self.engine.read("read an enrolment token", move |tx| find_token(tx, tenant, id, false)).await
    }

    async fn enrol_tokens(
        &self,
        tenant: TenantId,
        within: Option<&BTreeSet<String>>,
        page: &PageRequest,
    ) -> Result<Page<EnrolToken>> {
        let (within, page) = (within.cloned(), page.clone());
        self.engine
            .read("list enrolment tokens", move |tx| {
                let mut select = Select::new(TOKEN, "enrol_tokens", tenant);
                if let Some(tags) = &within {
                    select.when_any(has_tag(tx.backend()), tags);
                }
                select.page(tx, &TOKENS, &page, token)
            })
            .await
    }

    async fn revoke_enrol_token(&self, tenant: TenantId, id: Uuid, now: Timestamp) -> Result<bool> {
        self.engine
            .write("revoke an enrolment token", move |tx| {
                let done = tx.changes(
                    "UPDATE enrol_tokens SET revoked_at = $3 WHERE tenant_id = $1 AND id = $2 AND revoked_at IS NULL",
                    params![tenant, id, now],
                )?;
                if !done && find_token(tx, tenant, id, false)?.is_none() {
                    return Err(tx.not_found(format!("enrolment token {id}")));
                }
                Ok(done)
            })
            .await
    }

    async fn consume_token(&self, tenant: TenantId, request: &EnrolRequest) -> Result<EnrolOutcome> {
        let request = request.clone();
        self.engine.write("enrol an agent", move |tx| consume(tx, tenant, &request)).await
    }

    async fn enrolments(
        &self,
        tenant: TenantId,
        state: Option<EnrolmentState>,
        page: &PageRequest,
    ) -> Result<Page<Enrolled>> {
        let page = page.clone();
        self.engine
            .read("list enrolments", move |tx| {
                let mut select = Select::new(USE, "enrolments", tenant);
                select.when_some("state = ?", state.map(EnrolmentState::as_str));
                select.page(tx, &USES, &page, enrolled)
            })
            .await
    }

    async fn enrolment(&self, tenant: TenantId, id: Uuid) -> Result<Option<Enrolled>> {
        self.engine.read("read an enrolment", move |tx| find_use(tx, tenant, id, false)).await
    }

    async fn approve_enrolment(
        &self,
        tenant: TenantId,
        id: Uuid,
        certificate: &NewCertificate,
        by: &str,
        now: Timestamp,
    ) -> Result<()> {
        let (certificate, by) = (certificate.clone(), by.to_owned());
        self.engine
            .write("approve an enrolment", move |tx| {
                let (found, token) = waiting(tx, tenant, id)?;
                if found.key_hash != certificate.key_hash {
                    return Err(tx.invalid("the certificate is for another key than the one that asked"));
                }
                make_agent(tx, tenant, &token, (&found.name, &found.kind), &certificate, now)?;
                settle(tx, tenant, id, EnrolmentState::Accepted, Some(&certificate), &by, now)
            })
            .await
    }

    async fn deny_enrolment(&self, tenant: TenantId, id: Uuid, by: &str, now: Timestamp) -> Result<()> {
        let by = by.to_owned();
        self.engine
            .write("deny an enrolment", move |tx| {
                waiting(tx, tenant, id)?;
                settle(tx, tenant, id, EnrolmentState::Denied, None, &by, now)
            })
            .await
    }

    async fn expire_enrolments(&self, tenant: TenantId, before: Timestamp, now: Timestamp) -> Result<u64> {
        self.engine
            .write("expire enrolments", move |tx| {
                tx.execute(
                    "UPDATE enrolments SET state = 'expired', decided_at = $3, csr = '' \
                     WHERE tenant_id = $1 AND state = 'pending' AND asked_at < $2",
                    params![tenant, before, now],
                )
            })
            .await
    }
}
