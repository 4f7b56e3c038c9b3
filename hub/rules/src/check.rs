//! What can be said of a rule from its YAML alone: every mistake with its line, before anything is compiled.

use std::collections::BTreeSet;
use uuid::Uuid;

use crate::cost::compiled;
use crate::modifiers::MODIFIERS;
use crate::problem::{Place, Problem, Severity, Validation};
use crate::reach::{LogSource, known_fields};
use crate::rule::{MAX_GROUP_ENTRIES, MAX_REGEX_BYTES, MAX_REGEXES, MAX_SELECTIONS, MAX_SOURCE_COMPILED, MAX_WINDOW};
use crate::yaml::{Node, Yaml};

const LEVELS: [&str; 5] = ["informational", "low", "medium", "high", "critical"];
const STATUSES: [&str; 5] = ["stable", "test", "experimental", "deprecated", "unsupported"];
const CORRELATIONS: [&str; 8] = [
    "event_count",
    "value_count",
    "temporal",
    "temporal_ordered",
    "value_sum",
    "value_avg",
    "value_percentile",
    "value_median",
];
const OPERATORS: [&str; 6] = ["lt", "lte", "gt", "gte", "eq", "neq"];

/// The longest condition in bytes, and the most parentheses and negations in one.
const MAX_CONDITION_BYTES: usize = 4096;
const MAX_CONDITION_NESTING: usize = 48;
/// The longest title in characters (Sigma: 256).
const MAX_TITLE: usize = 256;

/// The most values of one document that become automata for the wildcards inside them.
const MAX_WILDCARDS: usize = 1000;

/// The same of one source.
const MAX_SOURCE_WILDCARDS: usize = 4000;

/// What a document will cost to compile.
#[derive(Default)]
struct Cost {
    regexes: usize,
    wildcards: usize,
}

/// What was found while reading.
#[derive(Default)]
pub(crate) struct Checker {
    pub found: Validation,
    /// The bytes that the regular expressions of the whole source take compiled, as they are counted.
    compiled: usize,
    /// The values of the whole source that have wildcards inside.
    wildcards: usize,
}

impl Checker {
    pub fn say(&mut self, severity: Severity, code: &str, at: Option<Place>, what: String, help: &str) {
        self.found.problems.push(Problem { severity, code: code.into(), place: at, what, help: help.into() });
    }

    fn error(&mut self, code: &str, at: Place, what: impl Into<String>, help: &str) {
        self.say(Severity::Error, code, Some(at), what.into(), help);
    }

    fn warn(&mut self, code: &str, at: Place, what: impl Into<String>, help: &str) {
        self.say(Severity::Warning, code, Some(at), what.into(), help);
    }

    /// Everything that can be said of a source's documents.
    pub fn documents(&mut self, documents: &[Node]) {
        let documents: Vec<&Node> = documents.iter().filter(|node| node.value != Yaml::Null).collect();
        if documents.is_empty() {
            self.say(Severity::Error, "empty", None, "there is no rule in it".into(), "write one");
        }
        let mut seen = BTreeSet::new();
        for node in documents {
            self.document(node, &mut seen);
        }
    }

    fn document(&mut self, node: &Node, seen: &mut BTreeSet<Uuid>) {
        if node.map().is_none() {
            return self.error("not_a_mapping", node.place, "a rule is a mapping of keys to values", "see `title: …`");
        }
        if let Some(action) = node.get("action") {
            return self.error(
                "action",
                action.place,
                "collections by `action` are not taken",
                "write every document whole, separated by `---`",
            );
        }
        self.head(node, seen);
        if let Some(correlation) = node.get("correlation") {
            self.correlation(correlation);
        } else if let Some(filter) = node.get("filter") {
            self.detection(filter, &[], "filter");
        } else {
            let source = self.log_source(node);
            match node.get("detection") {
                Some(detection) => self.detection(detection, &source.map(|s| known_fields(&s)).unwrap_or_default(), ""),
                None => self.error(
                    "missing_detection",
                    node.place,
                    "there is no `detection`, `correlation` or `filter`",
                    "say what to look for",
                ),
            }
        }
    }

    fn head(&mut self, node: &Node, seen: &mut BTreeSet<Uuid>) {
        match node.get("title").map(|title| (title, title.text())) {
            Some((_, Some(text))) if !text.trim().is_empty() && text.chars().count() <= MAX_TITLE => {
                self.found.title.get_or_insert_with(|| text.to_owned());
            }
            Some((title, _)) => self.error(
                "bad_title",
                title.place,
                format!("`title` must be text of 1 to {MAX_TITLE} characters"),
                "say in one line what was seen",
            ),
            None => self.error("missing_title", node.place, "there is no `title`", "say in one line what was seen"),
        }
        match node.get("id").map(|id| (id, id.text().and_then(|text| Uuid::try_parse(text).ok()))) {
            Some((id, Some(uuid))) if !seen.insert(uuid) => self.error(
                "duplicate_id",
                id.place,
                format!("the id {uuid} is used twice"),
                "give every document an id of its own: `uuidgen`",
            ),
            Some((_, Some(uuid))) => self.found.ids.push(uuid),
            Some((id, None)) => {
                self.error("bad_id", id.place, "`id` is not a UUID", "make one with `uuidgen` and keep it for ever");
            }
            None => self.error(
                "missing_id",
                node.place,
                "there is no `id`",
                "add `id:` with a UUID made by `uuidgen`, and keep it for ever",
            ),
        }
        self.word(node, "level", &LEVELS);
        self.word(node, "status", &STATUSES);
        if node.get("level").is_none() && node.get("filter").is_none() {
            self.warn("missing_level", node.place, "there is no `level`: it counts as medium", "add `level:`");
        }
        for key in ["timeframe", "window", "gap"] {
            if let Some(extra) = node.get(&format!("rsigma.{key}")) {
                self.error("extension", extra.place, "extensions of other engines are not taken", "remove it");
            }
        }
    }

    /// A key that has one of a few words, if it is there.
    fn word(&mut self, node: &Node, key: &str, words: &[&str]) {
        if let Some(value) = node.get(key)
            && !value.text().is_some_and(|text| words.contains(&text))
        {
            let help = format!("use one of {}", words.join(", "));
            self.error(&format!("bad_{key}"), value.place, format!("`{key}` is none of Sigma's"), &help);
        }
    }

    fn log_source(&mut self, node: &Node) -> Option<LogSource> {
        let help = "add `logsource:` with `category`, `product` or `service`; see the table of log sources";
        let Some(source) = node.get("logsource") else {
            self.error("missing_logsource", node.place, "there is no `logsource`", help);
            return None;
        };
        let word = |key: &str| source.get(key).and_then(Node::text).map(str::to_owned);
        let read = LogSource { category: word("category"), product: word("product"), service: word("service") };
        if read == LogSource::default() {
            self.error("empty_logsource", source.place, "`logsource` names no category, product or service", help);
            return None;
        }
        if read.kinds().next().is_none() {
            self.warn(
                "unreached_logsource",
                source.place,
                "no event of this log source is collected: the rule is kept and never asked",
                "see the table of log sources, if that is not meant",
            );
        }
        Some(read)
    }

    /// `detection` of a rule, or `filter` of a filter.
    fn detection(&mut self, detection: &Node, known: &[&str], inside: &str) {
        let Some(members) = detection.map() else {
            return self.error("bad_detection", detection.place, "it must be a mapping of selections", "see Sigma");
        };
        match detection.get("condition") {
            Some(condition) => condition.items().iter().for_each(|one| self.condition(one)),
            None => self.error(
                "missing_condition",
                detection.place,
                "there is no `condition`",
                "add `condition: selection`, or what combines the selections",
            ),
        }
        let selections = members.iter().filter(|(name, _, _)| {
            !matches!(name.as_str(), "condition" | "timeframe") && (inside != "filter" || name != "rules")
        });
        let mut count = 0;
        let mut cost = Cost::default();
        for (name, place, selection) in selections {
            count += 1;
            if count == MAX_SELECTIONS + 1 {
                let what = format!("there are more than {MAX_SELECTIONS} selections");
                self.error("too_many_selections", *place, what, "split the rule");
            }
            if name.is_empty() || name.starts_with('_') {
                self.error(
                    "bad_selection",
                    *place,
                    "a selection's name must not be empty or begin with `_`",
                    "rename it",
                );
            }
            self.selection(selection, known, &mut cost);
        }
        if count == 0 {
            self.error("no_selection", detection.place, "there is no selection", "say what to look for");
        }
        if cost.wildcards > MAX_WILDCARDS {
            let what = format!("there are {} values with wildcards inside and may be {MAX_WILDCARDS}", cost.wildcards);
            self.error("too_many_wildcards", detection.place, what, "use `contains|all` lists");
        }
        let before = self.wildcards;
        self.wildcards += cost.wildcards;
        if before <= MAX_SOURCE_WILDCARDS && self.wildcards > MAX_SOURCE_WILDCARDS {
            let what = format!("the source has more than {MAX_SOURCE_WILDCARDS} values with wildcards inside");
            self.error("too_many_wildcards", detection.place, what, "make several rules of it");
        }
        if cost.regexes > MAX_REGEXES {
            let what = format!("there are {} regular expressions and may be {MAX_REGEXES}", cost.regexes);
            self.error("too_many_regexes", detection.place, what, "use `contains`, `startswith` or `endswith` lists");
        }
    }

    fn condition(&mut self, condition: &Node) {
        let Some(text) = condition.text() else {
            return self.error("bad_condition", condition.place, "a condition is text", "see Sigma");
        };
        let nesting = text.matches('(').count() + text.split_whitespace().filter(|word| *word == "not").count();
        if text.len() > MAX_CONDITION_BYTES || nesting > MAX_CONDITION_NESTING {
            let what = format!(
                "the condition has {} bytes and {nesting} parentheses and negations, and may have {MAX_CONDITION_BYTES} \
                 and {MAX_CONDITION_NESTING}",
                text.len()
            );
            return self.error(
                "condition_too_long",
                condition.place,
                what,
                "use `1 of selection_*`, or split the rule",
            );
        }
        if text.contains('|') {
            self.error(
                "aggregation",
                condition.place,
                "aggregations in conditions (`| count() …`) were given up by Sigma",
                "add a second document with `correlation:`",
            );
        } else if let Err(error) = rsigma_words(text) {
            self.error("bad_condition", condition.place, error, "see Sigma's grammar of conditions");
        }
    }

    fn selection(&mut self, node: &Node, known: &[&str], cost: &mut Cost) {
        match &node.value {
            Yaml::Map(members) => {
                for (key, place, value) in members {
                    // Blocks over the members of a list have conditions of their own.
                    if key == "condition" && value.text().is_some() {
                        self.condition(value);
                    } else {
                        self.item(key, *place, value, known, cost);
                    }
                }
            }
            Yaml::List(items) => {
                if items.is_empty() {
                    self.error("empty_selection", node.place, "the list is empty and matches nothing", "fill it");
                }
                items.iter().for_each(|item| self.selection(item, known, cost));
            }
            Yaml::Null => self.error("empty_selection", node.place, "the selection is empty", "fill it, or remove it"),
            _ => {}
        }
    }

    fn item(&mut self, key: &str, place: Place, value: &Node, known: &[&str], cost: &mut Cost) {
        let mut parts = key.split('|');
        let field = parts.next().unwrap_or_default();
        let modifiers: Vec<&str> = parts.collect();
        for modifier in &modifiers {
            if *modifier == "not" {
                let help = "negate in the condition: `selection and not filter`";
                self.error("unknown_modifier", place, "`not` is no modifier", help);
            } else if modifier.is_empty() || !MODIFIERS.contains(modifier) {
                let help = format!("use one of {}", MODIFIERS.join(", "));
                self.error("unknown_modifier", place, format!("`{modifier}` is no modifier"), &help);
            } else if *modifier == "expand" {
                self.warn(
                    "placeholder",
                    place,
                    "placeholders are not filled in here: this matches nothing",
                    "write the values into the rule",
                );
            }
        }
        if modifiers.contains(&"re") {
            value.items().iter().for_each(|one| self.regex(one, cost));
        } else {
            let inside = |text: &str| text.trim_matches('*').contains(['*', '?']);
            cost.wildcards += value.items().iter().filter_map(Node::text).filter(|text| inside(text)).count();
        }
        let root = field.split(['.', '[']).next().unwrap_or_default();
        let ours = ["details", "device_id", "boot_id", "seq", "class", "type", "schema"].contains(&root);
        if !field.is_empty() && !known.is_empty() && !ours && !known.contains(&field) {
            let help =
                format!("events of this log source have {}, and `details.…` as they were sent", known.join(", "));
            self.warn("unknown_field", place, format!("no event of this log source has `{field}`"), &help);
        }
        if matches!(value.value, Yaml::Map(_)) {
            self.selection(value, &[], cost);
        }
    }

    fn regex(&mut self, node: &Node, cost: &mut Cost) {
        cost.regexes += 1;
        let Some(text) = node.text() else { return };
        if text.len() > MAX_REGEX_BYTES {
            let what = format!("the regular expression has {} bytes and may have {MAX_REGEX_BYTES}", text.len());
            return self.error("regex_too_long", node.place, what, "split it");
        }
        // What is over the bound is refused; what follows is not even compiled.
        if self.compiled > MAX_SOURCE_COMPILED {
            return;
        }
        let (size, built) = compiled(text);
        self.compiled += size;
        if let Err(error) = built {
            let words = error.to_string();
            let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            let help = "look-around and back-references are not taken, and counted repetitions must stay small";
            return self.error("bad_regex", node.place, format!("the regular expression cannot be used: {last}"), help);
        }
        if self.compiled > MAX_SOURCE_COMPILED {
            let what = format!(
                "the regular expressions of the source take more than {} MiB together when they are compiled",
                MAX_SOURCE_COMPILED >> 20
            );
            let help = "use `contains`, `startswith` or `endswith` lists, smaller repetitions, or several rules";
            self.error("regexes_too_large", node.place, what, help);
        }
    }

    fn correlation(&mut self, node: &Node) {
        if node.map().is_none() {
            return self.error("bad_correlation", node.place, "`correlation` must be a mapping", "see Sigma");
        }
        let kind = node.get("type").and_then(Node::text).unwrap_or_default();
        if !CORRELATIONS.contains(&kind) {
            let place = node.get("type").map_or(node.place, |value| value.place);
            let help = format!("use one of {}", CORRELATIONS.join(", "));
            self.error("bad_correlation", place, "`type` is no kind of correlation", &help);
        }
        match node.get("rules").map(Node::items) {
            Some(rules) if !rules.is_empty() && rules.len() <= 64 && rules.iter().all(|rule| rule.text().is_some()) => {
            }
            _ => self.error(
                "bad_correlation",
                node.place,
                "`rules` must name 1 to 64 rules",
                "list the `name` or `id` of the rules that are counted",
            ),
        }
        self.window(node);
        self.threshold(node, kind);
    }

    fn window(&mut self, node: &Node) {
        for key in ["window", "gap"] {
            if let Some(extra) = node.get(key)
                && extra.text() != Some("sliding")
            {
                self.error("extension", extra.place, "only sliding windows are known, as in Sigma", "remove it");
            }
        }
        let span = node.get("timespan").or_else(|| node.get("timeframe"));
        let seconds = span.and_then(Node::text).and_then(crate::sigma::timespan);
        let place = span.map_or(node.place, |span| span.place);
        match seconds {
            None => self.error(
                "bad_timespan",
                place,
                "there is no `timespan` of a number and one of s, m, h, d",
                "for example `timespan: 5m`",
            ),
            Some(seconds) if seconds == 0 || seconds > MAX_WINDOW.as_secs().unsigned_abs() => self.error(
                "bad_timespan",
                place,
                "a window is at least 1 second and at most 7 days long",
                "shorten it: the events of a window are remembered",
            ),
            Some(_) => {}
        }
    }

    fn threshold(&mut self, node: &Node, kind: &str) {
        let temporal = kind.starts_with("temporal");
        let Some(condition) = node.get("condition") else {
            if !temporal {
                self.error(
                    "bad_correlation",
                    node.place,
                    "there is no `condition`",
                    "for example `condition: {gte: 10}`",
                );
            }
            return;
        };
        match &condition.value {
            Yaml::Map(members) => {
                if !members.iter().any(|(key, _, _)| OPERATORS.contains(&key.as_str())) {
                    let help = format!("use one of {}", OPERATORS.join(", "));
                    self.error("bad_correlation", condition.place, "the condition compares with nothing", &help);
                }
                for (key, place, value) in members.iter().filter(|(key, _, _)| OPERATORS.contains(&key.as_str())) {
                    let counts = matches!(kind, "event_count" | "value_count");
                    match value.value {
                        Yaml::Number(n)
                            if n.fract() == 0.0 && n >= 0.0 && (!counts || n <= MAX_GROUP_ENTRIES as f64) => {}
                        Yaml::Number(_) if counts => self.error(
                            "bad_threshold",
                            *place,
                            format!("`{key}` must be a whole number up to {MAX_GROUP_ENTRIES}"),
                            "events of a group are remembered up to there",
                        ),
                        _ => {
                            let what = format!("`{key}` must be a whole number");
                            self.error("bad_threshold", *place, what, "see Sigma");
                        }
                    }
                }
                if kind.starts_with("value_") && condition.get("field").is_none() {
                    let what = format!("a correlation of type {kind} needs `field` in its condition");
                    self.error("bad_correlation", condition.place, what, "say whose values are counted");
                }
            }
            Yaml::Text(_) if temporal => self.condition(condition),
            _ => self.error(
                "bad_correlation",
                condition.place,
                "the condition must be a mapping",
                "for example {gte: 10}",
            ),
        }
    }
}

/// What the parser of conditions says of one that is within bounds.
fn rsigma_words(text: &str) -> Result<(), String> {
    crate::sigma::condition(text)
}
