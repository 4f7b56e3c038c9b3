//! What would change: computed from facts, shown by `--dry-run`, done by [`mod@crate::apply`].

use crate::facts::{Facts, Found, Misfit};
use picket_layout::{Class, FETCH_USER, HUB_USER, Kind, Layout, Role, SENSOR_USER, SERVICE_USER};
use picket_protocol::{BuildInfo, Sha256Digest, UnitText};
use picket_service::{Registrar, units};
use semver::Version;
use std::path::PathBuf;

/// What an installation should be.
#[derive(Debug, Clone)]
pub struct Request {
    /// The executable to install: the one that runs.
    pub exe: PathBuf,
    /// Its hash.
    pub sha256: Sha256Digest,
    /// Which build it is.
    pub build: BuildInfo,
    /// The release root to trust, where one was given.
    pub root: Option<Vec<u8>>,
    /// The configuration file to write where none is.
    pub config: Option<(PathBuf, Vec<u8>)>,
    /// The hub's configuration file to write where none is.
    pub hub_config: Option<(PathBuf, Vec<u8>)>,
    /// The unit texts.
    pub units: Vec<UnitText>,
    /// Whether to start what is new.
    pub start: bool,
}

/// How things stand before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Situation {
    /// Nothing is installed.
    Fresh,
    /// An earlier run did not get to its end.
    Interrupted,
    /// This very build is installed.
    Installed,
    /// Another version is installed: this one is put beside it, and tried like an update.
    Upgrade {
        /// The version that is installed.
        from: Version,
    },
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a user that a service runs as.
    CreateUser(&'static str),
    /// Make a folder with owner and mode.
    CreateDir(picket_layout::Entry),
    /// Correct the owner or mode of a place.
    Correct(picket_layout::Entry, Vec<Misfit>),
    /// Put this executable into the folder of versions.
    PlaceVersion(Version),
    /// Write a file.
    WriteFile(PathBuf, Vec<u8>),
    /// Make the key file of what the agent keeps: its owner is the agent's user, and nobody else may read it.
    CreateKey(PathBuf),
    /// Make the hub's keys and its first administrator, as the hub's user.
    InitHub(PathBuf),
    /// Forget the release metadata that was trusted under another root.
    ForgetTrust(PathBuf),
    /// Point a link somewhere.
    Link(PathBuf, PathBuf),
    /// Make the service manager read the units.
    Register(Vec<UnitText>),
    /// Make it start a role's service, and what both roles need, at boot.
    Enable(Role),
    /// Start a role's service.
    Start(Role),
    /// Let the updater try this version beside the one that runs.
    TryVersion(Version),
}

/// A plan, or why there can be none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How things stand before.
    pub situation: Situation,
    /// What changes, in order. Empty when nothing does.
    pub steps: Vec<Step>,
    /// What stands in the way; nothing is done while there is any.
    pub obstacles: Vec<String>,
}

impl Step {
    /// The step in words, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::CreateUser(name) => format!("create the system user {name}"),
            Self::CreateDir(entry) => format!("create the folder {} (mode {:04o})", entry.path.display(), entry.mode),
            Self::Correct(entry, misfits) => {
                let misfits: Vec<String> = misfits.iter().map(ToString::to_string).collect();
                format!("correct {}: {}", entry.path.display(), misfits.join(", "))
            }
            Self::PlaceVersion(version) => format!("install version {version}"),
            Self::WriteFile(path, bytes) => format!("write {} ({} bytes)", path.display(), bytes.len()),
            Self::CreateKey(path) => format!("make the key file {} (mode 0600)", path.display()),
            Self::InitHub(path) => format!("make the hub's keys in {} and its first administrator", path.display()),
            Self::ForgetTrust(path) => {
                format!("forget what was trusted under the old release root ({})", path.display())
            }
            Self::Link(link, target) => format!("link {} -> {}", link.display(), target.display()),
            Self::Register(units) => {
                let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
                format!("register {}", names.join(", "))
            }
            Self::Enable(Role::Agent) => "start it at boot".to_owned(),
            Self::Enable(Role::Hub) => "start the hub at boot".to_owned(),
            Self::Start(role) => format!("start the {role}"),
            Self::TryVersion(version) => {
                format!("try version {version} beside the one that runs, and keep it if it is well")
            }
        }
    }

    /// What the step makes, for the receipt.
    pub fn makes(&self, layout: &Layout) -> Vec<(PathBuf, Kind, Class)> {
        match self {
            Self::CreateDir(entry) => vec![(entry.path.clone(), entry.kind, entry.class)],
            Self::WriteFile(path, _) => {
                let entry = layout.file_entry(path);
                vec![(entry.path, entry.kind, entry.class)]
            }
            Self::Link(link, _) => vec![(link.clone(), Kind::Link, Class::Program)],
            _ => Vec::new(),
        }
    }
}

/// Plans the installation of `request`. Pure: the same facts always give the same plan.
pub fn plan(request: &Request, facts: &Facts, layout: &Layout, registrar: &dyn Registrar) -> Plan {
    let version = &request.build.version;
    let situation = situation(request, facts);
    let mut obstacles = obstacles(facts);
    let mut steps = Vec::new();
    // The version that runs may not know the role, and this one is not proven here yet.
    if let (Situation::Upgrade { from }, [role, ..]) = (&situation, new_roles(facts, &situation, layout).as_slice()) {
        obstacles.push(format!(
            "version {from} is installed and is no {role} here: update first (`picket install` without --role), then add \
             the {role}"
        ));
    }

    if layout.has_service_user() && facts.accounts.service.is_none() {
        steps.push(Step::CreateUser(SERVICE_USER));
    }
    if layout.has_service_user() && facts.accounts.fetch.is_none() {
        steps.push(Step::CreateUser(FETCH_USER));
    }
    if layout.has_sensor() && facts.accounts.sensor.is_none() {
        steps.push(Step::CreateUser(SENSOR_USER));
    }
    let hub = layout.roles().has(Role::Hub);
    if hub && layout.has_service_user() && facts.accounts.hub.is_none() {
        steps.push(Step::CreateUser(HUB_USER));
    }
    for (entry, found) in &facts.places {
        match found {
            Found::Absent if entry.kind == Kind::Dir => steps.push(Step::CreateDir(entry.clone())),
            Found::Differs(misfits) if entry.kind != Kind::Link && !has_kind(misfits) => {
                steps.push(Step::Correct(entry.clone(), misfits.clone()));
            }
            _ => {}
        }
    }
    match facts.versions.get(version) {
        Some(sha256) if *sha256 == request.sha256 => {}
        Some(_) if facts.current.as_ref() == Some(version) => obstacles.push(format!(
            "version {version} is installed with other content; a version never changes: build it under another number, \
             or uninstall first"
        )),
        _ => steps.push(Step::PlaceVersion(version.clone())),
    }
    steps.extend(file_steps(request, facts, layout, &mut obstacles));
    if facts.key_wanted {
        steps.push(Step::CreateKey(layout.store_key()));
    }
    steps.extend(link_steps(request, facts, layout));
    // Harmless when done again, so it is where the last run may not have got to its end.
    if hub && (facts.hub_wanted || new_roles(facts, &situation, layout).contains(&Role::Hub)) {
        steps.push(Step::InitHub(layout.hub_keys_dir()));
    }
    steps.extend(service_steps(request, facts, &situation, layout, registrar));
    Plan { situation, steps, obstacles }
}

/// The roles that this run brings. An administrator who disabled or stopped one of before meant it.
fn new_roles(facts: &Facts, situation: &Situation, layout: &Layout) -> Vec<Role> {
    let known = facts.roles().filter(|_| matches!(situation, Situation::Installed | Situation::Upgrade { .. }));
    layout.roles().iter().filter(|role| known.is_none_or(|known| !known.has(*role))).collect()
}

fn has_kind(misfits: &[Misfit]) -> bool {
    misfits.iter().any(|misfit| matches!(misfit, Misfit::Kind { .. }))
}

fn situation(request: &Request, facts: &Facts) -> Situation {
    match (&facts.receipt, &facts.current) {
        (_, None) if !facts.installed => Situation::Fresh,
        // Whatever was interrupted: another version than the proven one gets its trial.
        (_, Some(current)) if *current != request.build.version => Situation::Upgrade { from: current.clone() },
        (Some(receipt), _) if !receipt.complete => Situation::Interrupted,
        (_, None) => Situation::Interrupted,
        (_, Some(_)) => Situation::Installed,
    }
}

/// Things of somebody else's that stand where ours should.
fn obstacles(facts: &Facts) -> Vec<String> {
    let mut obstacles = Vec::new();
    for (entry, found) in &facts.places {
        let Found::Differs(misfits) = found else { continue };
        let place = entry.path.display();
        for misfit in misfits {
            match misfit {
                Misfit::Kind { found } => obstacles.push(format!("{place}: {found} is in its place; move it away")),
                Misfit::Target { found } => obstacles
                    .push(format!("{place} is a link to {}: another copy of Picket; remove it first", found.display())),
                Misfit::Owner { .. } | Misfit::Mode { .. } => {}
            }
        }
    }
    obstacles
}

fn file_steps(request: &Request, facts: &Facts, layout: &Layout, obstacles: &mut Vec<String>) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(root) = &request.root {
        let path = layout.release_root();
        match facts.files.get(&path) {
            Some(present) if present == root => {}
            present => {
                if present.is_some() {
                    steps.push(Step::ForgetTrust(layout.update_dir().join("tuf")));
                }
                steps.push(Step::WriteFile(path, root.clone()));
            }
        }
    }
    if let Some((path, bytes)) = request.hub_config.as_ref().filter(|(path, _)| !facts.files.contains_key(path)) {
        steps.push(Step::WriteFile(path.clone(), bytes.clone()));
    }
    if let Some((path, bytes)) = &request.config {
        match facts.files.get(path) {
            None => steps.push(Step::WriteFile(path.clone(), bytes.clone())),
            Some(present) if present == bytes => {}
            Some(_) => obstacles.push(format!(
                "{} exists and is not changed by the installer; set update.releases and update.channel there",
                path.display()
            )),
        }
    }
    steps
}

fn link_steps(request: &Request, facts: &Facts, layout: &Layout) -> Vec<Step> {
    let mut steps = Vec::new();
    // An installed version is replaced by a trial, never by the installer.
    if facts.current.is_none() {
        steps.push(Step::Link(layout.current_link(), Layout::link_target(&request.build.version)));
    }
    let absent =
        |link: &PathBuf| facts.places.iter().any(|(entry, found)| entry.path == *link && *found == Found::Absent);
    if absent(&layout.bin_link()) {
        steps.push(Step::Link(layout.bin_link(), layout.bin_target()));
    }
    steps
}

fn service_steps(
    request: &Request,
    facts: &Facts,
    situation: &Situation,
    layout: &Layout,
    registrar: &dyn Registrar,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let new = new_roles(facts, situation, layout);
    if let Situation::Upgrade { .. } = situation {
        // The units of the version that runs stay; the new ones come with its commit.
        steps.push(Step::TryVersion(request.build.version.clone()));
        return steps;
    }
    let changed = request.units.iter().any(|unit| {
        registrar
            .unit_path(&unit.name)
            .is_some_and(|path| facts.files.get(&path).map(Vec::as_slice) != Some(unit.text.as_bytes()))
    });
    if changed {
        steps.push(Step::Register(request.units.clone()));
    }
    for role in new {
        // What is enabled is known of the first service only.
        let enabled = facts.enabled && layout.roles().iter().next() == Some(role);
        if !enabled && registrar.unit_path(picket_service::systemd::service_of(role)).is_some() {
            steps.push(Step::Enable(role));
        }
        if request.start {
            steps.push(Step::Start(role));
        }
    }
    steps
}

/// The paths whose content the plan looks at.
pub fn files_of_interest(request: &Request, layout: &Layout, registrar: &dyn Registrar) -> Vec<PathBuf> {
    let units = units::texts(layout).into_iter().filter_map(|unit| registrar.unit_path(&unit.name));
    let config = request.config.as_ref().map(|(path, _)| path.clone());
    let hub_config = request.hub_config.as_ref().map(|(path, _)| path.clone());
    units.chain(config).chain(hub_config).chain([layout.release_root()]).collect()
}
