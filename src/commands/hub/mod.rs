//! `picket hub …`: the hub, and looking after it on its own machine.
//!
//! What these commands do is written to the hub's audit log under `local:` and the person's name, as what the API does is.

mod backup;
mod block;
mod ca;
pub(super) mod init;
mod migrate;
mod people;
mod serve;
mod token;

use super::Context;
use crate::build;
use crate::cli::{HubArgs, HubCommand};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::settings::hub::{self as settings, HubConfig};
use picket_hub::authority::{KeysError, KeysFolder};
use picket_hub::clock::Clock;
use picket_hub::life::{self, Options, StartError};
use picket_hub::security::Security;
use picket_hub::state::Hub;
use picket_layout::Layout;
use std::path::PathBuf;
use std::sync::Arc;

/// Runs `picket hub …`.
pub(super) fn run(context: &Context<'_>, args: HubArgs) -> Result<ExitCode, CommandError> {
    let context = &Context { layout: context.layout.clone(), hub: &args.config, ..*context };
    match args.command {
        HubCommand::Init(args) => init::run(context, &args),
        HubCommand::Serve => serve::run(context),
        HubCommand::Token(command) => token::run(context, command),
        HubCommand::User(command) => people::run(context, command),
        HubCommand::Block(command) => block::run(context, &command),
        HubCommand::Backup(args) => backup::backup(context, &args),
        HubCommand::Restore(args) => backup::restore(context, &args),
        HubCommand::Migrate(args) => migrate::run(context, &args),
        HubCommand::Ca(command) => ca::run(context, &command),
        HubCommand::AuditVerify(json) => people::audit_verify(context, &json),
    }
}

/// Everything that a hub starts with, from its configuration.
pub(super) fn options(context: &Context<'_>) -> Result<(Options, HubConfig), CommandError> {
    let config = settings::resolve(&context.layout, context.process, context.hub)?;
    let security = Security::new(config.policies.clone()).map_err(|error| Box::new(StartError::Config(error)))?;
    let options = Options {
        build: build::info(),
        settings: config.settings.clone(),
        security,
        keys: KeysFolder::new(context.layout.hub_keys_dir()),
        rules_dir: Some(context.layout.rules_dir()),
        database: config.database.clone(),
        clock: Clock::system(),
    };
    Ok((options, config))
}

/// Lets `work` use the hub's database and keys, without serving.
fn with_hub<T>(
    context: &Context<'_>,
    work: impl AsyncFnOnce(Arc<Hub>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    with_hub_at(context, None, work)
}

/// The same for another database than the configuration names.
fn with_hub_at<T>(
    context: &Context<'_>,
    database: Option<&str>,
    work: impl AsyncFnOnce(Arc<Hub>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    as_hub(context, || {
        let (mut options, _) = options(context)?;
        if let Some(database) = database {
            database.clone_into(&mut options.database);
        }
        let runtime = runtime()?;
        runtime.block_on(async {
            let assembled = life::assemble(options).await.map_err(Box::new)?;
            let outcome = work(Arc::clone(&assembled.hub)).await;
            assembled.close().await;
            outcome
        })
    })
}

/// Lets `work` run as the hub's user.
fn as_hub<T>(context: &Context<'_>, work: impl FnOnce() -> Result<T, CommandError>) -> Result<T, CommandError> {
    let Some(folder) = owned(&context.layout) else {
        let none = KeysError::None(context.layout.hub_keys_dir());
        return Err(Box::new(StartError::Keys(none)).into());
    };
    crate::wiring::as_owner_of(&folder, work)
}

/// By whose owner the hub's user is known: the folder of keys, or the hub's own where there are none yet. In a container the
/// latter is a mount, and belongs to who mounted it. `None` where there is no hub.
fn owned(layout: &Layout) -> Option<PathBuf> {
    let is_there = |folder: &PathBuf| {
        !std::fs::symlink_metadata(folder).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    [layout.hub_keys_dir(), layout.hub_dir()].into_iter().find(is_there)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| CommandError::system("cannot start the hub's threads", error))
}

/// How the audit log names the person at this terminal.
pub(super) fn actor(context: &Context<'_>) -> String {
    format!("local:{}", context.process.person())
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_layout::Scope;

    #[test]
    fn the_hubs_user_is_who_owns_its_keys_whoever_mounted_the_folder_around_them() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Scope::Prefix(dir.path().to_owned())).unwrap();
        assert_eq!(owned(&layout), None);
        picket_durable::create_dir(&layout.hub_dir(), 0o700).unwrap();
        assert_eq!(owned(&layout), Some(layout.hub_dir()));
        picket_durable::create_dir(&layout.hub_keys_dir(), 0o700).unwrap();
        assert_eq!(owned(&layout), Some(layout.hub_keys_dir()));
    }
}
