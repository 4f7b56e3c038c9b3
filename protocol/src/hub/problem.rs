//! What went wrong, in a form that programs and people read: RFC 9457, with a code.

use serde::{Deserialize, Serialize};

/// The media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// A refusal or a failure (RFC 9457 §3.1). `code` is what a program decides by; the rest is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:picket:problem:` and the code.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The kind of problem in words, the same each time.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// This very case in words, with what to do.
    #[serde(default)]
    pub detail: String,
    /// What a program decides by.
    #[serde(default)]
    pub code: ProblemCode,
    /// After how many seconds to ask again, where that would help; also in `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// The hub's time when it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_time: Option<jiff::Timestamp>,
    /// Under which correlation id this is in the hub's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Which parts of what was sent are wrong, where it is about that: a path (RFC 6901) and words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One part of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Where: a JSON pointer (RFC 6901), or the name of a parameter.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:literal, $title:literal;)*) => {
        /// What a program decides by.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ProblemCode {
            $($(#[$doc])* $name,)*
            /// A code of a later version.
            #[serde(other)]
            #[default]
            Unknown,
        }

        impl ProblemCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* Self::Unknown => "unknown" }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* Self::Unknown => 500 }
            }

            /// The kind of problem in words.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* Self::Unknown => "Something went wrong" }
            }
        }
    };
}

codes! {
    /// The enrolment token is not known here, or its secret is wrong: which of both is not told.
    TokenUnknown = "token_unknown", 401, "The enrolment token is not valid here";
    /// The token's time is over.
    TokenExpired = "token_expired", 401, "The enrolment token has expired";
    /// As many machines as it was made for have used the token.
    TokenUsedUp = "token_used_up", 401, "The enrolment token has been used up";
    /// Somebody revoked the token.
    TokenRevoked = "token_revoked", 401, "The enrolment token has been revoked";
    /// The token is not for the address that this came from.
    AddressRefused = "address_refused", 403, "Enrolment is not allowed from this address";
    /// Somebody decided against this machine.
    EnrolmentDenied = "enrolment_denied", 403, "The enrolment was denied";
    /// The request for a certificate cannot be used.
    CsrInvalid = "csr_invalid", 400, "The certificate request cannot be used";
    /// The two clocks are too far apart.
    ClockSkew = "clock_skew", 400, "The clocks are too far apart";
    /// There is no version of the wire that both sides know.
    WireUnsupported = "wire_unsupported", 400, "No common version of the protocol";
    /// This needs a client certificate.
    CertificateRequired = "certificate_required", 401, "A client certificate is needed";
    /// The certificate has expired; renewing it is still possible.
    CertificateExpired = "certificate_expired", 401, "The client certificate has expired";
    /// The certificate has expired too long ago to be renewed: enrol again.
    RenewalTooLate = "renewal_too_late", 401, "The certificate expired too long ago";
    /// The agent is known, and this certificate is not one of its present ones: another copy of this machine may be in
    /// use, or the hub's database was restored from a backup. The identity is not lost.
    CertificateSuperseded = "certificate_superseded", 401, "The certificate has been replaced";
    /// The hub revoked this identity. It is lost: stop, and enrol again if a person wants it.
    Revoked = "revoked", 403, "This identity has been revoked";
    /// The hub has never known, or has deleted, this agent. The identity is lost.
    UnknownAgent = "unknown_agent", 403, "The hub does not know this agent";
    /// Who asks has not said who they are, or not well.
    Unauthenticated = "unauthenticated", 401, "Authentication is needed";
    /// Who asks may not do this.
    Forbidden = "forbidden", 403, "This is not permitted";
    /// The anti-forgery token of a session is missing or wrong.
    CsrfInvalid = "csrf_invalid", 403, "The anti-forgery token is missing or wrong";
    /// The address or principal is blocked for a time.
    Blocked = "blocked", 403, "Blocked for a time";
    /// What was sent is not what is expected; `errors` says where.
    Invalid = "invalid", 400, "The request is not valid";
    /// The body is longer than allowed.
    TooLarge = "too_large", 413, "The request is too large";
    /// The media type is not one that is taken here.
    UnsupportedMediaType = "unsupported_media_type", 415, "The media type is not supported";
    /// None of the media types that were asked for can be given.
    NotAcceptable = "not_acceptable", 406, "The media type cannot be given";
    /// There is no such thing here, or none that one may see.
    NotFound = "not_found", 404, "There is no such thing";
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", 405, "The method is not allowed here";
    /// It was changed by somebody else meanwhile, or exists already.
    Conflict = "conflict", 409, "The request does not fit the present state";
    /// The version that was named (`If-Match`) is not the present one.
    PreconditionFailed = "precondition_failed", 412, "It has been changed meanwhile";
    /// A change must name the version that it is about (`If-Match`).
    PreconditionRequired = "precondition_required", 428, "The version must be named";
    /// The same idempotency key was used for another request.
    IdempotencyMismatch = "idempotency_mismatch", 422, "The idempotency key belongs to another request";
    /// Too many requests of this one.
    RateLimited = "rate_limited", 429, "Too many requests";
    /// The hub has too much to do.
    Overloaded = "overloaded", 503, "The hub is busy";
    /// The hub's storage cannot be written at present.
    StorageUnavailable = "storage_unavailable", 503, "The hub cannot store at present";
    /// The hub is about to stop.
    Draining = "draining", 503, "The hub is stopping";
    /// A mistake of the hub's own.
    Internal = "internal", 500, "The hub failed";
}

impl Problem {
    /// A problem with this code and these words.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:picket:problem:{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            code,
            retry_after: None,
            hub_time: None,
            correlation_id: None,
            errors: Vec::new(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.detail.is_empty() { &self.title } else { &self.detail })?;
        for error in &self.errors {
            write!(f, "; {}: {}", error.path, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_one_word_with_a_status_of_an_error() {
        for code in ProblemCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!((400..600).contains(&code.status()), "{code:?}");
            assert_eq!(serde_json::from_value::<ProblemCode>(code.as_str().into()).unwrap(), *code);
        }
    }

    #[test]
    fn a_problem_of_a_later_version_is_read_as_far_as_it_is_known() {
        let problem: Problem =
            serde_json::from_str(r#"{"code": "on_fire", "status": 503, "detail": "…", "new": [1]}"#).unwrap();
        assert_eq!((problem.code, problem.status), (ProblemCode::Unknown, 503));
    }
}
