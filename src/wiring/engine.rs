//! Building the updater of an installation from its configuration.

use super::{MachineOf, ServiceProbe, scope_options};
use crate::build;
use crate::error::CommandError;
use crate::process::Process;
use crate::settings::{self, Settings};
use picket_layout::{FETCH_USER, Layout, SERVICE_USER, Scope};
use picket_service::Registrar;
use picket_update::Clock;
use picket_update::Engine;
use picket_update::fetch::Location;
use picket_update::fetcher::{Fetcher, Places};
use picket_update::progress::Progress;
use picket_update::sandbox::Identity;
use picket_update::self_test::SelfTests;
use std::sync::atomic::AtomicBool;

/// What the updater is built from.
pub(crate) struct Parts<'a> {
    /// The installation.
    pub(crate) layout: &'a Layout,
    /// Its configuration.
    pub(crate) settings: &'a Settings,
    /// The process.
    pub(crate) process: &'a Process,
    /// Where progress is told.
    pub(crate) progress: &'a Progress,
    /// Set when the process is told to stop.
    pub(crate) interrupted: &'a AtomicBool,
}

/// Builds the updater and lets `act` use it.
pub(crate) fn with_engine<T>(
    parts: &Parts<'_>,
    act: impl FnOnce(&Engine<'_>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let Parts { layout, settings, process, progress, interrupted } = *parts;
    let registrar: Box<dyn Registrar> = picket_service::registrar(layout);
    let build = build::info();
    Location::parse(&settings.update.releases).map_err(CommandError::Releases)?;
    let environment = inherited(process, layout.scope());
    let network = settings.network.resolve();
    let fetcher = Fetcher {
        exe: process.exe.clone(),
        identity: lesser_user(layout),
        places: Places::new(layout.fetch_dir()),
        environment: environment.clone(),
        network: network.clone(),
        releases: settings.update.releases.clone(),
        user_agent: build::user_agent(),
        stall: settings.update.stall_limit.get(),
    };
    let machine = MachineOf::new(registrar.as_ref(), layout);
    let agent = settings.health.listen.get();
    let probe = ServiceProbe::new(layout, process, agent, machine.counts_hub()).map_err(CommandError::Releases)?;
    let engine = Engine {
        layout,
        settings: &settings.update,
        build: &build,
        machine: &machine,
        probe: &probe,
        fetcher: &fetcher,
        pinned_root: pinned_root(layout)?,
        self_tests: SelfTests {
            judge: process.exe.clone(),
            identity: lesser_user(layout),
            scratch_root: layout.update_run_dir().to_owned(),
            scope: scope_options(layout),
            environment: settings.network.proxy().tell(environment),
            authorities: network.as_ref().ok().and_then(|network| network.authorities.bundle()),
        },
        config_check: &settings::check_folder,
        clock: Clock::system(),
        zone: jiff::tz::TimeZone::system(),
        machine_id: super::machine_id(),
        progress,
        interrupted,
    };
    act(&engine)
}

/// The user that what meets strangers' bytes becomes: its own, or the service user where an older version's installer did
/// not make it.
fn lesser_user(layout: &Layout) -> Option<Identity> {
    if !layout.has_service_user() {
        return None;
    }
    Identity::of_user(FETCH_USER).or_else(|| Identity::of_user(SERVICE_USER))
}

/// The variables that a version under test gets: how this machine reaches the network (proxies and certificate
/// authorities) and, for a user's own installation, where that user's folders are (XDG Base Directory Specification):
/// the units that the version writes name its places.
pub(super) fn inherited(process: &Process, scope: &Scope) -> Vec<(String, String)> {
    const NETWORK: [&str; 6] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"];
    const PLACES: [&str; 6] =
        ["HOME", "XDG_BIN_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"];
    let places: &[&str] = if *scope == Scope::User { &PLACES } else { &[] };
    let wanted = |name: &str| NETWORK.contains(&name.to_ascii_lowercase().as_str()) || places.contains(&name);
    #[cfg(feature = "faults")]
    let wanted = |name: &str| wanted(name) || name == picket_update::fetcher::exploit::TOLD_BY;
    process.environment.iter().filter(|(name, _)| wanted(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The release root that this installation trusts: the operator's, or the one that this build pins.
pub(crate) fn pinned_root(layout: &Layout) -> Result<Option<Vec<u8>>, CommandError> {
    let given = picket_durable::read_if_present(&layout.release_root(), 1 << 20)?;
    Ok(given.or_else(|| build::release_root().map(<[u8]>::to_vec)))
}
