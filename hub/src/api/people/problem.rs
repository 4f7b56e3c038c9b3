//! Problems as the API describes them.

use serde::Serialize;
use utoipa::ToSchema;

/// What went wrong (RFC 9457). `code` is what a program decides by.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemView {
    /// `urn:picket:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// This very case in words, with what to do.
    pub detail: String,
    /// What a program decides by.
    pub code: String,
    /// After how many seconds to ask again.
    #[schema(nullable = false)]
    pub retry_after: Option<u64>,
    /// The hub's time.
    #[schema(nullable = false)]
    pub hub_time: Option<jiff::Timestamp>,
    /// Under which correlation id this is in the hub's log.
    #[schema(nullable = false)]
    pub correlation_id: Option<String>,
    /// Which parts of the request are wrong.
    #[schema(nullable = false)]
    pub errors: Option<Vec<FieldErrorView>>,
}

/// One part of a request that is wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FieldError)]
pub struct FieldErrorView {
    /// Where: a JSON pointer, or the name of a parameter.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}
