//! An identity that the hub took back may be known again: a database that was lost was restored, an agent that was deleted
//! by mistake was put back. So it is asked once a day whom the hub takes this machine for.

use super::schedule;
use super::store::CertStore;
use jiff::{SignedDuration, Timestamp};
use picket_protocol::hub::{WHOAMI_PATH, WhoAmI};
use picket_transport::hub::{HubClient, HubOptions};

/// How long after the hub said so, and after each answer, it is asked.
const EVERY: SignedDuration = SignedDuration::from_hours(24);

/// Whether to ask now: about an identity that was lost at `lost` and asked about at `last`.
pub(super) fn is_due(lost: Timestamp, last: Option<Timestamp>, now: Timestamp) -> bool {
    let next = last.unwrap_or(lost).saturating_add(EVERY).unwrap_or(now);
    schedule::is_due(next, now)
}

/// Asks the hub; blocks. If it knows the identity again, that it was lost is taken back. Says whether it was.
pub(super) fn ask(store: &CertStore, options: &HubOptions) -> bool {
    let Ok(Some(identity)) = store.load() else { return false };
    let asked = HubClient::new(&identity.record.hub, &identity.trust(), options)
        .map_err(|error| crate::keep::told(&error))
        .and_then(|client| {
            let answer: Result<WhoAmI, _> = client.get(WHOAMI_PATH, None);
            answer.map_err(|error| crate::keep::told(&error))
        });
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(error, "whether the hub knows this machine again is not known");
            return false;
        }
    };
    if !answer.authorized || answer.agent_id != Some(identity.record.agent_id) {
        return false;
    }
    let found = store.lock().and_then(|lock| store.found_again(&lock, &identity.leaf().serial));
    match found {
        Ok(()) => tracing::info!("the hub knows this machine again; its identity is in force"),
        Err(error) => tracing::error!(%error, "the hub knows this machine again, and that cannot be noted"),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::by_hand;
    use crate::hub::settings::UplinkSettings;
    use crate::hub::store::tests::Fleet;
    use picket_protocol::hub::WIRE;
    use picket_transport::ProxyChoice;

    /// A hub that answers as many questions with these.
    fn hub(fleet: &Fleet, answers: Vec<WhoAmI>) -> (String, std::thread::JoinHandle<()>) {
        by_hand::hub(fleet, answers, |head, answer| {
            assert!(head.starts_with("get /agent/v1/whoami"), "{head}");
            (200, "application/json", serde_json::to_string(&answer).unwrap())
        })
    }

    #[test]
    fn an_identity_that_the_hub_knows_again_is_in_force_again() {
        let (dir, fleet) = (tempfile::tempdir().unwrap(), Fleet::new());
        let answer = |authorized, agent_id| WhoAmI {
            agent_id: Some(agent_id),
            authorized,
            refusal: None,
            certificate_expires: None,
            hub_version: "1.0.0".parse().unwrap(),
            hub_time: Timestamp::now(),
            wire: WIRE,
            address: "127.0.0.1".into(),
        };
        let own = fleet.agent.agent;
        let answers = vec![answer(false, own), answer(true, uuid::Uuid::now_v7()), answer(true, own)];
        let (url, thread) = hub(&fleet, answers);
        let store = CertStore::new(dir.path().join("certs"));
        let lock = store.lock().unwrap();
        store.install(&lock, &fleet.set(&url)).unwrap();
        let identity = store.load().unwrap().unwrap();
        store.mark_lost(&lock, &identity.leaf().serial, "unknown_agent", "gone", Timestamp::now()).unwrap();
        drop(lock);
        let settings = UplinkSettings { proxy: "none".into(), ..UplinkSettings::default() };
        for (round, known) in [false, false, true].into_iter().enumerate() {
            assert_eq!(ask(&store, &settings.options("test", &ProxyChoice::none())), known, "{round}");
            assert_eq!(store.lost(&identity).is_none(), known, "{round}");
        }
        thread.join().unwrap();
        assert!(!ask(&store, &settings.options("test", &ProxyChoice::none())), "nobody is there");
    }

    #[test]
    fn it_is_asked_once_a_day() {
        let lost: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let at = |hours| lost + SignedDuration::from_hours(hours);
        assert!(!is_due(lost, None, at(23)) && is_due(lost, None, at(24)));
        assert!(!is_due(lost, Some(at(24)), at(47)) && is_due(lost, Some(at(24)), at(48)));
    }
}
