//! The leaf types: what a key can be set to.
//!
//! Each is read from its natural form in a file and from text, because the environment and the command line have
//! nothing but text.

use crate::node::{Node, Value};
use crate::setting::{Problems, Setting};
use serde_json::json;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A closed choice between words; see [`crate::choice!`].
pub trait Choice: Sized {
    /// All words, in the order the manual lists them.
    const WORDS: &'static [&'static str];
    /// The value a word stands for.
    fn from_word(word: &str) -> Option<Self>;
    /// The word that stands for the value.
    fn word(&self) -> &'static str;

    /// Reads the word at `key`, whatever its case: seeds and people write `INFO` as well as `info`.
    fn read_choice(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Text(text) => Self::from_word(&text.to_ascii_lowercase()),
            // `off` and `on` are words in a choice, but booleans in YAML written as true and false.
            Value::Bool(false) => Self::from_word("off"),
            _ => None,
        };
        if value.is_none() {
            problems.expected(node, key, &format!("one of {}", Self::WORDS.join(", ")));
        }
        value
    }
}

/// A length of time, written `60s`, `1h 30m`, `7d`, or as a number of seconds. At most 10 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Interval {
    /// An interval of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// An interval of whole days of 24 hours.
    pub const fn days(days: u64) -> Self {
        Self::seconds(days * 86_400)
    }

    /// The interval as the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<u64>() {
            return Self::checked(Duration::from_secs(seconds));
        }
        let span: jiff::Span = text.parse().ok()?;
        // Months and years have no fixed length; days have, here: an interval is not a calendar.
        let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok()?;
        Self::checked(duration.try_into().ok()?)
    }

    fn checked(duration: Duration) -> Option<Self> {
        (duration <= TEN_YEARS).then_some(Self(duration))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds, self.0.subsec_millis()) {
            (_, millis) if millis > 0 => write!(f, "{}ms", self.0.as_millis()),
            (s, _) if s > 0 && s % 86_400 == 0 => write!(f, "{}d", s / 86_400),
            (s, _) if s > 0 && s % 3_600 == 0 => write!(f, "{}h", s / 3_600),
            (s, _) if s > 0 && s % 60 == 0 => write!(f, "{}m", s / 60),
            (s, _) => write!(f, "{s}s"),
        }
    }
}

impl Setting for Interval {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Text(text) => Self::parse(text),
            Value::Integer(seconds) => u64::try_from(*seconds).ok().and_then(|s| Self::checked(Duration::from_secs(s))),
            _ => None,
        };
        if value.is_none() {
            problems.expected(node, key, "a duration such as 60s, 10m or 7d (at most 10 years)");
        }
        value
    }

    fn show(&self) -> serde_json::Value {
        self.to_string().into()
    }

    fn schema() -> serde_json::Value {
        json!({ "oneOf": [{ "type": "string", "examples": ["60s", "1h 30m", "7d"] }, { "type": "integer", "minimum": 0 }] })
    }

    fn type_name() -> String {
        "duration".to_owned()
    }
}

/// A number of bytes, written `200MiB`, `1 GB`, or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Binary and decimal units as in IEC 80000-13 and the SI.
const UNITS: [(&str, u64); 9] = [
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

impl ByteSize {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let factor = if unit.is_empty() { 1 } else { UNITS.iter().find(|(name, _)| *name == unit)?.1 };
        number.parse::<u64>().ok()?.checked_mul(factor).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (unit, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if bytes >= factor && bytes.is_multiple_of(factor) {
                return write!(f, "{}{unit}", bytes / factor);
            }
        }
        write!(f, "{bytes}B")
    }
}

impl Setting for ByteSize {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Text(text) => Self::parse(text),
            Value::Integer(bytes) => u64::try_from(*bytes).ok().map(Self),
            _ => None,
        };
        if value.is_none() {
            problems.expected(node, key, "a size such as 200MiB or 1GB");
        }
        value
    }

    fn show(&self) -> serde_json::Value {
        self.to_string().into()
    }

    fn schema() -> serde_json::Value {
        json!({ "oneOf": [{ "type": "string", "examples": ["200MiB", "1GB"] }, { "type": "integer", "minimum": 0 }] })
    }

    fn type_name() -> String {
        "size".to_owned()
    }
}

/// An address and port on this machine only. Health and metrics tell much about a machine; they never leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopbackAddr(SocketAddr);

impl LoopbackAddr {
    /// 127.0.0.1 with `port`.
    pub const fn port(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    }

    /// The address.
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl Setting for LoopbackAddr {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let address = match &node.value {
            Value::Text(text) => text.trim().parse::<SocketAddr>().ok(),
            _ => None,
        };
        match address {
            Some(address) if address.ip().is_loopback() => Some(Self(address)),
            Some(_) => {
                problems.expected(node, key, "an address of this machine only (127.0.0.1:PORT or [::1]:PORT)");
                None
            }
            None => {
                problems.expected(node, key, "an address and port such as 127.0.0.1:9091");
                None
            }
        }
    }

    fn show(&self) -> serde_json::Value {
        self.0.to_string().into()
    }

    fn schema() -> serde_json::Value {
        json!({ "type": "string", "examples": ["127.0.0.1:9091", "[::1]:9091"] })
    }

    fn type_name() -> String {
        "loopback address".to_owned()
    }
}

impl Setting for bool {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Bool(value) => Some(*value),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        if value.is_none() {
            problems.expected(node, key, "true or false");
        }
        value
    }

    fn show(&self) -> serde_json::Value {
        (*self).into()
    }

    fn schema() -> serde_json::Value {
        json!({ "type": "boolean" })
    }

    fn type_name() -> String {
        "true | false".to_owned()
    }
}

/// Whole numbers: the same but for how large they may be.
macro_rules! whole_number {
    ($number:ty) => {
        impl Setting for $number {
            fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
                let value = match &node.value {
                    Value::Integer(value) => Self::try_from(*value).ok(),
                    Value::Text(text) => text.trim().parse().ok(),
                    _ => None,
                };
                if value.is_none() {
                    problems.expected(node, key, &format!("a whole number from 0 to {}", Self::MAX));
                }
                value
            }

            fn show(&self) -> serde_json::Value {
                (*self).into()
            }

            fn schema() -> serde_json::Value {
                json!({ "type": "integer", "minimum": 0, "maximum": Self::MAX })
            }

            fn type_name() -> String {
                "number".to_owned()
            }
        }
    };
}

whole_number!(u16);
whole_number!(u32);

impl Setting for f64 {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Integer(value) => Some(*value as Self),
            Value::Float(value) => Some(*value),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        // YAML and TOML can write infinity and "not a number"; no threshold is either.
        let value = value.filter(|value: &Self| value.is_finite());
        if value.is_none() {
            problems.expected(node, key, "a number");
        }
        value
    }

    fn show(&self) -> serde_json::Value {
        (*self).into()
    }

    fn schema() -> serde_json::Value {
        json!({ "type": "number" })
    }

    fn type_name() -> String {
        "number".to_owned()
    }
}

/// A text that may hold a password, such as the address of a database or of a proxy: what is written of a group of settings
/// for people who look for faults does not show it. Who needs it says so with [`Confidential::reveal`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Confidential(String);

impl Confidential {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Confidential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "\"\"" } else { "…" })
    }
}

impl From<&str> for Confidential {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Confidential {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Setting for Confidential {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        String::read(node, key, problems).map(Self)
    }

    fn show(&self) -> serde_json::Value {
        self.0.show()
    }

    fn schema() -> serde_json::Value {
        String::schema()
    }

    fn type_name() -> String {
        String::type_name()
    }
}

impl Setting for String {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            _ => {
                problems.expected(node, key, "a text");
                None
            }
        }
    }

    fn show(&self) -> serde_json::Value {
        self.clone().into()
    }

    fn schema() -> serde_json::Value {
        json!({ "type": "string" })
    }

    fn type_name() -> String {
        "text".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Origin;

    fn read<T: Setting>(value: Value) -> (Option<T>, Problems) {
        let mut problems = Problems::default();
        let value = T::read(&Node { value, origin: Origin::Default }, "key", &mut problems);
        (value, problems)
    }

    fn text<T: Setting>(text: &str) -> Option<T> {
        read(Value::Text(text.into())).0
    }

    #[test]
    fn what_may_hold_a_password_is_read_as_text_and_not_shown_to_who_looks_for_faults() {
        let read = text::<Confidential>("postgres://ada:hunter2@db/hub").unwrap();
        assert_eq!(read.reveal(), "postgres://ada:hunter2@db/hub");
        assert_eq!((format!("{read:?}"), format!("{:?}", Confidential::default())), ("…".into(), "\"\"".into()));
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(text("60s"), Some(Interval::seconds(60)));
        assert_eq!(text("1h 30m"), Some(Interval::seconds(5_400)));
        assert_eq!(text("7d"), Some(Interval::days(7)));
        assert_eq!(text("90"), Some(Interval::seconds(90)));
        assert_eq!(read(Value::Integer(60)).0, Some(Interval::seconds(60)));
        for wrong in ["soon", "-5s", "11y", "1 month", "", "99999999999999999999"] {
            assert_eq!(text::<Interval>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_interval_is_read_back_from_its_own_text() {
        for interval in [Interval::seconds(1), Interval::seconds(90), Interval::days(7), Interval::seconds(7_200)] {
            assert_eq!(text(&interval.to_string()), Some(interval));
        }
    }

    #[test]
    fn sizes_have_units_and_do_not_overflow() {
        assert_eq!(text("200MiB"), Some(ByteSize(200 << 20)));
        assert_eq!(text("1 GB"), Some(ByteSize(1_000_000_000)));
        assert_eq!(text("17"), Some(ByteSize(17)));
        for wrong in ["18446744073709551615TiB", "MiB", "5 apples", "-1"] {
            assert_eq!(text::<ByteSize>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_number_may_have_a_fraction_but_must_be_one() {
        assert_eq!(text("2.5"), Some(2.5));
        assert_eq!(read(Value::Integer(70)).0, Some(70.0));
        assert_eq!(read(Value::Float(0.5)).0, Some(0.5));
        for wrong in ["nan", "inf", "-inf", "1e999", "much", ""] {
            assert_eq!(text::<f64>(wrong), None, "{wrong}");
        }
        assert_eq!(read::<f64>(Value::Float(f64::NAN)).0, None);
    }

    #[test]
    fn an_address_that_others_could_reach_is_refused() {
        assert!(text::<LoopbackAddr>("127.0.0.1:9091").is_some());
        assert!(text::<LoopbackAddr>("[::1]:9091").is_some());
        let (value, problems) = read::<LoopbackAddr>(Value::Text("0.0.0.0:9091".into()));
        assert!(value.is_none() && problems.0[0].message.contains("this machine only"));
    }
}
