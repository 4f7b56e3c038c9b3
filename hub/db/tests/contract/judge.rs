//! Leases, cursors, and findings that are committed exactly once.

use crate::bench::{Bench, T, at, id, matched, position};
use crate::contract;
use picket_hub_db::{
    DbError, EVIDENCE_MAX, Effect, FindingChange, FindingFilter, FindingState, FindingUpdate, JudgeCommit, Lease,
    NewState, PageRequest, Position, Progress, finding_id,
};

async fn lease(bench: &Bench, holder: &str) -> Lease {
    bench.db.acquire_lease(T, "judge/file", holder, at(0), at(30)).await.unwrap().unwrap()
}

fn commit(from: u64, to: u64, changes: Vec<FindingChange>) -> JudgeCommit {
    JudgeCommit { from: position(from), to: position(to), state: None, now: at(100), changes }
}

/// Commits from where the judge is.
async fn judge(bench: &Bench, lease: &Lease, to: u64, changes: Vec<FindingChange>) -> Vec<(Effect, u64)> {
    let from = bench.db.progress(T, &lease.name).await.unwrap().position;
    let commit = JudgeCommit { from, ..commit(0, to, changes) };
    let judged = bench.db.commit_findings(T, lease, &commit).await.unwrap();
    judged.outcomes.iter().map(|outcome| (outcome.effect, outcome.added)).collect()
}

async fn only(bench: &Bench) -> picket_hub_db::Finding {
    let page = bench.db.findings(T, &FindingFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!(page.items.len(), 1);
    page.items.into_iter().next().unwrap()
}

contract! {
    async fn a_lease_is_one_holders_until_it_ends(bench) {
        let first = lease(&bench, "a").await;
        assert_eq!(bench.db.acquire_lease(T, "judge/file", "b", at(29), at(60)).await.unwrap(), None);
        let kept = bench.db.renew_lease(T, &first, at(45)).await.unwrap();
        assert_eq!((kept.epoch, kept.expires_at), (first.epoch, at(45)));
        assert_eq!(bench.db.acquire_lease(T, "judge/file", "b", at(30), at(60)).await.unwrap(), None);
        let second = bench.db.acquire_lease(T, "judge/file", "b", at(45), at(60)).await.unwrap().unwrap();
        assert!(second.epoch > first.epoch);
        assert!(bench.db.renew_lease(T, &kept, at(90)).await.unwrap_err().is_conflict());
        assert!(!bench.db.release_lease(T, &kept).await.unwrap());
        assert!(bench.db.release_lease(T, &second).await.unwrap());
        let third = bench.db.acquire_lease(T, "judge/file", "a", at(46), at(60)).await.unwrap().unwrap();
        assert!(third.epoch > second.epoch);
        assert!(bench.db.renew_lease(T, &second, at(90)).await.unwrap_err().is_conflict());
        assert_eq!(bench.db.leases(T).await.unwrap(), [third]);
    }

    async fn many_who_reach_for_a_lease_at_once_and_one_gets_it(bench) {
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let db = std::sync::Arc::clone(&bench.db);
                tokio::spawn(async move {
                    db.acquire_lease(T, "judge/file", &format!("replica-{number}"), at(0), at(30)).await.unwrap()
                })
            })
            .collect();
        let mut held = Vec::new();
        for task in tasks {
            held.extend(task.await.unwrap());
        }
        assert_eq!(held.len(), 1);
    }

    async fn who_lost_the_lease_commits_nothing(bench) {
        let old = lease(&bench, "a").await;
        bench.db.acquire_lease(T, "judge/file", "b", at(30), at(60)).await.unwrap().unwrap();
        let late = bench.db.commit_findings(T, &old, &commit(0, 5, vec![matched("r1", "k", &[5])])).await;
        assert!(late.unwrap_err().is_conflict());
        assert_eq!(bench.db.progress(T, "judge/file").await.unwrap(), Progress::default());
        let page = bench.db.findings(T, &FindingFilter::default(), &PageRequest::default()).await.unwrap();
        assert_eq!(page.items, []);
        // A restarted replica is another holder even under the same name.
        let again = bench.db.acquire_lease(T, "judge/file", "b", at(31), at(60)).await.unwrap().unwrap();
        assert!(again.epoch > old.epoch + 1);
    }

    async fn a_commit_that_is_replayed_changes_nothing(bench) {
        let lease = lease(&bench, "a").await;
        let mut first = commit(0, 5, vec![matched("r1", "k", &[3, 5]), matched("r2", "k", &[4])]);
        first.state = Some(vec![1, 2, 3]);
        let judged = bench.db.commit_findings(T, &lease, &first).await.unwrap();
        assert_eq!((judged.count(Effect::New), judged.repeated), (2, false));
        let before = bench.db.findings(T, &FindingFilter::default(), &PageRequest::default()).await.unwrap();
        let replayed = bench.db.commit_findings(T, &lease, &first).await.unwrap();
        assert_eq!((replayed.outcomes.len(), replayed.repeated), (0, true));
        let after = bench.db.findings(T, &FindingFilter::default(), &PageRequest::default()).await.unwrap();
        assert_eq!(before, after);
        let progress = bench.db.progress(T, "judge/file").await.unwrap();
        assert_eq!(progress, Progress { position: position(5), state: Some(vec![1, 2, 3]) });
        let stale = bench.db.commit_findings(T, &lease, &commit(3, 9, Vec::new())).await;
        assert!(stale.unwrap_err().is_conflict(), "the cursor is not where the commit begins");
        bench.db.commit_findings(T, &lease, &commit(5, 9, Vec::new())).await.unwrap();
        let kept = bench.db.progress(T, "judge/file").await.unwrap();
        assert_eq!((kept.position, kept.state), (position(9), Some(vec![1, 2, 3])));
    }

    async fn a_commit_ten_times_at_once_happens_once(bench) {
        let lease = lease(&bench, "a").await;
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let (db, lease) = (std::sync::Arc::clone(&bench.db), lease.clone());
                tokio::spawn(async move {
                    db.commit_findings(T, &lease, &commit(0, 5, vec![matched("r1", "k", &[1, 2, 5])])).await.unwrap()
                })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            done += usize::from(!task.await.unwrap().repeated);
        }
        assert_eq!((done, only(&bench).await.event_count), (1, 3));
    }

    async fn a_match_extends_the_finding_that_is_not_resolved_and_counts_no_event_twice(bench) {
        let lease = lease(&bench, "a").await;
        assert_eq!(judge(&bench, &lease, 1, vec![matched("r1", "k", &[1])]).await, [(Effect::New, 1)]);
        let made = only(&bench).await;
        assert_eq!(made.id, finding_id(T, "r1", "k", id(1)));
        assert_eq!((made.first_event, made.state, made.revision), (id(1), FindingState::Open, 1));
        let two = vec![matched("r1", "k", &[1, 2]), matched("r1", "k", &[2]), matched("r1", "k", &[4, 3, 4])];
        let effects = judge(&bench, &lease, 4, two).await;
        assert_eq!(effects, [(Effect::Extended, 1), (Effect::Unchanged, 0), (Effect::Extended, 2)]);
        let extended = only(&bench).await;
        assert_eq!((extended.event_count, extended.revision), (4, 3));
        assert_eq!((extended.first_seen, extended.last_seen), (at(1), at(4)));
        let evidence = bench.db.evidence(T, made.id, &PageRequest::default()).await.unwrap().items;
        assert_eq!(evidence.iter().map(|one| one.event).collect::<Vec<_>>(), [id(1), id(2), id(3), id(4)]);
        let other_key = judge(&bench, &lease, 5, vec![matched("r1", "other", &[5]), matched("r2", "k", &[5])]).await;
        assert_eq!(other_key, [(Effect::New, 1), (Effect::New, 1)]);
    }

    async fn after_a_finding_is_resolved_the_next_match_begins_a_new_one(bench) {
        let lease = lease(&bench, "a").await;
        judge(&bench, &lease, 2, vec![matched("r1", "k", &[1, 2])]).await;
        let first = only(&bench).await;
        let resolve = FindingUpdate { state: Some(NewState::Resolved), ..FindingUpdate::default() };
        bench.db.change_finding(T, first.id, Some(1), &resolve, "user:ada", at(200)).await.unwrap();
        // The very events it is made of do not open it again.
        let effects = judge(&bench, &lease, 3, vec![matched("r1", "k", &[1, 2])]).await;
        assert_eq!(effects, [(Effect::Unchanged, 0)]);
        let effects = judge(&bench, &lease, 4, vec![matched("r1", "k", &[2, 4])]).await;
        assert_eq!(effects, [(Effect::New, 2)]);
        let page = bench.db.findings(T, &FindingFilter::default(), &PageRequest::default()).await.unwrap();
        assert_eq!(page.items.len(), 2);
        assert!(page.items.iter().any(|finding| finding.id == finding_id(T, "r1", "k", id(4))));
        assert!(page.items.iter().any(|finding| finding.state == FindingState::Resolved && finding.event_count == 2));
    }

    async fn a_suppressed_finding_counts_in_silence_until_its_time_is_over(bench) {
        let lease = lease(&bench, "a").await;
        judge(&bench, &lease, 1, vec![matched("r1", "k", &[1])]).await;
        let made = only(&bench).await;
        let suppress = FindingUpdate { state: Some(NewState::Suppressed(Some(at(1000)))), ..FindingUpdate::default() };
        bench.db.change_finding(T, made.id, None, &suppress, "user:ada", at(200)).await.unwrap();
        assert_eq!(judge(&bench, &lease, 2, vec![matched("r1", "k", &[2])]).await, [(Effect::Silent, 1)]);
        assert_eq!(only(&bench).await.state, FindingState::Suppressed);
        let later = JudgeCommit { now: at(1000), ..commit(2, 3, vec![matched("r1", "k", &[3])]) };
        let judged = bench.db.commit_findings(T, &lease, &later).await.unwrap();
        assert_eq!(judged.count(Effect::Reopened), 1);
        let open = only(&bench).await;
        assert_eq!((open.state, open.suppressed_until, open.event_count), (FindingState::Open, None, 3));
        let history = bench.db.finding_history(T, made.id, &PageRequest::default()).await.unwrap().items;
        let actions: Vec<_> = history.iter().map(|row| row.action.as_str()).collect();
        assert_eq!(actions, ["reopened", "state", "created"]);
    }

    async fn evidence_is_capped_and_the_count_stays_exact(bench) {
        let lease = lease(&bench, "a").await;
        let total = u64::from(EVIDENCE_MAX) + 150;
        let mut to = 0;
        for step in (1..=total).collect::<Vec<_>>().chunks(70) {
            // Each match brings the ten before it along.
            let first = step[0].saturating_sub(10).max(1);
            let last = step[step.len() - 1];
            let events: Vec<u64> = (first..=last).collect();
            to = last;
            judge(&bench, &lease, last, vec![matched("r1", "k", &events)]).await;
        }
        let found = only(&bench).await;
        assert_eq!((found.event_count, to), (total, total));
        let kept = crate::bench::all(90, async |page| bench.db.evidence(T, found.id, &page).await).await;
        assert_eq!(kept.len(), EVIDENCE_MAX as usize);
        assert_eq!(judge(&bench, &lease, total + 1, vec![matched("r1", "k", &[total])]).await, [(Effect::Unchanged, 0)]);
    }

    async fn a_commit_that_makes_no_sense_is_refused_whole(bench) {
        let lease = lease(&bench, "a").await;
        let nothing = commit(0, 5, vec![matched("r1", "k", &[1]), matched("r1", "k", &[])]);
        assert!(matches!(bench.db.commit_findings(T, &lease, &nothing).await, Err(DbError::Invalid { .. })));
        let back = commit(5, 3, Vec::new());
        assert!(matches!(bench.db.commit_findings(T, &lease, &back).await, Err(DbError::Invalid { .. })));
        let page = bench.db.findings(T, &FindingFilter::default(), &PageRequest::default()).await.unwrap();
        assert_eq!(page.items, []);
        assert_eq!(bench.db.progress(T, "judge/file").await.unwrap().position, Position::START);
    }
}
