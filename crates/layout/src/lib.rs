//! Where everything of an installation lies, who owns it, and with which mode.
//!
//! No other crate spells a path of an installation. The system layout (Linux) is
//!
//! ```text
//! /opt/picket/versions/<version>/…   root:root 0755   complete or absent, never writable by the service user
//! /opt/picket/current                -> versions/<proven version>; what boot starts
//! /opt/picket/previous               -> the version `update rollback` returns to
//! /opt/picket/receipt.json           root:root 0644   each thing the installer made
//! /usr/local/bin/picket              -> ../../../opt/picket/current/picket
//! /etc/picket/                       root:picket 0750; config.{yaml,json,toml} 0640
//! /var/lib/picket/                   picket:picket 0700   the agent's state
//! /var/lib/picket/certs/             picket:picket 0700   who the machine is at its hub: certificate, key, roots
//! /var/lib/picket-update/            root:root 0700   trust, journal, downloads: out of the agent's reach
//! /var/lib/picket-fetch/             root:root 0755   where the updater and its unprivileged half meet; two folders in
//!                                    it are that half's
//! /var/log/picket/                   picket:picket 0750   logs, where no journal takes them
//! /var/lib/picket-sensor/            picket-sensor:picket 0700   the sensor's state: out of the agent's reach
//! /var/lib/picket-hub/               picket-hub:picket 0700   the hub's database, where the machine is a hub
//! /var/lib/picket-hub/keys/          picket-hub:picket 0700   its keys
//! /run/picket/, /run/picket-update/  0750, 0755   sockets and published status, gone at reboot
//! /run/picket-sensor/                picket-sensor:picket 0750   where the agent meets the sensor
//! ```
//!
//! `--prefix DIR` is the same tree below `DIR`, owned by the caller; `--user` is the same shape in the folders of the
//! XDG base directory specification, which the `directories` crate knows.

mod entry;
mod role;
mod scope;

pub use entry::{Account, Class, Entry, Kind, Owner};
pub use role::{Role, Roles};
pub use scope::Scope;

use directories::BaseDirs;
use semver::Version;
use std::path::{Path, PathBuf};

/// The system user that the agent runs as in a system installation.
pub const SERVICE_USER: &str = "picket";
/// The system user that the sensor runs as in a system installation; its group is the service user's.
pub const SENSOR_USER: &str = "picket-sensor";
/// The system user that the hub runs as in a system installation; its group is the service user's, too.
pub const HUB_USER: &str = "picket-hub";
/// The system user that the updater's unprivileged half, and a new version's self-test, run as. Its group is its own: it
/// may read nothing of the agent's.
pub const FETCH_USER: &str = "picket-fetch";
/// The executable's file name.
pub const EXECUTABLE: &str = "picket";

/// The places of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    scope: Scope,
    roles: Roles,
    program: PathBuf,
    bin: PathBuf,
    config: PathBuf,
    state: PathBuf,
    update: PathBuf,
    fetch: PathBuf,
    sensor: PathBuf,
    hub: PathBuf,
    log: PathBuf,
    run: PathBuf,
    update_run: PathBuf,
    sensor_run: PathBuf,
    units: PathBuf,
    trial_units: PathBuf,
}

/// The home folder is not known, so a `--user` installation has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHome;

impl std::fmt::Display for NoHome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the home folder is not known: set HOME, or use --prefix DIR")
    }
}

impl std::error::Error for NoHome {}

impl Layout {
    /// The layout of `scope` on this machine.
    ///
    /// # Errors
    /// [`NoHome`] for [`Scope::User`] when there is no home folder.
    pub fn of(scope: Scope) -> Result<Self, NoHome> {
        match scope {
            Scope::System => Ok(Self::rooted(Scope::System, Path::new("/"))),
            Scope::Prefix(dir) => Ok(Self::rooted(Scope::Prefix(dir.clone()), &dir)),
            Scope::User => Self::user(),
        }
    }

    fn rooted(scope: Scope, root: &Path) -> Self {
        let at = |path: &str| root.join(path);
        Self {
            scope,
            roles: Roles::default(),
            program: at("opt/picket"),
            bin: at("usr/local/bin"),
            config: at("etc/picket"),
            state: at("var/lib/picket"),
            update: at("var/lib/picket-update"),
            fetch: at("var/lib/picket-fetch"),
            sensor: at("var/lib/picket-sensor"),
            hub: at("var/lib/picket-hub"),
            log: at("var/log/picket"),
            run: at("run/picket"),
            update_run: at("run/picket-update"),
            sensor_run: at("run/picket-sensor"),
            // systemd.unit(5), "Unit File Load Path": /etc overrides /run, which overrides /usr/local/lib. So a trial in
            // /run overrides ours and is gone at reboot, and an administrator's drop-ins in /etc override both.
            units: at("usr/local/lib/systemd/system"),
            trial_units: at("run/systemd/system"),
        }
    }

    fn user() -> Result<Self, NoHome> {
        let base = BaseDirs::new().ok_or(NoHome)?;
        let data = base.data_local_dir();
        let state = base.state_dir().unwrap_or(data);
        // Without a login session there is no runtime folder; the state folder is on disk but ours.
        let run = base.runtime_dir().map_or_else(|| state.join("picket-run"), Path::to_owned);
        let bin = base.executable_dir().map_or_else(|| base.home_dir().join(".local/bin"), Path::to_owned);
        Ok(Self {
            scope: Scope::User,
            roles: Roles::default(),
            program: data.join("picket"),
            bin,
            config: base.config_dir().join("picket"),
            state: state.join("picket"),
            update: state.join("picket-update"),
            fetch: state.join("picket-fetch"),
            sensor: state.join("picket-sensor"),
            hub: state.join("picket-hub"),
            log: state.join("picket-log"),
            run: run.join("picket"),
            update_run: run.join("picket-update"),
            sensor_run: run.join("picket-sensor"),
            // The user manager's load path: ~/.config overrides $XDG_RUNTIME_DIR, which overrides ~/.local/share.
            units: data.join("systemd/user"),
            trial_units: run.join("systemd/user"),
        })
    }

    /// Where an executable that is no installation keeps what it trusts, and meets its unprivileged half: a folder of the
    /// caller's own, in the layout of [`Scope::User`].
    pub fn portable_dir(&self) -> PathBuf {
        self.update.with_file_name("picket-portable")
    }

    /// The same places for an installation that has these roles. Without this it is an agent's.
    #[must_use]
    pub fn with_roles(self, roles: Roles) -> Self {
        Self { roles, ..self }
    }

    /// What the installation is for.
    pub fn roles(&self) -> Roles {
        self.roles
    }

    /// Which kind of installation this is.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The folder of the program: versions, links, receipt.
    pub fn program_dir(&self) -> &Path {
        &self.program
    }

    /// The folder of all installed versions.
    pub fn versions_dir(&self) -> PathBuf {
        self.program.join("versions")
    }

    /// Where a new version is unpacked before it is complete: on the install volume, so that it can be renamed.
    pub fn staging_dir(&self) -> PathBuf {
        self.versions_dir().join(".staging")
    }

    /// The folder of one version.
    pub fn version_dir(&self, version: &Version) -> PathBuf {
        self.versions_dir().join(version.to_string())
    }

    /// The executable of one version.
    pub fn version_exe(&self, version: &Version) -> PathBuf {
        self.version_dir(version).join(EXECUTABLE)
    }

    /// The link to the proven version: the one switch.
    pub fn current_link(&self) -> PathBuf {
        self.program.join("current")
    }

    /// The link to the version that `update rollback` returns to.
    pub fn previous_link(&self) -> PathBuf {
        self.program.join("previous")
    }

    /// The executable through the `current` link: what units and people start.
    pub fn current_exe(&self) -> PathBuf {
        self.current_link().join(EXECUTABLE)
    }

    /// What a version link holds: a relative path, so that the tree can be moved as one.
    pub fn link_target(version: &Version) -> PathBuf {
        Path::new("versions").join(version.to_string())
    }

    /// The list of each thing the installer made.
    pub fn receipt(&self) -> PathBuf {
        self.program.join("receipt.json")
    }

    /// The receipt of what an uninstallation kept: data, and whether the service user is ours.
    pub fn kept_receipt(&self) -> PathBuf {
        self.update.join("receipt.json")
    }

    /// The link that puts `picket` on people's PATH.
    pub fn bin_link(&self) -> PathBuf {
        self.bin.join(EXECUTABLE)
    }

    /// What [`Layout::bin_link`] holds.
    pub fn bin_target(&self) -> PathBuf {
        match self.scope {
            Scope::User => self.current_exe(),
            Scope::System | Scope::Prefix(_) => Path::new("../../../opt/picket/current").join(EXECUTABLE),
        }
    }

    /// The folder of the configuration.
    pub fn config_dir(&self) -> &Path {
        &self.config
    }

    /// The release root that this installation trusts, as the operator or the build gave it.
    pub fn release_root(&self) -> PathBuf {
        self.config.join("release-root.json")
    }

    /// The files in the folder of the configuration that a service user must be able to read, where they are there.
    pub fn config_files(&self) -> Vec<PathBuf> {
        let mut names = vec!["config"];
        if self.roles.has(Role::Hub) {
            names.extend(["hub", "security_policies"]);
        }
        let forms = ["yaml", "yml", "json", "toml"];
        let files = names.into_iter().flat_map(|name| forms.map(|form| self.config.join(name).with_extension(form)));
        files.chain([self.release_root()]).collect()
    }

    /// The hub's configuration, where it is written for the operator.
    pub fn hub_settings(&self) -> PathBuf {
        self.config.join("hub.yaml")
    }

    /// Health hooks that must pass before a new version is kept.
    pub fn required_hooks(&self) -> PathBuf {
        self.config.join("health.d/required")
    }

    /// Health hooks that are run and reported, but do not decide.
    pub fn wanted_hooks(&self) -> PathBuf {
        self.config.join("health.d/wanted")
    }

    /// Hooks that may ask a scheduled update to wait.
    pub fn busy_hooks(&self) -> PathBuf {
        self.config.join("update.d/busy")
    }

    /// Hooks that may keep a trial from beginning.
    pub fn before_hooks(&self) -> PathBuf {
        self.config.join("update.d/before")
    }

    /// Hooks that are told how an update ended.
    pub fn after_hooks(&self) -> PathBuf {
        self.config.join("update.d/after")
    }

    /// Every folder of hooks. One that is not there has none.
    pub fn hook_dirs(&self) -> [PathBuf; 5] {
        [self.required_hooks(), self.wanted_hooks(), self.busy_hooks(), self.before_hooks(), self.after_hooks()]
    }

    /// The agent's own state.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The lock of the one agent of this installation.
    pub fn agent_lock(&self) -> PathBuf {
        self.state.join("agent.lock")
    }

    /// The format in which the agent last wrote its state: one number.
    pub fn state_format(&self) -> PathBuf {
        self.state.join("state-format")
    }

    /// The folder of the sealed store.
    pub fn store_dir(&self) -> PathBuf {
        self.state.join("store")
    }

    /// The key file of what is sealed.
    pub fn store_key(&self) -> PathBuf {
        self.state.join("store.key")
    }

    /// The folder of the queue of events.
    pub fn outbox_dir(&self) -> PathBuf {
        self.state.join("outbox")
    }

    /// The identity at the hub: certificate, key, roots.
    pub fn certs_dir(&self) -> PathBuf {
        self.state.join("certs")
    }

    /// The configuration that the hub gave.
    pub fn hub_config(&self) -> PathBuf {
        self.state.join("hub-config.json")
    }

    /// The same for the sensor, which may not look into the agent's state.
    pub fn hub_config_published(&self) -> PathBuf {
        self.run.join("hub-config.json")
    }

    /// From which stream of events on the hub has everything.
    pub fn hub_stream(&self) -> PathBuf {
        self.state.join("hub-stream.json")
    }

    /// Where people leave acknowledgements of alerts: a file each.
    pub fn alert_acks(&self) -> PathBuf {
        self.state.join("alert-acks")
    }

    /// The alerts that are open, for the agent that comes after.
    pub fn alerts(&self) -> PathBuf {
        self.state.join("alerts.json")
    }

    /// Where `picket config restore` tells the agent who restored what.
    pub fn restore_mark(&self) -> PathBuf {
        self.state.join("config-restore.json")
    }

    /// Where the agent wishes for an update.
    pub fn wish(&self) -> PathBuf {
        self.state.join("update-wish")
    }

    /// The updater's state: trust, journal, downloads.
    pub fn update_dir(&self) -> &Path {
        &self.update
    }

    /// Where the updater and its unprivileged half meet.
    pub fn fetch_dir(&self) -> &Path {
        &self.fetch
    }

    /// The file that is there while a release waits for its time; it says which, and when.
    pub fn update_due(&self) -> PathBuf {
        self.update.join("due.json")
    }

    /// The sensor's own state: what is there, as it last saw it, and what the agent has not taken yet.
    pub fn sensor_dir(&self) -> &Path {
        &self.sensor
    }

    /// The hub's own folder: its keys, and its database where that is a file.
    pub fn hub_dir(&self) -> PathBuf {
        self.hub.clone()
    }

    /// The folder of the hub's keys.
    pub fn hub_keys_dir(&self) -> PathBuf {
        self.hub.join("keys")
    }

    /// The folder of rules that the operator writes.
    pub fn rules_dir(&self) -> PathBuf {
        self.config.join("rules.d")
    }

    /// The folder of the sensor's socket.
    pub fn sensor_run_dir(&self) -> &Path {
        &self.sensor_run
    }

    /// Where the agent meets the sensor.
    pub fn sensor_socket(&self) -> PathBuf {
        self.sensor_run.join("sensor.sock")
    }

    /// Where the agent notes how far it took the sensor's events.
    pub fn sensor_mark(&self) -> PathBuf {
        self.state.join("sensor-mark.json")
    }

    /// The agent's and the supervisor's log files, where no journal takes them.
    pub fn log_dir(&self) -> &Path {
        &self.log
    }

    /// The agent's sockets and locks of this boot.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// The control socket of `picket service run`.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run.join("supervisor.sock")
    }

    /// What the updater publishes for everybody to read: status and progress of this boot.
    pub fn update_run_dir(&self) -> &Path {
        &self.update_run
    }

    /// The updater's published status.
    pub fn update_status(&self) -> PathBuf {
        self.update_run.join("status.json")
    }

    /// The steps of the running or last update of this boot, one JSON object a line.
    pub fn update_progress(&self) -> PathBuf {
        self.update_run.join("progress.ndjson")
    }

    /// Where unit files are installed.
    pub fn unit_dir(&self) -> &Path {
        &self.units
    }

    /// Where a trial overrides them until the next boot.
    pub fn trial_unit_dir(&self) -> &Path {
        &self.trial_units
    }

    /// The installation that the executable at `exe` (links resolved) belongs to: it lies in a `versions` folder of a
    /// system, prefix or user tree. `None` for a copy that lies elsewhere.
    pub fn scope_of_executable(exe: &Path) -> Option<Scope> {
        let versions = exe.parent()?.parent()?;
        let program = versions.parent()?;
        if versions.file_name()? != "versions" {
            return None;
        }
        if program == Path::new("/opt/picket") {
            return Some(Scope::System);
        }
        if Self::of(Scope::User).is_ok_and(|user| user.program == program) {
            return Some(Scope::User);
        }
        if program.ends_with("opt/picket") {
            return Some(Scope::Prefix(program.parent()?.parent()?.to_owned()));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_the_shape_of_the_system() {
        let system = Layout::of(Scope::System).unwrap();
        let prefix = Layout::of(Scope::Prefix("/srv/p".into())).unwrap();
        let only_there = [system.unit_dir(), system.sensor_dir(), system.sensor_run_dir()];
        let system_entries = system.entries().into_iter().filter(|entry| !only_there.contains(&entry.path.as_path()));
        for (a, b) in system_entries.zip(prefix.entries()) {
            assert_eq!(Path::new("/srv/p").join(a.path.strip_prefix("/").unwrap()), b.path);
        }
        assert_eq!(prefix.current_exe(), Path::new("/srv/p/opt/picket/current/picket"));
    }

    #[test]
    fn the_link_on_the_path_leads_to_the_current_executable() {
        let layout = Layout::of(Scope::System).unwrap();
        let bin = layout.bin_link();
        let mut reached = bin.parent().unwrap().to_owned();
        for part in layout.bin_target().components() {
            match part {
                std::path::Component::ParentDir => {
                    reached.pop();
                }
                other => reached.push(other),
            }
        }
        assert_eq!(reached, layout.current_exe());
    }

    #[test]
    fn an_executable_knows_the_installation_it_belongs_to() {
        let scope = |path: &str| Layout::scope_of_executable(Path::new(path));
        assert_eq!(scope("/opt/picket/versions/1.2.3/picket"), Some(Scope::System));
        assert_eq!(scope("/srv/p/opt/picket/versions/1.2.3/picket"), Some(Scope::Prefix("/srv/p".into())));
        assert_eq!(scope("/home/ann/target/release/picket"), None);
        assert_eq!(scope("/picket"), None);
    }

    #[test]
    fn the_sensors_state_is_out_of_the_service_users_reach_and_its_socket_is_not() {
        let layout = Layout::of(Scope::System).unwrap();
        let mode = |path: &Path| layout.entries().into_iter().find(|entry| entry.path == path).unwrap();
        let state = mode(layout.sensor_dir());
        assert_eq!((state.owner.to_string().as_str(), state.mode), ("picket-sensor:picket", 0o700));
        let run = mode(layout.sensor_run_dir());
        assert_eq!((run.owner.to_string().as_str(), run.mode), ("picket-sensor:picket", 0o750));
        assert!(layout.sensor_socket().starts_with(layout.sensor_run_dir()));
    }

    #[test]
    fn a_hub_alone_has_no_place_of_an_agents_and_an_agent_none_of_a_hubs() {
        let of = |roles| Layout::of(Scope::System).unwrap().with_roles(roles);
        let has = |roles, path: &Path| of(roles).entries().iter().any(|entry| entry.path == path);
        let layout = of(Roles::ALL);
        for place in [layout.state_dir(), layout.sensor_dir(), layout.run_dir(), layout.log_dir()] {
            assert!(has(Roles::AGENT, place) && has(Roles::ALL, place) && !has(Roles::HUB, place), "{place:?}");
        }
        for place in [layout.hub_dir(), layout.hub_keys_dir(), layout.rules_dir()] {
            assert!(has(Roles::HUB, &place) && has(Roles::ALL, &place) && !has(Roles::AGENT, &place), "{place:?}");
        }
        let keys = layout.entries().into_iter().find(|entry| entry.path == layout.hub_keys_dir()).unwrap();
        assert_eq!((keys.owner.to_string().as_str(), keys.mode), ("picket-hub:picket", 0o700));
        assert!(of(Roles::HUB).config_files().contains(&layout.hub_settings()));
        assert!(!of(Roles::AGENT).config_files().contains(&layout.hub_settings()));
    }

    #[test]
    fn the_updaters_state_is_out_of_the_service_users_reach() {
        let layout = Layout::of(Scope::System).unwrap();
        for entry in layout.entries() {
            let root_only = [layout.program_dir(), layout.update_dir(), layout.unit_dir()]
                .iter()
                .any(|d| entry.path.starts_with(d));
            if root_only {
                assert_eq!(entry.owner.user, Account::Root, "{}", entry.path.display());
                assert_eq!(entry.mode & 0o022, 0, "{} is writable by others", entry.path.display());
            }
        }
    }
}
