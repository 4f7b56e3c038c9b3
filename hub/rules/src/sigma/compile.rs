//! Single rules, with the filters that are about them.

use rsigma_eval::CompiledRule;
use rsigma_parser::{ConditionExpr, Detection, FilterRule, Quantifier, SelectorPattern, SigmaRule};

use crate::reach::LogSource;

/// A filter's selections are called so within the rule they are merged into: `_` hides them from `all of them`.
pub(super) const FILTERED: &str = "_filter";

/// Compiles a rule.
///
/// # Errors
/// What keeps it from being used, in one line.
pub(super) fn rule(rule: &SigmaRule) -> Result<CompiledRule, String> {
    for condition in &rule.detection.conditions {
        names_exist(condition, &rule.detection.named.keys().map(String::as_str).collect::<Vec<_>>())?;
    }
    rsigma_eval::compile_rule(rule).map_err(|error| one_line(&error.to_string()))
}

/// Tries whether a filter compiles, away from any rule.
///
/// # Errors
/// What keeps it from being used, in one line.
pub(super) fn filter(filter: &FilterRule) -> Result<(), String> {
    let names: Vec<&str> = filter.detection.named.keys().map(String::as_str).collect();
    for condition in &filter.detection.conditions {
        names_exist(condition, &names)?;
    }
    for detection in filter.detection.named.values() {
        rsigma_eval::compiler::compile_detection(detection).map_err(|error| one_line(&error.to_string()))?;
    }
    Ok(())
}

/// Adds a filter to a rule: it matches where the rule's condition holds and the filter's does, too.
pub(super) fn add_filter(rule: &mut SigmaRule, filter: &FilterRule, number: usize) {
    let own: Vec<String> = rule.detection.named.keys().cloned().collect();
    let theirs: Vec<String> = filter.detection.named.keys().cloned().collect();
    let renamed = |name: &str| format!("{FILTERED}{number}_{name}");
    let added: Vec<ConditionExpr> =
        filter.detection.conditions.iter().map(|condition| spell_out(condition, &theirs, &renamed)).collect();
    for condition in &mut rule.detection.conditions {
        // Selectors are spelled out first, or `1 of *` would take the filter's selections for its own.
        let mut terms = vec![spell_out(condition, &own, &str::to_owned)];
        terms.extend(added.iter().cloned());
        *condition = ConditionExpr::And(terms);
    }
    let named: Vec<(String, Detection)> =
        filter.detection.named.iter().map(|(name, detection)| (renamed(name), detection.clone())).collect();
    rule.detection.named.extend(named);
}

/// `logsource` in our words.
pub(super) fn log_source(source: &rsigma_parser::LogSource) -> LogSource {
    LogSource { category: source.category.clone(), product: source.product.clone(), service: source.service.clone() }
}

/// Whether a filter is about a log source: what the filter names, the rule must name as well.
pub(super) fn filter_covers(filter: Option<&rsigma_parser::LogSource>, rule: &rsigma_parser::LogSource) -> bool {
    let Some(filter) = filter else { return true };
    [(&filter.category, &rule.category), (&filter.product, &rule.product), (&filter.service, &rule.service)]
        .into_iter()
        .all(|(asked, given)| {
            asked.as_ref().is_none_or(|asked| given.as_ref().is_some_and(|given| asked.eq_ignore_ascii_case(given)))
        })
}

/// A condition with `1 of x*` and `all of them` written out over `names`, and every name changed by `renamed`.
fn spell_out(expression: &ConditionExpr, names: &[String], renamed: &dyn Fn(&str) -> String) -> ConditionExpr {
    let all = |terms: &[ConditionExpr]| terms.iter().map(|term| spell_out(term, names, renamed)).collect();
    match expression {
        ConditionExpr::And(terms) => ConditionExpr::And(all(terms)),
        ConditionExpr::Or(terms) => ConditionExpr::Or(all(terms)),
        ConditionExpr::Not(term) => ConditionExpr::Not(Box::new(spell_out(term, names, renamed))),
        ConditionExpr::Identifier(name) => ConditionExpr::Identifier(renamed(name)),
        ConditionExpr::Selector { quantifier, pattern } => {
            let mut found: Vec<&String> = names.iter().filter(|name| pattern.matches_detection_name(name)).collect();
            found.sort();
            let terms: Vec<ConditionExpr> =
                found.into_iter().map(|name| ConditionExpr::Identifier(renamed(name))).collect();
            match quantifier {
                Quantifier::Any => ConditionExpr::Or(terms),
                Quantifier::All => ConditionExpr::And(terms),
                // `3 of x_*` has no short form in and, or and not; its pattern cannot begin with the hidden `_`.
                Quantifier::Count(_) => {
                    ConditionExpr::Selector { quantifier: quantifier.clone(), pattern: hidden(pattern, renamed) }
                }
            }
        }
    }
}

/// A pattern that finds the same names after they were renamed.
fn hidden(pattern: &SelectorPattern, renamed: &dyn Fn(&str) -> String) -> SelectorPattern {
    match pattern {
        SelectorPattern::Them if renamed("").is_empty() => SelectorPattern::Them,
        SelectorPattern::Them => SelectorPattern::Pattern(renamed("*")),
        SelectorPattern::Pattern(pattern) => SelectorPattern::Pattern(renamed(pattern)),
    }
}

/// Whether a condition names only what is there.
fn names_exist(expression: &ConditionExpr, names: &[&str]) -> Result<(), String> {
    match expression {
        ConditionExpr::And(terms) | ConditionExpr::Or(terms) => {
            terms.iter().try_for_each(|term| names_exist(term, names))
        }
        ConditionExpr::Not(term) => names_exist(term, names),
        ConditionExpr::Identifier(name) if names.contains(&name.as_str()) => Ok(()),
        ConditionExpr::Identifier(name) => Err(format!("its condition names `{name}`, and there is no such selection")),
        ConditionExpr::Selector { pattern, .. } => {
            if names.iter().any(|name| pattern.matches_detection_name(name)) {
                return Ok(());
            }
            match pattern {
                SelectorPattern::Them => Err("its condition says `them`, and there is no selection".into()),
                SelectorPattern::Pattern(pattern) => {
                    Err(format!("its condition names `{pattern}`, and no selection is called so"))
                }
            }
        }
    }
}

/// The words of an error, on one line and bounded.
pub(super) fn one_line(words: &str) -> String {
    let joined = words.split_whitespace().collect::<Vec<_>>().join(" ");
    crate::found::cut(&joined, 400).to_owned()
}
