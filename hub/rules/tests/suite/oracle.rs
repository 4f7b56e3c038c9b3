//! Another implementation of correlations agrees: `rsigma-eval`'s own, which the engine does not use.

use picket_hub_rules::{EventView, RuleEngine};
use proptest::prelude::*;
use rsigma_eval::{CorrelationConfig, CorrelationEngine, JsonEvent};
use serde_json::json;
use std::collections::BTreeSet;

use crate::support::{AGENT, connection, engine, event_of, id, second, source};

fn yaml(kind: &str, condition: &str, span: &str) -> String {
    format!(
        "title: Base\nid: @ID\nname: base\nlogsource: {{product: linux, category: network_connection}}\ndetection:\n  s: {{Initiated: 'false'}}\n  condition: s\n---\n\
         title: Many\nid: {}\nlevel: high\ncorrelation:\n  type: {kind}\n  rules: [base]\n  group-by: [SourceIp]\n  timespan: {span}\n  condition: {condition}\n",
        id(101)
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Percentiles are left out: the other one takes any of them for met (`check_condition` returns before it compares).
    /// The other one fires with every event while the condition holds; ours with the first of each stretch of a window.
    #[test]
    fn both_find_the_same_stretches_of_events_in_order(
        steps in prop::collection::vec((0i64..30, 0u8..3, 1u16..40), 1..120),
        (kind, condition) in prop_oneof![
            (2u32..8).prop_map(|n| ("event_count", format!("{{gte: {n}}}"))),
            (2u32..6).prop_map(|n| ("value_count", format!("{{field: DestinationPort, gte: {n}}}"))),
            (20u32..200).prop_map(|n| ("value_sum", format!("{{field: DestinationPort, gt: {n}}}"))),
            (5u32..35).prop_map(|n| ("value_avg", format!("{{field: DestinationPort, gt: {n}}}"))),
            (5u32..35).prop_map(|n| ("value_median", format!("{{field: DestinationPort, lt: {n}}}"))),
        ],
        span in prop_oneof![Just(60i64), Just(77)],
    ) {
        let rule = source(1, &yaml(kind, &condition, &format!("{span}s")));
        let ours = engine(std::slice::from_ref(&rule));
        let mut theirs = CorrelationEngine::new(CorrelationConfig::default());
        theirs.add_collection(&rsigma_parser::parse_sigma_yaml(&rule.yaml).unwrap()).unwrap();
        let mut at = 0;
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        let mut told: BTreeSet<(u8, i64)> = BTreeSet::new();
        for (n, (pause, address, port)) in (0u128..).zip(steps) {
            at += pause;
            let from = format!("10.0.0.{address}");
            let event: EventView = event_of(AGENT, n, at, at, "network", connection("inbound", &from, port));
            if !ours.evaluate(event.shard(), &event).is_empty() {
                found.push(n);
            }
            let flat = json!({"Initiated": "false", "SourceIp": from, "DestinationPort": port});
            let seconds = second(at).as_second();
            let fired = theirs.process_event_at(&JsonEvent::borrow(&flat), seconds);
            if fired.iter().any(rsigma_eval::EvaluationResult::is_correlation) && told.insert((address, seconds.div_euclid(span))) {
                expected.push(n);
            }
        }
        prop_assert_eq!(found, expected);
    }
}
