//! The sensor beside the agent: confined, restarted alone, tried and taken back with the version it belongs to.

use picket_protocol::event::{FileAction, FileEvent, NetworkAction, NetworkEvent};
use picket_protocol::{EventBody, GapReason, SightLevel};
use picket_sensorlink::{Backoff, ClientOptions, SensorClient};
use picket_testkit::{Fault, Machine, PATIENCE, build, inside, wait_until};
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const SENSOR: &str = "picket-sensor";
const AGENT: &str = "picket-agent";
const SOCKET: &str = "/run/picket-sensor/sensor.sock";
/// `CAP_DAC_READ_SEARCH` (2), `CAP_NET_ADMIN` (12), `CAP_SYS_PTRACE` (19), `CAP_SYS_ADMIN` (21): capabilities(7).
const CAPABILITIES: u64 = 1 << 2 | 1 << 12 | 1 << 19 | 1 << 21;

fn pid(machine: &Machine, unit: &str) -> String {
    machine.property(unit, "MainPID")
}

fn executable(machine: &Machine, unit: &str) -> String {
    // Between two processes there is none.
    machine.sh(&format!("readlink /proc/{}/exe || true", pid(machine, unit)))
}

fn assert_runs(machine: &Machine, version: &str) {
    for unit in [AGENT, SENSOR] {
        wait_until(&format!("{unit} of {version}"), || {
            machine.property(unit, "ActiveState") == "active"
                && executable(machine, unit) == format!("/opt/picket/versions/{version}/picket")
        });
    }
}

/// A field of `/proc/PID/status`, in hexadecimal digits.
fn status_field(machine: &Machine, unit: &str, field: &str) -> u64 {
    let line = machine.sh(&format!("grep '^{field}:' /proc/{}/status", pid(machine, unit)));
    u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
}

#[test]
fn the_sensor_has_the_capabilities_and_no_network_and_the_agent_the_other_way_round() {
    let machine = Machine::installed("s-confined", "");
    assert_runs(&machine, "1.0.0");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        assert_eq!(status_field(&machine, AGENT, set), 0, "{set} of the agent");
        assert_eq!(status_field(&machine, SENSOR, set), CAPABILITIES, "{set} of the sensor");
    }
    assert_eq!(machine.sh(&format!("stat --format=%U:%G /proc/{}", pid(&machine, SENSOR))), "picket-sensor:picket");
    for unit in [AGENT, SENSOR] {
        let table = machine.sh(&format!("systemd-analyze security --no-pager {unit}.service"));
        let exposure = table.lines().last().unwrap().split_once("service: ").unwrap().1.split(' ').next().unwrap();
        assert!(exposure.parse::<f64>().unwrap() <= 2.5, "{unit}: {exposure}");
    }
    // In the sensor's own confinement, by a program that has the exec paths of a machine that is not confined at all.
    let properties = machine.sh(
        "for p in User Group RestrictAddressFamilies IPAddressDeny SystemCallFilter SystemCallArchitectures \
         CapabilityBoundingSet AmbientCapabilities NoNewPrivileges RestrictNamespaces ProtectSystem; do \
         systemctl show --property=$p picket-sensor; done | grep -v '=$' | sed 's/^/--property=/' | tr '\\n' '\\001'",
    );
    let properties: Vec<&str> = properties.split('\u{1}').filter(|text| !text.is_empty()).collect();
    let socket = |family: &str| {
        let script = format!("use Socket; socket(my $s, {family}, SOCK_DGRAM, 0) or die $!");
        let words = [&["systemd-run", "--quiet", "--wait", "--pipe"][..], &properties, &["perl", "-e", &script]];
        machine.run(&words.concat())
    };
    socket("AF_UNIX").expect(0);
    for family in ["AF_INET", "AF_INET6"] {
        let ran = socket(family);
        assert!(ran.code != 0 && ran.stderr.contains("not supported"), "{family}: {ran:?}");
    }
    // The process itself holds no such socket, and its filter is in force.
    let held = machine.sh(&format!(
        "for i in $(ls -l /proc/{}/fd | sed -n 's/.*socket:\\[\\([0-9]*\\)\\].*/\\1/p'); do \
         grep -w $i /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 /proc/net/raw /proc/net/packet; done; true",
        pid(&machine, SENSOR)
    ));
    assert_eq!(held, "");
    assert_eq!(machine.sh(&format!("awk '/^Seccomp:/ {{ print $2 }}' /proc/{}/status", pid(&machine, SENSOR))), "2");
}

#[test]
fn only_the_service_user_and_root_get_through_to_the_sensor() {
    let machine = Machine::installed("s-peers", "");
    machine.sh("useradd --system stranger && useradd --system --gid picket cousin");
    let connect = |user: &str| {
        let script = format!("test -w {SOCKET}");
        machine.run(&[
            "setpriv",
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--clear-groups",
            "sh",
            "-c",
            &script,
        ])
    };
    assert_eq!(connect("picket").code, 0);
    assert_ne!(connect("stranger").code, 0);
    // The sensor's state is nobody else's, the agent's least of all.
    for user in ["picket", "stranger"] {
        let group = if user == "picket" { "picket" } else { "stranger" };
        let listed = machine.run(&[
            "setpriv",
            &format!("--reuid={user}"),
            &format!("--regid={group}"),
            "--clear-groups",
            "ls",
            "/var/lib/picket-sensor",
        ]);
        assert_ne!(listed.code, 0, "{user}");
    }
}

#[test]
fn each_goes_on_when_the_other_is_killed_and_comes_back_by_itself() {
    let machine = Machine::installed("s-killed", "");
    assert_runs(&machine, "1.0.0");
    for (victim, other) in [(SENSOR, AGENT), (AGENT, SENSOR)] {
        let (gone, stays) = (pid(&machine, victim), pid(&machine, other));
        machine.sh(&format!("systemctl kill --signal=KILL {victim}"));
        wait_until(&format!("{victim} to come back"), || {
            let now = pid(&machine, victim);
            now != "0" && now != gone && machine.property(victim, "ActiveState") == "active"
        });
        assert_eq!(pid(&machine, other), stays, "{other} was restarted with {victim}");
    }
    machine.assert_on("1.0.0");
    assert_eq!(machine.sh("systemctl --failed --no-legend"), "");
}

#[test]
fn the_agent_works_where_there_is_no_sensor() {
    let machine = Machine::installed("s-masked", "");
    machine.sh("systemctl stop picket-sensor && systemctl mask picket-sensor && systemctl restart picket-agent");
    machine.assert_on("1.0.0");
    let doctor = machine.picket(&["doctor", "--json"]).expect(0).json();
    let sensor = doctor["findings"].as_array().unwrap().iter().find(|finding| finding["code"] == "sensor").unwrap();
    assert_eq!(sensor["severity"], "warn", "{sensor}");
    // An update goes through all the same, and leaves it masked.
    machine.release("2.0.0", Fault::None);
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    machine.assert_on("2.0.0");
    assert_eq!(machine.property(SENSOR, "ActiveState"), "inactive");
}

#[test]
fn start_stop_restart_and_status_are_of_both() {
    let machine = Machine::installed("s-service", "");
    let status = machine.picket(&["service", "status", "--json"]).expect(0).json();
    assert_eq!(status["sensor"]["state"], "running", "{status}");
    machine.picket(&["service", "stop"]).expect(0);
    for unit in [AGENT, SENSOR] {
        assert_eq!(machine.property(unit, "ActiveState"), "inactive", "{unit}");
    }
    machine.picket(&["service", "start"]).expect(0);
    assert_runs(&machine, "1.0.0");
    let before = [pid(&machine, AGENT), pid(&machine, SENSOR)];
    machine.picket(&["service", "restart"]).expect(0);
    assert_runs(&machine, "1.0.0");
    wait_until("both to be others", || pid(&machine, AGENT) != before[0] && pid(&machine, SENSOR) != before[1]);
}

#[test]
fn an_update_tries_the_new_sensor_keeps_it_and_a_rollback_returns_the_old_one() {
    let machine = Machine::installed("s-update", "");
    assert_runs(&machine, "1.0.0");
    machine.release("2.0.0", Fault::None);
    let mut apply = machine.start(&["picket", "update", "apply", "--yes"]);
    wait_until("the trial of the sensor", || executable(&machine, SENSOR) == "/opt/picket/versions/2.0.0/picket");
    assert_eq!(machine.current(), "1.0.0", "it is not kept yet");
    assert!(apply.wait().unwrap().success());
    machine.assert_on("2.0.0");
    assert_runs(&machine, "2.0.0");
    assert_eq!(machine.sh("ls /run/systemd/system | grep picket || true"), "", "the trial's units are left");
    let kept = pid(&machine, SENSOR);

    machine.picket(&["update", "rollback", "--yes"]).expect(0);
    machine.assert_on("1.0.0");
    assert_runs(&machine, "1.0.0");
    assert_ne!(pid(&machine, SENSOR), kept);

    // One that fails takes its sensor with it.
    machine.release("3.0.0", Fault::Hang);
    machine.picket(&["update", "apply", "3.0.0", "--yes"]).expect(20);
    machine.assert_on("1.0.0");
    assert_runs(&machine, "1.0.0");
    machine.reboot();
    machine.assert_on("1.0.0");
    assert_runs(&machine, "1.0.0");
}

#[test]
fn an_installation_from_before_the_sensor_gets_one() {
    let machine = Machine::installed("s-before", "");
    // As a version before it would have left the machine: no unit, no user, no folder.
    machine.sh(
        "systemctl stop picket-sensor picket-agent && rm /usr/local/lib/systemd/system/picket-sensor.service && \
         sed -i '/^Wants=picket-sensor/d; s/ picket-sensor.service//' /usr/local/lib/systemd/system/picket-*.service && \
         rm -r /var/lib/picket-sensor && userdel picket-sensor && systemctl daemon-reload && systemctl start picket-agent",
    );
    machine.assert_on("1.0.0");
    machine.release("2.0.0", Fault::None);
    // Without the user there can be no sensor; the agent is updated all the same.
    machine.picket(&["update", "apply", "--yes"]).expect(0);
    machine.assert_on("2.0.0");
    let doctor = machine.picket(&["doctor", "--json"]).json();
    let told = doctor["findings"].as_array().unwrap().iter().any(|finding| {
        finding["code"] == "sensor" && finding["message"].as_str().unwrap().contains("picket-sensor is missing")
    });
    assert!(told, "{doctor}");
    machine.install(&build("2.0.0", Fault::None)).expect(0);
    machine.picket(&["service", "start"]).expect(0);
    assert_runs(&machine, "2.0.0");
    machine.picket(&["uninstall", "--purge", "--yes"]).expect(0);
    assert_eq!(machine.sh("systemctl list-units --all --no-legend 'picket*'"), "");
    assert_eq!(machine.sh("ls -d /var/lib/picket* /run/picket* 2>/dev/null || true"), "");
}

/// An agent that this test plays itself, with the mark of the one before in `dir`.
fn agent(machine: &Machine, dir: &Path) -> (SensorClient, Receiver<EventBody>) {
    let (send, received) = channel();
    let options = ClientOptions {
        socket: machine.root().join(SOCKET.trim_start_matches('/')),
        mark: dir.join("mark"),
        program: "test".to_owned(),
        backoff: Backoff::default(),
    };
    let client = SensorClient::start(options, move |events| {
        events.into_iter().for_each(|event| drop(send.send(event)));
        Ok(())
    });
    (client.unwrap(), received)
}

/// Waits until the sensor has seen each of `ports` opened by both ends, and takes nothing: what is not made durable is not
/// acknowledged.
fn look_without_taking(machine: &Machine, ports: &BTreeSet<u16>) {
    let (send, received) = channel();
    let options = ClientOptions {
        socket: machine.root().join(SOCKET.trim_start_matches('/')),
        mark: std::env::temp_dir().join("picket-lab-nobody"),
        program: "test".to_owned(),
        backoff: Backoff { first: Duration::from_millis(50), longest: Duration::from_millis(100) },
    };
    let _looking = SensorClient::start(options, move |events| {
        let _ = send.send(events);
        Err("only looking".into())
    });
    let complete = |events: Vec<EventBody>| {
        let opened = events.iter().filter_map(|event| match event {
            EventBody::Network(event) if event.action == NetworkAction::Opened => Some(event.src_port),
            _ => None,
        });
        let seen: Vec<u16> = opened.collect();
        ports.iter().all(|port| seen.iter().filter(|known| *known == port).count() == 2)
    };
    wait_until("the sensor to have seen all", || complete(received.recv_timeout(PATIENCE).unwrap()));
}

/// Opens connections on the machine; they stay open, and so does their listener: it is what tells an accepted connection
/// from one that was made. Returns them with the ports that they come from.
fn connections(machine: &Machine, count: usize) -> ((TcpListener, Vec<(TcpStream, TcpStream)>), BTreeSet<u16>) {
    inside(&machine.namespace(), || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap().0);
        let pairs: Vec<_> = (0..count).map(|_| pair()).collect();
        let ports = pairs.iter().map(|(stream, _)| stream.local_addr().unwrap().port()).collect();
        ((listener, pairs), ports)
    })
}

/// Takes events until each of `ports` was opened; how often each was, by either end.
fn opened(received: &Receiver<EventBody>, ports: &BTreeSet<u16>) -> Vec<u16> {
    let mut seen = Vec::new();
    while !ports.iter().all(|port| seen.iter().filter(|known| *known == port).count() >= 2) {
        if let EventBody::Network(NetworkEvent { action: NetworkAction::Opened, src_port, .. }) =
            received.recv_timeout(PATIENCE).unwrap()
        {
            seen.push(src_port);
        }
    }
    seen.retain(|port| ports.contains(port));
    seen
}

#[test]
fn what_either_holds_outlives_the_other() {
    let machine = Machine::installed("s-events", "");
    // The sensor takes a changed configuration up by itself.
    machine.sh("systemctl stop picket-agent && echo 'network_monitor: {enabled: true}' >> /etc/picket/config.yaml");
    let dir = std::env::temp_dir().join(format!("picket-lab-events-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (first, received) = agent(&machine, &dir);
    wait_until("connections to be watched", || {
        first.status().sights.iter().any(|sight| sight.source == "network" && sight.level == SightLevel::Full)
    });
    let (_held, ports) = connections(&machine, 10);
    assert_eq!(opened(&received, &ports).len(), 20, "each from both ends, once");

    // The agent is gone; what comes meanwhile waits, and comes once.
    drop(first);
    let (_held, ports) = connections(&machine, 50);
    let (second, received) = agent(&machine, &dir);
    assert_eq!(opened(&received, &ports).len(), 100);

    // An orderly restart of the sensor while there is no agent: its queue waits on disk.
    drop(second);
    let (_held, ports) = connections(&machine, 30);
    look_without_taking(&machine, &ports);
    machine.sh("systemctl restart picket-sensor");
    let (third, received) = agent(&machine, &dir);
    assert_eq!(opened(&received, &ports).len(), 60);
    assert_eq!(third.status().restarts, 0, "it is the same incarnation");

    // Killed: it says that something is missing, and goes on.
    machine.sh("systemctl kill --signal=KILL picket-sensor");
    let lost = |event: EventBody| matches!(event, EventBody::Gap(gap) if gap.reason == GapReason::ProcessLost);
    wait_until("the gap", || lost(received.recv_timeout(PATIENCE).unwrap()));
    wait_until("connections to be watched again", || {
        third.status().sights.iter().any(|sight| sight.source == "network" && sight.level == SightLevel::Full)
    });
    let (_held, ports) = connections(&machine, 10);
    assert_eq!(opened(&received, &ports).len(), 20);
    assert_eq!(third.status().restarts, 1);
    drop(third);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Takes events until a file of each of these names in `folder` was created; how often that was told.
fn created(received: &Receiver<EventBody>, folder: &str, names: &[String]) -> usize {
    let wanted: BTreeSet<String> = names.iter().map(|name| format!("{folder}/{name}")).collect();
    let mut seen = Vec::new();
    while !wanted.iter().all(|path| seen.contains(path)) {
        if let EventBody::File(FileEvent { action: FileAction::Created, path, .. }) =
            received.recv_timeout(PATIENCE).unwrap()
        {
            seen.push(path);
        }
    }
    seen.iter().filter(|path| wanted.contains(*path)).count()
}

#[test]
fn files_made_while_either_is_away_are_told_of() {
    const FOLDER: &str = "/srv/watched";
    let machine = Machine::installed("s-files", "");
    let config = format!("file_monitor: {{paths: [{FOLDER}], debounce: 100ms}}");
    machine
        .sh(&format!("mkdir -p {FOLDER} && systemctl stop picket-agent && echo '{config}' >> /etc/picket/config.yaml"));
    let dir = std::env::temp_dir().join(format!("picket-lab-files-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let names = |letter: &str| -> Vec<String> { (0..20).map(|number| format!("{letter}{number}")).collect() };
    let make = |letter: &str| {
        machine.sh(&format!("cd {FOLDER} && for i in $(seq 0 19); do echo {letter} > {letter}$i; done"));
    };
    let (first, received) = agent(&machine, &dir);
    let watched = |client: &SensorClient| {
        let level = |level| matches!(level, SightLevel::Full | SightLevel::Reduced);
        client.status().sights.iter().any(|sight| sight.source == "files" && level(sight.level))
    };
    wait_until("files to be watched", || watched(&first));
    make("a");
    assert_eq!(created(&received, FOLDER, &names("a")), 20);

    // The agent is away.
    drop(first);
    make("b");
    let (second, received) = agent(&machine, &dir);
    assert_eq!(created(&received, FOLDER, &names("b")), 20, "each once");

    // The sensor is killed: the next one finds the difference to the baseline, and says that something is missing.
    machine.sh("systemctl kill --signal=KILL picket-sensor");
    make("c");
    let mut lost = false;
    wait_until("the gap", || {
        let event = received.recv_timeout(PATIENCE).unwrap();
        lost |= matches!(event, EventBody::Gap(gap) if gap.reason == GapReason::ProcessLost);
        lost
    });
    created(&received, FOLDER, &names("c"));

    // Both are away, in good order; nothing is told twice and nothing is missing.
    drop(second);
    machine.sh("systemctl stop picket-sensor");
    make("d");
    machine.sh("systemctl start picket-sensor");
    let (third, received) = agent(&machine, &dir);
    created(&received, FOLDER, &names("d"));
    drop(third);
    std::fs::remove_dir_all(&dir).unwrap();
}
