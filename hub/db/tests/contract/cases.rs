//! Cases, and what is told to others.

use crate::bench::{Bench, T, all, at, id, matched};
use crate::contract;
use crate::findings::found;
use picket_hub_db::{CaseFilter, CaseState, CaseUpdate, DeliveryState, NewCase, NewDelivery, PageRequest, Severity};
use uuid::Uuid;

fn new_case(number: u128, findings: Vec<Uuid>) -> NewCase {
    NewCase {
        id: id(number),
        title: format!("case {number}"),
        description: "what happened".into(),
        severity: Severity::High,
        assignee: None,
        findings,
        deliveries: vec![delivery(number, 0)],
    }
}

pub(crate) fn delivery(number: u128, seconds: i64) -> NewDelivery {
    NewDelivery {
        id: id(number),
        target: "chat".into(),
        payload: serde_json::json!({"text": "hello"}),
        due: at(seconds),
    }
}

async fn three(bench: &Bench) -> Vec<Uuid> {
    let changes = (1..=3).map(|n| matched("r", &n.to_string(), &[n])).collect();
    found(bench, changes).await.iter().map(|finding| finding.id).collect()
}

async fn claim(bench: &Bench, holder: &str, seconds: i64) -> Vec<Uuid> {
    let claimed = bench.db.claim_deliveries(T, holder, at(seconds), at(seconds + 30), 10, &[]).await.unwrap();
    claimed.iter().map(|one| one.delivery.id).collect()
}

contract! {
    async fn a_case_groups_findings_and_keeps_what_happened(bench) {
        let findings = three(&bench).await;
        let made = bench.db.create_case(T, &new_case(1, vec![findings[0]]), "user:ada", at(5)).await.unwrap();
        assert_eq!((made.number, made.state, made.findings, made.revision), (1, CaseState::Open, 1, 1));
        let update = CaseUpdate {
            state: Some(CaseState::InProgress),
            assignee: Some(Some("ada".into())),
            note: Some("on it".into()),
            add: vec![findings[1], findings[0]],
            ..CaseUpdate::default()
        };
        let changed = bench.db.update_case(T, id(1), Some(1), &update, "user:ada", at(6)).await.unwrap();
        assert_eq!((changed.state, changed.findings, changed.revision), (CaseState::InProgress, 2, 2));
        let listed = all(1, async |page| bench.db.case_findings(T, id(1), &page).await).await;
        assert_eq!(listed.iter().map(|finding| finding.id).collect::<Vec<_>>(), [findings[1], findings[0]]);
        let close = CaseUpdate { state: Some(CaseState::Closed), remove: vec![findings[0], findings[2]], ..CaseUpdate::default() };
        let closed = bench.db.update_case(T, id(1), None, &close, "user:bob", at(7)).await.unwrap();
        assert_eq!((closed.findings, closed.closed_at), (1, Some(at(7))));
        let history = all(3, async |page| bench.db.case_history(T, id(1), &page).await).await;
        let actions: Vec<_> = history.iter().rev().map(|row| row.action.as_str()).collect();
        let expected =
            ["created", "finding_added", "state", "assignee", "note", "finding_added", "state", "finding_removed"];
        assert_eq!(actions, expected);
        let open = CaseUpdate { state: Some(CaseState::Open), ..CaseUpdate::default() };
        assert_eq!(bench.db.update_case(T, id(1), None, &open, "ada", at(8)).await.unwrap().closed_at, None);
    }

    async fn a_case_that_cannot_be_made_whole_is_not_made(bench) {
        let findings = three(&bench).await;
        let missing = bench.db.create_case(T, &new_case(1, vec![findings[0], id(99)]), "ada", at(5)).await;
        assert!(missing.unwrap_err().is_not_found());
        assert_eq!(bench.db.case(T, id(1)).await.unwrap(), None);
        assert_eq!(bench.db.deliveries(T, None, &PageRequest::default()).await.unwrap().items, []);
        bench.db.create_case(T, &new_case(1, Vec::new()), "ada", at(5)).await.unwrap();
        assert!(bench.db.create_case(T, &new_case(1, Vec::new()), "ada", at(5)).await.unwrap_err().is_conflict());
        let stale = bench.db.update_case(T, id(1), Some(7), &CaseUpdate::default(), "ada", at(6)).await;
        assert!(stale.unwrap_err().is_conflict());
        let nobody = bench.db.update_case(T, id(2), None, &CaseUpdate::default(), "ada", at(6)).await;
        assert!(nobody.unwrap_err().is_not_found());
    }

    async fn cases_are_numbered_and_found(bench) {
        let findings = three(&bench).await;
        for number in 1..=4 {
            let with = if number == 2 { vec![findings[0]] } else { Vec::new() };
            bench.db.create_case(T, &new_case(number, with), "ada", at(5)).await.unwrap();
        }
        let close = CaseUpdate { state: Some(CaseState::Closed), ..CaseUpdate::default() };
        bench.db.update_case(T, id(3), None, &close, "ada", at(6)).await.unwrap();
        let find = async |filter: CaseFilter| -> Vec<i64> {
            all(2, async |page| bench.db.cases(T, &filter, &page).await).await.iter().map(|case| case.number).collect()
        };
        assert_eq!(find(CaseFilter::default()).await, [4, 3, 2, 1]);
        assert_eq!(find(CaseFilter { state: Some(CaseState::Open), ..CaseFilter::default() }).await, [4, 2, 1]);
        assert_eq!(find(CaseFilter { finding: Some(findings[0]), ..CaseFilter::default() }).await, [2]);
        assert_eq!(find(CaseFilter { severity: Some(Severity::Low), ..CaseFilter::default() }).await, [0_i64; 0]);
    }

    async fn a_delivery_is_one_holders_for_a_while_and_tried_until_it_is_given_up(bench) {
        bench.db.enqueue_deliveries(T, &[delivery(1, 0), delivery(2, 50), delivery(1, 0)], at(0)).await.unwrap();
        assert_eq!(claim(&bench, "a", 10).await, [id(1)]);
        assert!(claim(&bench, "b", 20).await.is_empty());
        assert_eq!(claim(&bench, "b", 40).await, [id(1)], "whoever had it died");
        assert!(!bench.db.delivery_done(T, id(1), "a", at(41)).await.unwrap());
        assert!(bench.db.delivery_failed(T, id(1), "b", "503", Some(at(60)), at(41)).await.unwrap());
        assert_eq!(claim(&bench, "b", 55).await, [id(2)]);
        assert!(bench.db.delivery_done(T, id(2), "b", at(56)).await.unwrap());
        assert_eq!(claim(&bench, "a", 60).await, [id(1)]);
        assert!(bench.db.delivery_failed(T, id(1), "a", "410", None, at(61)).await.unwrap());
        assert!(claim(&bench, "a", 9999).await.is_empty());
        let failed = bench.db.deliveries(T, Some(DeliveryState::Failed), &PageRequest::default()).await.unwrap().items;
        let told: Vec<_> = failed.iter().map(|one| (one.delivery.id, one.attempts, one.last_error.as_deref())).collect();
        assert_eq!(told, [(id(1), 3, Some("410"))]);
    }

    async fn who_is_left_out_is_not_claimed_for_and_keeps_nobody_else_waiting(bench) {
        let mut queued: Vec<_> = (1..=30).map(|number| delivery(number, 0)).collect();
        queued.push(NewDelivery { target: "siem".into(), ..delivery(31, 5) });
        bench.db.enqueue_deliveries(T, &queued, at(0)).await.unwrap();
        let claim = async |except: &[String]| {
            let claimed = bench.db.claim_deliveries(T, "a", at(10), at(40), 1, except).await.unwrap();
            claimed.first().map(|one| (one.delivery.id, one.attempts))
        };
        assert_eq!(claim(&["chat".into()]).await, Some((id(31), 1)));
        assert_eq!(claim(&["chat".into(), "siem".into()]).await, None);
        assert_eq!(claim(&[]).await, Some((id(1), 1)), "what was left out was not tried");
    }

    async fn many_who_claim_at_once_get_different_deliveries(bench) {
        let queued: Vec<_> = (1..=60).map(|number| delivery(number, 0)).collect();
        bench.db.enqueue_deliveries(T, &queued, at(0)).await.unwrap();
        let tasks: Vec<_> = (0..10)
            .map(|number| {
                let db = std::sync::Arc::clone(&bench.db);
                tokio::spawn(async move {
                    db.claim_deliveries(T, &format!("replica-{number}"), at(1), at(60), 6, &[]).await.unwrap()
                })
            })
            .collect();
        let mut claimed = Vec::new();
        for task in tasks {
            claimed.extend(task.await.unwrap().iter().map(|one| one.delivery.id));
        }
        let count = claimed.len();
        claimed.sort_unstable();
        claimed.dedup();
        assert_eq!(claimed.len(), count, "one was claimed twice");
        // Who finds rows locked passes them over, and takes them the next time.
        let rest = bench.db.claim_deliveries(T, "last", at(2), at(60), 60, &[]).await.unwrap();
        assert_eq!(count + rest.len(), 60);
    }
}
