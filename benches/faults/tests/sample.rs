//! A few of the points and states that `scripts/faults update` and `scripts/faults power` try in their thousands: the same
//! code, three minutes at most.

use picket_faults::call::{Call, Fault, Point, read_trace};
use picket_faults::scenario::{Scenario, Stage, named, try_point};
use picket_faults::site::Site;
use picket_faults::{power, run};
use std::time::Duration;

/// What decides which points and states are tried.
const SEED: u64 = 20_261_122;

fn scenarios(names: &[&str]) -> Vec<Scenario> {
    names.iter().map(|name| named(name).unwrap()).collect()
}

/// A write to the new executable of which the kernel says that it was made, and it was not.
fn a_write_that_the_disk_lost() {
    let update = named("update").unwrap();
    let stage = Stage::new(&[update], None, true);
    let site = Site::new(stage.world(&update));
    let trace = read_trace(&try_point(&site, &stage, &update, None).trace);
    let of_the_executable = |call: &&Call| call.name == "write" && call.subject().ends_with("versions/.staging/picket");
    // The last one: what is missing there keeps no executable from running.
    let last = trace.iter().rfind(of_the_executable).expect("nobody writes the executable");
    let point = Point { call: last.name.clone(), nth: last.nth, fault: Fault::Lie };
    assert!(try_point(&site, &stage, &update, Some(&point)).was_hit(), "{point}");
}

#[test]
fn a_machine_survives_faults_at_system_calls_of_an_update_and_power_cuts_after_them() {
    let folder = tempfile::tempdir().unwrap();
    a_write_that_the_disk_lost();
    run::quiet_panics();
    let calls = run::Plan {
        scenarios: scenarios(&["update", "recover-commit", "install", "purge"]),
        base: None,
        only: None,
        sample: Some(60),
        seed: SEED,
        ends: 1,
        between: 1,
        each: false,
        workers: 4,
        limit: Some(Duration::from_secs(100)),
        folder: folder.path().join("calls"),
    };
    let broken = run::run(&calls);
    run::tell(&calls, &broken);
    let cuts = power::Plan {
        scenarios: scenarios(&["recover-commit", "install"]),
        base: None,
        only: None,
        sample: Some(30),
        seed: SEED,
        workers: 4,
        limit: Some(Duration::from_secs(50)),
        folder: folder.path().join("power"),
    };
    let cut = power::run(&cuts);
    power::tell(&cuts, &cut);
    assert_eq!(broken.failures.len() + cut.failures.len(), 0, "see what was not survived above; seed {SEED}");
    assert!(broken.sum().tried >= 10, "too few points were reached: {:?}", broken.sum());
    assert!(cut.counts.values().map(|count| count.tried).sum::<usize>() >= 10, "{:?}", cut.counts);
}
