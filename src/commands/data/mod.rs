//! `picket data …`: what the machine keeps.
//!
//! Whatever reads or writes the store runs as the owner of its folder ([`crate::wiring::as_owner`]). What a person names
//! (an export's file, a backup, another key file) is opened before that, as the person.

mod export;
mod repair;
mod stats;
mod target;
mod transfer;
mod upkeep;

use super::Context;
use crate::cli::{ConfigArgs, DataCommand};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Bar;
use crate::process;
use crate::settings::{self, Settings};
use picket_durable::Lock;
use picket_seal::{Keyring, Sealer};
use picket_store::{DATABASE, Progress, StoreError};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs `picket data …`.
pub(super) fn run(context: &Context<'_>, command: DataCommand) -> Result<ExitCode, CommandError> {
    match command {
        DataCommand::Stats(json) => stats::run(context, &json),
        DataCommand::ExportMetrics(args) => export::metrics(context, &args),
        DataCommand::ExportLogs(args) => export::logs(context, &args),
        DataCommand::ExportJson(args) => export::all(context, &args),
        DataCommand::Cleanup(args) => upkeep::clean_up(context, &args),
        DataCommand::Rekey(args) => upkeep::rekey(context, &args),
        DataCommand::Verify(args) => repair::verify(context, &args),
        DataCommand::Recover(json) => repair::recover(context, &json),
        DataCommand::Backup(args) => transfer::backup(context, &args),
        DataCommand::Restore(args) => transfer::restore(context, &args),
    }
}

/// The configuration in force for a command.
pub(super) fn tool_settings(context: &Context<'_>) -> Result<Settings, CommandError> {
    Ok(settings::resolve(&context.layout, context.process, &ConfigArgs::default())?.0)
}

/// The store's folder; there must be a store in it.
fn store_dir(context: &Context<'_>) -> Result<PathBuf, CommandError> {
    let dir = context.layout.store_dir();
    // What is there and cannot be read is told of by whoever opens it; so is a log without its database.
    if picket_store::is_present(&dir) { Ok(dir) } else { Err(StoreError::Absent(dir.join(DATABASE)).into()) }
}

/// The keys of this device; none are made.
pub(super) fn keyring(context: &Context<'_>) -> Result<Arc<Keyring>, CommandError> {
    Ok(Arc::new(Keyring::open(&context.layout.store_key())?))
}

/// How the queue of events is opened.
pub(super) fn queue(
    context: &Context<'_>,
    settings: &Settings,
    keyring: &Arc<Keyring>,
) -> Result<picket_outbox::Options, CommandError> {
    Ok(picket_outbox::Options {
        folder: context.layout.outbox_dir(),
        sealer: Arc::new(Sealer::new(Arc::clone(keyring))?),
        limits: settings.outbox.limits(),
        kernel_boot: picket_outbox::kernel_boot(),
        clock: Arc::new(picket_outbox::SystemClock),
    })
}

/// Whether an agent of this installation runs.
pub(super) fn agent_runs(context: &Context<'_>) -> bool {
    Lock::holder(&context.layout.agent_lock()).is_some()
}

/// Shows how far a long operation is, and stops it when a person says so.
struct Following {
    bar: Option<Bar>,
    stop: Arc<AtomicBool>,
    what: &'static str,
}

impl Following {
    /// Progress is in `what`: `rows`, `pages`.
    fn begin(context: &Context<'_>, what: &'static str) -> Result<Self, CommandError> {
        let mut following = Self::unseen(what)?;
        following.bar = Some(context.output.bar());
        Ok(following)
    }

    /// The same without a line that changes: where results go to what may be the same terminal.
    fn unseen(what: &'static str) -> Result<Self, CommandError> {
        let stop = process::stop_flag();
        let stop = stop.map_err(|source| CommandError::system("signals cannot be listened for", source))?;
        Ok(Self { bar: None, stop, what })
    }

    fn look(&self, progress: Progress) -> ControlFlow<()> {
        if let Some(bar) = &self.bar {
            bar.count(progress.done, progress.total, self.what);
        }
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.clear();
        }
    }
}

/// What is left to do after the store was replaced.
fn say_start(context: &Context<'_>, agent_runs: bool) {
    let verb = if agent_runs { "restart" } else { "start" };
    let options = context.layout.scope().as_options();
    context.output.hint(format_args!("`picket service {verb}{options}` lets the agent write to it"));
}

/// Bytes for people, in binary units.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}
