//! The commands, a file each. Here is only which one runs.

mod agent;
mod alerts;
mod cache;
mod cert;
mod config;
mod data;
mod dev;
mod doctor;
mod doctor_hub;
mod doctor_own_hub;
mod enroll;
mod fetcher;
mod follow;
mod hook;
mod hub;
mod install;
mod manual;
mod portable;
mod release;
mod release_bundle;
mod release_rollout;
mod release_tree;
mod release_verify;
mod sandbox;
mod self_test;
mod sensor;
mod service;
mod test_connection;
mod uninstall;
mod update;
mod update_bundle;
mod update_history;
mod update_list;

use crate::build;
use crate::cli::{
    AgentCommand, Cli, Command, EventsCommand, HubArgs, HubCommand, HubConfigArgs, ReferencePart, SensorCommand,
    ServiceCommand,
};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Output;
use crate::process::Process;
use crate::settings;
use clap::Parser;
use clap::error::ErrorKind;
use picket_layout::{Layout, Roles};
use picket_telemetry::{LogFormat, LogLevel, LogOptions, logs};
use std::collections::BTreeMap;

/// What a command needs of the rest.
pub(crate) struct Context<'a> {
    /// The process.
    pub(crate) process: &'a Process,
    /// The installation it is about.
    pub(crate) layout: Layout,
    /// Where it prints.
    pub(crate) output: Output,
    /// How often `--verbose` was given.
    pub(crate) verbose: u8,
    /// Where a hub's configuration comes from.
    pub(crate) hub: &'a HubConfigArgs,
}

impl Context<'_> {
    /// The same for an installation with these roles.
    pub(crate) fn with_roles(&self, roles: Roles) -> Self {
        Self { layout: self.layout.clone().with_roles(roles), ..*self }
    }

    /// Refuses when the installation is the system's and the caller is not root.
    pub(crate) fn require_root(&self, what: &'static str) -> Result<(), CommandError> {
        let missing = self.layout.scope().needs_root() && !self.process.is_root();
        if missing { Err(CommandError::NeedsRoot(what)) } else { Ok(()) }
    }

    /// Asks, unless `yes` was given; refuses where nobody can answer.
    pub(crate) fn confirm(&self, yes: bool, question: &str) -> Result<(), CommandError> {
        if yes {
            return Ok(());
        }
        if !self.process.interactive {
            return Err(CommandError::CannotAsk(question.trim_end_matches('?').to_owned()));
        }
        if self.output.ask(question) { Ok(()) } else { Err(CommandError::Declined) }
    }

    /// Sets up the log of a short command: warnings, or more where asked for.
    fn log_as_tool(&self) {
        let level = match self.verbose {
            0 => LogLevel::Error,
            1 => LogLevel::Info,
            2 => LogLevel::Debug,
            _ => LogLevel::Trace,
        };
        let options = LogOptions {
            format: LogFormat::Human,
            level,
            levels: BTreeMap::new(),
            identifier: "picket".to_owned(),
            under_journal: false,
            color: self.process.variable("NO_COLOR").is_none(),
        };
        // Only a second log in one process would fail, and there is none.
        let _ = logs::init(&options);
    }
}

/// Parses the command line and runs the command.
pub(crate) fn run(process: &Process) -> ExitCode {
    let cli = match Cli::try_parse_from(&process.arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return if help { ExitCode::Success } else { ExitCode::Usage };
        }
    };
    let output = Output::new(&cli.global, process.interactive);
    if cli.version {
        output.result(format_args!("picket {}", build::info().long_version()));
        return output.delivered(ExitCode::Success);
    }
    let Some(command) = cli.command else {
        output.say(crate::cli::definition().render_help());
        return ExitCode::Usage;
    };
    let result = settings::layout(&cli.global, process).and_then(|layout| {
        let hub = &HubConfigArgs::default();
        let context = Context { process, layout, output, verbose: cli.global.verbose, hub };
        dispatch(&context, command)
    });
    let code = result.unwrap_or_else(|error| {
        output.error(&error);
        error.exit_code()
    });
    output.delivered(code)
}

fn dispatch(context: &Context<'_>, command: Command) -> Result<ExitCode, CommandError> {
    // These set up the log of a service; everything else is a tool.
    let is_service = matches!(
        command,
        Command::Agent(AgentCommand::Run(_))
            | Command::Sensor(SensorCommand::Run(_))
            | Command::Hub(HubArgs { command: HubCommand::Serve, .. })
            | Command::Dev(_)
            | Command::Service(ServiceCommand::Run { .. })
            | Command::Update(crate::cli::UpdateCommand::Run | crate::cli::UpdateCommand::Recover(_))
    );
    if !is_service {
        context.log_as_tool();
    }
    match command {
        Command::Install(args) => install::run(context, &args),
        Command::Uninstall(args) => uninstall::run(context, &args),
        Command::Service(command) => service::run(context, command),
        Command::Agent(AgentCommand::Run(args)) => agent::run(context, &args),
        Command::Sensor(SensorCommand::Run(args)) => sensor::run(context, &args),
        Command::Enroll(args) => enroll::run(context, &args),
        Command::Cert(command) => cert::run(context, command),
        Command::TestConnection(args) => test_connection::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args),
        Command::Config(command) => config::run(context, command),
        Command::Data(command) => data::run(context, command),
        Command::Cache(command) => cache::run(context, command),
        Command::Alerts(command) => alerts::run(context, command),
        Command::Events(EventsCommand::Schema) => {
            context.output.json(&picket_protocol::event::schema());
            Ok(ExitCode::Success)
        }
        Command::Update(command) => update::run(context, command),
        Command::Hub(args) => hub::run(context, args),
        Command::Dev(args) => dev::run(context, &args),
        Command::Release(command) => release::run(context, command),
        Command::SelfTest(args) => self_test::run(context, &args),
        Command::Completions { shell } => Ok(manual::completions(context, shell)),
        Command::Man { dir } => manual::man(context, dir.as_deref()),
        Command::Reference { part: ReferencePart::Cli } => Ok(manual::cli_reference(context)),
        Command::Reference { part: ReferencePart::Config } => Ok(manual::config_reference(context)),
        Command::Reference { part: ReferencePart::Hub } => Ok(manual::hub_reference(context)),
        Command::Fetcher { work } => fetcher::run(context, work),
        Command::Hook { limit_ms, run_as, file } => Ok(hook::run(context, limit_ms, run_as, file)),
        Command::Sandbox { scratch, network, program } => Err(sandbox::run(scratch, network, &program)),
    }
}
