//! Whose turn it is in the waves of a release, without anybody who coordinates: a pure function of machine and version.
//!
//! A machine's place is a hash of its id and the version, so that each release begins with other machines, and none is
//! always the first to meet what is broken.

use jiff::{SignedDuration, Timestamp};
use picket_protocol::Rollout;
use picket_protocol::update_status::Turn;
use semver::Version;
use sha2::{Digest, Sha256};

/// How many places there are: hundredths of a percent.
pub const PLACES: u16 = 10_000;

/// Two independent numbers of machine and version, each spread evenly over all of 64 bits.
fn numbers(machine: &str, version: &Version) -> (u64, u64) {
    let digest = Sha256::new()
        .chain_update(b"picket rollout place\0")
        .chain_update(machine.trim())
        .chain_update(b"\0")
        .chain_update(version.to_string())
        .finalize();
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    (number(&digest[..8]), number(&digest[8..16]))
}

/// The part of `whole` that `number` is of all 64-bit numbers.
fn part(number: u64, whole: u32) -> u32 {
    u32::try_from((u128::from(number) * u128::from(whole)) >> 64).unwrap_or(0)
}

/// The place of `machine` among all that could take `version`: below [`PLACES`].
pub fn place(machine: &str, version: &Version) -> u16 {
    place_of(numbers(machine, version).0)
}

fn place_of(number: u64) -> u16 {
    u16::try_from(part(number, u32::from(PLACES))).unwrap_or(0)
}

/// The turn of `machine` in the rollout of `version`, which was published at `published`; `None` only where the waves leave
/// machines out, which none that was checked does.
pub fn turn(rollout: &Rollout, published: Timestamp, machine: &str, version: &Version) -> Option<Turn> {
    let (number, spread) = numbers(machine, version);
    let place = place_of(number);
    let waves = rollout.in_effect();
    let wave = waves.iter().position(|wave| u32::from(place) < u32::from(wave.percent) * 100)?;
    let opens = *rollout.openings(published).get(wave)?;
    let jitter = SignedDuration::from_secs(i64::from(part(spread, rollout.jitter_seconds)));
    let at = opens.checked_add(jitter).unwrap_or(opens);
    let percent = waves.get(wave)?.percent;
    Some(Turn { wave: wave + 1, waves: waves.len(), percent, place, opens, at })
}

/// Whether `machine` is one of the `hundredths` of a percent that a simulation lets fail with `version`: drawn from
/// another hash than its place, so that failures are spread over all waves.
pub(crate) fn fails(machine: &str, version: &Version, hundredths: u16) -> bool {
    numbers(&format!("{machine}\0simulated failure"), version).0
        < (u64::MAX / u64::from(PLACES)) * u64::from(hundredths)
}

/// The turn in words, for people: `wave 2 of 3 (up to 50 % of all machines; this one is at 34.56 %)`.
pub fn describe(turn: &Turn) -> String {
    let Turn { wave, waves, percent, place, .. } = turn;
    format!(
        "wave {wave} of {waves} (up to {percent} % of all machines; this one is at {}.{:02} %)",
        place / 100,
        place % 100
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::Wave;
    use proptest::prelude::*;

    /// The machines of a large fleet.
    const FLEET: u32 = 100_000;

    fn machine(number: u32) -> String {
        // As /etc/machine-id is: 32 hexadecimal digits, here of machines that were made one after the other.
        format!("{number:032x}")
    }

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn rollout(waves: &[(u32, u8)]) -> Rollout {
        let waves =
            waves.iter().map(|(after_seconds, percent)| Wave { after_seconds: *after_seconds, percent: *percent });
        Rollout { waves: waves.collect(), ..Rollout::default() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// Pearson's chi-squared of counts that should all be alike.
    fn chi_squared(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn the_places_of_a_hundred_thousand_machines_are_spread_evenly() {
        for version in ["1.0.0", "1.0.1", "2.0.0-rc.1"].map(version) {
            let mut counts = [0; 100];
            (0..FLEET).for_each(|number| counts[usize::from(place(&machine(number), &version) / 100)] += 1);
            // 99 degrees of freedom: one in a thousand fair draws is above 149.
            let chi_squared = chi_squared(&counts);
            assert!(chi_squared < 149.0, "{version}: {chi_squared}");
        }
    }

    #[test]
    fn another_version_gives_a_machine_another_place() {
        let versions = [("1.0.0", "1.0.1"), ("1.0.1", "1.0.2"), ("1.0.0", "2.0.0")];
        for (one, other) in versions.map(|(one, other)| (version(one), version(other))) {
            let mut counts = [0; 100];
            for number in 0..FLEET {
                let decile = |version| usize::from(place(&machine(number), version) / 1000);
                counts[decile(&one) * 10 + decile(&other)] += 1;
            }
            // All pairs of tenths are alike, so of those who went first with one version a tenth does with the other.
            let chi_squared = chi_squared(&counts);
            assert!(chi_squared < 149.0, "{one} and {other}: {chi_squared}");
        }
    }

    #[test]
    fn every_machine_has_one_wave_of_the_size_it_says_and_nobody_is_left_out() {
        let rollout = rollout(&[(0, 1), (3600, 10), (7200, 50), (86_400, 100)]);
        let mut waves = [0_u32; 4];
        for number in 0..FLEET {
            let turn = turn(&rollout, at(0), &machine(number), &version("1.2.3")).unwrap();
            waves[turn.wave - 1] += 1;
            assert_eq!(turn.opens, rollout.openings(at(0))[turn.wave - 1]);
            assert_eq!(turn.at, turn.opens, "without jitter");
            assert!(u32::from(turn.place) < u32::from(turn.percent) * 100);
        }
        assert_eq!(waves.iter().sum::<u32>(), FLEET);
        for (count, share) in waves.iter().zip([0.01, 0.09, 0.40, 0.50]) {
            let expected = share * f64::from(FLEET);
            // Five standard deviations of a binomial draw.
            let limit = 5.0 * (expected * (1.0 - share)).sqrt();
            assert!((f64::from(*count) - expected).abs() < limit, "{count} of {expected}");
        }
    }

    #[test]
    fn whoever_has_had_its_turn_keeps_it_when_waves_are_added_or_widened() {
        let narrow = rollout(&[(0, 5), (100, 20), (200, 100)]);
        let wide = rollout(&[(0, 5), (50, 12), (100, 35), (200, 100)]);
        for number in 0..FLEET {
            let turn = |rollout| turn(rollout, at(0), &machine(number), &version("1.2.3")).unwrap().at;
            assert!(turn(&wide) <= turn(&narrow), "machine {number} comes later though every wave is wider");
        }
    }

    #[test]
    fn jitter_spreads_the_machines_of_a_wave_and_never_beyond_itself() {
        let rollout = Rollout { jitter_seconds: 3600, ..rollout(&[(0, 10), (7200, 100)]) };
        let mut minutes = [0; 60];
        for number in 0..FLEET {
            let turn = turn(&rollout, at(1000), &machine(number), &version("1.2.3")).unwrap();
            let late = turn.at.duration_since(turn.opens).as_secs();
            assert!((0..3600).contains(&late), "{late}");
            minutes[usize::try_from(late / 60).unwrap()] += 1;
        }
        // 59 degrees of freedom: one in a thousand fair draws is above 99.
        let chi_squared = chi_squared(&minutes);
        assert!(chi_squared < 99.0, "{chi_squared}");
    }

    #[test]
    fn a_place_is_what_it_was_in_every_version_of_picket() {
        // Machines of one fleet run different versions of Picket; they must agree. Reproduced with
        // printf 'picket rollout place\0%s\0%s' ID VERSION | sha256sum | cut -c1-16
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(place(id, &version("1.2.3")), place(&format!("{id}\n"), &version("1.2.3")));
        assert_eq!([place(id, &version("1.2.3")), place(id, &version("1.2.4"))], [1095, 7070]);
    }

    #[test]
    fn without_waves_everybody_has_its_turn_at_the_start_and_jitter_still_spreads_them() {
        let turn = |rollout: &Rollout| turn(rollout, at(5), "m", &version("1.0.0")).unwrap();
        let at_once = turn(&Rollout::default());
        assert_eq!((at_once.wave, at_once.waves, at_once.percent, at_once.at), (1, 1, 100, at(5)));
        let spread = turn(&Rollout { jitter_seconds: 86_400, ..Rollout::default() });
        assert!(spread.at > at(5), "{spread:?}");
    }

    proptest! {
        #[test]
        fn a_turn_is_never_before_its_wave_nor_its_wave_before_the_start(
            number in 0..FLEET, start in 0_i64..2_000_000_000, first in 0_u32..86_400, soak in 0_u32..86_400,
            jitter in 0_u32..604_800, percent in 1_u8..100,
        ) {
            let rollout = Rollout {
                start: Some(at(start)),
                soak_seconds: soak,
                jitter_seconds: jitter,
                ..rollout(&[(first, percent), (first, 100)])
            };
            let turn = turn(&rollout, at(0), &machine(number), &version("3.2.1")).unwrap();
            prop_assert!(turn.opens >= at(start + i64::from(first)));
            prop_assert!(turn.at >= turn.opens);
            prop_assert!(turn.at <= at(start + i64::from(first) + i64::from(soak) + i64::from(jitter)));
            prop_assert_eq!(turn.wave == 1, turn.place < u16::from(percent) * 100);
        }
    }
}
