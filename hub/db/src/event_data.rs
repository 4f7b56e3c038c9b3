//! The details of an event: a text that was looked at once.

use crate::events::DATA_MAX_DEPTH;
use picket_protocol::event::EVENT_MAX_BYTES;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// The `details` of an event: JSON text, kept to the byte. Whether it can be stored is found out when it is made, and not
/// anew by everybody on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventData {
    text: String,
    wrong: Option<&'static str>,
}

impl EventData {
    /// Of JSON that was read already, as a part of something larger.
    pub fn of_json(json: &RawValue) -> Self {
        Self::look(json.get().to_owned(), |_| true)
    }

    fn look(text: String, is_json: impl FnOnce(&str) -> bool) -> Self {
        // One row that the server refuses would cost all rows beside it: what both databases take is decided here.
        let wrong = if text.len() > EVENT_MAX_BYTES {
            Some("its details are too long")
        } else if is_deep(&text) || !is_json(&text) {
            Some("its details are not JSON, or nested too deep")
        } else {
            None
        };
        Self { text, wrong }
    }

    /// Why it can never be stored, if it cannot.
    pub(crate) fn wrong(&self) -> Option<&'static str> {
        self.wrong
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<String> for EventData {
    fn from(text: String) -> Self {
        Self::look(text, |text| serde_json::from_str::<IgnoredAny>(text).is_ok())
    }
}

impl From<&str> for EventData {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl std::ops::Deref for EventData {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// Whether the brackets of a JSON text are nested deeper than they may, those in strings not counted.
fn is_deep(json: &str) -> bool {
    let opening = json.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    // Where there are few of them, however they stand, nothing is deep: this is almost every event.
    opening > DATA_MAX_DEPTH as usize && depth(json) > DATA_MAX_DEPTH
}

/// How deep the brackets of a JSON text are nested.
fn depth(json: &str) -> u32 {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_u32, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nested(levels: usize) -> String {
        "[".repeat(levels) + &"]".repeat(levels)
    }

    #[test]
    fn what_no_database_takes_is_known_however_it_was_made() {
        let deepest = DATA_MAX_DEPTH as usize;
        let wide = format!("[{}{{}}]", "[],".repeat(1000));
        let quoted = format!("[\"{}\\\"{}\"]", "[".repeat(100), "{".repeat(100));
        for (text, is_right) in [
            ("{}".to_owned(), true),
            (nested(deepest), true),
            (nested(deepest + 1), false),
            (wide, true),
            (quoted, true),
            (format!("\"{}\"", "x".repeat(EVENT_MAX_BYTES - 2)), true),
            (format!("\"{}\"", "x".repeat(EVENT_MAX_BYTES - 1)), false),
        ] {
            let raw = RawValue::from_string(text.clone()).unwrap();
            assert_eq!(EventData::of_json(&raw), EventData::from(text.clone()));
            assert_eq!(EventData::from(text.as_str()).wrong().is_none(), is_right, "{}", &text[..text.len().min(80)]);
        }
        for text in ["", "{", "[1,]", "{\"a\":\"\n\"}", "1 2"] {
            assert!(EventData::from(text).wrong().is_some(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_looked_at_and_kept_to_the_byte(text in "[\\[\\]{}\",:0-9a\\\\ ]{0,200}") {
            let data = EventData::from(text.as_str());
            prop_assert_eq!(data.as_str(), &text);
            let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
            prop_assert_eq!(data.wrong().is_none(), is_json && depth(&text) <= DATA_MAX_DEPTH);
        }
    }
}
