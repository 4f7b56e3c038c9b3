//! Which request a line of a log, a span or another request belongs to: correlation ids and W3C trace context.
//!
//! A correlation id is any short word that travels in `X-Correlation-ID`; ours are UUIDs of version 7, which sort by time.
//! Beside it goes `traceparent` as in W3C Trace Context, level 1 (<https://www.w3.org/TR/trace-context/>). What comes
//! from outside is taken only if it is well formed: a foreign word ends up in logs and in headers of our own requests.

use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// The header of a correlation id.
pub const CORRELATION_HEADER: &str = "X-Correlation-ID";
/// The header of a trace context (W3C Trace Context §3.2).
pub const TRACEPARENT_HEADER: &str = "traceparent";
/// The longest correlation id, in bytes.
pub const MAX_CORRELATION_ID: usize = 128;
/// The longest `traceparent` that is read, in bytes: version 00 has 55, later ones may add to it.
pub const MAX_TRACEPARENT: usize = 256;

/// The id of everything that is done for one cause: 1 to 128 letters, digits and `-_.:/+=@`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CorrelationId(String);

/// A word that is no correlation id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a correlation id has 1 to {MAX_CORRELATION_ID} letters, digits and -_.:/+=@")]
pub struct InvalidCorrelationId;

impl CorrelationId {
    /// The id as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CorrelationId {
    type Err = InvalidCorrelationId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&c);
        let good = (1..=MAX_CORRELATION_ID).contains(&text.len()) && text.bytes().all(allowed);
        if good { Ok(Self(text.to_owned())) } else { Err(InvalidCorrelationId) }
    }
}

/// The trace and the span that a request is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: u128,
    span_id: u64,
    /// Whether somebody records this trace.
    pub sampled: bool,
}

/// A text that is no `traceparent`. The trace begins anew, as the standard asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent header of W3C Trace Context")]
pub struct InvalidTraceParent;

impl TraceParent {
    /// A new trace, recorded by nobody yet.
    pub fn start() -> Self {
        Self::of(Uuid::now_v7())
    }

    fn of(id: Uuid) -> Self {
        Self { trace_id: id.as_u128(), span_id: random_span(), sampled: false }
    }

    /// The same trace with a span id of its own: for each request that is made on its behalf.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: random_span(), ..self }
    }

    /// The id of the whole trace; never zero.
    pub fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// The id of the span; never zero.
    pub fn span_id(self) -> u64 {
        self.span_id
    }
}

/// The half of a UUID of version 7 that is random but for its two topmost bits, which are 1 and 0: never zero.
fn random_span() -> u64 {
    Uuid::now_v7().as_u64_pair().1
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl FromStr for TraceParent {
    type Err = InvalidTraceParent;

    /// Reads version 00, and of later versions the part they have in common with it (§3.2.2, §4.3).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let field = |from: usize, to: usize| {
            let hex = text.get(from..to)?;
            let lower = hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
            if lower { u128::from_str_radix(hex, 16).ok() } else { None }
        };
        let dash = |at: usize| text.as_bytes().get(at) == Some(&b'-');
        let read = || {
            let version = field(0, 2).filter(|version| *version != 0xff)?;
            let whole = if version == 0 { text.len() == 55 } else { text.len() == 55 || dash(55) };
            if !whole || text.len() > MAX_TRACEPARENT || !dash(2) || !dash(35) || !dash(52) {
                return None;
            }
            let trace_id = field(3, 35).filter(|id| *id != 0)?;
            let span_id = u64::try_from(field(36, 52)?).ok().filter(|id| *id != 0)?;
            Some(Self { trace_id, span_id, sampled: field(53, 55)? & 1 == 1 })
        };
        read().ok_or(InvalidTraceParent)
    }
}

/// What travels with everything that is done for one cause.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The id in logs and in `X-Correlation-ID`.
    pub correlation_id: CorrelationId,
    /// The id in `traceparent`.
    pub parent: TraceParent,
}

impl TraceContext {
    /// A new cause. Both ids are the same UUID, so that who has one finds the other.
    pub fn start() -> Self {
        let id = Uuid::now_v7();
        Self { correlation_id: CorrelationId(id.to_string()), parent: TraceParent::of(id) }
    }

    /// The cause that a request's headers name; what is missing or malformed is made anew. Without a correlation id, the
    /// trace's id is one.
    pub fn from_headers(correlation_id: Option<&str>, traceparent: Option<&str>) -> Self {
        let correlation_id = correlation_id.and_then(|text| text.parse::<CorrelationId>().ok());
        let parent = traceparent.and_then(|text| text.parse::<TraceParent>().ok());
        match (correlation_id, parent) {
            (Some(correlation_id), Some(parent)) => Self { correlation_id, parent: parent.child() },
            (None, Some(parent)) => {
                Self { correlation_id: CorrelationId(format!("{:032x}", parent.trace_id)), parent: parent.child() }
            }
            (Some(correlation_id), None) => Self { correlation_id, parent: TraceParent::start() },
            (None, None) => Self::start(),
        }
    }

    /// The same cause with a span id of its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { correlation_id: self.correlation_id.clone(), parent: self.parent.child() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of the standard, §3.2.3.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_standard_is_read_and_written() {
        let parent: TraceParent = EXAMPLE.parse().unwrap();
        assert_eq!(parent.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((parent.span_id(), parent.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(parent.to_string(), EXAMPLE);
        let child = parent.child();
        assert!(child.trace_id() == parent.trace_id() && child.span_id() != parent.span_id());
    }

    #[test]
    fn what_the_standard_forbids_begins_a_new_trace() {
        let later = EXAMPLE.replacen("00", "01", 1);
        assert!(format!("{later}-what-may-come").parse::<TraceParent>().is_ok(), "a later version may add to it");
        for wrong in [
            String::new(),
            format!("{EXAMPLE}-more"),
            format!("{later}more"),
            format!("{later}-{}", "x".repeat(300)),
            EXAMPLE.replacen("00", "ff", 1),
            EXAMPLE.to_uppercase(),
            EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            EXAMPLE.replace('-', "_"),
            EXAMPLE.replace("-01", "-+1"),
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(InvalidTraceParent), "{wrong}");
        }
    }

    #[test]
    fn a_correlation_id_that_could_forge_a_log_line_or_a_header_is_refused() {
        let long = "x".repeat(129);
        for wrong in ["", "a b", "a\r\nX-Evil: 1", "ä", "\"", "{}", long.as_str()] {
            assert_eq!(wrong.parse::<CorrelationId>(), Err(InvalidCorrelationId), "{wrong}");
        }
        assert!("Req-17_a.b:c/d+e=f@g".parse::<CorrelationId>().is_ok());
    }

    #[test]
    fn a_context_takes_from_the_headers_what_is_well_formed() {
        let both = TraceContext::from_headers(Some("req-1"), Some(EXAMPLE));
        assert_eq!((both.correlation_id.as_str(), both.parent.sampled), ("req-1", true));
        let parent = TraceContext::from_headers(Some("bad id"), Some(EXAMPLE));
        assert_eq!(parent.correlation_id.as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let none = TraceContext::from_headers(None, Some("nonsense"));
        assert_eq!(Uuid::parse_str(none.correlation_id.as_str()).unwrap().as_u128(), none.parent.trace_id());
        assert_eq!(none.child().correlation_id, none.correlation_id);
    }

    proptest! {
        #[test]
        fn no_header_makes_a_reader_panic_and_what_is_read_is_written_the_same(
            text in prop_oneof![".{0,80}", "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", "[0-9a-fé-]{50,60}"],
        ) {
            if let Ok(parent) = text.parse::<TraceParent>() {
                prop_assert_eq!(parent.to_string().parse::<TraceParent>(), Ok(parent));
                prop_assert_eq!(&parent.to_string()[3..52], &text[3..52]);
            }
            if let Ok(id) = text.parse::<CorrelationId>() {
                prop_assert_eq!(id.as_str(), &text);
            }
            let context = TraceContext::from_headers(Some(&text), Some(&text));
            prop_assert!(context.correlation_id.as_str().parse::<CorrelationId>().is_ok());
        }
    }
}
