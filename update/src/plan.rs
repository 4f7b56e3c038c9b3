//! What a rollout would do to a fleet: who gets the release when, and how many a broken one would have hit by then.

use crate::rollout::{fails, turn};
use jiff::Timestamp;
use picket_protocol::Rollout;
use semver::Version;
use serde::Serialize;

/// What one wave would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedWave {
    /// Its number, from 1 on.
    pub wave: usize,
    /// When it opens.
    pub opens: Timestamp,
    /// When the last of its machines has its turn.
    pub last: Timestamp,
    /// The share of all machines that have had their turn with it, in percent.
    pub percent: u8,
    /// How many machines it has.
    pub machines: u32,
    /// How many machines have had their turn with it.
    pub machines_so_far: u32,
    /// How many of these would have failed.
    pub failed_so_far: u32,
    /// How many would not have, because the rollout was stopped before the next wave.
    pub spared: u32,
}

/// When one machine has its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedMachine {
    /// The machine's id.
    pub id: String,
    /// Its wave.
    pub wave: usize,
    /// Its turn.
    pub at: Timestamp,
}

/// A rollout laid on a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The waves, in their order.
    pub waves: Vec<PlannedWave>,
    /// The machines, in the order of their turns.
    pub machines: Vec<PlannedMachine>,
}

/// Lays the rollout of `version`, published at `published`, on the machines with these ids; `failing` hundredths of a
/// percent of them fail with it.
pub fn plan(
    rollout: &Rollout,
    published: Timestamp,
    version: &Version,
    ids: impl Iterator<Item = String>,
    failing: u16,
) -> Plan {
    let openings = rollout.openings(published);
    let planned = |(index, (wave, opens)): (usize, (picket_protocol::Wave, Timestamp))| PlannedWave {
        wave: index + 1,
        opens,
        last: opens,
        percent: wave.percent,
        machines: 0,
        machines_so_far: 0,
        failed_so_far: 0,
        spared: 0,
    };
    let mut waves: Vec<PlannedWave> = rollout.in_effect().into_iter().zip(openings).enumerate().map(planned).collect();
    let mut machines = Vec::new();
    let mut failed = 0;
    for id in ids {
        let Some(turn) = turn(rollout, published, &id, version) else { continue };
        let fails = fails(&id, version, failing);
        failed += u32::from(fails);
        if let Some(wave) = waves.get_mut(turn.wave - 1) {
            wave.machines += 1;
            wave.failed_so_far += u32::from(fails);
            wave.last = wave.last.max(turn.at);
        }
        machines.push(PlannedMachine { id, wave: turn.wave, at: turn.at });
    }
    let (mut machines_so_far, mut failed_so_far) = (0, 0);
    for wave in &mut waves {
        machines_so_far += wave.machines;
        failed_so_far += wave.failed_so_far;
        wave.machines_so_far = machines_so_far;
        wave.failed_so_far = failed_so_far;
        wave.spared = failed - failed_so_far;
    }
    machines.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    Plan { waves, machines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::Wave;

    #[test]
    fn a_plan_counts_every_machine_once_and_failures_in_proportion_to_the_waves() {
        let waves = [(0, 1), (86_400, 10), (259_200, 100)];
        let waves =
            waves.iter().map(|(after_seconds, percent)| Wave { after_seconds: *after_seconds, percent: *percent });
        let rollout = Rollout { waves: waves.collect(), jitter_seconds: 3600, ..Rollout::default() };
        let version: Version = "2.0.0".parse().unwrap();
        let ids = || (0..100_000).map(|number| format!("machine {number}"));
        let plan = plan(&rollout, Timestamp::UNIX_EPOCH, &version, ids(), 500);
        assert_eq!(plan.machines.len(), 100_000);
        let [first, second, last] = &plan.waves[..] else { panic!("{:?}", plan.waves) };
        assert_eq!(last.machines_so_far, 100_000);
        assert_eq!((last.spared, first.failed_so_far + first.spared), (0, last.failed_so_far));
        // Five standard deviations around 5 % of each.
        for (wave, machines) in [(first, 1000.0), (second, 10_000.0), (last, 100_000.0)] {
            let expected: f64 = machines * 0.05;
            assert!(
                (f64::from(wave.failed_so_far) - expected).abs() < 5.0 * (expected * 0.95).sqrt() + 10.0,
                "{wave:?}"
            );
            assert!(wave.last > wave.opens && wave.last.duration_since(wave.opens).as_secs() < 3600);
        }
        assert!(plan.machines.is_sorted_by_key(|machine| machine.at));
        assert!(super::plan(&rollout, Timestamp::UNIX_EPOCH, &version, ids(), 0).waves[2].failed_so_far == 0);
        assert!(super::plan(&rollout, Timestamp::UNIX_EPOCH, &version, ids(), 10_000).waves[0].spared > 98_000);
    }
}
