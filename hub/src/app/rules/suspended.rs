//! Rules that are not asked any more, on any replica, until somebody resumes them.
//!
//! The database keeps which they are: each replica looks there whenever it looks for rules, and is told when something
//! changed. So it does not matter which replica suspended a rule, nor which one is asked to resume it.

use super::RuleSet;
use crate::app::replicas::Telling;
use crate::refusal::Outcome;
use crate::state::Hub;
use picket_hub_db::{Rule, SUSPENDED_RULES};
use picket_hub_rules::{RuleKey, RuleState, Suspension};
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// Why rules are suspended, by their ids.
type Suspensions = BTreeMap<String, String>;

impl RuleSet {
    /// Why a rule is suspended, in the words of the replica that did it.
    pub fn suspended_because(&self, id: &str) -> Option<String> {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub(super) fn known_suspensions(&self) -> Suspensions {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does with the rules in force what the database says. `known` was known before it was asked: a rule that was suspended
    /// here since is not yet in either, and stays so.
    pub(super) fn follow(&self, known: &Suspensions, kept: &Suspensions) {
        for health in self.engine.health() {
            let id = health.rule.id.to_string();
            let is_suspended = matches!(health.state, RuleState::Suspended { .. });
            if kept.contains_key(&id) && !is_suspended {
                tracing::info!(rule = id, "a rule is suspended: another replica found a reason");
                self.engine.suspend(health.rule);
            } else if known.contains_key(&id) && !kept.contains_key(&id) && is_suspended {
                tracing::info!(rule = id, "a rule is asked again");
                self.engine.resume(health.rule);
            }
        }
        let mut now = self.suspended.lock().unwrap_or_else(PoisonError::into_inner);
        now.retain(|id, _| kept.contains_key(id) || !known.contains_key(id));
        now.extend(kept.iter().map(|(id, why)| (id.clone(), why.clone())));
    }
}

impl Hub {
    /// The rules that are suspended, as the database knows.
    pub(super) async fn suspensions(&self) -> Outcome<Suspensions> {
        let kept = self.db.settings(self.tenant, SUSPENDED_RULES).await?;
        let told = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let named = |key: &str| key.strip_prefix(SUSPENDED_RULES).map(str::to_owned);
        Ok(kept.into_iter().filter_map(|kept| Some((named(&kept.key)?, told(&kept.value)))).collect())
    }

    /// Keeps and tells that the engine suspended a rule.
    pub async fn note_suspension(&self, rule: RuleKey, why: &Suspension) {
        let id = rule.id.to_string();
        tracing::warn!(rule = id, version = rule.version, %why, "a rule is suspended");
        let words = why.to_string();
        self.keep_suspension(id.clone(), words.clone()).await;
        self.report("rule_suspended", serde_json::json!({"rule_id": id, "rule_version": rule.version, "why": words}))
            .await;
    }

    /// Keeps what could not be kept before.
    pub(super) async fn note_suspensions(&self) {
        for (rule, why) in self.rules.engine.take_suspensions() {
            self.note_suspension(rule, &why).await;
        }
        let unnoted = std::mem::take(&mut *self.rules.unnoted.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, words) in unnoted {
            self.keep_suspension(id, words).await;
        }
    }

    async fn keep_suspension(&self, id: String, words: String) {
        let key = format!("{SUSPENDED_RULES}{id}");
        match self.db.put_setting(self.tenant, &key, words.as_bytes(), None, self.clock.now()).await {
            Ok(_) => {
                self.rules.suspended.lock().unwrap_or_else(PoisonError::into_inner).insert(id, words);
                self.replicas.tell(Telling::Rules);
            }
            Err(error) => {
                tracing::error!(%error, rule = id, "that a rule is suspended is not kept; it is tried again");
                self.rules.unnoted.lock().unwrap_or_else(PoisonError::into_inner).push((id, words));
            }
        }
    }

    /// Asks a suspended rule again, on every replica.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn resume_rule(&self, rule: &Rule) -> Outcome<bool> {
        // What the database said of it before must not be followed after this.
        let loading = self.rules.loading.lock().await;
        let was = self.db.delete_setting(self.tenant, &format!("{SUSPENDED_RULES}{}", rule.id)).await?;
        self.rules.unnoted.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != rule.id);
        self.rules.suspended.lock().unwrap_or_else(PoisonError::into_inner).remove(&rule.id);
        let known = self.rules.engine.health().into_iter().find(|health| health.rule.id.to_string() == rule.id);
        let resumed = known.is_some_and(|health| self.rules.engine.resume(health.rule));
        drop(loading);
        self.replicas.tell(Telling::Rules);
        Ok(was || resumed)
    }
}
