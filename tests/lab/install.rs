//! On and off a machine, and what systemd makes of it.

use picket_testkit::{Fault, Machine, build, inside, wait_until};
use std::net::TcpListener;

/// Place, owner and mode after an installation: the operations guide's table, written out.
const TABLE: [&str; 22] = [
    "/opt/picket root:root 755",
    "/opt/picket/current root:root 777",
    "/opt/picket/receipt.json root:root 644",
    "/opt/picket/versions root:root 755",
    "/opt/picket/versions/1.0.0 root:root 755",
    "/opt/picket/versions/1.0.0/picket root:root 755",
    "/usr/local/bin/picket root:root 777",
    "/etc/picket root:picket 750",
    "/etc/picket/config.yaml root:picket 640",
    "/etc/picket/release-root.json root:picket 640",
    "/etc/picket/health.d/required root:picket 750",
    "/etc/picket/health.d/wanted root:picket 750",
    "/etc/picket/update.d/busy root:picket 750",
    "/var/lib/picket picket:picket 700",
    "/var/lib/picket-update root:root 700",
    "/var/log/picket picket:picket 750",
    "/run/picket picket:picket 750",
    "/usr/local/lib/systemd/system/picket-agent.service root:root 644",
    "/usr/local/lib/systemd/system/picket-sensor.service root:root 644",
    "/var/lib/picket-sensor picket-sensor:picket 700",
    "/run/picket-sensor picket-sensor:picket 750",
    "/run/picket-sensor/sensor.sock picket-sensor:picket 660",
];

fn assert_table(machine: &Machine) {
    for row in TABLE {
        let place = row.split(' ').next().unwrap();
        assert_eq!(machine.sh(&format!("stat --format='%n %U:%G %a' {place}")), row);
    }
}

fn assert_healthy(machine: &Machine) {
    wait_until("the agent to answer", || machine.health("/health").is_some_and(|(status, _)| status == 200));
    let doctor = machine.picket(&["doctor", "--json"]).expect(0).json();
    assert_eq!(doctor["ok"], true, "{doctor}");
    assert_eq!(machine.property("picket-agent", "ActiveState"), "active");
    assert_eq!(machine.property("picket-agent", "UnitFileState"), "enabled");
    assert_eq!(machine.property("picket-agent", "NRestarts"), "0");
    for unit in ["picket-sensor.service", "picket-update.timer", "picket-update-due.timer", "picket-update.path"] {
        assert_eq!(machine.property(unit, "ActiveState"), "active", "{unit}");
    }
    assert_eq!(machine.sh("systemctl --failed --no-legend"), "");
}

/// Every file that the machine has on its disk, apart from what Debian itself writes all the time.
fn files(machine: &Machine) -> Vec<String> {
    let listed = machine
        .sh("find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/tmp \
         -o -path /var/log/journal -o -path /root -o -path /var/cache \\) -prune -o -print");
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn an_installed_agent_is_healthy_and_every_place_is_as_the_table_says() {
    let machine = Machine::installed("install", "");
    assert_healthy(&machine);
    assert_table(&machine);
    let pid = machine.property("picket-agent", "MainPID");
    assert_eq!(machine.sh(&format!("stat --format=%U:%G /proc/{pid}")), "picket:picket");
    assert_eq!(machine.sh(&format!("grep CapEff /proc/{pid}/status")), "CapEff:\t0000000000000000");
    // The service user may neither change the program nor look at the updater's state.
    for denied in ["touch /opt/picket/versions/1.0.0/picket", "ls /var/lib/picket-update", "touch /etc/picket/x"] {
        let ran = machine.run(&["setpriv", "--reuid=picket", "--regid=picket", "--clear-groups", "sh", "-c", denied]);
        assert_ne!(ran.code, 0, "{denied}");
    }
    // Root by mistake: neither the agent nor a link in its folder gets hold of root's hands.
    assert!(machine.picket(&["agent", "run"]).expect(4).stderr.contains("picket service start"));
    // Logs arrive in the journal, with their fields.
    let line = machine.sh("journalctl --unit=picket-agent --output=json --grep='the agent serves' | tail -n 1");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["SYSLOG_IDENTIFIER"], &line["PRIORITY"]), (&"picket-agent".into(), &"6".into()), "{line}");
}

#[test]
fn it_is_still_there_after_a_reboot() {
    let machine = Machine::installed("reboot", "");
    machine.reboot();
    machine.assert_on("1.0.0");
    assert_healthy(&machine);
    assert_table(&machine);
}

#[test]
fn installing_again_changes_nothing_and_an_interrupted_installation_is_completed() {
    let machine = Machine::installed("again", "");
    let pid = machine.property("picket-agent", "MainPID");
    let again = machine.install(&build("1.0.0", Fault::None)).expect(0);
    assert_eq!(again.stdout, "", "{again:?}");
    assert_eq!(machine.property("picket-agent", "MainPID"), pid, "the agent was restarted");
    // As if the installer had been killed half-way, twice.
    machine
        .sh("systemctl stop picket-agent && rm /usr/local/lib/systemd/system/picket-agent.service /opt/picket/current");
    machine.install(&build("1.0.0", Fault::None)).expect(0);
    machine.assert_on("1.0.0");
    assert_healthy(&machine);
    assert_table(&machine);
}

#[test]
fn uninstalling_leaves_data_and_nothing_else_and_purging_leaves_nothing() {
    let machine = Machine::boot_new("uninst", "");
    let before = files(&machine);
    machine.install(&build("1.0.0", Fault::None)).expect(0);
    machine.assert_on("1.0.0");
    machine.picket(&["uninstall", "--yes"]).expect(0);
    let added: Vec<String> = files(&machine).into_iter().filter(|file| !before.contains(file)).collect();
    let data =
        ["/etc/picket", "/var/lib/picket", "/var/lib/picket-sensor", "/var/lib/picket-update", "/var/log/picket"];
    for file in &added {
        assert!(data.iter().any(|place| file.starts_with(place)), "{file} is left over");
    }
    assert_eq!(machine.sh("systemctl list-unit-files --no-legend 'picket*' || true"), "");
    assert_eq!(machine.sh("systemctl list-units --all --no-legend 'picket*'"), "");
    assert!(machine.health("/livez").is_none());
    // Data outlives the program, its owner with it.
    assert_eq!(machine.sh("stat --format=%U /var/lib/picket"), "picket");

    machine.run(&["/root/picket", "uninstall", "--purge", "--yes"]).expect(0);
    let left: Vec<String> = files(&machine).into_iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(left, Vec::<String>::new());
    for user in ["picket", "picket-sensor"] {
        assert_eq!(machine.run(&["id", user]).code, 1, "{user}");
    }
    assert_eq!(machine.run(&["getent", "group", "picket"]).code, 2);
}

#[test]
fn uninstalling_works_with_the_service_dead_and_the_binary_gone() {
    let machine = Machine::installed("dead", "");
    machine.sh("systemctl kill --signal=KILL picket-agent; systemctl stop picket-agent; rm -r /opt/picket/versions");
    machine.run(&["/root/picket", "uninstall", "--purge", "--yes"]).expect(0);
    assert_eq!(machine.sh("ls -d /opt/picket* /etc/picket /var/lib/picket* /var/log/picket 2>/dev/null || true"), "");
    assert_eq!(machine.sh("systemctl list-unit-files --no-legend 'picket*' || true"), "");
}

#[test]
fn a_port_in_use_is_a_clear_message_and_no_crash_loop() {
    let machine = Machine::boot_new("port", "");
    let holder = inside(&machine.namespace(), || TcpListener::bind("127.0.0.1:9090").unwrap());
    machine.install(&build("1.0.0", Fault::None)).expect(0);
    let message = || machine.health("/health").unwrap().1["checks"]["metrics_server"]["message"].to_string();
    wait_until("the failure to be told", || {
        machine.health("/health").is_some() && message().contains("metrics.listen")
    });
    assert_eq!(machine.property("picket-agent", "NRestarts"), "0");
    drop(holder);
    wait_until("the port to be taken once it is free", || message().contains("serving"));
}

#[test]
fn a_configuration_that_cannot_be_used_stops_the_agent_without_a_crash_loop() {
    let machine = Machine::installed("config", "");
    machine.sh("echo 'log_level: loud' >> /etc/picket/config.yaml");
    let restart = machine.picket(&["service", "restart"]);
    assert_ne!(restart.code, 0, "{restart:?}");
    wait_until("the agent to have failed", || machine.property("picket-agent", "ActiveState") == "failed");
    assert_eq!(machine.property("picket-agent", "NRestarts"), "0");
    let log = machine.sh("journalctl --unit=picket-agent --no-pager");
    assert!(log.contains("/etc/picket/config.yaml:") && log.contains("\"loud\""), "{log}");
    machine.sh("sed -i '/loud/d' /etc/picket/config.yaml");
    machine.picket(&["service", "start"]).expect(0);
    machine.assert_on("1.0.0");
}

#[test]
fn an_agent_whose_loop_stands_still_is_restarted_by_the_watchdog() {
    let machine = Machine::boot_new("watchdog", "");
    machine.install(&build("2.0.0", Fault::Stuck)).expect(0);
    // The unit's own limit is a minute; a drop-in is how an administrator would change it.
    machine.put(b"[Service]\nWatchdogSec=3\n", "/etc/systemd/system/picket-agent.service.d/50-test.conf", 0o644);
    machine.sh("systemctl daemon-reload && systemctl restart picket-agent");
    wait_until("systemd to restart it", || machine.property("picket-agent", "NRestarts") != "0");
    let log = machine.sh("journalctl --unit=picket-agent --no-pager");
    assert!(log.contains("Watchdog timeout"), "{log}");
}

#[test]
fn a_user_installs_runs_updates_and_removes_an_agent_of_their_own() {
    let machine = Machine::boot_new("user", "");
    machine.sh("useradd --create-home ann && loginctl enable-linger ann && systemctl start user@$(id -u ann)");
    machine.put(&std::fs::read(build("1.0.0", Fault::None).exe).unwrap(), "/home/ann/picket", 0o755);
    let config = machine.sh("cat /etc/picket/config.yaml");
    machine.put(config.as_bytes(), "/home/ann/.config/picket/config.yaml", 0o600);
    machine.sh("cp /root/root.json /home/ann/ && chown -R ann: /home/ann");
    let ann = |command: &str| {
        let text = format!("export XDG_RUNTIME_DIR=/run/user/$(id -u); cd; {command}");
        machine.run(&["su", "--login", "ann", "--command", &text])
    };
    ann("./picket install --user --root-keys root.json").expect(0);
    wait_until("version 1.0.0 to answer", || machine.running_version().as_deref() == Some("1.0.0"));
    assert_eq!(ann("systemctl --user is-enabled picket-agent").stdout.trim(), "enabled");
    ann("~/.local/bin/picket --user doctor").expect(0);

    machine.release("2.0.0", Fault::None);
    ann("~/.local/bin/picket --user update apply --yes").expect(0);
    assert_eq!(machine.running_version().as_deref(), Some("2.0.0"));
    machine.release("3.0.0", Fault::Crash);
    ann("~/.local/bin/picket --user update apply --yes").expect(20);
    wait_until("version 2.0.0 to be back", || machine.running_version().as_deref() == Some("2.0.0"));
    machine.reboot();
    wait_until("it to come with the boot", || machine.running_version().as_deref() == Some("2.0.0"));

    ann("~/.local/bin/picket --user uninstall --purge --yes").expect(0);
    let left = ann("find . -iname '*picket*' -not -path ./picket").expect(0).stdout;
    assert_eq!(left, "");
}
