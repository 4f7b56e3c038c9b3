//! What is wrong with a rule, where, and what to do.

use picket_hub_rules::{Severity, Validation, validate};
use proptest::prelude::*;

const GOOD: &str = "title: T\nid: 6a4f0d8e-0d6e-4a55-9a53-4d2a4a1f1c01\nlogsource:\n    product: linux\n    category: file_event\n\
detection:\n    selection:\n        TargetFilename|contains: x\n    condition: selection\nlevel: high\n";

fn with(from: &str, to: &str) -> Validation {
    assert!(GOOD.contains(from), "{from}");
    validate(&GOOD.replace(from, to))
}

/// The code, line and column of the only error.
fn only(found: &Validation) -> (String, Option<(u32, u32)>) {
    let errors: Vec<_> = found.errors().collect();
    assert_eq!(errors.len(), 1, "{found:#?}");
    (errors[0].code.clone(), errors[0].place.map(|place| (place.line, place.column)))
}

#[test]
fn a_good_rule_has_no_problem() {
    assert_eq!(validate(GOOD).problems, []);
}

#[test]
fn every_mistake_is_named_with_its_place_and_a_way_out() {
    let cases = [
        ("|contains: x", "|containing: x", "unknown_modifier", Some((8, 9))),
        ("|contains: x", "|not: x", "unknown_modifier", Some((8, 9))),
        ("|contains: x", "|re: '(a'", "bad_regex", Some((8, 28))),
        ("|contains: x", "|re: '(?=a)b'", "bad_regex", Some((8, 28))),
        ("|contains: x", "|re: 'a{1000}{1000}'", "bad_regex", Some((8, 28))),
        ("id: 6a4f0d8e-0d6e-4a55-9a53-4d2a4a1f1c01\n", "", "missing_id", Some((1, 1))),
        ("id: 6a4f0d8e-0d6e-4a55-9a53-4d2a4a1f1c01", "id: seven", "bad_id", Some((2, 5))),
        ("title: T\n", "", "missing_title", Some((1, 1))),
        ("level: high", "level: awful", "bad_level", Some((10, 8))),
        ("logsource:\n    product: linux\n    category: file_event\n", "", "missing_logsource", Some((1, 1))),
        ("    condition: selection\n", "", "missing_condition", None),
        ("condition: selection", "condition: selection and", "bad_condition", Some((9, 16))),
        ("condition: selection", "condition: selection | count() > 5", "aggregation", Some((9, 16))),
        ("condition: selection", "condition: other", "cannot_compile", None),
        ("title: T", "title: [T", "not_yaml", None),
        ("title: T", "action: global\ntitle: T", "action", Some((1, 9))),
        ("x\n    condition: selection", "[]\n    condition: selection", "", None),
    ];
    for (from, to, code, place) in cases {
        let found = with(from, to);
        if code.is_empty() {
            continue;
        }
        let (found_code, found_place) = only(&found);
        assert_eq!(found_code, code, "{to}");
        if place.is_some() {
            assert_eq!(found_place, place, "{to}");
        }
        assert!(found.errors().all(|problem| !problem.help.is_empty() && !problem.what.is_empty()));
    }
}

#[test]
fn an_id_that_is_used_twice_is_an_error_at_the_second_place() {
    let found = validate(&format!("{GOOD}---\n{GOOD}"));
    assert_eq!(only(&found), ("duplicate_id".into(), Some((13, 5))));
}

#[test]
fn a_field_that_no_event_has_is_a_warning_that_names_those_there_are() {
    let found = with("TargetFilename", "CommandLine");
    assert!(found.is_usable());
    let warning = found.warnings().next().unwrap();
    assert_eq!(warning.code, "unknown_field");
    assert!(warning.help.contains("TargetFilename"), "{warning}");
    assert!(with("TargetFilename", "details.path").problems.is_empty(), "dotted paths are known");
}

#[test]
fn a_log_source_that_nothing_is_collected_of_is_a_warning() {
    let found = with("category: file_event", "category: process_creation");
    assert!(found.is_usable());
    assert_eq!(found.warnings().next().unwrap().code, "unreached_logsource");
}

#[test]
fn a_correlation_is_held_to_its_bounds() {
    let correlation = |body: &str| {
        validate(&format!(
            "title: C\nid: 6a4f0d8e-0d6e-4a55-9a53-4d2a4a1f1c02\nlevel: high\ncorrelation:\n    rules: [a]\n{body}"
        ))
    };
    assert_eq!(correlation("    type: event_count\n    timespan: 5m\n    condition: {gte: 3}\n").problems, []);
    let cases = [
        ("    type: sum_of\n    timespan: 5m\n    condition: {gte: 3}\n", "bad_correlation"),
        ("    type: event_count\n    timespan: 8d\n    condition: {gte: 3}\n", "bad_timespan"),
        ("    type: event_count\n    timespan: soon\n    condition: {gte: 3}\n", "bad_timespan"),
        ("    type: event_count\n    timespan: 5m\n    condition: {gte: 10001}\n", "bad_threshold"),
        ("    type: event_count\n    timespan: 5m\n", "bad_correlation"),
        ("    type: value_count\n    timespan: 5m\n    condition: {gte: 3}\n", "bad_correlation"),
        ("    type: event_count\n    timespan: 5m\n    window: tumbling\n    condition: {gte: 3}\n", "extension"),
    ];
    for (body, code) in cases {
        assert_eq!(only(&correlation(body)).0, code, "{body}");
    }
}

#[test]
fn what_would_cost_too_much_is_refused_before_it_is_compiled() {
    let many = |n: usize| (0..n).map(|i| format!("    s{i}:\n        Image: x\n")).collect::<String>();
    let big = GOOD.replace("    condition", &format!("{}    condition", many(201)));
    assert_eq!(only(&validate(&big)).0, "too_many_selections");
    let long = GOOD.replace("title: T", &format!("title: T\ndescription: {}", "x".repeat(513 << 10)));
    assert_eq!(only(&validate(&long)).0, "too_long");
    let nested =
        GOOD.replace("condition: selection", &format!("condition: {}selection{}", "(".repeat(60), ")".repeat(60)));
    assert_eq!(only(&validate(&nested)).0, "condition_too_long");
    let regex = GOOD.replace("|contains: x", &format!("|re: '{}'", "a".repeat(2049)));
    assert_eq!(only(&validate(&regex)).0, "regex_too_long");
}

#[test]
fn regular_expressions_are_bounded_in_sum_over_a_source_and_not_compiled_beyond_it() {
    let document = |number: usize| {
        // Each takes more than a quarter of a megabyte, and is no more than allowed by itself.
        let regexes: String = (0..100).map(|n| format!("        - '\\w{{{}}}'\n", 30 + n % 20)).collect();
        GOOD.replace("1c01", &format!("2c{number:02}"))
            .replace("TargetFilename|contains: x\n", &format!("TargetFilename|re:\n{regexes}"))
    };
    let source = (0..32).map(document).collect::<Vec<_>>().join("---\n");
    let began = std::time::Instant::now();
    let found = validate(&source);
    // All of them would take minutes in this build.
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(only(&found).0, "regexes_too_large", "{:?}", found.problems);
    let small = GOOD.replace("|contains: x", "|re: ['/etc/.*', '^/tmp/[a-z]{8}$']");
    assert!(validate(&small).is_usable());
}

#[test]
fn a_correlation_over_events_of_several_kinds_says_that_each_is_counted_by_itself() {
    let base = |category: &str| {
        format!(
            "title: T\nid: 6a4f0d8e-0d6e-4a55-9a53-4d2a4a1f1c01\nname: base\nlogsource:\n    product: linux\n{category}\
             detection:\n    selection:\n        AgentId: x\n    condition: selection\nlevel: low\n---\ntitle: Many\n\
             id: 6a4f0d8e-0d6e-4a55-9a53-4d2a4a1f1c02\ncorrelation:\n    type: event_count\n    rules: [base]\n    \
             group-by: [AgentId]\n    timespan: 5m\n    condition: {{gte: 10}}\nlevel: high\n"
        )
    };
    let codes = |text: &str| validate(text).problems.into_iter().map(|problem| problem.code).collect::<Vec<_>>();
    let wide = validate(&base(""));
    assert!(wide.is_usable());
    let told = wide.problems.iter().find(|problem| problem.code == "split_windows").unwrap();
    assert!(told.what.contains("file, network") && told.help.contains("category"), "{told:?}");
    assert!(!codes(&base("    category: file_event\n")).contains(&"split_windows".to_owned()));
}

#[test]
fn a_condition_is_bounded_wherever_it_stands() {
    // Thirty thousand parentheses would exhaust the stack of a parser that descends.
    let deep = format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000));
    let block = format!(
        "selection:\n        'list[any]':\n            a:\n                x: 1\n            condition: '{deep}'"
    );
    let nested = GOOD
        .replace("title: T", "title: T\nsigma-version: 3")
        .replace("selection:\n        TargetFilename|contains: x", &block);
    assert_eq!(only(&validate(&nested)).0, "condition_too_long");
    let many: Vec<String> = (0..1001).map(|n| format!("'a*{n}'")).collect();
    let wild = GOOD.replace("TargetFilename|contains: x", &format!("TargetFilename: [{}]", many.join(", ")));
    assert_eq!(only(&validate(&wild)).0, "too_many_wildcards");
}

#[test]
fn errors_come_before_warnings_and_the_first_line_first() {
    let found = validate(&GOOD.replace("level: high", "level: x").replace("TargetFilename", "Nothing"));
    assert_eq!(found.problems.iter().map(|p| p.severity).collect::<Vec<_>>(), [Severity::Error, Severity::Warning]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_text_makes_it_panic(text in ".{0,300}") {
        let _ = validate(&text);
    }

    #[test]
    fn no_change_of_a_good_rule_makes_it_panic(at in 0..GOOD.len(), length in 0usize..30, piece in prop_oneof![
        ".{0,12}",
        Just("|re: '".to_owned()), Just(": [".to_owned()), Just("\n---\n".to_owned()), Just("&a *a".to_owned()),
        Just("|base64offset|contains".to_owned()), Just("|cidr".to_owned()), Just("1 of them".to_owned()),
        Just("correlation:\n    type: temporal\n".to_owned()), Just("filter:\n    rules: any\n".to_owned()),
        Just("\nsigma-version: 3\n".to_owned()), Just("'a[any]':\n            b: 1\n        ".to_owned()), Just("|gt".to_owned()), Just("|windash|all".to_owned()), Just("|fieldref".to_owned()), Just("[any]".to_owned()),
    ]) {
        let end = (at + length).min(GOOD.len());
        let text = format!("{}{piece}{}", &GOOD[..at], &GOOD[end..]);
        if validate(&text).is_usable() {
            use picket_hub_rules::{Origin, RuleEngine, RuleKey, RuleSource, Settings, SigmaEngine};
            let engine = SigmaEngine::new(Settings::default());
            let key = RuleKey { id: uuid::Uuid::nil(), version: 1 };
            engine.replace(&[RuleSource { key, yaml: text, origin: Origin::File("x".into()) }], &[]);
            let event = crate::support::file(1, 0, "created", "/tmp/x");
            engine.evaluate(event.shard(), &event);
        }
    }
}
