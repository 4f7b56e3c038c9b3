//! Findings: found again, changed, and told of.

use crate::bench::{Bench, T, all, at, id, matched, position};
use crate::contract;
use picket_hub_db::{
    Entity, Finding, FindingChange, FindingFilter, FindingState, FindingUpdate, JudgeCommit, NewDelivery, NewState,
    PageRequest, Severity,
};

/// Findings of these matches, in their order.
pub(crate) async fn found(bench: &Bench, changes: Vec<FindingChange>) -> Vec<Finding> {
    let lease = bench.db.acquire_lease(T, "judge/file", "a", at(0), at(30)).await.unwrap().unwrap();
    let mut findings = Vec::new();
    for (number, change) in changes.into_iter().enumerate() {
        let from = bench.db.progress(T, "judge/file").await.unwrap().position;
        let now = at(100 + i64::try_from(number).unwrap());
        let to = position(1_000_000 + number as u64);
        let commit = JudgeCommit { from, to: to.max(from), state: None, now, changes: vec![change] };
        let judged = bench.db.commit_findings(T, &lease, &commit).await.unwrap();
        findings.push(bench.db.finding(T, judged.outcomes[0].finding).await.unwrap().unwrap());
    }
    findings
}

fn delivery(number: u128) -> NewDelivery {
    NewDelivery {
        id: id(number),
        target: "chat".into(),
        payload: serde_json::json!({"n": number.to_string()}),
        due: at(0),
    }
}

fn state(state: NewState) -> FindingUpdate {
    FindingUpdate { state: Some(state), ..FindingUpdate::default() }
}

contract! {
    async fn a_finding_is_read_as_it_was_found(bench) {
        let change = FindingChange {
            entity: Some(Entity { kind: "file".into(), value: "/etc/\u{0}".into() }),
            agent: Some(id(7)),
            severity: Severity::High,
            ..matched("r1", "k", &[1, 2])
        };
        let finding = found(&bench, vec![change.clone()]).await.remove(0);
        assert_eq!((finding.rule.as_str(), finding.rule_version, finding.severity), ("r1", 1, Severity::High));
        assert_eq!((&finding.title, &finding.description, &finding.details), (&change.title, &change.description, &change.details));
        assert_eq!(finding.entity.unwrap().value, "/etc/\u{fffd}");
        assert_eq!((finding.agent, finding.event_count, finding.created_at), (Some(id(7)), 2, at(100)));
        assert_eq!(bench.db.finding(T, id(99)).await.unwrap(), None);
    }

    async fn findings_are_found_by_all_they_are_asked_for(bench) {
        let entity = |value: &str| Some(Entity { kind: "ip".into(), value: value.into() });
        let changes = vec![
            FindingChange { entity: entity("192.0.2.1"), agent: Some(id(7)), ..matched("r1", "a", &[1]) },
            FindingChange { severity: Severity::Critical, agent: Some(id(8)), ..matched("r1", "b", &[2, 9]) },
            FindingChange { entity: entity("192.0.2.2"), agent: Some(id(7)), ..matched("r2", "c", &[3, 9]) },
        ];
        let made = found(&bench, changes).await;
        let update = FindingUpdate { assignee: Some(Some("ada".into())), ..state(NewState::Acknowledged) };
        bench.db.change_finding(T, made[2].id, None, &update, "user:ada", at(200)).await.unwrap();
        let find = async |filter: FindingFilter| -> Vec<usize> {
            let page = bench.db.findings(T, &filter, &PageRequest::default()).await.unwrap();
            page.items.iter().map(|one| made.iter().position(|finding| finding.id == one.id).unwrap()).collect()
        };
        let any = FindingFilter::default();
        assert_eq!(find(any.clone()).await, [2, 1, 0]);
        assert_eq!(find(FindingFilter { state: Some(FindingState::Open), ..any.clone() }).await, [1, 0]);
        assert_eq!(find(FindingFilter { severity: Some(Severity::Critical), ..any.clone() }).await, [1]);
        assert_eq!(find(FindingFilter { rule: Some("r1".into()), ..any.clone() }).await, [1, 0]);
        assert_eq!(find(FindingFilter { agent: Some(id(7)), ..any.clone() }).await, [2, 0]);
        assert_eq!(find(FindingFilter { entity: entity("192.0.2.2"), ..any.clone() }).await, [2]);
        assert_eq!(find(FindingFilter { event: Some(id(9)), ..any.clone() }).await, [2, 1]);
        assert_eq!(find(FindingFilter { event: Some(id(1)), ..any.clone() }).await, [0]);
        assert_eq!(find(FindingFilter { assignee: Some("ada".into()), ..any.clone() }).await, [2]);
        assert_eq!(find(FindingFilter { since: Some(at(101)), until: Some(at(102)), ..any }).await, [1]);
        let mut agent = crate::bench::new_agent(8);
        agent.tags = ["ours".to_owned()].into();
        bench.db.create_agent(T, &agent, at(0)).await.unwrap();
        let within = FindingFilter { within: Some(agent.tags), ..FindingFilter::default() };
        assert_eq!(find(within.clone()).await, [1]);
        assert_eq!(find(FindingFilter { agent: Some(id(7)), ..within }).await, [0_usize; 0]);
        let counts = bench.db.finding_counts(T).await.unwrap();
        assert_eq!(counts.iter().map(|count| count.findings).sum::<u64>(), 3);
        assert!(counts.iter().any(|count| (count.state, count.severity) == (FindingState::Open, Severity::Critical)));
    }

    async fn a_list_of_findings_gives_each_once(bench) {
        let made = found(&bench, (1..=23).map(|n| matched("r", &n.to_string(), &[n])).collect()).await;
        let filter = FindingFilter::default();
        let listed = all(5, async |page| bench.db.findings(T, &filter, &page).await).await;
        assert_eq!(listed, made.into_iter().rev().collect::<Vec<_>>());
    }

    async fn what_people_do_about_a_finding_is_kept_in_its_history(bench) {
        let made = found(&bench, vec![matched("r1", "k", &[1])]).await.remove(0);
        let update = FindingUpdate {
            assignee: Some(Some("ada".into())),
            note: Some("looking".into()),
            deliveries: vec![delivery(1)],
            ..state(NewState::Acknowledged)
        };
        let changed = bench.db.change_finding(T, made.id, Some(1), &update, "user:ada", at(200)).await.unwrap();
        assert_eq!((changed.state, changed.assignee.as_deref(), changed.revision), (FindingState::Acknowledged, Some("ada"), 2));
        let stale = bench.db.change_finding(T, made.id, Some(1), &state(NewState::Resolved), "user:bob", at(201)).await;
        assert!(stale.unwrap_err().is_conflict());
        let nobody = bench.db.change_finding(T, id(9), None, &state(NewState::Resolved), "user:bob", at(201)).await;
        assert!(nobody.unwrap_err().is_not_found());
        let none = FindingUpdate { assignee: Some(None), ..FindingUpdate::default() };
        bench.db.change_finding(T, made.id, None, &none, "user:bob", at(202)).await.unwrap();
        let history = all(2, async |page| bench.db.finding_history(T, made.id, &page).await).await;
        let told: Vec<_> = history
            .iter()
            .map(|row| (row.number, row.by.as_str(), row.action.as_str(), row.old.as_deref(), row.new.as_deref()))
            .collect();
        let expected = [
            (5, "user:bob", "assignee", Some("ada"), None),
            (4, "user:ada", "note", None, Some("looking")),
            (3, "user:ada", "assignee", None, Some("ada")),
            (2, "user:ada", "state", Some("open"), Some("acknowledged")),
            (1, "judge", "created", None, None),
        ];
        assert_eq!(told, expected);
        let queued = bench.db.deliveries(T, None, &PageRequest::default()).await.unwrap().items;
        assert_eq!(queued.len(), 1, "what is told is kept with what it tells of");
    }

    async fn no_two_findings_of_one_key_are_open_at_once(bench) {
        let first = found(&bench, vec![matched("r1", "k", &[1])]).await.remove(0);
        bench.db.change_finding(T, first.id, None, &state(NewState::Resolved), "ada", at(200)).await.unwrap();
        found(&bench, vec![matched("r1", "k", &[2])]).await;
        let second_open = bench.db.change_finding(T, first.id, None, &state(NewState::Open), "ada", at(201)).await;
        assert!(second_open.unwrap_err().is_conflict());
        let still = bench.db.finding(T, first.id).await.unwrap().unwrap();
        assert_eq!(still.state, FindingState::Resolved);
    }

    async fn who_follows_findings_gets_each_as_it_is_now(bench) {
        let made = found(&bench, vec![matched("r1", "a", &[1]), matched("r1", "b", &[2]), matched("r1", "c", &[3])]).await;
        bench.settle().await;
        let end = bench.db.findings_horizon(T).await.unwrap();
        assert_eq!(bench.db.findings_after(T, end, 10).await.unwrap().findings, []);
        let first = bench.db.findings_after(T, picket_hub_db::Position::START, 2).await.unwrap();
        assert_eq!(first.findings, made[..2]);
        bench.db.change_finding(T, made[0].id, None, &state(NewState::Resolved), "ada", at(200)).await.unwrap();
        bench.settle().await;
        let rest = bench.db.findings_after(T, first.next, 10).await.unwrap();
        let told: Vec<_> = rest.findings.iter().map(|one| (one.id, one.state)).collect();
        assert_eq!(told, [(made[2].id, FindingState::Open), (made[0].id, FindingState::Resolved)]);
        let now = bench.db.findings_after(T, end, 10).await.unwrap();
        assert_eq!(now.findings.len(), 1);
        assert_eq!(bench.db.findings_after(T, now.next, 10).await.unwrap().findings, []);
    }

    async fn only_a_new_finding_is_told_to_others(bench) {
        let with = |number, events: &[u64]| FindingChange { deliveries: vec![delivery(number)], ..matched("r1", "k", events) };
        found(&bench, vec![with(1, &[1]), with(2, &[2]), with(3, &[2])]).await;
        let queued = bench.db.deliveries(T, None, &PageRequest::default()).await.unwrap().items;
        assert_eq!(queued.iter().map(|one| one.delivery.clone()).collect::<Vec<_>>(), [delivery(1)]);
    }
}
