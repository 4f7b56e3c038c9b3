//! When the daily check happens: around 04:00 local time, at a place that the machine's id decides.
//!
//! systemd's timer does the same with `FixedRandomDelay=`; this is for the supervisor. A fleet that updates in one
//! minute is a fleet that fails in one minute, and a release server that is asked by everybody at once.

use jiff::civil::time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use sha2::{Digest, Sha256};

/// The middle of the hour over which machines are spread, as seconds: half an hour each way.
const SPREAD_SECONDS: u64 = 3600;

/// The seconds after 03:30 at which the machine with this id looks.
pub fn splay(machine_id: &str) -> u64 {
    let digest = Sha256::new().chain_update(b"picket update splay\0").chain_update(machine_id.trim()).finalize();
    let number = digest.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    number % SPREAD_SECONDS
}

/// The next check after `now` in `zone`. On days when the clock is changed it is as near as the day allows.
pub fn next(now: Timestamp, zone: &TimeZone, machine_id: &str) -> Timestamp {
    let seconds = i64::try_from(splay(machine_id)).unwrap_or(0);
    let at = |day: jiff::civil::Date| {
        let local = day.to_datetime(time(3, 30, 0, 0)).saturating_add(seconds.seconds());
        zone.to_ambiguous_zoned(local).compatible().map(|zoned| zoned.timestamp()).ok()
    };
    let today = now.to_zoned(zone.clone()).date();
    let days = [Some(today), today.tomorrow().ok()];
    let next = days.into_iter().flatten().filter_map(at).find(|candidate| *candidate > now);
    next.unwrap_or_else(|| now.saturating_add(jiff::SignedDuration::from_hours(24)).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_its_own_time_between_half_past_three_and_half_past_four() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let mut times = std::collections::BTreeSet::new();
        for machine in 0..500 {
            let next = next(now, &zone, &format!("machine {machine}"));
            let local = next.to_zoned(zone.clone());
            assert!(local.time() >= time(3, 30, 0, 0) && local.time() < time(4, 30, 0, 0), "{local}");
            assert_eq!(local.date(), jiff::civil::date(2026, 11, 22));
            times.insert(next);
        }
        assert!(times.len() > 400, "only {} different times", times.len());
    }

    #[test]
    fn the_next_time_is_always_in_the_future_and_within_a_day_and_a_bit() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        // 2026-03-29, 02:00: the clock goes to 03:00; 2026-10-25, 03:00: it goes to 02:00.
        for start in ["2026-03-28T00:00:00Z", "2026-10-24T00:00:00Z"] {
            let mut now: Timestamp = start.parse().unwrap();
            for _ in 0..72 {
                let next = next(now, &zone, "m");
                let hours = next.duration_since(now).as_secs_f64() / 3600.0;
                assert!(hours > 0.0 && hours <= 25.1, "{now} -> {next}");
                now += jiff::SignedDuration::from_hours(1);
            }
        }
    }
}
