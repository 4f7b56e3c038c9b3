//! The hub as a service: alone, beside an agent, updated, and off the machine again.

use picket_testkit::{Fault, Machine, build, wait_until};

const HUB: &str = "picket-hub";
const DATABASE: &str = "/var/lib/picket-hub/hub.db";

/// Place, owner and mode of what a hub has: the operations guide's table, written out.
const TABLE: [&str; 6] = [
    "/etc/picket/hub.yaml root:picket 640",
    "/etc/picket/rules.d root:picket 750",
    "/usr/local/lib/systemd/system/picket-hub.service root:root 644",
    "/var/lib/picket-hub picket-hub:picket 700",
    "/var/lib/picket-hub/keys picket-hub:picket 700",
    "/var/lib/picket-hub/keys/intermediate.key picket-hub:picket 600",
];

const INSTALL: [&str; 9] =
    ["/root/picket", "install", "--root-keys", "/root/root.json", "--role", "hub", "--hub-name", "127.0.0.1", "--json"];

fn bring(machine: &Machine) {
    machine.put(&std::fs::read(build("1.0.0", Fault::None).exe).unwrap(), "/root/picket", 0o755);
}

fn executable(machine: &Machine, unit: &str) -> String {
    machine.sh(&format!("readlink /proc/$(systemctl show --value --property=MainPID {unit})/exe || true"))
}

fn assert_serves(machine: &Machine) {
    assert_eq!(machine.property(HUB, "ActiveState"), "active");
    assert_eq!(machine.property(HUB, "UnitFileState"), "enabled");
    // Ready means that both ports serve.
    for port in [8443, 8444] {
        machine.sh(&format!(
            "curl --insecure --silent --output /dev/null https://127.0.0.1:{port}/; test $? = 0 -o $? = 56"
        ));
    }
    assert_eq!(machine.sh("systemctl --failed --no-legend"), "");
}

#[test]
fn a_hub_is_installed_beside_an_agent_which_enrols_at_it_and_each_is_removed_alone() {
    let machine = Machine::installed("hub-both", "");
    let agent = machine.property("picket-agent", "MainPID");
    let installed = machine.run(&INSTALL).expect(0).json();
    assert_eq!(installed["roles"], serde_json::json!(["agent", "hub"]), "{installed}");
    assert!(installed["hub"]["setup_secret"].is_string(), "{installed}");
    assert_eq!(machine.property("picket-agent", "MainPID"), agent, "the agent was restarted");
    assert_serves(&machine);
    for row in TABLE {
        let place = row.split(' ').next().unwrap();
        assert_eq!(machine.sh(&format!("stat --format='%n %U:%G %a' {place}")), row);
    }
    let pid = machine.property(HUB, "MainPID");
    assert_eq!(machine.sh(&format!("stat --format=%U:%G /proc/{pid}")), "picket-hub:picket");
    assert_eq!(machine.sh(&format!("grep CapEff /proc/{pid}/status")), "CapEff:\t0000000000000000");
    // The agent's user can read neither keys nor database.
    for place in ["/var/lib/picket-hub/keys/intermediate.key", DATABASE] {
        let user = ["setpriv", "--reuid=picket", "--regid=picket", "--clear-groups", "cat", place];
        assert_ne!(machine.run(&user).code, 0, "{place}");
    }
    // Again: nothing changes, no key above all.
    let pin = machine.sh("sha256sum /var/lib/picket-hub/keys/*.key /var/lib/picket-hub/keys/*.crt");
    assert_eq!(machine.run(&INSTALL).expect(0).json()["result"], "unchanged");
    assert_eq!(machine.sh("sha256sum /var/lib/picket-hub/keys/*.key /var/lib/picket-hub/keys/*.crt"), pin);

    machine.picket(&["hub", "token", "create", "--out", "/root/token"]).expect(0);
    assert_eq!(machine.sh(&format!("stat --format=%U {DATABASE}")), "picket-hub");
    machine.picket(&["enroll", "--token-file", "/root/token", "--name", "itself"]).expect(0);
    wait_until("the agent to be connected", || machine.picket(&["test-connection"]).code == 0);

    let status = machine.picket(&["service", "status", "--json"]).expect(0).json();
    assert_eq!((&status["state"], &status["hub"]["state"]), (&"running".into(), &"running".into()), "{status}");
    machine.reboot();
    wait_until("the hub to come with the boot", || machine.property(HUB, "ActiveState") == "active");
    assert_serves(&machine);

    machine.picket(&["uninstall", "--role", "hub", "--yes"]).expect(0);
    assert_eq!(machine.property(HUB, "LoadState"), "not-found");
    assert_eq!(machine.property("picket-agent", "ActiveState"), "active");
    machine.sh(&format!("test -e {DATABASE}"));
    machine.run(&INSTALL).expect(0);
    assert_serves(&machine);
    assert_eq!(
        machine.sh("sha256sum /var/lib/picket-hub/keys/*.key /var/lib/picket-hub/keys/*.crt"),
        pin,
        "what was kept is used again"
    );
    machine.picket(&["uninstall", "--purge", "--yes"]).expect(0);
    assert_eq!(machine.sh("ls -d /opt/picket* /etc/picket /var/lib/picket* /var/log/picket 2>/dev/null || true"), "");
    assert_eq!(machine.sh("systemctl list-unit-files --no-legend 'picket*' || true"), "");
    for user in ["picket", "picket-sensor", "picket-hub"] {
        assert_eq!(machine.run(&["id", user]).code, 1, "{user}");
    }
}

#[test]
fn a_hub_alone_is_no_agent_and_one_that_cannot_start_says_why_once() {
    let machine = Machine::boot_new("hub-alone", "");
    bring(&machine);
    // Without a name nothing is made.
    let refused = machine.run(&["/root/picket", "install", "--role", "hub"]).expect(2);
    assert!(refused.stderr.contains("--hub-name"), "{}", refused.stderr);
    machine.sh("test ! -e /opt/picket");
    machine.run(&INSTALL).expect(0);
    assert_serves(&machine);
    assert_eq!(machine.property("picket-agent", "LoadState"), "not-found");
    machine.sh("test ! -e /var/lib/picket -a ! -e /var/lib/picket-sensor");
    let exposure = machine.sh("systemd-analyze security --no-pager picket-hub.service | tail -n 1");
    let exposure = exposure.split_once("service: ").unwrap().1.split(' ').next().unwrap();
    assert!(exposure.parse::<f64>().unwrap() <= 2.5, "{exposure}");

    // A hub that cannot start says why, and is not started again and again.
    machine
        .sh("systemctl stop picket-hub && mv /var/lib/picket-hub/keys/intermediate.key /var/lib/picket-hub/keys/away");
    assert_ne!(machine.run(&["systemctl", "start", HUB]).code, 0);
    wait_until("the hub to have failed", || machine.property(HUB, "ActiveState") == "failed");
    assert_eq!(machine.property(HUB, "NRestarts"), "0");
    assert!(machine.sh("journalctl --unit=picket-hub --no-pager").contains("picket hub init"));
}

#[test]
fn a_hub_is_updated_and_rolled_back_by_its_own_health_alone_and_beside_an_agent() {
    let machine = Machine::boot_new("hub-update", "");
    bring(&machine);
    machine.run(&INSTALL).expect(0);
    assert_serves(&machine);
    machine.release("2.0.0", Fault::None);
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(machine.current(), "2.0.0");
    assert_eq!(executable(&machine, HUB), "/opt/picket/versions/2.0.0/picket");
    assert_serves(&machine);
    machine.picket(&["update", "rollback", "--yes"]).expect(0);
    assert_eq!(executable(&machine, HUB), "/opt/picket/versions/1.0.0/picket");
    assert_serves(&machine);
    // With an agent beside it, both are tried, and a hub that somebody stopped stays stopped.
    machine.run(&["/root/picket", "install", "--role", "agent"]).expect(0);
    wait_until("the agent to answer", || machine.running_version().as_deref() == Some("1.0.0"));
    machine.picket(&["update", "apply", "2.0.0", "--yes"]).expect(0);
    for unit in [HUB, "picket-agent"] {
        assert_eq!(executable(&machine, unit), "/opt/picket/versions/2.0.0/picket", "{unit}");
    }
    machine.sh("systemctl stop picket-hub");
    machine.picket(&["update", "rollback", "--yes"]).expect(0);
    assert_eq!(machine.running_version().as_deref(), Some("1.0.0"));
    assert_eq!(machine.property(HUB, "ActiveState"), "inactive");
}
