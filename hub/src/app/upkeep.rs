//! What a hub does now and then: partitions, retention, silent agents, keys and certificates that end.

use crate::app::belonging;
use crate::app::enrol::APPROVAL_LIMIT;
use crate::authority::{AgentVerifier, HotCertificate, KeysFolder};
use crate::refusal::Refusal;
use crate::server::told_to_stop;
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::Retention;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked for agents that have fallen silent.
const SILENCE_EVERY: Duration = Duration::from_secs(10);
/// After how many of those turns the rest is done: every ten minutes.
const REST_EVERY: u32 = 60;
/// How many agents are marked silent at a time.
const SILENT_AT_A_TIME: u32 = 500;
/// How many heartbeats may be missed before an agent is offline.
const MISSED: i32 = 3;

/// Runs until the hub stops.
pub async fn run(hub: Arc<Hub>, folder: KeysFolder, hot: Arc<HotCertificate>, verifier: Arc<AgentVerifier>) {
    let mut stop = hub.stop.clone();
    let mut turn: u32 = 0;
    let mut noted = false;
    let mut asked = None;
    let mut revoked_since = Timestamp::UNIX_EPOCH;
    loop {
        noted = noted || belonging::note_machines(&*hub.db, hub.tenant, &folder).await.unwrap_or(false);
        if turn.is_multiple_of(REST_EVERY) {
            rest(&hub).await;
            certificate(&hub, &folder, &hot, &verifier);
        }
        silent(&hub).await;
        revoked_since = hub.look_for_revoked(revoked_since).await.unwrap_or_else(|refusal| {
            tracing::warn!(%refusal, "revoked certificates are not looked for");
            revoked_since
        });
        rules(&hub).await;
        asked = hub.ask_to_renew(asked).await.unwrap_or_else(|refusal| {
            tracing::warn!(%refusal, "agents are not asked to take the new root");
            None
        });
        turn = turn.wrapping_add(1);
        tokio::select! {
            () = tokio::time::sleep(SILENCE_EVERY) => {}
            () = told_to_stop(&mut stop) => return,
        }
    }
}

async fn silent(hub: &Hub) {
    let interval = SignedDuration::try_from(hub.settings.heartbeat.get()).unwrap_or(SignedDuration::from_secs(30));
    let before = hub.clock.now().checked_sub(interval * MISSED).unwrap_or(Timestamp::MIN);
    loop {
        match hub.db.agents_silent(hub.tenant, before, SILENT_AT_A_TIME).await {
            Ok(agents) => {
                for agent in &agents {
                    tracing::info!(%agent, "an agent has fallen silent");
                    hub.tell_agent_changed(*agent);
                }
                if agents.len() < SILENT_AT_A_TIME as usize {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "silent agents are not looked for");
                return;
            }
        }
    }
}

/// Takes over what changed in `rules.d`, and what a replica or the API changed.
async fn rules(hub: &Hub) {
    let taken = match hub.put_files().await {
        Ok(_) => hub.load_rules().await,
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = taken {
        tracing::warn!(%refusal, "rules are not looked after");
    }
}

async fn rest(hub: &Hub) {
    let now = hub.clock.now();
    if let Err(error) = hub.db.maintain(now).await {
        tracing::warn!(%error, "the database's upkeep failed");
    }
    if let Err(refused) = hub.tokens.load(&hub.db, hub.tenant, &hub.sealer, now).await {
        let refusal = Refusal::from(refused);
        tracing::warn!(%refusal, "the keys for tokens are not looked after");
    }
    let before = |age: SignedDuration| now.checked_sub(age).ok();
    if let Some(before) = before(APPROVAL_LIMIT)
        && let Err(error) = hub.db.expire_enrolments(hub.tenant, before, now).await
    {
        tracing::warn!(%error, "enrolments that nobody decided are not ended");
    }
    let days = |days: u32| before(SignedDuration::from_hours(24 * i64::from(days)));
    let kept = &hub.settings.retention;
    let retention = Retention {
        now,
        events_before: days(kept.events_days),
        findings_before: days(kept.findings_days),
        deliveries_before: days(kept.deliveries_days),
        enrolment_before: days(kept.enrolment_days),
    };
    loop {
        match hub.db.remove_old(hub.tenant, &retention).await {
            Ok(removed) if removed.more => {
                // Bounded pieces, so that nobody waits for long.
                tokio::task::yield_now().await;
            }
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "what is too old is not removed");
                return;
            }
        }
    }
}

/// Renews the hub's own certificate, and takes over keys that somebody replaced.
fn certificate(hub: &Hub, folder: &KeysFolder, hot: &HotCertificate, verifier: &AgentVerifier) {
    let made = folder.renew_if_due(&hub.settings.names, hub.clock.now());
    let loaded = made.and_then(|made| {
        if !made.is_empty() {
            tracing::info!(?made, "certificates of the hub were renewed");
        }
        folder.load()
    });
    let keys = match loaded {
        Ok(keys) => keys,
        Err(error) => {
            tracing::error!(%error, "the hub's keys cannot be looked after");
            return;
        }
    };
    let taken = hot.replace(&keys.hub_chain(), &keys.hub.1).and_then(|()| verifier.replace(&keys.roots));
    match taken {
        Ok(()) => hub.set_keys(keys),
        Err(error) => tracing::error!(%error, "the keys in the folder cannot be used; those before are"),
    }
}
