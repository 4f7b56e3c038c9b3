//! When a window is open: the words of [`Window`] laid on the days of a time zone.
//!
//! Clocks are changed in the night, and so are machines. A time that does not exist on a day is taken as that much later,
//! one that comes twice as the first of the two (RFC 5545's reading, which jiff calls compatible); a window that would
//! vanish with the hour it lies in is as long as its words say, so that no night is left out.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use picket_protocol::Window;

/// From when on one of `windows` is open: `now` where one is, and where there is none at all.
pub fn opens(windows: &[Window], zone: &TimeZone, now: Timestamp) -> Timestamp {
    let today = now.to_zoned(zone.clone()).date();
    // Yesterday's may last until today; a week and a day holds each at least once.
    let days = (-1..=8_i64).filter_map(|offset| today.checked_add(offset.days()).ok());
    let spans = days.flat_map(|day| windows.iter().filter_map(move |window| span(*window, zone, day)));
    spans.filter(|(_, end)| *end > now).map(|(start, _)| start.max(now)).min().unwrap_or(now)
}

/// The window that begins on `day`, as instants: from, and up to but without.
fn span(window: Window, zone: &TimeZone, day: Date) -> Option<(Timestamp, Timestamp)> {
    let weekday = u8::try_from(day.weekday().to_monday_zero_offset()).ok()?;
    if !window.begins_on(weekday) {
        return None;
    }
    let at = |minute: u16| {
        let (days, minute) = (i64::from(minute / 1440), i64::from(minute % 1440));
        let local = day.checked_add(days.days()).ok()?.to_datetime(jiff::civil::Time::midnight());
        let local = local.checked_add(minute.minutes()).ok()?;
        zone.to_ambiguous_zoned(local).compatible().map(|zoned| zoned.timestamp()).ok()
    };
    let (start, end) = (at(window.from_minute())?, at(window.to_minute())?);
    if end > start {
        return Some((start, end));
    }
    let length = SignedDuration::from_mins(i64::from(window.to_minute() - window.from_minute()));
    Some((start, start.checked_add(length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn berlin(text: &str) -> Timestamp {
        text.parse::<jiff::civil::DateTime>().unwrap().to_zoned(zone("Europe/Berlin")).unwrap().timestamp()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    /// The opening after `now`, both in Berlin's time.
    fn opening(texts: &[&str], now: &str) -> String {
        let opens = opens(&windows(texts), &zone("Europe/Berlin"), berlin(now));
        opens.to_zoned(zone("Europe/Berlin")).datetime().to_string()
    }

    #[test]
    fn a_window_is_open_from_its_first_minute_until_before_its_last() {
        // 2026-11-22 is a Sunday.
        for (windows, now, expected) in [
            (&["02:00-04:00"][..], "2026-11-22T01:59:59", "2026-11-22T02:00:00"),
            (&["02:00-04:00"], "2026-11-22T03:59:59", "2026-11-22T03:59:59"),
            (&["02:00-04:00"], "2026-11-22T04:00:00", "2026-11-23T02:00:00"),
            (&["mon-fri 22:00-06:00"], "2026-11-22T12:00:00", "2026-11-23T22:00:00"),
            (&["mon-fri 22:00-06:00"], "2026-11-28T05:59:00", "2026-11-28T05:59:00"),
            (&["mon-fri 22:00-06:00"], "2026-11-28T06:00:00", "2026-11-30T22:00:00"),
            (&["sun 12:00-13:00"], "2026-11-22T13:00:00", "2026-11-29T12:00:00"),
            (&["sun 12:00-13:00", "wed 01:00-24:00"], "2026-11-22T13:00:00", "2026-11-25T01:00:00"),
            (&[], "2026-11-22T13:00:00", "2026-11-22T13:00:00"),
        ] {
            assert_eq!(opening(windows, now), expected, "{windows:?} at {now}");
        }
    }

    #[test]
    fn a_window_is_there_on_nights_in_which_the_clock_is_changed() {
        // 2026-03-29: 02:00 becomes 03:00. 2026-10-25: 03:00 becomes 02:00.
        for (window, now, expected) in [
            ("02:00-03:00", "2026-03-29T01:00:00", "2026-03-29T03:00:00"),
            ("02:00-03:00", "2026-03-29T03:59:00", "2026-03-29T03:59:00"),
            ("02:00-03:00", "2026-03-29T04:00:00", "2026-03-30T02:00:00"),
            ("02:15-02:45", "2026-03-29T01:00:00", "2026-03-29T03:15:00"),
            ("sun 02:30-03:15", "2026-03-28T12:00:00", "2026-03-29T03:30:00"),
            ("01:00-05:00", "2026-03-29T05:00:00", "2026-03-30T01:00:00"),
            ("02:00-03:00", "2026-10-25T01:00:00", "2026-10-25T02:00:00"),
        ] {
            assert_eq!(opening(&[window], now), expected, "{window} at {now}");
        }
    }

    proptest! {
        #[test]
        fn the_next_opening_is_never_in_the_past_and_within_a_week_and_a_day(
            now in 1_700_000_000_i64..2_000_000_000,
            from in 0_u16..1440, length in 1_u16..1440, days in 1_u8..128,
            name in proptest::sample::select(vec![
                "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu",
            ]),
        ) {
            let now = Timestamp::from_second(now).unwrap();
            let zone = zone(name);
            let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
            let chosen: Vec<&str> = (0..7).filter(|day| days & (1 << day) != 0).map(|day| names[day]).collect();
            let to = (from + length) % 1440;
            let text = format!("{} {:02}:{:02}-{:02}:{:02}", chosen.join(","), from / 60, from % 60, to / 60, to % 60);
            let windows = windows(&[&text]);
            let opening = opens(&windows, &zone, now);
            prop_assert!(opening >= now);
            prop_assert!(opening.duration_since(now) <= SignedDuration::from_hours(7 * 24 + 2), "{text}: {now} {opening}");
            prop_assert_eq!(opens(&windows, &zone, opening), opening, "it is not open when it opens");
        }
    }
}
