//! What rules cost, and what becomes of those that cost too much.

use picket_hub_rules::{Budget, RuleEngine, RuleState, Settings, Shard, SigmaEngine, Suspension};
use std::time::Duration;

use crate::support::{about, file, key, matches, source, titles};

fn with(budget: Budget) -> SigmaEngine {
    SigmaEngine::new(Settings { budget, ..Settings::default() })
}

#[test]
fn a_slow_rule_is_suspended_by_name_and_the_others_go_on() {
    let engine = with(Budget { mean: Duration::from_micros(50), samples: 64, sample_every: 1, ..Budget::default() });
    // Automata over a long path that all have to run to its end; linear, and far beyond the budget on any machine.
    let terms: String =
        (2..90).map(|n| format!("  s{n}:\n    TargetFilename|re: '([0-8][0-9]){{{n}}}[a-w]z'\n")).collect();
    let yaml = |id: &str, terms: &str, condition: &str| {
        format!(
            "title: {id}\nid: @ID\nlogsource: {{category: file_event}}\ndetection:\n{terms}  condition: {condition}\n"
        )
    };
    let quick = source(2, &yaml("Quick", "  s:\n    FileKind: file\n", "s"));
    assert_eq!(engine.replace(&[source(1, &yaml("Slow", &terms, "1 of s*")), quick], &[]).refused, []);
    let path = format!("/{}x", "0123456789".repeat(5000));
    let mut events = 0;
    while engine.take_suspensions().first().is_none_or(|(rule, _)| *rule != key(1)) {
        events += 1;
        assert!(events < 500, "never suspended: {:?}", engine.health()[0]);
        assert_eq!(titles(&engine, &file(events, 0, "created", &path)), ["Quick"]);
    }
    let RuleState::Suspended { why } = &engine.health()[0].state else { panic!("{:?}", engine.health()) };
    assert!(matches!(why, Suspension::Slow { mean_nanos, .. } if *mean_nanos > 50_000), "{why}");
    assert!(why.to_string().contains("resume"), "{why}");
    assert_eq!(engine.health()[1].state, RuleState::Active);
    assert_eq!(engine.figures(Shard::File).rules, 1);
    assert_eq!(engine.take_suspensions(), [], "each is told once");
}

#[test]
fn an_exploding_rule_is_suspended_by_the_events_own_minutes() {
    let engine = with(Budget { matches_per_minute: 100, ..Budget::default() });
    engine.replace(&[about(1, "x"), about(2, "yx")], &[]);
    // A hundred a minute for five minutes are within the budget, however fast they come.
    for n in 0..500u32 {
        assert_eq!(matches(&engine, &file(u128::from(n), i64::from(n / 100) * 60, "created", "/x")).len(), 1);
    }
    assert_eq!(engine.take_suspensions(), []);
    let seen: usize = (0..300).map(|n| matches(&engine, &file(n, 600, "created", "/x")).len()).sum();
    assert_eq!(seen, 101, "the one that was too many is told, and no more");
    assert_eq!(engine.take_suspensions(), [(key(1), Suspension::Exploding { matches: 101, budget: 100 })]);
    assert_eq!(matches(&engine, &file(1, 600, "created", "/yx")).len(), 1, "the other rule goes on");
    assert!(engine.resume(key(1)));
    assert_eq!(matches(&engine, &file(1, 600, "created", "/x")).len(), 1);
}

#[test]
fn one_event_in_so_many_is_measured_and_every_match_is_counted() {
    let engine = with(Budget { sample_every: 10, samples: u32::MAX, ..Budget::default() });
    engine.replace(&[about(1, "x"), about(2, "y")], &[]);
    for n in 0..1000 {
        matches(&engine, &file(n, 0, "created", "/x"));
    }
    let health = engine.health();
    assert!((100..150).contains(&health[0].sampled), "{health:?}");
    assert_eq!((health[0].matches, health[1].matches), (1000, 0));
    assert!(health[1].mean_nanos > 0 && health[1].max_nanos >= health[1].mean_nanos);
    let figures = engine.figures(Shard::File);
    assert_eq!((figures.events, figures.matches), (1000, 1000));
    assert!(figures.busy > Duration::ZERO);
}
