//! What is wrong with a rule, where, and what to do about it.

use serde::{Deserialize, Serialize};

/// Whether a rule can be used in spite of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It can.
    Warning,
    /// It cannot.
    Error,
}

/// A place in a rule's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1, in characters.
    pub column: u32,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Whether the rule can be used in spite of it.
    pub severity: Severity,
    /// A stable word for it: `missing_id`, `unknown_modifier`, `too_deep` …
    pub code: String,
    /// Where, if it is known.
    pub place: Option<Place>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub help: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(Place { line, column }) = self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        write!(f, "{}; {}", self.what, self.help)
    }
}

/// What there is to say of a rule's source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validation {
    /// Errors first, then warnings, each by place.
    pub problems: Vec<Problem>,
    /// The title of the first document, where it could be read.
    pub title: Option<String>,
    /// The Sigma `id`s of its documents, where they could be read.
    pub ids: Vec<uuid::Uuid>,
}

impl Validation {
    /// Whether the rule can be used.
    pub fn is_usable(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity == Severity::Warning)
    }

    /// What keeps it from being used.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error)
    }

    /// What should be looked at.
    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Warning)
    }
}
