//! Updates under systemd: the good one, every kind of bad one, and what an administrator did before.

use picket_testkit::{Fault, Machine, build, wait_until};
use std::time::Instant;

/// A machine on 2.0.0 that got there by an update from 1.0.0, taking everything by itself.
fn on_second_version(test: &str) -> Machine {
    let machine = Machine::installed(test, "  auto: all\n");
    machine.release("2.0.0", Fault::None);
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    machine.assert_on("2.0.0");
    machine
}

#[test]
fn a_good_release_is_kept_after_exactly_one_restart_and_outlives_a_reboot() {
    let machine = Machine::installed("good", "");
    let before = machine.starts();
    machine.release("2.0.0", Fault::None);
    let check = machine.picket(&["update", "check"]).expect(0).stdout;
    assert!(check.starts_with("Update available: v2.0.0\nCurrent version: v1.0.0\n"), "{check}");
    let applied = machine.picket(&["update", "apply", "--yes", "--json"]).expect(0).json();
    assert_eq!(applied["outcome"], "committed");
    machine.assert_on("2.0.0");
    assert_eq!(machine.previous(), "1.0.0");
    assert_eq!(machine.starts() - before, 1);
    assert_eq!(machine.property("picket-agent", "NRestarts"), "0");
    assert_eq!(machine.sh("ls /run/systemd/system | grep picket || true"), "", "the trial's unit is left");
    // The new version tested itself with its hands tied, and the evidence says by what.
    let history = machine.picket(&["update", "history", "--json"]).expect(0).json();
    let confined = history[0]["evidence"]["self_test"].as_str().unwrap();
    assert!(confined.ends_with("writes closed, network closed"), "{confined}");

    machine.reboot();
    machine.assert_on("2.0.0");
    machine.server.misbehave("/", picket_testkit::Behaviour::Status(503));
    machine.picket(&["update", "rollback", "--yes"]).expect(0);
    machine.assert_on("1.0.0");

    // And on again without the server: by a file that was carried here and that only root can read.
    let made = tempfile::tempdir().unwrap();
    let bundle = made.path().join("picket.tar");
    let mut command = std::process::Command::new(build("1.0.0", Fault::None).exe);
    command.args(["release", "bundle"]).arg(machine.vendor.tree()).arg("--out").arg(&bundle);
    assert!(command.status().unwrap().success());
    machine.put(&std::fs::read(&bundle).unwrap(), "/root/picket.tar", 0o600);
    machine.server.forget();
    machine.picket(&["update", "apply", "2.0.0", "--yes", "--bundle", "/root/picket.tar"]).expect(0);
    machine.assert_on("2.0.0");
    assert!(machine.server.requests().is_empty(), "the network was asked");
}

#[test]
fn hooks_run_as_another_user_and_end_at_their_limit_within_what_the_updaters_unit_may_do() {
    let machine = Machine::installed("hooks", "  hook_user: daemon\n  hook_limit: 2s\n");
    // A group of the user's that is not its first one, and must come along.
    machine.sh("groupadd --system --users daemon drained");
    let hook = |folder: &str, script: &str| {
        machine.put(
            format!("#!/bin/sh\n{script}\n").as_bytes(),
            &format!("/etc/picket/update.d/{folder}/10-hook"),
            0o755,
        );
    };
    hook("before", "id -un; id -Gn; grep CapEff /proc/self/status; touch /opt/picket/mine && exit 1; exit 0");
    // The updater has no CAP_KILL.
    hook("after", "setsid sleep 4321 & exec sleep 1234");
    machine.release("2.0.0", Fault::None);
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    machine.assert_on("2.0.0");
    assert_eq!(machine.run(&["pgrep", "-f", "sleep (1234|4321)"]).code, 1, "a hook outlived its limit");
    let history = machine.picket(&["update", "history", "--json"]).expect(0).json();
    let hooks = &history[0]["evidence"]["hooks"];
    let said = hooks[0]["output"].as_str().unwrap();
    assert!(said.starts_with("daemon\ndaemon drained\nCapEff:0000000000000000"), "{hooks}");
    assert_eq!(hooks[1]["detail"], "no end after 2 s", "{hooks}");
}

/// A third version that fails its trial: the second is back, the reason is kept, the next timer run leaves it alone.
fn assert_rolled_back(test: &str, fault: Fault, reason: &str) {
    let machine = on_second_version(test);
    machine.release("3.0.0", fault);
    let told = machine.picket(&["update", "apply", "--yes", "--json"]).expect(20).json();
    assert_eq!(told["outcome"], "rolled-back");
    assert!(told["reason"].as_str().unwrap().contains(reason), "{told}");
    machine.assert_on("2.0.0");
    assert_eq!(machine.property("picket-agent", "ActiveState"), "active");
    assert_eq!(machine.sh("ls /run/systemd/system | grep picket || true"), "", "the trial's unit is left");

    machine.server.forget();
    machine.daily_check();
    machine.assert_on("2.0.0");
    let requests = machine.server.requests();
    assert!(requests.iter().any(|request| request.contains("timestamp.json")), "the timer's run looked nowhere");
    assert!(!requests.iter().any(|request| request.contains("picket-3.0.0")), "it was tried again: {requests:?}");
    let status = machine.status();
    assert_eq!((&status["held"][0]["version"], &status["last"]["to"]), (&"3.0.0".into(), &"3.0.0".into()));
    assert_eq!(status["last"]["outcome"], "rolled-back");
    // It ends where it began, after a boot as well.
    machine.reboot();
    machine.assert_on("2.0.0");
}

#[test]
fn a_release_that_exits_at_once_is_rolled_back() {
    assert_rolled_back("crash", Fault::Crash, "it ended by itself");
}

#[test]
fn a_release_that_hangs_before_it_is_ready_is_rolled_back() {
    assert_rolled_back("hang", Fault::Hang, "it was not ready after 8 s");
}

#[test]
fn a_release_that_reports_itself_unhealthy_is_rolled_back() {
    assert_rolled_back("sick", Fault::Unhealthy, "health is worse than before: collector");
}

#[test]
fn a_release_that_leaks_restarts_is_rolled_back() {
    assert_rolled_back("flap", Fault::Flap, "it ended by itself");
}

#[test]
fn a_release_that_could_not_take_the_next_update_is_rolled_back() {
    assert_rolled_back("nofetch", Fault::NoFetch, "cannot fetch and verify the release metadata");
}

#[test]
fn a_release_that_cannot_be_executed_never_gets_to_its_trial() {
    let machine = on_second_version("noexec");
    let dir = std::env::temp_dir().join(format!("picket-noexec-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("junk"), "\u{7f}ELF but not really").unwrap();
    picket_release::pack_executable(&dir.join("junk"), &dir.join("a.tar.xz"), 0).unwrap();
    machine.vendor.release_archive("3.0.0", &dir.join("a.tar.xz"));
    std::fs::remove_dir_all(&dir).unwrap();
    let pid = machine.property("picket-agent", "MainPID");
    let told = machine.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
    assert!(told["reason"].as_str().unwrap().contains("Exec format error"), "{told}");
    machine.server.forget();
    machine.daily_check();
    assert!(!machine.server.requests().iter().any(|request| request.contains("picket-3.0.0")));
    machine.assert_on("2.0.0");
    assert_eq!(machine.property("picket-agent", "MainPID"), pid, "the agent was restarted");
}

#[test]
fn an_agent_that_was_stopped_stays_stopped() {
    let machine = Machine::installed("stopped", "  auto: all\n");
    machine.release("2.0.0", Fault::None);
    machine.picket(&["service", "stop"]).expect(0);
    machine.daily_check();
    assert_eq!(machine.current(), "1.0.0", "the timer's run started what was stopped");
    assert_eq!(machine.property("picket-agent", "ActiveState"), "inactive");
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(machine.current(), "2.0.0");
    assert_eq!(machine.property("picket-agent", "ActiveState"), "inactive");
    // A bad release, too, leaves it as it was.
    machine.release("3.0.0", Fault::Crash);
    machine.picket(&["update", "apply", "--yes"]).expect(20);
    assert_eq!(machine.current(), "2.0.0");
    assert_eq!(machine.property("picket-agent", "ActiveState"), "inactive");
}

#[test]
fn an_administrators_drop_in_survives_updates_and_holds_during_the_trial() {
    let machine = Machine::installed("dropin", "");
    let drop_in = "/etc/systemd/system/picket-agent.service.d/50-local.conf";
    machine.put(b"[Service]\nEnvironment=PICKET_LOG_LEVEL=debug\nMemoryMax=300M\n", drop_in, 0o644);
    machine.sh("systemctl daemon-reload && systemctl restart picket-agent");
    machine.release("2.0.0", Fault::None);
    let mut apply = machine.start(&["picket", "update", "apply", "--yes"]);
    wait_until("the trial to begin", || machine.running_version().as_deref() == Some("2.0.0"));
    let limit = (300_u64 << 20).to_string();
    assert_eq!(machine.property("picket-agent", "MemoryMax"), limit, "not in force during the trial");
    assert!(apply.wait().unwrap().success());
    machine.assert_on("2.0.0");
    assert_eq!(machine.property("picket-agent", "MemoryMax"), limit);
    let pid = machine.property("picket-agent", "MainPID");
    assert!(machine.sh(&format!("tr '\\0' '\\n' < /proc/{pid}/environ")).contains("PICKET_LOG_LEVEL=debug"));
    machine.picket(&["uninstall", "--purge", "--yes"]).expect(0);
    assert_eq!(machine.run(&["test", "-e", drop_in]).code, 0, "an administrator's file was removed");
}

#[test]
fn the_timer_looks_once_a_night_at_a_time_of_the_machines_own() {
    let machine = Machine::installed("timer", "");
    let next = machine
        .sh("date --date=\"$(systemctl show --value --property=NextElapseUSecRealtime picket-update.timer)\" +%H%M");
    let next: u32 = next.parse().unwrap();
    assert!((330..=430).contains(&next), "{next}");
    assert_eq!(machine.property("picket-update.timer", "Persistent"), "yes");
    assert_eq!(machine.property("picket-update.timer", "FixedRandomDelay"), "yes");
}

#[test]
fn a_release_that_waits_wakes_the_updater_when_it_has_its_turn_and_nothing_is_started_before() {
    let machine = Machine::installed("due", "  auto: all\n");
    assert_eq!(machine.property("picket-update-due.timer", "ActiveState"), "active");
    assert_eq!(machine.property("picket-update-due.timer", "UnitFileState"), "enabled");
    // What the timer does every ten minutes.
    let elapse = || machine.sh("systemctl start picket-update-due.service");
    let updater_ran = || machine.property("picket-update.service", "ExecMainStartTimestampMonotonic");
    elapse();
    assert_eq!(machine.property("picket-update-due.service", "ConditionResult"), "no", "a process for nothing");

    machine.release("2.0.0", Fault::None);
    machine.vendor.in_waves("2.0.0", jiff::Timestamp::now(), &[(3600, 100)]);
    machine.daily_check();
    machine.assert_on("1.0.0");
    assert!(machine.status()["available"]["due"].is_string(), "{}", machine.status());
    let before = updater_ran();
    elapse();
    assert_eq!(machine.property("picket-update-due.service", "ConditionResult"), "yes");
    assert_eq!(machine.property("picket-update-due.service", "Result"), "success");
    assert_eq!(updater_ran(), before, "its turn is in an hour");

    // The machine's clock is this one's: the wave comes nearer instead.
    machine.vendor.in_waves("2.0.0", jiff::Timestamp::now() + jiff::SignedDuration::from_secs(15), &[(0, 100)]);
    machine.daily_check();
    wait_until("the wave to open, and the timer to see it", || {
        elapse();
        machine.current() == "2.0.0"
    });
    machine.assert_on("2.0.0");
    assert_eq!(machine.run(&["test", "-e", "/var/lib/picket-update/due.json"]).code, 1, "it is still waited for");
    // Where the daily timer is stopped, this one is, too.
    machine.sh("systemctl stop picket-update.timer");
    assert_eq!(machine.property("picket-update-due.timer", "ActiveState"), "inactive");
}

#[test]
fn the_unprivileged_agents_wish_starts_the_updater_and_nothing_more() {
    let machine = Machine::installed("wish", "");
    machine.release("2.0.0", Fault::None);
    machine.sh("setpriv --reuid=picket --regid=picket --clear-groups sh -c 'echo 2.0.0 > /var/lib/picket/update-wish'");
    machine.assert_on("2.0.0");
    machine.sh("setpriv --reuid=picket --regid=picket --clear-groups ln -s /etc/shadow /var/lib/picket/update-wish");
    wait_until("the wish to be taken away", || machine.run(&["test", "-L", "/var/lib/picket/update-wish"]).code == 1);
    assert_eq!(machine.run(&["test", "-s", "/etc/shadow"]).code, 0);
    machine.assert_on("2.0.0");
    // A folder that cannot simply be removed must not keep anybody from going back.
    machine.sh("setpriv --reuid=picket --regid=picket --clear-groups mkdir -p /var/lib/picket/update-wish/in/the/way");
    machine.picket(&["update", "rollback", "--yes"]).expect(0);
    machine.assert_on("1.0.0");
    wait_until("the folder to be taken away", || machine.run(&["test", "-e", "/var/lib/picket/update-wish"]).code == 1);
}

#[test]
fn closing_the_terminal_does_not_stop_an_update() {
    let machine = Machine::installed("terminal", "");
    machine.release("2.0.0", Fault::None);
    hold_at_the_gate(&machine);
    // A session of its own, hung up as a closed terminal would.
    let mut apply = machine.start(&["setsid", "--wait", "picket", "update", "apply", "--yes"]);
    wait_until("the gate", || machine.run(&["test", "-e", "/run/picket-update/held"]).code == 0);
    machine.sh("pkill -HUP -f '[p]icket update apply'");
    apply.wait().unwrap();
    machine.sh("rm /run/picket-update/held");
    machine.assert_on("2.0.0");
}

#[test]
fn an_updater_that_is_killed_is_recovered_at_once() {
    let machine = Machine::installed("killed", "");
    machine.release("2.0.0", Fault::Hang);
    let mut apply = machine.start(&["picket", "update", "apply", "--yes"]);
    wait_until("the trial to begin", || machine.status()["running"]["step"] == "gate");
    machine.sh("systemctl kill --signal=KILL picket-update.service");
    apply.wait().unwrap();
    machine.assert_on("1.0.0");
    let status = machine.status();
    assert_eq!(status["last"]["outcome"], "interrupted", "{status}");
    let reason = status["last"]["reason"].as_str().unwrap();
    assert!(!reason.contains("did not answer"), "the proven version was not brought back at once: {reason}");
    assert_eq!(machine.sh("ls /run/systemd/system | grep picket || true"), "");
}

#[test]
fn a_disk_that_fills_up_during_the_trial_ends_on_a_proven_version() {
    let machine = Machine::installed("full", "");
    machine.release("2.0.0", Fault::None);
    hold_at_the_gate(&machine);
    let mut apply = machine.start(&["picket", "update", "apply", "--yes"]);
    wait_until("the gate", || machine.run(&["test", "-e", "/run/picket-update/held"]).code == 0);
    machine
        .sh("dd if=/dev/zero of=/root/full bs=1M 2>/dev/null; dd if=/dev/zero of=/root/fuller bs=1k 2>/dev/null; true");
    machine.sh("systemctl kill --signal=KILL picket-update.service");
    apply.wait().unwrap();
    // Recovery cannot write its journal either; what a boot starts is the proven version all the same.
    machine.sh("rm -r /etc/systemd/system/picket-update.service.d && sync");
    machine.cut_power();
    machine.boot();
    wait_until("version 1.0.0 to answer", || machine.running_version().as_deref() == Some("1.0.0"));
    machine.sh("rm /root/full /root/fuller");
    let began = Instant::now();
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    machine.assert_on("2.0.0");
    assert!(began.elapsed() < picket_testkit::PATIENCE);
}

/// Makes the updater stand still where its gate began, until `/run/picket-update/held` is removed.
fn hold_at_the_gate(machine: &Machine) {
    let text = b"[Service]\nEnvironment=PICKET_FAILPOINT=gate-began-after=hold:/run/picket-update/held\n";
    machine.put(text, HOLD, 0o644);
    machine.sh("systemctl daemon-reload");
}

const HOLD: &str = "/etc/systemd/system/picket-update.service.d/50-hold.conf";

#[test]
fn an_upgrade_by_install_is_tried_like_any_update() {
    let machine = Machine::installed("upgrade", "");
    machine.install(&build("2.0.0", Fault::None)).expect(0);
    machine.assert_on("2.0.0");
    assert_eq!(machine.previous(), "1.0.0");
    machine.install(&build("3.0.0", Fault::Hang)).expect(20);
    machine.assert_on("2.0.0");
}
