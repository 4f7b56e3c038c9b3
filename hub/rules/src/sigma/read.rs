//! From YAML to the documents of a source, with everything that is wrong with it.

use rsigma_parser::{CorrelationRule, FilterRule, SigmaRule, Timespan};
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

use crate::check::Checker;
use crate::problem::{Place, Problem, Severity, Validation};
use crate::shard::Shard;
use crate::view::Kind;
use crate::yaml::{self, Node};

/// One document of a source.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub id: Uuid,
    pub body: Body,
}

/// What a document is.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Rule(Box<SigmaRule>),
    Correlation(Box<CorrelationRule>),
    Filter(Box<FilterRule>),
}

impl Document {
    /// What other documents may call it besides its id.
    pub fn name(&self) -> Option<&str> {
        match &self.body {
            Body::Rule(rule) => rule.name.as_deref(),
            Body::Correlation(rule) => rule.name.as_deref(),
            Body::Filter(_) => None,
        }
    }
}

/// Says everything that is wrong with a source, alone: rules that it refers to are not looked for.
pub fn validate(yaml: &str) -> Validation {
    let (mut found, documents) = read(yaml);
    for document in &documents {
        let error = match &document.body {
            Body::Rule(rule) => super::compile::rule(rule).err(),
            Body::Filter(filter) => super::compile::filter(filter).err(),
            Body::Correlation(rule) => super::plan::own_mistake(rule),
        };
        if let Some(what) = error {
            found.problems.push(cannot_compile(document.id, &what));
        }
    }
    if found.is_usable() {
        found.problems.extend(documents.iter().filter_map(|document| split(document, &documents)));
    }
    found.problems.sort_by_key(|problem| (std::cmp::Reverse(problem.severity), problem.place));
    found
}

/// What is to be said of a correlation over rules of its own source that are about events of several kinds. Those of others
/// are known where the whole set is.
fn split(document: &Document, documents: &[Document]) -> Option<Problem> {
    let Body::Correlation(correlation) = &document.body else { return None };
    let mut shards: BTreeSet<Shard> = Shard::ALL.into_iter().collect();
    for name in &correlation.rules {
        let id = Uuid::try_parse(name).ok();
        let named = |other: &&Document| Some(other.id) == id || other.name() == Some(name.as_str());
        let Body::Rule(rule) = &documents.iter().find(named)?.body else { return None };
        let kinds = super::compile::log_source(&rule.logsource);
        let reached: BTreeSet<Shard> = kinds.kinds().map(Kind::shard).collect();
        shards.retain(|shard| reached.contains(shard));
    }
    super::set::split_windows(&shards)
}

/// A problem that only compiling found: where it is, is not known.
pub(super) fn cannot_compile(id: Uuid, what: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        code: "cannot_compile".into(),
        place: None,
        what: format!("the document {id} cannot be used: {what}"),
        help: "correct the selection or the condition it names".into(),
    }
}

/// The documents of a source in its order; none where something keeps it from being used.
pub(super) fn read(yaml: &str) -> (Validation, Vec<Document>) {
    let mut checker = Checker::default();
    match yaml::documents(yaml) {
        Ok(nodes) => {
            checker.documents(&nodes);
            if checker.found.is_usable() {
                let documents = parse(yaml, &nodes, &mut checker);
                if checker.found.is_usable() {
                    return (checker.found, documents);
                }
            }
        }
        Err(problem) => checker.found.problems.push(problem),
    }
    checker.found.problems.sort_by_key(|problem| (std::cmp::Reverse(problem.severity), problem.place));
    (checker.found, Vec::new())
}

/// Has the parser read what was found within bounds, and brings its documents into the source's order.
fn parse(yaml: &str, nodes: &[Node], checker: &mut Checker) -> Vec<Document> {
    let collection = match rsigma_parser::parse_sigma_yaml(yaml) {
        Ok(collection) => collection,
        Err(error) => {
            refuse(checker, None, &error.to_string());
            return Vec::new();
        }
    };
    for error in &collection.errors {
        refuse(checker, nodes.first().map(|node| node.place), error);
    }
    let rules = collection.rules.into_iter().map(|mut rule| {
        // What other engines read from extra keys has no meaning here, and must not get one by accident.
        rule.custom_attributes.clear();
        (rule.id.clone(), Body::Rule(Box::new(rule)))
    });
    let correlations = collection.correlations.into_iter().map(|mut rule| {
        rule.custom_attributes.clear();
        (rule.id.clone(), Body::Correlation(Box::new(rule)))
    });
    let filters = collection.filters.into_iter().map(|mut filter| {
        filter.custom_attributes.clear();
        (filter.id.clone(), Body::Filter(Box::new(filter)))
    });
    let mut by_id: HashMap<Uuid, Body> = rules
        .chain(correlations)
        .chain(filters)
        .filter_map(|(id, body)| Some((Uuid::try_parse(&id?).ok()?, body)))
        .collect();
    let ids = checker.found.ids.clone();
    let documents: Vec<Document> =
        ids.iter().filter_map(|id| Some(Document { id: *id, body: by_id.remove(id)? })).collect();
    if documents.len() != ids.len() && checker.found.is_usable() {
        refuse(checker, None, "two readers of YAML understand it differently");
    }
    documents
}

fn refuse(checker: &mut Checker, place: Option<Place>, what: &str) {
    let what = format!("it is not a Sigma rule that can be used: {}", what.lines().next().unwrap_or_default());
    checker.say(Severity::Error, "not_sigma", place, what, "see Sigma's specification");
}

/// The seconds of a span such as `5m`.
pub(crate) fn timespan(text: &str) -> Option<u64> {
    Timespan::parse(text).ok().map(|span| span.seconds)
}

/// Whether a condition, bounded by the caller, is one.
///
/// # Errors
/// What is wrong with it, in one line.
pub(crate) fn condition(text: &str) -> Result<(), String> {
    match rsigma_parser::parse_condition(text) {
        Ok(_) => Ok(()),
        Err(error) => {
            let words = error.to_string();
            let last = words.lines().rev().find_map(|line| line.trim().strip_prefix("= ")).map(str::to_owned);
            Err(format!(
                "the condition `{text}` cannot be read: {}",
                last.unwrap_or_else(|| words.lines().next().unwrap_or_default().to_owned())
            ))
        }
    }
}
