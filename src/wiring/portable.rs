//! Building the updater of an executable that is no installation.

use super::engine::inherited;
use super::pinned_root;
use crate::build;
use crate::error::CommandError;
use crate::process::Process;
use crate::settings::Settings;
use picket_layout::Layout;
use picket_update::Clock;
use picket_update::fetch::Location;
use picket_update::fetcher::{Fetcher, Places};
use picket_update::portable::Portable;
use picket_update::self_test::SelfTests;

/// Builds the updater of this process' own executable and lets `act` use it. `layout` is the caller's own: there is the
/// configuration, and beside it what the executable knows. With `from_bundle`, releases come from the bundle that `act` puts
/// where the fetcher finds it.
pub(crate) fn with_portable<T>(
    layout: &Layout,
    settings: &Settings,
    process: &Process,
    from_bundle: bool,
    act: impl FnOnce(&Portable<'_>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    Location::parse(&settings.update.releases).map_err(CommandError::Releases)?;
    let (build, dir, clock) = (build::info(), layout.portable_dir(), Clock::system());
    let environment = inherited(process, layout.scope());
    // A file of authorities that cannot be used is told when a server is to be asked.
    let network = settings.network.resolve();
    let self_tests = SelfTests {
        judge: process.exe.clone(),
        identity: None,
        scratch_root: dir.clone(),
        scope: super::scope_options(layout),
        environment: environment.clone(),
        authorities: None,
    };
    let fetcher = Fetcher {
        exe: process.exe.clone(),
        identity: None,
        places: Places::new(dir.join("fetch")),
        environment,
        releases: settings.update.releases.clone(),
        user_agent: build::user_agent(),
        stall: settings.update.stall_limit.get(),
        network,
    };
    let fetcher = if from_bundle { fetcher.of_bundle() } else { fetcher };
    act(&Portable {
        exe: &process.exe,
        dir: &dir,
        settings: &settings.update,
        build: &build,
        fetcher: &fetcher,
        pinned_root: pinned_root(layout)?,
        self_tests: &self_tests,
        machine_id: &super::machine_id(),
        clock: &clock,
    })
}
