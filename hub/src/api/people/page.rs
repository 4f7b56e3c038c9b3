//! Lists in pages, and versions of single things.

use crate::refusal::{Outcome, Refusal};
use axum::http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use picket_hub_db::{Cursor, Page, PageRequest, Revision};
use picket_protocol::hub::ProblemCode;
use picket_seal::{Place, Sealer};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use utoipa::{IntoParams, ToSchema};

/// How long a page is unless it is said.
const USUAL: u32 = 100;
/// How long a page may be.
const MAX: u32 = 1000;
/// How long a cursor may be.
const MAX_CURSOR: usize = 2048;

/// Which part of a list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// At most so many items.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub(crate) limit: Option<u32>,
    /// Where the page before ended: its `next_cursor`.
    #[param(max_length = 2048, pattern = "^[0-9A-Za-z.-]+$")]
    pub(crate) cursor: Option<String>,
}

impl PageQuery {
    /// What the database is asked for.
    ///
    /// # Errors
    /// `invalid` for a limit out of range and for a cursor that was not given out.
    pub(crate) fn request(&self) -> Outcome<PageRequest> {
        let limit = self.limit.unwrap_or(USUAL);
        if !(1..=MAX).contains(&limit) {
            return Err(Refusal::new(ProblemCode::Invalid, format!("limit is between 1 and {MAX}")));
        }
        let after = self.cursor.as_deref().map(Cursor::parse).transpose()?;
        Ok(PageRequest { after, limit })
    }

    /// As [`PageQuery::request`], for a list whose cursors are sealed.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn request_of(&self, list: &SealedList<'_>) -> Outcome<PageRequest> {
        let after = self.cursor.as_deref().map(|text| list.open(text)).transpose()?;
        Self { limit: self.limit, cursor: after }.request()
    }
}

/// A list whose cursors may stand on rows that its reader may not see: what is in them is nobody's but the hub's.
pub(crate) struct SealedList<'a> {
    /// What they are sealed with.
    pub(crate) sealer: &'a Sealer,
    /// Which list, and whose: a cursor opens nowhere else.
    pub(crate) name: String,
}

impl SealedList<'_> {
    fn place(&self) -> Place<'_> {
        Place { table: "cursors", row: 0, context: self.name.as_bytes() }
    }

    /// The cursor as it is given out.
    ///
    /// # Errors
    /// `internal` when it cannot be sealed.
    pub(crate) fn seal(&self, cursor: &Cursor) -> Outcome<String> {
        let sealed = self.sealer.seal(self.place(), cursor.as_str().as_bytes()).map_err(|error| {
            tracing::error!(%error, "a cursor cannot be sealed");
            Refusal::new(ProblemCode::Internal, "the next page has no cursor; the hub's log says why")
        })?;
        Ok(sealed.iter().fold(String::with_capacity(sealed.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }

    fn open(&self, text: &str) -> Outcome<String> {
        let digits = text.as_bytes();
        let fits = digits.len() <= MAX_CURSOR && digits.len().is_multiple_of(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let sealed: Option<Vec<u8>> = fits.then(|| digits.chunks_exact(2).map(byte).collect()).flatten();
        let plain = sealed.and_then(|sealed| self.sealer.open(self.place(), &sealed).ok());
        plain
            .and_then(|plain| String::from_utf8(plain).ok())
            .ok_or_else(|| Refusal::new(ProblemCode::Invalid, "the cursor is not one of this list"))
    }
}

/// Part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Paged<T> {
    /// The items.
    pub(crate) items: Vec<T>,
    /// Where the next page begins; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
}

impl<T> Paged<T> {
    /// What the database gave, as it is shown; what `show` makes nothing of is left out.
    pub(crate) fn of<U>(page: Page<U>, show: impl FnMut(U) -> Option<T>) -> Self {
        let next_cursor = page.next.map(|cursor| cursor.to_string());
        Self { items: page.items.into_iter().filter_map(show).collect(), next_cursor }
    }
}

/// A thing with its version (`ETag`, RFC 9110 §8.8.3).
pub(crate) struct Versioned<T> {
    /// Its version.
    pub(crate) revision: Revision,
    /// The thing.
    pub(crate) value: T,
}

impl<T: Serialize> Versioned<T> {
    /// The answer to a GET: 304 if the client has this version.
    pub(crate) fn answer(self, headers: &HeaderMap) -> Response {
        let tag = tag(self.revision);
        let has = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let is_same = has.is_some_and(|has| has.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
        let mut response =
            if is_same { StatusCode::NOT_MODIFIED.into_response() } else { axum::Json(self.value).into_response() };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response
    }
}

impl<T: Serialize> IntoResponse for Versioned<T> {
    fn into_response(self) -> Response {
        self.answer(&HeaderMap::new())
    }
}

/// The header of [`expected`], for the description.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "it describes; expected() reads")]
pub(crate) struct IfMatch {
    /// The version that is changed: the `ETag` that was read, or `*`.
    #[param(rename = "If-Match", pattern = r#"^(\*|"[0-9]{1,18}")$"#)]
    if_match: String,
}

fn tag(revision: Revision) -> String {
    format!("\"{revision}\"")
}

/// The version that a change is about (`If-Match`); `*` stands for whichever there is.
///
/// # Errors
/// `precondition_required` when it is not said; `invalid` when it is no version.
pub(crate) fn expected(headers: &HeaderMap) -> Outcome<Option<Revision>> {
    let Some(value) = headers.get(IF_MATCH) else {
        let detail = "say in the header If-Match which version you change: the ETag that you read, or *";
        return Err(Refusal::new(ProblemCode::PreconditionRequired, detail));
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Refusal::new(ProblemCode::PreconditionFailed, "If-Match is no version of this"))
}

/// A change whose version is not the present one any more.
pub(crate) fn changed(refusal: Refusal) -> Refusal {
    if refusal.code() == ProblemCode::Conflict { stale() } else { refusal }
}

/// That a change is about a version that is not the present one any more.
pub(crate) fn stale() -> Refusal {
    Refusal::new(ProblemCode::PreconditionFailed, "it was changed meanwhile; read it again and decide anew")
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_seal::Keyring;
    use std::sync::Arc;

    #[test]
    fn a_sealed_cursor_tells_nothing_and_opens_in_its_own_list_only() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Arc::new(Keyring::create(&dir.path().join("seal.key")).unwrap());
        let sealer = Sealer::new(keyring).unwrap();
        let list = |name: &str| SealedList { sealer: &sealer, name: name.to_owned() };
        let cursor = Cursor::parse("evidence.7.9.00000000000000000000000000000001").unwrap();
        let sealed = list("a").seal(&cursor).unwrap();
        assert!(sealed.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let asked = |text: &str, name: &str| {
            let query = PageQuery { limit: None, cursor: Some(text.to_owned()) };
            query.request_of(&list(name)).map(|request| request.after)
        };
        assert_eq!(asked(&sealed, "a").unwrap(), Some(cursor));
        let long = "0".repeat(MAX_CURSOR + 2);
        for (text, name) in [
            (sealed.as_str(), "b"),
            (&sealed[2..], "a"),
            ("evidence.7", "a"),
            ("ab", "a"),
            ("\u{e9}", "a"),
            (&long, "a"),
        ] {
            assert_eq!(asked(text, name).unwrap_err().code(), ProblemCode::Invalid, "{text} {name}");
        }
    }
}
