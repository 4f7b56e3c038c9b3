//! From a correlation as it was read to one that can count.

use rsigma_parser::{
    ConditionExpr, ConditionOperator, CorrelationCondition, CorrelationRule, CorrelationType, Quantifier, WindowMode,
};

use super::compile::one_line;
use crate::correlate::{Compare, GroupField, Plan, Seen};
use crate::found::CorrelationKind;

/// What is wrong with a correlation alone, whatever it refers to.
pub(super) fn own_mistake(rule: &CorrelationRule) -> Option<String> {
    plan(rule).err()
}

/// Compiles a correlation; its members are its `rules`, in their order.
///
/// # Errors
/// What keeps it from being used, in one line.
pub(super) fn plan(rule: &CorrelationRule) -> Result<Plan, String> {
    if rule.window != WindowMode::Sliding || rule.gap.is_some() {
        return Err("only sliding windows are known".into());
    }
    let members = u16::try_from(rule.rules.len()).map_err(|_| "it refers to too many rules".to_owned())?;
    if members == 0 {
        return Err("it refers to no rule".into());
    }
    let kind = kind(rule.correlation_type);
    let (compare, seen, fields, percentile) = condition(rule, kind)?;
    let timespan = i64::try_from(rule.timespan.seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000))
        .filter(|micros| *micros > 0 && *micros <= crate::rule::MAX_WINDOW.as_micros().try_into().unwrap_or(i64::MAX))
        .ok_or_else(|| "its window is empty or longer than 7 days".to_owned())?;
    let group_by = rule
        .group_by
        .iter()
        .map(|name| {
            let alias = rule.aliases.iter().find(|alias| alias.alias == *name);
            let by_member = rule
                .rules
                .iter()
                .map(|member| alias.and_then(|alias| alias.mapping.get(member)).unwrap_or(name).clone())
                .collect();
            GroupField { name: name.clone(), by_member }
        })
        .collect();
    Ok(Plan { kind, members, group_by, timespan, compare, seen, fields, percentile })
}

type Condition = (Vec<Compare>, Option<Seen>, Vec<String>, f64);

fn condition(rule: &CorrelationRule, kind: CorrelationKind) -> Result<Condition, String> {
    let temporal = matches!(kind, CorrelationKind::Temporal | CorrelationKind::TemporalOrdered);
    match &rule.condition {
        CorrelationCondition::Extended(expression) if temporal => {
            Ok((Vec::new(), Some(seen(expression, &rule.rules)?), Vec::new(), 0.0))
        }
        CorrelationCondition::Extended(_) => Err("only temporal correlations take an expression as condition".into()),
        CorrelationCondition::Threshold { predicates, field, percentile } => {
            let fields = field.clone().unwrap_or_default();
            let values = !temporal && kind != CorrelationKind::EventCount;
            let one = values && kind != CorrelationKind::ValueCount;
            if (values && fields.is_empty()) || (one && fields.len() != 1) {
                return Err(format!("a correlation of type {} needs one `field`", rule.correlation_type.as_str()));
            }
            // The parser puts "at least one" where a temporal correlation has no condition; Sigma means all of them.
            let said = !(temporal && predicates.as_slice() == [(ConditionOperator::Gte, 1)]);
            let compare = predicates.iter().filter(|_| said).map(|(operator, limit)| compare(*operator, *limit as f64));
            let percentile = if kind == CorrelationKind::ValueMedian { 50.0 } else { percentile.unwrap_or(50) as f64 };
            Ok((compare.collect(), None, fields, percentile))
        }
    }
}

fn kind(kind: CorrelationType) -> CorrelationKind {
    match kind {
        CorrelationType::EventCount => CorrelationKind::EventCount,
        CorrelationType::ValueCount => CorrelationKind::ValueCount,
        CorrelationType::Temporal => CorrelationKind::Temporal,
        CorrelationType::TemporalOrdered => CorrelationKind::TemporalOrdered,
        CorrelationType::ValueSum => CorrelationKind::ValueSum,
        CorrelationType::ValueAvg => CorrelationKind::ValueAvg,
        CorrelationType::ValuePercentile => CorrelationKind::ValuePercentile,
        CorrelationType::ValueMedian => CorrelationKind::ValueMedian,
    }
}

fn compare(operator: ConditionOperator, limit: f64) -> Compare {
    match operator {
        ConditionOperator::Lt => Compare::Lt(limit),
        ConditionOperator::Lte => Compare::Lte(limit),
        ConditionOperator::Gt => Compare::Gt(limit),
        ConditionOperator::Gte => Compare::Gte(limit),
        ConditionOperator::Eq => Compare::Eq(limit),
        ConditionOperator::Neq => Compare::Neq(limit),
    }
}

fn seen(expression: &ConditionExpr, members: &[String]) -> Result<Seen, String> {
    let all = |terms: &[ConditionExpr]| terms.iter().map(|term| seen(term, members)).collect::<Result<_, _>>();
    Ok(match expression {
        ConditionExpr::And(terms) => Seen::All(all(terms)?),
        ConditionExpr::Or(terms) => Seen::Any(all(terms)?),
        ConditionExpr::Not(term) => Seen::Not(Box::new(seen(term, members)?)),
        ConditionExpr::Identifier(name) => {
            let position = members.iter().position(|member| member == name);
            let position = position.and_then(|position| u16::try_from(position).ok());
            Seen::Rule(
                position.ok_or_else(|| {
                    one_line(&format!("its condition names `{name}`, which is not among its `rules`"))
                })?,
            )
        }
        ConditionExpr::Selector { quantifier, pattern } => {
            let found: Vec<u16> = (0u16..)
                .zip(members)
                .filter(|(_, member)| pattern.matches_detection_name(member))
                .map(|(position, _)| position)
                .collect();
            let count = match quantifier {
                Quantifier::Any => 1,
                Quantifier::All => found.len() as u64,
                Quantifier::Count(count) => *count,
            };
            Seen::AtLeast(count, found)
        }
    })
}
