//! The text of our units, and of a trial's.
//!
//! A version writes its own unit texts for the `current` link; they travel to the proven version in the self-test
//! report. The contract between versions is in three words: the texts name [`Layout::current_exe`], and whatever
//! version is behind it understands `agent run`, `update run` and `update recover`. So an old unit starts a new binary,
//! and the other way round, when a power cut falls between the switch and the refresh of the units.
//!
//! Every unit is held to an exposure of 2.5 or less by `systemd-analyze security`; `scripts/unit-exposure` prints it.

use super::{AGENT, RECOVER, UPDATE, UPDATE_PATH, UPDATE_TIMER};
use picket_layout::{Layout, SERVICE_USER, Scope};
use picket_protocol::UnitText;
use semver::Version;
use std::path::Path;

/// The largest unit file that is read back, in bytes.
pub const MAX_BYTES: u64 = 64 << 10;
/// Exit status of an agent whose configuration cannot be used (`EX_CONFIG` of sysexits.h): starting it again at once
/// cannot help, so the units do not.
pub const EXIT_CONFIG: u8 = 78;

const DOCUMENTATION: &str = env!("CARGO_PKG_REPOSITORY");

/// All units of an installation, for the version that calls this.
pub fn texts(layout: &Layout) -> Vec<UnitText> {
    let user = *layout.scope() == Scope::User;
    let unit = |name: &str, text: String| UnitText { name: name.to_owned(), text };
    vec![
        unit(AGENT, agent(layout, user)),
        unit(UPDATE, update(layout, user)),
        unit(UPDATE_TIMER, timer()),
        unit(UPDATE_PATH, path(layout)),
        unit(RECOVER, recover(layout, user)),
    ]
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
    format!(
        "# Trial of Picket {version}: written by the updater, gone at the next boot or when the trial ends.\n{body}"
    )
}

/// The sandbox that every system unit has.
const SANDBOX: &str = "\
NoNewPrivileges=yes
ProtectSystem=strict
PrivateTmp=yes
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
RuntimeDirectory=picket
RuntimeDirectoryMode=0750
CapabilityBoundingSet=
AmbientCapabilities=
{SANDBOX}\
# The size of /home is measured, what is in it is not read.
ProtectHome=read-only
ProtectProc=invisible
PrivateUsers=yes
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# The local API and the journal; there is no hub yet that it could talk to.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
IPAddressDeny=any
IPAddressAllow=localhost
"
        )
    };
    let target = if user { "default.target" } else { "multi-user.target" };
    format!(
        "\
[Unit]
Description=Picket agent
Documentation={DOCUMENTATION}
After=network.target {RECOVER}
OnFailure={RECOVER}
# Ten starts in five minutes: a crash loop ends instead of eating the machine, and recovery looks into it.
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={exe} agent run
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

fn update(layout: &Layout, user: bool) -> String {
    let exe = layout.current_exe();
    format!(
        "\
[Unit]
Description=Picket updater
Documentation={DOCUMENTATION}
After=network-online.target
Wants=network-online.target
# The updater was killed, or ran into its time limit: undo or finish what its journal holds.
OnFailure={RECOVER}

[Service]
Type=oneshot
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
    let target = if user { "default.target" } else { "multi-user.target" };
    format!(
        "\
[Unit]
Description=Picket update recovery
Documentation={DOCUMENTATION}
Before={AGENT}

[Service]
Type=oneshot
ExecStart={exe} update recover
TimeoutStartSec=2min
{confinement}
[Install]
WantedBy={target}
",
        exe = exe.display(),
        confinement = updater_confinement(layout, user),
    )
}

/// The updater is root, because it changes what root starts; it may write its own folders and nothing else.
fn updater_confinement(layout: &Layout, user: bool) -> String {
    if user {
        return USER_SANDBOX.to_owned();
    }
    let writable = [
        layout.program_dir(),
        layout.update_dir(),
        layout.unit_dir(),
        layout.trial_unit_dir(),
        // The wish is taken away once it is read.
        layout.state_dir(),
    ]
    .map(|path| path.display().to_string())
    .join(" ");
    let config = layout.config_dir().display();
    format!(
        "\
RuntimeDirectory=picket-update
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
{SANDBOX}\
ProtectHome=yes
ReadWritePaths={writable}
# A configuration that only the new version understands is put back with the old version.
ReadWritePaths=-{config}
# DAC_OVERRIDE, CHOWN, FOWNER: files of the service user. SETUID, SETGID: a new version's self-test runs as that user.
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
    fn a_users_units_ask_for_nothing_that_only_root_can_give() {
        let layout = Layout::of(Scope::User).unwrap();
        for unit in texts(&layout) {
            for privileged in ["User=", "ProtectSystem", "CapabilityBoundingSet", "multi-user.target"] {
                assert!(!unit.text.contains(privileged), "{} has {privileged}", unit.name);
            }
        }
    }
}
