//! When the certificate is looked at: once a day around 03:00 local time, each machine at a time of its own.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use uuid::Uuid;

/// The looks of a fleet are spread over this long, half of it before 03:00: renewals of ten thousand machines are then
/// fewer than two a second.
const WINDOW: SignedDuration = SignedDuration::from_hours(2);
/// A time further away than this was set by a clock that was wrong.
const A_DAY: SignedDuration = SignedDuration::from_hours(26);

/// A share of `whole` that is the agent's own.
pub(crate) fn share(agent: Uuid, purpose: &str, whole: Duration) -> Duration {
    let digest: [u8; 32] = Sha256::new().chain_update(purpose).chain_update(agent.as_bytes()).finalize().into();
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&digest[..4]);
    whole.mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}

/// The next look after `now`.
pub(crate) fn next_look(now: Timestamp, zone: &TimeZone, agent: Uuid) -> Timestamp {
    let window = Duration::try_from(WINDOW).unwrap_or_default();
    let splay = SignedDuration::try_from(share(agent, "certificate", window)).unwrap_or_default();
    let local = now.to_zoned(zone.clone());
    // A day whose clocks change may lack the hour; the next one is then taken.
    let candidates = (0..3).filter_map(|days| {
        let day = local.date().checked_add(days.days()).ok()?;
        let at = day.at(2, 0, 0, 0).to_zoned(zone.clone()).ok()?.timestamp();
        at.checked_add(splay).ok()
    });
    candidates.into_iter().find(|at| *at > now).unwrap_or_else(|| now.saturating_add(WINDOW).unwrap_or(now))
}

/// The first look at a certificate that was just taken over: now. Who went back to the one before wants it for more than a
/// moment, and it is looked at in the night.
pub(crate) fn first_look(rolled_back: bool, now: Timestamp, agent: Uuid) -> Option<Timestamp> {
    rolled_back.then(|| next_look(now, &TimeZone::system(), agent))
}

/// Whether the look planned for `planned` is due; one that a wrong clock planned is.
pub(crate) fn is_due(planned: Timestamp, now: Timestamp) -> bool {
    now >= planned || planned.duration_since(now) > A_DAY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_look_around_three_in_the_night_each_at_a_time_of_its_own() {
        let zone = TimeZone::get("Europe/Berlin").unwrap_or(TimeZone::UTC);
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let mut minutes = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let agent = Uuid::now_v7();
            let next = next_look(now, &zone, agent);
            let local = next.to_zoned(zone.clone());
            assert!((2..=4).contains(&local.hour()) && local.date().day() == 22, "{local}");
            assert_eq!(next_look(next, &zone, agent).duration_since(next).as_hours(), 24);
            minutes.insert((local.hour(), local.minute()));
        }
        assert!(minutes.len() > 60, "{}", minutes.len());
    }

    #[test]
    fn a_certificate_that_somebody_went_back_to_is_not_renewed_the_next_moment() {
        let (now, agent) = (Timestamp::now(), Uuid::now_v7());
        assert_eq!(first_look(false, now, agent), None, "a new one is looked at now");
        assert!(!is_due(first_look(true, now, agent).unwrap(), now));
    }

    #[test]
    fn a_night_whose_clocks_change_has_its_look_too() {
        let Ok(zone) = TimeZone::get("Europe/Berlin") else { return };
        let now: Timestamp = "2026-03-28T12:00:00Z".parse().unwrap();
        let next = next_look(now, &zone, Uuid::now_v7());
        assert!(next > now && next.duration_since(now).as_hours() < 24);
    }

    #[test]
    fn a_plan_of_a_clock_that_was_years_ahead_is_not_waited_for() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        assert!(!is_due(now + SignedDuration::from_hours(20), now));
        assert!(is_due(now, now) && is_due(now + SignedDuration::from_hours(20_000), now));
    }
}
