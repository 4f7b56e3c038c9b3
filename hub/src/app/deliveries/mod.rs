//! Web hooks: others are told of findings and cases.
//!
//! What is to be told is decided in the transaction that commits the finding or the case, so that none is lost; it is sent
//! afterwards ([`send`]), at least once. A web hook is kept as a setting; its address and its secret are sealed with the
//! hub's own key and never shown again.

pub mod send;

use crate::app::people::secret;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use jiff::Timestamp;
use picket_hub_db::{FindingChange, NewDelivery, Result as DbResult, Revision, Setting, Severity};
use picket_protocol::hub::ProblemCode;
use picket_seal::Place;
use picket_transport::SafeUrl;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Under which keys web hooks are kept.
const KEYS: &str = "webhook/";
/// The most web hooks.
const MAX_WEBHOOKS: usize = 100;
/// What every secret begins with (Standard Webhooks, "Signature scheme").
const SECRET_PREFIX: &str = "whsec_";

/// What a web hook tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = WebhookSubject)]
pub enum Subject {
    /// Findings that are made, opened again, or changed by people.
    Findings,
    /// Cases that are made or changed.
    Cases,
}

/// A web hook.
#[derive(Clone, Serialize, Deserialize)]
pub struct Webhook {
    /// Its id: the target of its deliveries.
    pub id: Uuid,
    /// What people call it.
    pub name: String,
    /// Whom it tells, without what only they know: scheme and host.
    pub host: String,
    /// What it tells of.
    pub subjects: BTreeSet<Subject>,
    /// How bad it has to be.
    pub min_severity: Severity,
    /// Whether it tells.
    pub enabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// Address and secret, sealed, in base64.
    sealed: String,
}

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Sealed {
    url: String,
    secret: String,
}

/// What a web hook is to be like.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What people call it.
    pub name: String,
    /// Where it posts; none leaves the address that it has.
    pub url: Option<Zeroizing<String>>,
    /// What it tells of.
    pub subjects: BTreeSet<Subject>,
    /// How bad it has to be.
    pub min_severity: Severity,
    /// Whether it tells.
    pub enabled: bool,
}

impl Hub {
    /// All web hooks with their revisions, the oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn webhooks(&self) -> DbResult<Vec<(Webhook, Revision)>> {
        let kept = self.db.settings(self.tenant, KEYS).await?;
        Ok(kept.iter().filter_map(read).collect())
    }

    /// One web hook.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn webhook(&self, id: Uuid) -> DbResult<Option<(Webhook, Revision)>> {
        Ok(self.db.setting(self.tenant, &key(id)).await?.as_ref().and_then(read))
    }

    /// Makes a web hook, and gives the secret that its posts are signed with: it cannot be shown again.
    ///
    /// # Errors
    /// `invalid` for an address that is not allowed; `conflict` when there are as many as there may be.
    pub async fn create_webhook(&self, wish: Wish, by: &str) -> Outcome<(Webhook, Revision, Zeroizing<String>)> {
        if self.webhooks().await?.len() >= MAX_WEBHOOKS {
            return Err(Refusal::new(ProblemCode::Conflict, format!("there are {MAX_WEBHOOKS} web hooks already")));
        }
        let url = wish.url.ok_or_else(|| Refusal::new(ProblemCode::Invalid, "url is missing"))?;
        let secret = new_secret()?;
        let (id, now) = (Uuid::now_v7(), self.clock.now());
        let (sealed, host) = self.seal(id, &url, &secret)?;
        let webhook = Webhook {
            id,
            name: wish.name,
            host,
            subjects: wish.subjects,
            min_severity: wish.min_severity,
            enabled: wish.enabled,
            created_at: now,
            created_by: by.to_owned(),
            sealed,
        };
        let revision = self.put_webhook(&webhook, Some(0), "webhooks.create", by).await?;
        Ok((webhook, revision, secret))
    }

    /// Changes a web hook; its secret stays.
    ///
    /// # Errors
    /// `invalid` for an address that is not allowed; `conflict` when it is no longer at `expected`.
    pub async fn change_webhook(
        &self,
        mut webhook: Webhook,
        wish: Wish,
        expected: Revision,
        by: &str,
    ) -> Outcome<(Webhook, Revision)> {
        if let Some(url) = &wish.url {
            let kept = self.unseal(&webhook)?;
            (webhook.sealed, webhook.host) = self.seal(webhook.id, url, &kept.1)?;
        }
        let Wish { name, subjects, min_severity, enabled, .. } = wish;
        webhook = Webhook { name, subjects, min_severity, enabled, ..webhook };
        let revision = self.put_webhook(&webhook, Some(expected), "webhooks.update", by).await?;
        Ok((webhook, revision))
    }

    /// Removes a web hook; what it still had to tell is given up.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delete_webhook(&self, webhook: &Webhook, by: &str) -> Outcome<()> {
        self.audit(by, "webhooks.delete", &webhook.id.to_string(), json!({ "name": webhook.name })).await?;
        self.db.delete_setting(self.tenant, &key(webhook.id)).await?;
        Ok(())
    }

    async fn put_webhook(
        &self,
        webhook: &Webhook,
        expected: Option<Revision>,
        action: &str,
        by: &str,
    ) -> Outcome<Revision> {
        let details = json!({ "name": webhook.name, "host": webhook.host, "enabled": webhook.enabled });
        self.audit(by, action, &webhook.id.to_string(), details).await?;
        let text = serde_json::to_vec(webhook).unwrap_or_default();
        Ok(self.db.put_setting(self.tenant, &key(webhook.id), &text, expected, self.clock.now()).await?)
    }

    /// Address and secret, sealed; and whom it is that is told.
    fn seal(&self, id: Uuid, url: &str, secret: &str) -> Outcome<(String, String)> {
        let safe = SafeUrl::secret(url).map_err(|error| Refusal::new(ProblemCode::Invalid, format!("url: {error}")))?;
        let plain = Sealed { url: url.to_owned(), secret: secret.to_owned() };
        let plain = Zeroizing::new(serde_json::to_vec(&plain).unwrap_or_default());
        let sealed = self.sealer.seal(place(&id), &plain).map_err(|error| {
            tracing::error!(%error, "a web hook cannot be sealed");
            Refusal::new(ProblemCode::Internal, "the web hook cannot be sealed; the hub's log says why")
        })?;
        Ok((crate::encode(&sealed), safe.to_string()))
    }

    /// Where a web hook posts, and the secret that it signs with.
    fn unseal(&self, webhook: &Webhook) -> Outcome<(SafeUrl, Zeroizing<String>)> {
        let sealed = crate::decode(&webhook.sealed).unwrap_or_default();
        let plain = self.sealer.open(place(&webhook.id), &sealed).map(Zeroizing::new).ok();
        let plain = plain.and_then(|plain| serde_json::from_slice::<Sealed>(&plain).ok());
        let found = plain.and_then(|plain| Some((SafeUrl::secret(&plain.url).ok()?, Zeroizing::new(plain.secret))));
        found.ok_or_else(|| {
            Refusal::new(ProblemCode::Internal, "the web hook does not open with seal.key: put the right one back, or remove the web hook and make it anew")
        })
    }

    /// Says of what was found who is told of it. They are told if it makes a finding, or opens one again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tell_of_findings(&self, changes: &mut [FindingChange]) -> DbResult<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let (webhooks, now) = (self.webhooks().await?, self.clock.now());
        for change in changes {
            let data = json!({
                "rule_id": change.rule, "rule_version": change.rule_version, "severity": change.severity.as_str(),
                "title": change.title, "description": change.description, "agent_id": change.agent,
                "entity": change.entity.as_ref().map(|entity| json!({"kind": entity.kind, "value": entity.value})),
                "event_id": change.evidence.first().map(|evidence| evidence.event),
            });
            let (subject, severity) = (Subject::Findings, change.severity);
            change.deliveries = deliveries(&webhooks, subject, severity, "finding.opened", &data, now);
        }
        Ok(())
    }

    /// What is told of something that people did.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn deliveries_of(
        &self,
        subject: Subject,
        severity: Severity,
        what: &str,
        data: &Value,
    ) -> DbResult<Vec<NewDelivery>> {
        Ok(deliveries(&self.webhooks().await?, subject, severity, what, data, self.clock.now()))
    }
}

/// What is to be told to whom: one delivery for each web hook that wants it.
fn deliveries(
    webhooks: &[(Webhook, Revision)],
    subject: Subject,
    severity: Severity,
    what: &str,
    data: &Value,
    now: Timestamp,
) -> Vec<NewDelivery> {
    let wants = |hook: &Webhook| hook.enabled && hook.subjects.contains(&subject) && severity >= hook.min_severity;
    let told = webhooks.iter().map(|(webhook, _)| webhook).filter(|webhook| wants(webhook));
    told.map(|webhook| NewDelivery {
        id: Uuid::now_v7(),
        target: webhook.id.to_string(),
        payload: json!({ "type": what, "timestamp": now, "data": data }),
        due: now,
    })
    .collect()
}

fn read(kept: &Setting) -> Option<(Webhook, Revision)> {
    match serde_json::from_slice(&kept.value) {
        Ok(webhook) => Some((webhook, kept.revision)),
        Err(error) => {
            tracing::error!(key = kept.key, %error, "a web hook cannot be read");
            None
        }
    }
}

/// A secret as Standard Webhooks writes it: base64 behind `whsec_`.
fn new_secret() -> Outcome<Zeroizing<String>> {
    let random = secret("").map_err(|_| Refusal::new(ProblemCode::Internal, "no random numbers"))?;
    Ok(Zeroizing::new(format!("{SECRET_PREFIX}{}", crate::encode(&crate::app::people::hash(&random)))))
}

fn key(id: Uuid) -> String {
    format!("{KEYS}{id}")
}

fn place(id: &Uuid) -> Place<'_> {
    Place { table: "webhooks", row: 0, context: id.as_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_hook_is_told_what_it_asked_for_and_is_bad_enough() {
        let now = Timestamp::UNIX_EPOCH;
        let hook = |subject, min_severity, enabled| Webhook {
            id: Uuid::now_v7(),
            name: "siem".into(),
            host: "https://siem.example".into(),
            subjects: BTreeSet::from([subject]),
            min_severity,
            enabled,
            created_at: now,
            created_by: "user:1".into(),
            sealed: String::new(),
        };
        let told = |hook: Webhook| {
            deliveries(&[(hook, 1)], Subject::Findings, Severity::High, "finding.opened", &json!({}), now).len()
        };
        assert_eq!(told(hook(Subject::Findings, Severity::High, true)), 1);
        assert_eq!(told(hook(Subject::Findings, Severity::Critical, true)), 0);
        assert_eq!(told(hook(Subject::Findings, Severity::Low, false)), 0);
        assert_eq!(told(hook(Subject::Cases, Severity::Low, true)), 0);
    }
}
