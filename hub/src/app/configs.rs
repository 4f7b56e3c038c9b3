//! Configurations that the hub gives to agents, and what became of them.

use crate::app::replicas::Telling;
use crate::refusal::{Outcome, storage};
use crate::state::Hub;
use picket_hub_db::CONFIG_STATUSES;
use picket_protocol::hub::{ConfigDocument, ConfigStatus, Frame};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Under which key of the settings the last word of an agent about its configuration is kept.
fn status_key(agent: Uuid) -> String {
    format!("{CONFIG_STATUSES}{agent}")
}

impl Hub {
    /// Configurations were assigned here, to all or to one agent: who is connected gets what it should have now.
    pub fn configs_changed(self: &Arc<Self>, agent: Option<Uuid>) {
        self.offer_configs(agent);
        self.replicas.tell(Telling::Configs { agent });
    }

    /// Sends those who are connected here what they should have; all, or one.
    pub fn offer_configs(self: &Arc<Self>, agent: Option<Uuid>) {
        let agents = match agent {
            Some(agent) => vec![agent],
            None => self.presence.agents(),
        };
        let hub = Arc::clone(self);
        self.tasks.spawn(async move { hub.offer_to(agents).await });
    }

    /// Sends those of `agents` who are connected here what they should have.
    pub async fn offer_to(&self, agents: Vec<Uuid>) {
        for agent in agents.into_iter().filter(|agent| self.presence.of(*agent).is_some()) {
            let last = self.last_config_status(agent).await.ok().flatten();
            if let Err(refusal) = self.offer_config(agent, last.as_ref()).await {
                tracing::warn!(%agent, %refusal, "a configuration is not offered");
            }
        }
    }

    /// Sends an agent the configuration that it should have, unless it says that it has it. One from which it was taken back
    /// gets an empty one, of version 0. Says whether one was sent.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn offer_config(&self, agent: Uuid, reported: Option<&ConfigStatus>) -> Outcome<bool> {
        let wanted = self.db.wanted_config(self.tenant, agent).await.map_err(storage)?;
        let version = wanted.as_ref().map_or(0, |wanted| u64::try_from(wanted.version).unwrap_or_default());
        if reported.map_or(0, |reported| reported.version) == version {
            return Ok(false);
        }
        let now = self.clock.now();
        // Above whatever the agent has, also when an assignment goes back to an older version or the clock did.
        let by_clock = u64::try_from(now.as_microsecond()).unwrap_or_default();
        let sequence = by_clock.max(reported.map_or(0, |reported| reported.sequence.saturating_add(1)));
        let settings: BTreeMap<String, Value> = match wanted.map(|wanted| wanted.document) {
            Some(Value::Object(settings)) => settings.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        let document = ConfigDocument { agent_id: agent, sequence, version, issued_at: now, settings };
        // Strings, numbers and JSON: nothing of it can fail.
        let payload = serde_json::to_string(&document).unwrap_or_default();
        let signed = self.keys().sign(ConfigDocument::PURPOSE, payload);
        let sent = self.presence.send(agent, Frame::Config(signed));
        tracing::info!(%agent, version, sequence, sent, "a configuration is offered");
        Ok(sent)
    }

    /// Keeps what an agent says of the configuration it was given.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_config_status(&self, agent: Uuid, status: &ConfigStatus) -> Outcome<()> {
        if !status.errors.is_empty() {
            tracing::warn!(%agent, version = status.version, errors = ?status.errors, "an agent refuses its configuration");
        }
        let value = serde_json::to_vec(status).unwrap_or_default();
        self.db.put_setting(self.tenant, &status_key(agent), &value, None, self.clock.now()).await?;
        Ok(())
    }

    /// What an agent last said of the configuration it was given.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn last_config_status(&self, agent: Uuid) -> Outcome<Option<ConfigStatus>> {
        let kept = self.db.setting(self.tenant, &status_key(agent)).await?;
        Ok(kept.and_then(|kept| serde_json::from_slice(&kept.value).ok()))
    }
}
