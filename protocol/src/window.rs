//! A recurring window of time, as vendors and operators write it: `mon-fri 22:00-06:00`.
//!
//! Only the words are here. Which instants a window covers depends on the time zone of the machine that reads it, and is
//! worked out by the updater.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Minutes in a day of the clock face.
const DAY: u16 = 24 * 60;
/// The longest text of a window that is read, in bytes.
const MAX_TEXT: usize = 64;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A window: some days of the week, from one time of the day to another.
///
/// `to` may lie before `from`: then the window ends on the day after. The days are those on which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// Bit 0 is Monday.
    days: u8,
    from: u16,
    to: u16,
}

/// A text that is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no window; write it like `02:00-04:00`, `sat,sun 00:00-24:00` or `mon-fri 22:00-06:00`")]
pub struct WindowError(String);

impl Window {
    /// Whether it begins on this day of the week; 0 is Monday.
    pub fn begins_on(self, days_since_monday: u8) -> bool {
        days_since_monday < 7 && self.days & (1 << days_since_monday) != 0
    }

    /// When it begins, in minutes since midnight, below 1,440.
    pub fn from_minute(self) -> u16 {
        self.from
    }

    /// When it ends, in minutes since the midnight of the day on which it begins, above [`Window::from_minute`] by at
    /// most a day.
    pub fn to_minute(self) -> u16 {
        if self.to > self.from { self.to } else { self.to + DAY }
    }
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let parse = || {
            if text.len() > MAX_TEXT {
                return None;
            }
            let lower = text.trim().to_ascii_lowercase();
            let (days, times) = match lower.split_once(char::is_whitespace) {
                Some((days, times)) => (days_of(days)?, times.trim()),
                None => (0x7f, lower.as_str()),
            };
            let (from, to) = times.split_once('-')?;
            let (from, to) = (minute_of(from)?, minute_of(to)?);
            (from < DAY && from != to).then_some(Self { days, from, to })
        };
        parse().ok_or_else(|| WindowError(text.chars().take(MAX_TEXT).collect()))
    }
}

/// `mon,wed-fri` as bits. A range may run over the end of the week.
fn days_of(text: &str) -> Option<u8> {
    let index = |name: &str| DAYS.iter().position(|day| *day == name);
    let mut bits = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (index(first)?, index(last)?);
        let length = (last + 7 - first) % 7;
        (0..=length).for_each(|step| bits |= 1_u8 << ((first + step) % 7));
    }
    Some(bits)
}

/// `HH:MM` as minutes; `24:00` is the end of a day.
fn minute_of(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| -> Option<u16> {
        (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= DAY).then_some(minute)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != 0x7f {
            let days: Vec<&str> = (0..7).filter(|day| self.days & (1 << day) != 0).map(|day| DAYS[day]).collect();
            write!(f, "{} ", days.join(","))?;
        }
        let Self { from, to, .. } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}

impl TryFrom<String> for Window {
    type Error = WindowError;

    fn try_from(text: String) -> Result<Self, WindowError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_window_is_read_as_people_write_it() {
        let cases = [
            ("02:00-04:00", "02:00-04:00", 120, 240),
            ("Mon-Fri 22:00-06:00", "mon,tue,wed,thu,fri 22:00-06:00", 1320, 1800),
            ("sat,sun 00:00-24:00", "sat,sun 00:00-24:00", 0, 1440),
            ("fri-mon 23:59-00:00", "mon,fri,sat,sun 23:59-00:00", 1439, 1440),
            ("mon-sun 02:00-04:00", "02:00-04:00", 120, 240),
        ];
        for (text, shown, from, to) in cases {
            let window: Window = text.parse().unwrap();
            assert_eq!((window.to_string().as_str(), window.from_minute(), window.to_minute()), (shown, from, to));
            assert_eq!(window.to_string().parse::<Window>().unwrap(), window);
        }
        let window: Window = "fri-sat 22:00-02:00".parse().unwrap();
        assert_eq!((0..9).filter(|day| window.begins_on(*day)).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn what_is_no_window_is_refused() {
        let long = format!("mon 00:00-{}", "0".repeat(100));
        for text in
            ["", "night", "2:00-4:00", "02:00-02:00", "24:00-02:00", "02:60-03:00", "25:00-26:00", "mo 02:00-03:00"]
        {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
        assert!(long.parse::<Window>().is_err());
        assert!(" , 02:00-03:00".parse::<Window>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_and_what_is_read_is_written_as_it_was(text in "[a-z0-9:, -]{0,24}") {
            if let Ok(window) = text.parse::<Window>() {
                prop_assert_eq!(window.to_string().parse::<Window>().unwrap(), window);
                prop_assert!(window.from_minute() < window.to_minute());
            }
        }
    }
}
