//! Rules and their versions.

use crate::bench::{T, all, at};
use crate::contract;
use picket_hub_db::{NewRule, PageRequest, RuleFilter, RuleOrigin};

fn new_rule(id: &str, source: &str) -> NewRule {
    NewRule {
        id: id.into(),
        title: format!("rule {id}"),
        level: "high".into(),
        logsource: "file".into(),
        source: source.into(),
        origin: RuleOrigin::Api,
        enabled: None,
    }
}

contract! {
    async fn a_rule_gets_a_version_when_its_source_changes_and_only_then(bench) {
        let first = bench.db.put_rule(T, &new_rule("r1", "a"), Some(0), "ada", at(1)).await.unwrap();
        assert_eq!((first.version, first.revision, first.enabled), (1, 1, true));
        let revision = bench.db.rules_revision(T).await.unwrap();
        let same = bench.db.put_rule(T, &new_rule("r1", "a"), None, "bob", at(2)).await.unwrap();
        assert_eq!(same, first, "nothing changed");
        assert_eq!(bench.db.rules_revision(T).await.unwrap(), revision);
        let titled = NewRule { title: "other".into(), ..new_rule("r1", "a") };
        let titled = bench.db.put_rule(T, &titled, Some(1), "bob", at(3)).await.unwrap();
        assert_eq!((titled.version, titled.revision, titled.created_at, titled.updated_at), (1, 2, at(1), at(3)));
        let changed = bench.db.put_rule(T, &new_rule("r1", "b"), Some(2), "bob", at(4)).await.unwrap();
        assert_eq!((changed.version, changed.revision), (2, 3));
        assert!(bench.db.rules_revision(T).await.unwrap() > revision);
        let versions = all(1, async |page| bench.db.rule_versions(T, "r1", &page).await).await;
        let told: Vec<_> = versions.iter().map(|one| (one.version, one.source.as_str(), one.created_by.as_str())).collect();
        assert_eq!(told, [(2, "b", "bob"), (1, "a", "ada")]);
        for expected in [0, 2] {
            let stale = bench.db.put_rule(T, &new_rule("r1", "c"), Some(expected), "ada", at(5)).await;
            assert!(stale.unwrap_err().is_conflict());
        }
    }

    async fn a_disabled_rule_stays_disabled_when_its_source_changes(bench) {
        bench.db.put_rule(T, &new_rule("r1", "a"), None, "ada", at(1)).await.unwrap();
        let before = bench.db.rules_revision(T).await.unwrap();
        let off = bench.db.enable_rule(T, "r1", false, Some(1), "ada", at(2)).await.unwrap();
        assert_eq!((off.enabled, off.revision, off.version), (false, 2, 1));
        assert!(bench.db.rules_revision(T).await.unwrap() > before);
        let stale = bench.db.enable_rule(T, "r1", true, Some(1), "ada", at(3)).await;
        assert!(stale.unwrap_err().is_conflict());
        assert!(bench.db.enable_rule(T, "r9", true, None, "ada", at(3)).await.unwrap_err().is_not_found());
        assert!(!bench.db.put_rule(T, &new_rule("r1", "b"), None, "ada", at(4)).await.unwrap().enabled);
        let on = NewRule { enabled: Some(true), ..new_rule("r1", "b") };
        assert!(bench.db.put_rule(T, &on, None, "ada", at(5)).await.unwrap().enabled);
    }

    async fn a_removed_rule_that_comes_back_goes_on_counting_versions(bench) {
        bench.db.put_rule(T, &new_rule("r1", "a"), None, "ada", at(1)).await.unwrap();
        bench.db.put_rule(T, &new_rule("r1", "b"), None, "ada", at(2)).await.unwrap();
        assert!(bench.db.delete_rule(T, "r1").await.unwrap());
        assert!(!bench.db.delete_rule(T, "r1").await.unwrap());
        assert_eq!(bench.db.rule(T, "r1").await.unwrap(), None);
        assert!(bench.db.enable_rule(T, "r1", true, None, "ada", at(3)).await.unwrap_err().is_not_found());
        let back = bench.db.put_rule(T, &new_rule("r1", "a"), Some(0), "bob", at(4)).await.unwrap();
        assert_eq!((back.version, back.enabled, back.created_at), (3, true, at(4)));
        let versions = bench.db.rule_versions(T, "r1", &PageRequest::default()).await.unwrap().items;
        assert_eq!(versions.len(), 1);
    }

    async fn rules_are_found_by_origin_state_and_log_source(bench) {
        for (id, origin, logsource) in [("a", RuleOrigin::Pack, "file"), ("b", RuleOrigin::File, "network"), ("c", RuleOrigin::Api, "file")] {
            let rule = NewRule { origin, logsource: logsource.into(), ..new_rule(id, id) };
            bench.db.put_rule(T, &rule, None, "ada", at(1)).await.unwrap();
        }
        bench.db.enable_rule(T, "c", false, None, "ada", at(2)).await.unwrap();
        let find = async |filter: RuleFilter| -> Vec<String> {
            all(1, async |page| bench.db.rules(T, &filter, &page).await).await.into_iter().map(|rule| rule.id).collect()
        };
        assert_eq!(find(RuleFilter::default()).await, ["a", "b", "c"]);
        assert_eq!(find(RuleFilter { origin: Some(RuleOrigin::File), ..RuleFilter::default() }).await, ["b"]);
        assert_eq!(find(RuleFilter { enabled: Some(true), ..RuleFilter::default() }).await, ["a", "b"]);
        assert_eq!(find(RuleFilter { logsource: Some("file".into()), enabled: Some(false), ..RuleFilter::default() }).await, ["c"]);
    }

    async fn a_rule_written_by_many_at_once_counts_every_version(bench) {
        let tasks: Vec<_> = (0..12)
            .map(|number| {
                let db = std::sync::Arc::clone(&bench.db);
                tokio::spawn(async move {
                    db.put_rule(T, &new_rule("r1", &number.to_string()), None, "ada", at(1)).await.unwrap().version
                })
            })
            .collect();
        let mut versions = Vec::new();
        for task in tasks {
            versions.push(task.await.unwrap());
        }
        versions.sort_unstable();
        assert_eq!(versions, (1..=12).collect::<Vec<_>>());
    }
}
