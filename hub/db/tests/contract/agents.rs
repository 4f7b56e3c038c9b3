//! Agents and their certificates.

use crate::bench::{T, all, at, certificate, id, new_agent};
use crate::contract;
use picket_hub_db::{AgentFilter, AgentSeen, AgentStatus, AgentUpdate, DbError, PageRequest, Revocation, SeenOutcome};
use picket_hub_db::{CERTIFICATES_IN_USE, CONFIG_STATUSES, RENEWALS_ASKED};
use std::collections::BTreeSet;

/// What the settings keep of each agent.
const KEPT: [&str; 3] = [CERTIFICATES_IN_USE, CONFIG_STATUSES, RENEWALS_ASKED];

fn revocation(seconds: i64, reason: &str) -> Revocation {
    Revocation { at: at(seconds), reason: reason.into(), by: "user:ada".into() }
}

fn tags(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

contract! {
    async fn an_agent_is_read_as_it_was_made(bench) {
        let mut new = new_agent(1);
        new.tags = tags(&["prod", "web"]);
        new.config = serde_json::json!({"files": ["/etc"], "odd": "\u{0}"});
        let made = bench.db.create_agent(T, &new, at(5)).await.unwrap();
        assert_eq!(bench.db.agent(T, id(1)).await.unwrap().as_ref(), Some(&made));
        assert_eq!((made.status, made.revision, made.created_at), (AgentStatus::Enrolled, 1, at(5)));
        assert_eq!((&made.tags, &made.config), (&new.tags, &new.config));
        assert!(bench.db.create_agent(T, &new, at(6)).await.unwrap_err().is_conflict());
        assert_eq!(bench.db.agent(T, id(2)).await.unwrap(), None);
    }

    async fn who_changes_an_agent_names_the_state_it_was_read_in(bench) {
        let agent = bench.agent(1).await;
        let update = AgentUpdate { name: Some("db-1".into()), tags: Some(tags(&["prod"])), ..AgentUpdate::default() };
        let changed = bench.db.update_agent(T, agent.id, agent.revision, &update, at(7)).await.unwrap();
        assert_eq!((changed.name.as_str(), changed.revision, changed.updated_at), ("db-1", 2, at(7)));
        assert_eq!(changed.kind, agent.kind);
        let late = bench.db.update_agent(T, agent.id, agent.revision, &update, at(8)).await;
        assert!(late.unwrap_err().is_conflict());
        let nobody = bench.db.update_agent(T, id(9), 1, &update, at(8)).await;
        assert!(nobody.unwrap_err().is_not_found());
        let nameless = AgentUpdate { name: Some(String::new()), ..AgentUpdate::default() };
        let refused = bench.db.update_agent(T, agent.id, 2, &nameless, at(8)).await;
        assert!(matches!(refused, Err(DbError::Invalid { .. })));
    }

    async fn agents_are_found_by_status_tag_type_name_and_version(bench) {
        for number in 1..=6 {
            let mut new = new_agent(number);
            if number % 2 == 0 {
                new.tags = tags(&["even", "all"]);
                new.kind = "workstation".into();
            } else {
                new.tags = tags(&["all"]);
            }
            bench.db.create_agent(T, &new, at(0)).await.unwrap();
        }
        let mut seen = AgentSeen::new(id(3), at(10));
        seen.version = Some("1.2.3".into());
        bench.db.agents_seen(T, &[seen]).await.unwrap();
        let find = async |filter: AgentFilter| -> Vec<u128> {
            let page = bench.db.agents(T, &filter, &PageRequest::default()).await.unwrap();
            page.items.iter().map(|agent| agent.id.as_u128()).collect()
        };
        assert_eq!(find(AgentFilter { tag: Some("even".into()), ..AgentFilter::default() }).await, [2, 4, 6]);
        assert_eq!(find(AgentFilter { tag: Some("eve".into()), ..AgentFilter::default() }).await, [0_u128; 0]);
        assert_eq!(find(AgentFilter { kind: Some("server".into()), ..AgentFilter::default() }).await, [1, 3, 5]);
        assert_eq!(find(AgentFilter { version: Some("1.2.3".into()), ..AgentFilter::default() }).await, [3]);
        assert_eq!(find(AgentFilter { status: Some(AgentStatus::Online), ..AgentFilter::default() }).await, [3]);
        let prefix = AgentFilter { name_prefix: Some("machine-0005".into()), ..AgentFilter::default() };
        assert_eq!(find(prefix).await, [5]);
        let wild = AgentFilter { name_prefix: Some("machine%".into()), ..AgentFilter::default() };
        assert_eq!(find(wild).await, [0_u128; 0]);
        let both = AgentFilter { tag: Some("all".into()), kind: Some("server".into()), ..AgentFilter::default() };
        assert_eq!(find(both).await, [1, 3, 5]);
        let within = |words: &[&str]| AgentFilter { within: Some(tags(words)), ..AgentFilter::default() };
        assert_eq!(find(within(&["even", "other"])).await, [2, 4, 6]);
        assert_eq!(find(within(&["even", "all"])).await, [1, 2, 3, 4, 5, 6], "each once");
        assert_eq!(find(within(&[])).await, [0_u128; 0]);
        // Neither the rows of others nor how many of them there are shape a page.
        let first = bench.db.agents(T, &within(&["even"]), &PageRequest::first(3)).await.unwrap();
        assert_eq!((first.items.len(), first.next), (3, None));
    }

    async fn a_list_gives_everything_once_while_rows_are_added(bench) {
        for number in (0..60).map(|n| n * 10) {
            bench.agent(number).await;
        }
        let filter = AgentFilter::default();
        let added = std::sync::atomic::AtomicU32::new(0);
        let listed = all(7, async |page| {
            // Before and behind the reader, at every step.
            let step = u128::from(added.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            bench.agent(step * 10 + 1).await;
            bench.agent(600 - step * 10 + 5).await;
            bench.db.agents(T, &filter, &page).await
        })
        .await;
        let mut numbers: Vec<u128> = listed.iter().map(|agent| agent.id.as_u128()).collect();
        let before = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), before, "an agent was listed twice");
        assert!((0..60).all(|n| numbers.contains(&(n * 10))), "an agent was left out");
    }

    async fn a_cursor_of_another_list_and_one_that_never_was_are_refused(bench) {
        bench.agent(1).await;
        bench.agent(2).await;
        let page = bench.db.agents(T, &AgentFilter::default(), &PageRequest::first(1)).await.unwrap();
        let next = PageRequest::after(page.next.unwrap(), 1);
        assert_eq!(bench.db.agents(T, &AgentFilter::default(), &next).await.unwrap().items.len(), 1);
        assert!(matches!(bench.db.users(T, &next).await, Err(DbError::Invalid { .. })));
        assert!(picket_hub_db::Cursor::parse("'; DROP TABLE agents").is_err());
    }

    async fn heartbeats_are_noted_together_and_none_of_them_spoils_the_others(bench) {
        for number in 1..=3 {
            bench.agent(number).await;
        }
        bench.db.retire_agent(T, id(3), "user:ada", at(1)).await.unwrap();
        let mut full = AgentSeen::new(id(1), at(10));
        full.boot_id = Some(id(100));
        full.version = Some("1.0.0".into());
        full.health = Some(serde_json::json!({"status": "healthy"}));
        full.ledger = Some(serde_json::json!({"emitted": 7}));
        full.address = Some("192.0.2.7".into());
        full.key_hash = Some([7; 32]);
        full.certificate_expires_at = Some(at(1000));
        let seen = [AgentSeen::new(id(2), at(10)), full, AgentSeen::new(id(9), at(10)), AgentSeen::new(id(3), at(10))];
        let outcomes = bench.db.agents_seen(T, &seen).await.unwrap();
        assert!(matches!(outcomes[0], SeenOutcome::Noted { was: AgentStatus::Enrolled, .. }));
        assert!(matches!(outcomes[1], SeenOutcome::Noted { previous_boot: None, boot_returned: false, .. }));
        assert_eq!(outcomes[2..], [SeenOutcome::Unknown, SeenOutcome::Retired]);
        // What a later heartbeat does not say stays.
        bench.db.agents_seen(T, &[AgentSeen::new(id(1), at(40))]).await.unwrap();
        let report = bench.db.agent(T, id(1)).await.unwrap().unwrap().report;
        assert_eq!((report.last_seen, report.version.as_deref()), (Some(at(40)), Some("1.0.0")));
        assert_eq!((report.first_boot_id, report.boot_id), (Some(id(100)), Some(id(100))));
        assert_eq!((report.key_hash, report.certificate_expires_at), (Some([7; 32]), Some(at(1000))));
        assert_eq!(report.health, Some(serde_json::json!({"status": "healthy"})));
        assert_eq!(report.ledger, Some(serde_json::json!({"emitted": 7})));
        let revision = bench.db.agent(T, id(1)).await.unwrap().unwrap().revision;
        assert_eq!(revision, 1, "a heartbeat is no change of an operator's");
    }

    async fn an_older_heartbeat_never_overwrites_a_newer_one(bench) {
        bench.agent(1).await;
        let mut newer = AgentSeen::new(id(1), at(20));
        newer.version = Some("2.0.0".into());
        let mut older = AgentSeen::new(id(1), at(10));
        older.version = Some("1.0.0".into());
        bench.db.agents_seen(T, &[newer]).await.unwrap();
        bench.db.agents_seen(T, &[older]).await.unwrap();
        let report = bench.db.agent(T, id(1)).await.unwrap().unwrap().report;
        assert_eq!((report.last_seen, report.version.as_deref()), (Some(at(20)), Some("2.0.0")));
    }

    async fn two_machines_with_one_identity_are_told_by_their_boots_and_keys(bench) {
        bench.agent(1).await;
        let beat = async |seconds, boot, key| {
            let mut seen = AgentSeen::new(id(1), at(seconds));
            seen.boot_id = Some(id(boot));
            seen.key_hash = Some([key; 32]);
            bench.db.agents_seen(T, &[seen]).await.unwrap().remove(0)
        };
        beat(1, 100, 1).await;
        let rebooted = beat(2, 200, 1).await;
        let SeenOutcome::Noted { previous_boot, boot_returned, previous_key, .. } = rebooted else { panic!() };
        assert_eq!((previous_boot, boot_returned, previous_key), (Some(id(100)), false, None));
        let clone = beat(3, 100, 2).await;
        let SeenOutcome::Noted { previous_boot, boot_returned, previous_key, .. } = clone else { panic!() };
        assert_eq!((previous_boot, boot_returned, previous_key), (Some(id(200)), true, Some([1; 32])));
        let boots = bench.db.agent_boots(T, id(1)).await.unwrap();
        let told: Vec<_> = boots.iter().map(|boot| (boot.boot_id, boot.times, boot.first_seen)).collect();
        assert_eq!(told, [(id(100), 2, at(1)), (id(200), 1, at(2))]);
    }

    async fn silent_agents_are_marked_and_counted(bench) {
        for number in 1..=4 {
            bench.agent(number).await;
        }
        bench.db.agents_seen(T, &[AgentSeen::new(id(1), at(10)), AgentSeen::new(id(2), at(50))]).await.unwrap();
        bench.db.retire_agent(T, id(4), "user:ada", at(1)).await.unwrap();
        assert_eq!(bench.db.agents_silent(T, at(40), 10).await.unwrap(), [id(1)]);
        assert!(bench.db.agents_silent(T, at(40), 10).await.unwrap().is_empty());
        let counts = bench.db.agent_counts(T).await.unwrap();
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), [1, 1, 1, 1]);
        assert_eq!(counts[&AgentStatus::Offline], 1);
    }

    async fn a_retired_agent_loses_its_certificates_for_good(bench) {
        bench.agent(1).await;
        bench.db.insert_certificate(T, &certificate(id(1), "0a", 1)).await.unwrap();
        assert!(matches!(bench.db.delete_agent(T, id(1)).await, Err(DbError::Invalid { .. })));
        let retired = bench.db.retire_agent(T, id(1), "user:ada", at(9)).await.unwrap();
        assert_eq!((retired.status, retired.retired_at, retired.revision), (AgentStatus::Retired, Some(at(9)), 2));
        assert_eq!(bench.db.retire_agent(T, id(1), "user:bob", at(10)).await.unwrap(), retired);
        let late = certificate(id(1), "0b", 1);
        assert!(bench.db.renew_certificate(T, &late, "0a").await.unwrap_err().is_conflict());
        // What the settings keep of an agent goes with it, and of no other one.
        for (agent, kept) in [1, 2].into_iter().flat_map(|agent| KEPT.map(|kept| (id(agent), kept))) {
            bench.db.put_setting(T, &format!("{kept}{agent}"), b"x", None, at(9)).await.unwrap();
        }
        bench.db.delete_agent(T, id(1)).await.unwrap();
        assert_eq!(bench.db.agent(T, id(1)).await.unwrap(), None);
        let left: Vec<_> = bench.db.settings(T, "").await.unwrap().into_iter().map(|kept| kept.key).collect();
        assert_eq!(left, KEPT.map(|kept| format!("{kept}{}", id(2))));
        let revoked = bench.db.certificate(T, "0a").await.unwrap().unwrap().revoked.unwrap();
        assert_eq!((revoked.at, revoked.by.as_str()), (at(9), "user:ada"));
    }

    async fn a_renewed_certificate_supersedes_the_one_before(bench) {
        bench.agent(1).await;
        bench.agent(2).await;
        bench.db.insert_certificate(T, &certificate(id(1), "0a", 1)).await.unwrap();
        assert!(bench.db.insert_certificate(T, &certificate(id(1), "0a", 1)).await.unwrap_err().is_conflict());
        let mut next = certificate(id(1), "0b", 2);
        next.issued_at = at(60);
        bench.db.renew_certificate(T, &next, "0a").await.unwrap();
        let of_another = bench.db.renew_certificate(T, &certificate(id(2), "0c", 3), "0b").await;
        assert!(of_another.unwrap_err().is_not_found());
        assert_eq!(bench.db.certificate(T, "0c").await.unwrap(), None);
        let page = bench.db.certificates_of(T, id(1), &PageRequest::default()).await.unwrap();
        let told: Vec<_> = page.items.iter().map(|one| (one.issued.serial.as_str(), one.superseded_at)).collect();
        assert_eq!(told, [("0b", None), ("0a", Some(at(60)))]);
        assert_eq!(page.items[0].issued, next);
        assert_eq!(bench.db.certificates_by_key(T, &[2; 32]).await.unwrap(), page.items[..1]);
        let ending = bench.db.certificates_ending(T, at(91 * 86_400), 10).await.unwrap();
        assert_eq!(ending, page.items[..1]);
        assert_eq!(bench.db.certificates_ending(T, at(1), 10).await.unwrap(), []);
    }

    async fn the_first_reason_of_a_revocation_stays_and_is_told_to_who_asks(bench) {
        bench.agent(1).await;
        for serial in ["0a", "0b", "0c"] {
            bench.db.insert_certificate(T, &certificate(id(1), serial, 1)).await.unwrap();
        }
        assert!(bench.db.revoke_certificate(T, "0b", &revocation(10, "keyCompromise")).await.unwrap());
        assert!(!bench.db.revoke_certificate(T, "0b", &revocation(11, "superseded")).await.unwrap());
        let nobody = bench.db.revoke_certificate(T, "ff", &revocation(11, "superseded")).await;
        assert!(nobody.unwrap_err().is_not_found());
        let mut rest = bench.db.revoke_certificates_of(T, id(1), &revocation(20, "unspecified")).await.unwrap();
        rest.sort();
        assert_eq!(rest, ["0a", "0c"]);
        let list = all(2, async |page| bench.db.revocations(T, at(0), &page).await).await;
        let told: Vec<_> = list.iter().map(|one| (one.serial.as_str(), one.revocation.reason.as_str())).collect();
        assert_eq!(told, [("0b", "keyCompromise"), ("0a", "unspecified"), ("0c", "unspecified")]);
        let since = bench.db.revocations(T, at(20), &PageRequest::default()).await.unwrap();
        assert_eq!(since.items.len(), 2);
        let renewed = bench.db.renew_certificate(T, &certificate(id(1), "0d", 1), "0b").await;
        assert!(renewed.unwrap_err().is_conflict());
    }
}
