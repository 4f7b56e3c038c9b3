//! The text of our units, and of a trial's.
//!
//! A version writes its own unit texts for the `current` link; they travel to the proven version in the self-test
//! report. The contract between versions is in three words: the texts name [`Layout::current_exe`], and whatever
//! version is behind it understands `agent run`, `sensor run`, `hub serve`, `update run` and `update recover`. So an old unit starts a new binary,
//! and the other way round, when a power cut falls between the switch and the refresh of the units.
//!
//! Every unit is held to an exposure of 2.5 or less by `systemd-analyze security`; `scripts/unit-exposure` prints it.

use super::{AGENT, HUB, RECOVER, SENSOR, UPDATE, UPDATE_DUE, UPDATE_DUE_TIMER, UPDATE_PATH, UPDATE_TIMER, service_of};
use picket_layout::{HUB_USER, Layout, Role, SENSOR_USER, SERVICE_USER, Scope};
use picket_protocol::UnitText;
use semver::Version;
use std::path::Path;

/// The largest unit file that is read back, in bytes.
pub const MAX_BYTES: u64 = 64 << 10;
/// Exit status of an agent whose configuration cannot be used (`EX_CONFIG` of sysexits.h): starting it again at once
/// cannot help, so the units do not.
pub const EXIT_CONFIG: u8 = 78;
/// Exit status of a hub whose database is damaged.
pub const EXIT_DAMAGED: u8 = 8;
/// Exit status of a hub whose keys are missing or cannot be used.
pub const EXIT_KEYS: u8 = 9;

const DOCUMENTATION: &str = env!("CARGO_PKG_REPOSITORY");

/// All units of an installation, for the version that calls this.
pub fn texts(layout: &Layout) -> Vec<UnitText> {
    let user = *layout.scope() == Scope::User;
    let unit = |name: &str, text: String| UnitText { name: name.to_owned(), text };
    let mut units = Vec::new();
    if layout.roles().has(Role::Agent) {
        units.push(unit(AGENT, agent(layout, user)));
    }
    if layout.roles().has(Role::Hub) {
        units.push(unit(HUB, hub(layout, user)));
    }
    units.push(unit(UPDATE, update(layout, user)));
    units.push(unit(UPDATE_TIMER, timer()));
    units.push(unit(UPDATE_DUE, update_if_due(layout, user)));
    units.push(unit(UPDATE_DUE_TIMER, due_timer()));
    // Only an agent wishes for updates.
    if layout.roles().has(Role::Agent) {
        units.push(unit(UPDATE_PATH, path(layout)));
    }
    units.push(unit(RECOVER, recover(layout, user)));
    if layout.has_sensor() {
        units.push(unit(SENSOR, sensor(layout)));
    }
    units
}

/// A trial's text: the version's own, started from its own folder instead of through the `current` link.
///
/// The path ends at a space or a slash, so no other path that merely begins alike is touched.
pub fn for_trial(text: &str, current: &Path, version_dir: &Path, version: &Version) -> String {
    let (from, to) = (format!("{}/", current.display()), format!("{}/", version_dir.display()));
    let body: String = text
        .lines()
        .map(|line| if line.starts_with("Exec") { line.replace(&from, &to) } else { line.to_owned() } + "\n")
        .collect();
    format!("{TRIAL_MARK}{version}: written by the updater, gone at the next boot or when the trial ends.\n{body}")
}

/// How the text of every trial begins.
const TRIAL_MARK: &str = "# Trial of Picket ";

/// Whether `text` is one of ours for a trial, and no administrator's own.
pub(super) fn is_for_trial(text: &[u8]) -> bool {
    text.starts_with(TRIAL_MARK.as_bytes())
}

/// The sandbox that every system unit has, apart from `PrivateTmp=`: the sensor has to see everybody's.
const SANDBOX: &str = "\
NoNewPrivileges=yes
ProtectSystem=strict
PrivateDevices=yes
PrivateMounts=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
KeyringMode=private
RemoveIPC=yes
DevicePolicy=closed
UMask=0077
";

/// What a user's manager can apply without privileges.
const USER_SANDBOX: &str = "\
NoNewPrivileges=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
UMask=0077
";

fn agent(layout: &Layout, user: bool) -> String {
    let exe = layout.current_exe();
    let exe = exe.display();
    let confinement = if user {
        USER_SANDBOX.to_owned()
    } else {
        format!(
            "\
User={SERVICE_USER}
Group={SERVICE_USER}
StateDirectory=picket
StateDirectoryMode=0700
LogsDirectory=picket
LogsDirectoryMode=0750
RuntimeDirectory=picket
RuntimeDirectoryMode=0750
CapabilityBoundingSet=
AmbientCapabilities=
{SANDBOX}\
PrivateTmp=yes
# The size of /home is measured, what is in it is not read.
ProtectHome=read-only
# No ProtectProc=: which processes use the machine is measured. Their command lines are never read.
PrivateUsers=yes
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# The local API, the journal, and the mail server, web hooks and hub that the configuration names.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
# Far above what the agent allows itself: for the case that it cannot keep to that.
MemoryMax=512M
TasksMax=128
CPUQuota=200%
"
        )
    };
    // Wanted and not required: without the sensor the agent sees less, and says so.
    let (sensor, after) = if layout.has_sensor() {
        (format!("Wants={SENSOR}\n"), format!("After=network.target {RECOVER} {SENSOR}\n"))
    } else {
        (String::new(), format!("After=network.target {RECOVER}\n"))
    };
    let target = if user { "default.target" } else { "multi-user.target" };
    format!(
        "\
[Unit]
Description=Picket agent
Documentation={DOCUMENTATION}
{after}{sensor}OnFailure={RECOVER}
# Ten starts in five minutes: a crash loop ends instead of eating the machine, and recovery looks into it.
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={exe} agent run
# Reads the configuration again, as it does by itself when a file changes.
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=1
# A configuration that cannot be used does not get better by trying again.
RestartPreventExitStatus={EXIT_CONFIG}
WatchdogSec=60
TimeoutStartSec=30
TimeoutStopSec=20
KillMode=mixed
{confinement}
[Install]
WantedBy={target}
"
    )
}

/// The sensor holds the capabilities and has no network.
///
/// It is a user of its own and not root without capabilities: root may write to `/proc/1/mem` with `CAP_SYS_PTRACE`
/// alone and may ask systemd for anything over a Unix socket. It has no `PrivateTmp=`, `ProtectProc=` and
/// `InaccessiblePaths=`, because what is hidden from it is not watched; no `PrivateNetwork=`, because `sock_diag` tells of
/// its own network namespace only; and no `PrivateUsers=`, because capabilities hold in the machine's user namespace only.
fn sensor(layout: &Layout) -> String {
    let exe = layout.current_exe();
    let exe = exe.display();
    let program = layout.program_dir().display();
    format!(
        "\
[Unit]
Description=Picket sensor
Documentation={DOCUMENTATION}
After={RECOVER}
# Ten starts in five minutes, as the agent; it goes on without.
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={exe} sensor run
Restart=always
RestartSec=1
RestartPreventExitStatus={EXIT_CONFIG}
WatchdogSec=60
# It is ready before it looks at a single file, so the agent is not kept waiting.
TimeoutStartSec=10
TimeoutStopSec=20
KillMode=mixed
User={SENSOR_USER}
Group={SERVICE_USER}
StateDirectory=picket-sensor
StateDirectoryMode=0700
RuntimeDirectory=picket-sensor
RuntimeDirectoryMode=0750
# SYS_ADMIN: fanotify(7) marks on file systems. DAC_READ_SEARCH: names and contents of everybody's files. NET_ADMIN: the
# sock_diag multicast of sockets that end. SYS_PTRACE: whose socket it is (/proc/PID/fd, /proc/PID/exe).
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_READ_SEARCH CAP_NET_ADMIN CAP_SYS_PTRACE
AmbientCapabilities=CAP_SYS_ADMIN CAP_DAC_READ_SEARCH CAP_NET_ADMIN CAP_SYS_PTRACE
{SANDBOX}\
ProtectHome=read-only
# Nothing but itself can be executed; the folders of libraries are for builds that are not static.
NoExecPaths=/
ExecPaths={program} -/usr/lib -/usr/lib64 -/lib -/lib64
# What its capabilities would allow and it has no use for: mounting, tracing, changing owners, loading, rebooting.
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @mount @debug
SystemCallFilter=fanotify_init fanotify_mark name_to_handle_at open_by_handle_at
# The agent and the journal; the kernel's tables of sockets. No socket that leads anywhere can be made.
RestrictAddressFamilies=AF_UNIX AF_NETLINK
IPAddressDeny=any
# Its queue for the agent has a limit of 8 MiB, the rest is the watchers'.
MemoryMax=256M
TasksMax=64
CPUQuota=200%
"
    )
}

/// The hub is reached by everybody and reaches its database, its bus and web hooks, and nothing else.
///
/// It has no capability. One that is to listen below port 1024 gets `CAP_NET_BIND_SERVICE` by a drop-in, which the
/// operations guide spells out: which ports it has is the configuration's, and no unit's, to say.
fn hub(layout: &Layout, user: bool) -> String {
    let exe = layout.current_exe();
    let exe = exe.display();
    let program = layout.program_dir().display();
    let confinement = if user {
        USER_SANDBOX.to_owned()
    } else {
        format!(
            "\
User={HUB_USER}
Group={SERVICE_USER}
StateDirectory=picket-hub
StateDirectoryMode=0700
CapabilityBoundingSet=
AmbientCapabilities=
{SANDBOX}\
PrivateTmp=yes
PrivateUsers=yes
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
# Nothing but itself can be executed; the folders of libraries are for builds that are not static.
NoExecPaths=/
ExecPaths={program} -/usr/lib -/usr/lib64 -/lib -/lib64
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# Agents, people, a database, a bus and web hooks; the journal, and a database on this machine.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
# A socket an agent, and some for people and the database.
LimitNOFILE=65536
TasksMax=256
"
        )
    };
    let target = if user { "default.target" } else { "multi-user.target" };
    format!(
        "\
[Unit]
Description=Picket hub
Documentation={DOCUMENTATION}
# What it may need on this machine, where it is there.
After=network-online.target postgresql.service nats-server.service {RECOVER}
Wants=network-online.target
OnFailure={RECOVER}
# A database that is away comes back: it is tried for good.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={exe} hub serve
Restart=always
RestartSec=2
# A configuration that cannot be used, a damaged database and missing keys do not get better by trying again.
RestartPreventExitStatus={EXIT_CONFIG} {EXIT_DAMAGED} {EXIT_KEYS}
# A database may have to be brought to a new form first.
TimeoutStartSec=10min
# Open requests and what was accepted have time to end.
TimeoutStopSec=60
KillMode=mixed
{confinement}
[Install]
WantedBy={target}
"
    )
}

fn update(layout: &Layout, user: bool) -> String {
    updater(layout, user, "Picket updater", "", "")
}

/// Starts the updater if a release that waited has its turn. A version that does not know the variable is the updater
/// itself, and looks: no harm is done.
fn update_if_due(layout: &Layout, user: bool) -> String {
    // A look is not a failure to start, however often somebody looks.
    let condition = format!("ConditionPathExists={}\nStartLimitIntervalSec=0\n", layout.update_due().display());
    let variable = "Environment=PICKET_UPDATE_IF_DUE=1\n";
    updater(layout, user, "Picket updater, if a release that waited has its turn", &condition, variable)
}

fn updater(layout: &Layout, user: bool, description: &str, condition: &str, variable: &str) -> String {
    let exe = layout.current_exe();
    format!(
        "\
[Unit]
Description={description}
Documentation={DOCUMENTATION}
{condition}\
After=network-online.target
Wants=network-online.target
# The updater was killed, or ran into its time limit: undo or finish what its journal holds.
OnFailure={RECOVER}

[Service]
Type=oneshot
{variable}\
ExecStart={exe} update run
# Hours, for a large release on a slow line; the trial has limits of its own.
TimeoutStartSec=4h
TimeoutStopSec=2min
KillMode=mixed
Nice=5
{confinement}",
        exe = exe.display(),
        confinement = updater_confinement(layout, user),
    )
}

fn recover(layout: &Layout, user: bool) -> String {
    let exe = layout.current_exe();
    let mut services: Vec<&str> = layout.roles().iter().map(service_of).collect();
    if layout.has_sensor() {
        services.push(SENSOR);
    }
    let target = if user { "default.target" } else { "multi-user.target" };
    format!(
        "\
[Unit]
Description=Picket update recovery
Documentation={DOCUMENTATION}
Before={services}

[Service]
Type=oneshot
ExecStart={exe} update recover
TimeoutStartSec=2min
{confinement}
[Install]
WantedBy={target}
",
        exe = exe.display(),
        services = services.join(" "),
        confinement = updater_confinement(layout, user),
    )
}

/// The updater is root, because it changes what root starts; it may write its own folders and nothing else.
fn updater_confinement(layout: &Layout, user: bool) -> String {
    if user {
        return USER_SANDBOX.to_owned();
    }
    let mut writable = vec![layout.program_dir(), layout.update_dir(), layout.unit_dir(), layout.trial_unit_dir()];
    if layout.roles().has(Role::Agent) {
        // The wish is taken away once it is read.
        writable.push(layout.state_dir());
    }
    let writable: Vec<String> = writable.into_iter().map(|path| path.display().to_string()).collect();
    let writable = writable.join(" ");
    let config = layout.config_dir().display();
    format!(
        "\
RuntimeDirectory=picket-update
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
# Where the updater meets its unprivileged half.
StateDirectory=picket-fetch
StateDirectoryMode=0755
{SANDBOX}\
PrivateTmp=yes
ProtectHome=yes
ReadWritePaths={writable}
# A configuration that only the new version understands is put back with the old version.
ReadWritePaths=-{config}
# DAC_OVERRIDE, CHOWN, FOWNER: files of others. SETUID, SETGID: what meets strangers' bytes, and a new version's
# self-test, run as a user of their own.
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER CAP_SETUID CAP_SETGID
SystemCallFilter=@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp
SystemCallFilter=~@resources
# systemctl, and the release server.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
"
    )
}

fn timer() -> String {
    // Around 04:00 local time: half an hour before and after, at a place that the machine's id decides.
    format!(
        "\
[Unit]
Description=Picket updater, every day around 04:00
Documentation={DOCUMENTATION}

[Timer]
OnCalendar=*-*-* 03:30:00
RandomizedDelaySec=1h
FixedRandomDelay=yes
# A machine that was off at night looks when it is on again.
Persistent=yes
Unit={UPDATE}

[Install]
WantedBy=timers.target
"
    )
}

/// Beside the daily timer, and only where that runs: a wave that opens at noon is for noon, not for the next night. The
/// service has a condition, so nothing is started while no release waits for its time.
fn due_timer() -> String {
    format!(
        "\
[Unit]
Description=Picket updater, when a release that waited has its turn
Documentation={DOCUMENTATION}
Requisite={UPDATE_TIMER}
After={UPDATE_TIMER}
PartOf={UPDATE_TIMER}

[Timer]
OnCalendar=*:0/10
RandomizedDelaySec=10min
FixedRandomDelay=yes
Unit={UPDATE_DUE}

[Install]
WantedBy={UPDATE_TIMER}
"
    )
}

fn path(layout: &Layout) -> String {
    format!(
        "\
[Unit]
Description=Picket updater, when the agent wishes for it
Documentation={DOCUMENTATION}

[Path]
PathExists={}
Unit={UPDATE}

[Install]
WantedBy=paths.target
",
        layout.wish().display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_layout::Roles;

    #[test]
    fn a_hub_has_no_capability_and_starts_again_only_where_that_can_help() {
        let layout = Layout::of(Scope::System).unwrap().with_roles(Roles::HUB);
        let texts = texts(&layout);
        let names: Vec<&str> = texts.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(names, [HUB, UPDATE, UPDATE_TIMER, UPDATE_DUE, UPDATE_DUE_TIMER, RECOVER]);
        let hub = &texts[0].text;
        for line in ["User=picket-hub", "CapabilityBoundingSet=", "Type=notify", "RestartPreventExitStatus=78 8 9"] {
            assert!(hub.lines().any(|known| known == line), "{line}");
        }
        // Places that a hub alone does not have would keep these from starting.
        for unit in &texts {
            let paths = unit.text.lines().filter(|line| line.starts_with("ReadWritePaths=") && !line.contains("=-"));
            paths.for_each(|line| assert!(!line.contains("/var/lib/picket "), "{}: {line}", unit.name));
        }
        let both = layout.with_roles(Roles::ALL);
        let recover = super::texts(&both).into_iter().find(|unit| unit.name == RECOVER).unwrap();
        assert!(recover.text.contains("Before=picket-agent.service picket-hub.service picket-sensor.service\n"));
    }

    #[test]
    fn a_trials_text_starts_the_version_itself_and_nothing_else_changes() {
        let layout = Layout::of(Scope::System).unwrap();
        let version = Version::new(2, 0, 0);
        let agent = &texts(&layout)[0].text;
        let trial = for_trial(agent, &layout.current_link(), &layout.version_dir(&version), &version);
        assert!(trial.contains("\nExecStart=/opt/picket/versions/2.0.0/picket agent run\n"), "{trial}");
        let changed = trial.lines().skip(1).zip(agent.lines()).filter(|(a, b)| a != b).count();
        assert_eq!(changed, 1);
    }

    #[test]
    fn the_sensor_can_make_no_connection_and_the_agent_has_no_capability() {
        let layout = Layout::of(Scope::System).unwrap();
        let texts = texts(&layout);
        let text = |name: &str| &texts.iter().find(|unit| unit.name == name).unwrap().text;
        let has = |name: &str, line: &str| text(name).lines().any(|known| known == line);
        assert!(has(SENSOR, "RestrictAddressFamilies=AF_UNIX AF_NETLINK") && has(SENSOR, "IPAddressDeny=any"));
        assert!(has(AGENT, "CapabilityBoundingSet=") && has(AGENT, "Wants=picket-sensor.service"));
        // Whatever is started with it must not end with it: each goes on without the other.
        for binding in ["Requires=", "BindsTo=", "PartOf=", "PropagatesStopTo=", "Upholds="] {
            assert!(!text(SENSOR).contains(binding) && !text(AGENT).contains(binding), "{binding}");
        }
    }

    #[test]
    fn a_users_units_ask_for_nothing_that_only_root_can_give() {
        let layout = Layout::of(Scope::User).unwrap().with_roles(Roles::ALL);
        for unit in texts(&layout) {
            for privileged in ["User=", "ProtectSystem", "CapabilityBoundingSet", "multi-user.target"] {
                assert!(!unit.text.contains(privileged), "{} has {privileged}", unit.name);
            }
        }
    }
}
