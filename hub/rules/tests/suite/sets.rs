//! Sets of rules: replacing, refusing, filtering, silencing, sharding.

use picket_hub_rules::{DryRunLimits, MatchKind, RuleEngine, RuleState, Settings, Shard, SigmaEngine, Suspension};
use serde_json::json;
use std::time::Duration;

use crate::support::{about, engine, event, file, id, inbound, key, matches, source, titles};

#[test]
fn a_match_tells_what_a_finding_needs() {
    let engine = engine(&[source(
        1,
        "title: T\nid: @ID\ndescription: What it means.\ntags: [attack.t1098]\nfalsepositives: [Deploys]\nlevel: critical\n\
         logsource: {product: linux, category: file_event}\n\
         detection:\n  selection_path:\n    TargetFilename|endswith: '/keys'\n  selection_user:\n    User: root\n  \
         filter_x:\n    Image: /bin/x\n  condition: all of selection_* and not filter_x\n",
    )]);
    let event =
        event(7, 3, "file", json!({"action": "created", "path": "/a/keys", "actor": {"pid": 1, "user": "root"}}));
    let found = matches(&engine, &event);
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((found.rule, found.sigma_id), (key(1), id(1)));
    assert_eq!((found.title.as_str(), found.description.as_str()), ("T", "What it means."));
    assert_eq!((found.level.as_str(), found.tags.as_slice()), ("critical", &["attack.t1098".to_owned()][..]));
    assert_eq!(found.evidence, [event.id()]);
    assert_eq!((found.agent, found.at, &found.entity), (event.agent(), event.at(), event.entity()));
    assert_eq!((found.dedupe_key.len(), found.match_key.len()), (32, 32));
    let MatchKind::Detection { selections, fields } = &found.kind else { panic!("{found:?}") };
    assert_eq!(selections, &["selection_path", "selection_user"]);
    let path = fields.iter().find(|field| field.field == "TargetFilename").unwrap();
    assert_eq!((path.value.as_str(), path.selection.as_deref()), ("/a/keys", Some("selection_path")));
    assert!(path.pattern.as_deref().is_some_and(|pattern| pattern.contains("/keys")), "{path:?}");
}

#[test]
fn the_same_story_has_the_same_dedupe_key_and_every_match_its_own() {
    let engine = engine(&[about(1, "x")]);
    let keys = |n, path: &str| {
        let found = matches(&engine, &file(n, 0, "created", path)).remove(0);
        (found.dedupe_key, found.match_key)
    };
    let (first, again, other) = (keys(1, "/x"), keys(2, "/x"), keys(3, "/x/y"));
    assert_eq!(first.0, again.0);
    assert_ne!(first.0, other.0);
    assert_ne!(first.1, again.1);
    assert_eq!(first, keys(1, "/x"), "a replay gives the same");
}

#[test]
fn a_set_is_replaced_whole_and_what_is_broken_is_refused_alone() {
    let engine = engine(&[about(1, "x")]);
    let broken = source(3, "title: B\nid: @ID\nlogsource: {product: linux}\ndetection: {}\n");
    let replaced = engine.replace(&[about(2, "x"), broken.clone(), about(4, "x")], &[]);
    assert_eq!(replaced.loaded, 2);
    assert_eq!(replaced.refused.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [broken.key]);
    assert_eq!(
        matches(&engine, &file(1, 0, "created", "/x")).iter().map(|m| m.rule).collect::<Vec<_>>(),
        [key(2), key(4)]
    );
}

#[test]
fn an_id_belongs_to_the_rule_that_came_first() {
    let engine = SigmaEngine::new(Settings::default());
    let mut second = about(1, "y");
    second.key = key(2);
    let replaced = engine.replace(&[about(1, "x"), second], &[]);
    assert_eq!(replaced.refused[0].0, key(2));
    assert_eq!(replaced.refused[0].1[0].code, "duplicate_id");
}

#[test]
fn only_rules_of_an_events_log_source_are_asked() {
    let rule = |n, source_of: &str| {
        source(
            n,
            &format!(
                "title: R{n}\nid: @ID\nlogsource: {source_of}\ndetection:\n  s:\n    TargetFilename|contains: x\n  condition: s\n"
            ),
        )
    };
    let engine = engine(&[
        rule(1, "{product: linux, category: file_event}"),
        rule(2, "{product: linux, category: file_delete}"),
        rule(3, "{product: windows, category: file_event}"),
        rule(4, "{category: file_change}"),
        rule(5, "{product: linux}"),
        rule(6, "{product: picket, service: gap}"),
        rule(7, "{product: linux, category: file_rename}"),
    ]);
    assert_eq!(titles(&engine, &file(1, 0, "created", "/x")), ["R1", "R5"]);
    assert_eq!(titles(&engine, &file(1, 0, "modified", "/x")), ["R1", "R4", "R5"]);
    assert_eq!(titles(&engine, &file(1, 0, "deleted", "/x")), ["R2", "R5"]);
    assert_eq!(titles(&engine, &file(1, 0, "renamed", "/x")), ["R1", "R5", "R7"]);
    assert_eq!(engine.evaluate(Shard::Network, &file(1, 0, "created", "/x")), [], "not of this shard");
    let states: Vec<bool> = engine.health().iter().map(|health| health.state == RuleState::Unreached).collect();
    assert_eq!(states, [false, false, true, false, false, false, false]);
}

#[test]
fn a_filter_holds_back_the_rules_it_is_about_and_no_others() {
    let filter = source(
        9,
        "title: F\nid: @ID\nlogsource: {product: linux, category: file_event}\nfilter:\n  rules: [about_1]\n  selection:\n    User: deploy\n  condition: not selection\n",
    );
    let engine = engine(&[about(1, "x"), about(2, "x"), filter]);
    let by =
        |user: &str| event(1, 0, "file", json!({"action": "created", "path": "/x", "actor": {"pid": 1, "user": user}}));
    assert_eq!(titles(&engine, &by("eve")).len(), 2);
    let held = matches(&engine, &by("deploy"));
    assert_eq!(held.iter().map(|found| found.rule).collect::<Vec<_>>(), [key(2)]);
    let MatchKind::Detection { selections, .. } = &matches(&engine, &by("eve"))[0].kind else { panic!() };
    assert_eq!(selections, &["selection"], "the filter's selections are not the rule's");
}

#[test]
fn a_filter_of_any_rule_does_not_become_part_of_all_of_them() {
    let rule = source(
        1,
        "title: R\nid: @ID\nlogsource: {category: file_event}\ndetection:\n  a: {TargetFilename|contains: x}\n  b: {TargetFilename|contains: y}\n  condition: 1 of *\n",
    );
    let filter = source(2, "title: F\nid: @ID\nfilter:\n  rules: any\n  keep: {User: eve}\n  condition: 1 of keep*\n");
    let engine = engine(&[rule, filter]);
    let by = |user: &str, path: &str| {
        event(1, 0, "file", json!({"action": "created", "path": path, "actor": {"pid": 1, "user": user}}))
    };
    assert_eq!(titles(&engine, &by("eve", "/x")), ["R"]);
    assert_eq!(titles(&engine, &by("ann", "/x")), Vec::<String>::new());
    assert_eq!(titles(&engine, &by("eve", "/z")), Vec::<String>::new(), "the filter's selection is no way in");
}

#[test]
fn a_correlation_silences_the_rule_of_its_own_source_and_nobody_elses() {
    let base = "title: Base\nid: @ID\nname: base\nlogsource: {product: linux, category: network_connection}\ndetection:\n  s: {Initiated: 'false'}\n  condition: s\n";
    let counting = |n: u128, of: &str| {
        format!(
            "title: Many\nid: {}\nlevel: high\ncorrelation:\n  type: event_count\n  rules: [{of}]\n  group-by: [SourceIp]\n  timespan: 1m\n  condition: {{gte: 2}}\n",
            id(n)
        )
    };
    let together = engine(&[source(1, &format!("{base}---\n{}", counting(100, "base")))]);
    let apart = engine(&[source(1, base), source(100, &counting(100, "base"))]);
    let seen =
        |engine: &SigmaEngine| (0..2).flat_map(|n| titles(engine, &inbound(n, 0, "10.1.1.1", 22))).collect::<Vec<_>>();
    assert_eq!(seen(&together), ["Many"]);
    assert_eq!(seen(&apart), ["Base", "Base", "Many"]);
}

#[test]
fn a_correlation_of_a_missing_rule_a_circle_or_two_kinds_of_events_is_refused_in_words() {
    let correlation = |n: u128, of: &str| {
        source(
            n,
            &format!(
                "title: C\nid: @ID\nname: c{n}\nlevel: low\ncorrelation:\n  type: temporal\n  rules: [{of}]\n  timespan: 1m\n"
            ),
        )
    };
    let net = source(
        5,
        "title: N\nid: @ID\nname: net\nlogsource: {category: network_connection}\ndetection:\n  s: {Initiated: 'false'}\n  condition: s\n",
    );
    let engine = SigmaEngine::new(Settings::default());
    let sources = [
        about(1, "x"),
        net,
        correlation(10, "nobody"),
        correlation(11, "c12"),
        correlation(12, "c11"),
        correlation(13, "about_1, net"),
        correlation(14, "c10"),
    ];
    let refused = engine.replace(&sources, &[]).refused;
    let codes: Vec<(u128, &str)> =
        refused.iter().map(|(key, why)| (key.id.as_u128() & 0xff, why[0].code.as_str())).collect();
    assert_eq!(
        codes,
        [(10, "unknown_rule"), (11, "circle"), (12, "circle"), (13, "mixed_kinds"), (14, "unknown_rule")]
    );
}

#[test]
fn a_suspended_rule_is_not_asked_until_it_is_resumed() {
    let engine = engine(&[about(1, "x"), about(2, "x")]);
    let asked = || titles(&engine, &file(1, 0, "created", "/x")).len();
    assert_eq!(asked(), 2);
    assert!(engine.suspend(key(1)));
    assert!(!engine.suspend(key(1)), "it was suspended already");
    assert_eq!((asked(), engine.figures(Shard::File).rules), (1, 1));
    assert!(engine.resume(key(1)));
    assert_eq!((asked(), engine.figures(Shard::File).rules), (2, 2));
    engine.replace(&[about(1, "x"), about(2, "x")], &[key(2)]);
    assert_eq!(asked(), 1);
    assert!(matches!(engine.health()[1].state, RuleState::Suspended { why: Suspension::Held }));
    assert!(engine.resume(key(2)), "what was suspended before a restart comes back as well");
    assert_eq!(asked(), 2);
}

#[test]
fn a_dry_run_counts_and_touches_nothing() {
    let engine = engine(&[about(1, "x")]);
    let events = (0..500)
        .map(|n| file(n, 0, if n % 2 == 0 { "created" } else { "deleted" }, if n % 5 == 0 { "/y" } else { "/z" }));
    let limits = DryRunLimits { events: 400, matches: 3, ..DryRunLimits::default() };
    let run = engine.dry_run(&about(2, "y").yaml, &mut events.into_iter(), limits).unwrap();
    assert_eq!((run.events, run.evaluated, run.matches, run.first.len(), run.cut_short), (400, 200, 40, 3, true));
    assert!(run.mean_nanos > 0 && run.max_nanos >= run.mean_nanos);
    assert_eq!(engine.figures(Shard::File).events, 0);
    assert_eq!(titles(&engine, &file(1, 0, "created", "/y")), Vec::<String>::new());
    let wrong = engine.dry_run("title: x", &mut std::iter::empty(), limits).unwrap_err();
    assert!(!wrong.is_usable());
    let none = DryRunLimits { time: Duration::ZERO, ..limits };
    assert!(
        engine.dry_run(&about(2, "y").yaml, &mut [file(1, 0, "created", "/y")].into_iter(), none).unwrap().cut_short
    );
}

#[test]
fn a_dry_run_of_a_correlation_uses_the_rules_of_the_set() {
    let engine = engine(&[about(1, "x")]);
    let correlation = source(
        3,
        "title: C\nid: @ID\nlevel: low\ncorrelation:\n  type: event_count\n  rules: [about_1]\n  timespan: 1m\n  condition: {gte: 3}\n",
    );
    let events = (0..5).map(|n| file(n, 0, "created", "/x"));
    let run = engine.dry_run(&correlation.yaml, &mut events.into_iter(), DryRunLimits::default()).unwrap();
    assert_eq!((run.matches, run.first[0].evidence.len(), run.evaluated), (1, 3, 5));
}

#[test]
fn replacing_while_events_are_judged_shows_each_event_one_whole_set() {
    let sets = [vec![about(1, "x"), about(2, "x")], vec![about(3, "x"), about(4, "x"), about(5, "x")]];
    let engine = engine(&sets[0]);
    std::thread::scope(|scope| {
        let judge = scope.spawn(|| {
            for n in 0..3000 {
                let rules: Vec<u128> =
                    matches(&engine, &file(n, 0, "created", "/x")).iter().map(|m| m.rule.id.as_u128() & 0xff).collect();
                assert!(rules == [1, 2] || rules == [3, 4, 5], "{rules:?}");
            }
        });
        let mut turn = 0;
        while !judge.is_finished() {
            turn += 1;
            engine.replace(&sets[turn % 2], &[]);
        }
        judge.join().unwrap();
    });
}
