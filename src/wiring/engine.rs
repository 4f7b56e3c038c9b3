//! Building the updater of an installation from its configuration.

use super::{MachineOf, ServiceProbe, scope_options};
use crate::build;
use crate::error::CommandError;
use crate::process::Process;
use crate::settings::{self, Settings};
use picket_layout::{Layout, SERVICE_USER, Scope};
use picket_service::Registrar;
use picket_transport::{Client, Timeouts};
use picket_update::Clock;
use picket_update::Engine;
use picket_update::fetch::{Location, Server};
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
    let user_agent = build::user_agent();
    let (patience, usual) = (settings.update.stall_limit.get(), Timeouts::default());
    let timeouts = Timeouts { connect: usual.connect.min(patience), response: patience, stall: patience };
    let location = Location::parse(&settings.update.releases).map_err(CommandError::Releases)?;
    let server = Server { client: Client::new(&user_agent, timeouts), location };
    let machine = MachineOf::new(registrar.as_ref(), layout);
    let agent = settings.health.listen.get();
    let probe = ServiceProbe::new(layout, process, agent, machine.counts_hub()).map_err(CommandError::Releases)?;
    let engine = Engine {
        layout,
        settings: &settings.update,
        build: &build,
        machine: &machine,
        probe: &probe,
        server: &server,
        pinned_root: pinned_root(layout)?,
        self_tests: SelfTests {
            judge: process.exe.clone(),
            identity: if layout.has_service_user() { Identity::of_service_user(SERVICE_USER) } else { None },
            scratch_root: layout.update_run_dir().to_owned(),
            scope: scope_options(layout),
            environment: inherited(process, layout.scope()),
        },
        config_check: &settings::check_folder,
        clock: Clock::system(),
        progress,
        interrupted,
    };
    act(&engine)
}

/// The variables that a version under test gets: how this machine reaches the network (proxies and certificate
/// authorities) and, for a user's own installation, where that user's folders are (XDG Base Directory Specification):
/// the units that the version writes name its places.
fn inherited(process: &Process, scope: &Scope) -> Vec<(String, String)> {
    const NETWORK: [&str; 6] = ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"];
    const PLACES: [&str; 6] =
        ["HOME", "XDG_BIN_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"];
    let places: &[&str] = if *scope == Scope::User { &PLACES } else { &[] };
    let wanted = |name: &str| NETWORK.contains(&name.to_ascii_lowercase().as_str()) || places.contains(&name);
    process.environment.iter().filter(|(name, _)| wanted(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The release root that this installation trusts: the operator's, or the one that this build pins.
pub(crate) fn pinned_root(layout: &Layout) -> Result<Option<Vec<u8>>, CommandError> {
    let given = picket_durable::read_if_present(&layout.release_root(), 1 << 20)?;
    Ok(given.or_else(|| build::release_root().map(<[u8]>::to_vec)))
}
