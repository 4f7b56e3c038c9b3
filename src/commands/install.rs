//! `picket install`.

use super::follow::{self, Followed};
use super::{Context, hub, update_bundle};
use crate::build;
use crate::cli::{ConfigArgs, HubInitArgs, InstallArgs, JsonArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::settings;
use crate::wiring;
use picket_installer::plan::files_of_interest;
use picket_installer::{Facts, Plan, Receipt, Request, Situation, Step, apply, find_copies, plan};
use picket_layout::{Role, Roles};
use picket_service::{Registrar, ServiceState, units};
use picket_update::Engine;
use picket_update::fetch::Location;
use picket_update::gate::Probe;
use picket_update::request::{Request as UpdateRequest, Wanted};
use picket_update::trust::{TrustClient, TrustStore};
use picket_versions::sha256_of;
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a new agent may take to answer.
const READY_LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// The largest root metadata, in bytes (python-tuf's limit).
const MAX_ROOT: u64 = 512_000;

/// Runs `picket install`.
pub(super) fn run(context: &Context<'_>, args: &InstallArgs) -> Result<ExitCode, CommandError> {
    let Some(bundle) = args.bundle.as_ref().filter(|_| !args.dry_run) else { return install(context, args) };
    update_bundle::look_at(bundle)?;
    // One document is printed: how the machine took the release.
    let installed = install(context, &InstallArgs { json: JsonArgs { json: false }, ..args.clone() })?;
    if installed != ExitCode::Success {
        return Ok(installed);
    }
    let context = &context.with_roles(roles(context, args)?);
    update_bundle::bring(context, bundle)?;
    // Who installs has chosen the moment.
    update_bundle::ask(context, None, true, args.json.json)
}

fn install(context: &Context<'_>, args: &InstallArgs) -> Result<ExitCode, CommandError> {
    let context = &context.with_roles(roles(context, args)?);
    let layout = &context.layout;
    if !args.dry_run {
        context.require_root("installing")?;
    }
    let registrar = picket_service::registrar(layout);
    // The supervisor runs everything as one user: under root, the agent would be root.
    if layout.has_service_user() && registrar.kind() != "systemd" {
        return Err(CommandError::NoServiceManager);
    }
    if layout.roles().has(Role::Hub) && registrar.kind() != "systemd" {
        return Err(CommandError::NoHubService { options: layout.scope().as_options() });
    }
    let request = request(context, args)?;
    let enabled = registrar.status().is_ok_and(|status| status.enabled);
    let files = files_of_interest(&request, layout, registrar.as_ref());
    let facts = Facts::gather(layout, &files, enabled)?;
    let plan = plan(&request, &facts, layout, registrar.as_ref());
    for copy in find_copies(layout, &context.process.path(), &context.process.exe) {
        context.output.warn(format_args!("another copy of Picket: {} ({})", copy.path.display(), copy.what));
    }
    if args.dry_run {
        return Ok(show(context, args, &plan));
    }
    if plan.steps.is_empty() && plan.obstacles.is_empty() {
        context.output.say(format_args!("version {} is installed; nothing to do", request.build.version));
        return Ok(report(context, args, &plan, "unchanged"));
    }
    let now = picket_update::Clock::system().now();
    // An updater at work uses the same staging folder. A machine without the updater's state has none.
    let lock = if layout.update_dir().is_dir() { Some(Engine::lock(layout)?) } else { None };
    let left = apply(&plan, &request, layout, registrar.as_ref(), now, |step| context.output.say(step.describe()))?;
    drop(lock);
    let mut hub = None;
    for step in &left {
        match step {
            Step::CreateKey(_) => {
                context.output.say(step.describe());
                wiring::as_owner(layout, || Ok(picket_store::keyring(&layout.store_key(), &layout.store_dir())?))?;
            }
            Step::InitHub(_) => {
                context.output.say(step.describe());
                hub = Some(init_hub(context, args)?);
            }
            _ => {}
        }
    }
    // Whatever is new beside an agent that runs is started with it; one that was stopped stays so.
    let registered = plan.steps.iter().any(|step| matches!(step, Step::Register(_) | Step::CreateUser(_)));
    let has_agent = layout.roles().has(Role::Agent);
    if plan.situation == Situation::Installed && registered && has_agent && is_running(registrar.as_ref()) {
        registrar.start_role(Role::Agent)?;
    }
    for step in left {
        match step {
            Step::Start(Role::Agent) => start(context, registrar.as_ref())?,
            Step::Start(Role::Hub) => {
                context.output.say(Step::Start(Role::Hub).describe());
                // Both ports serve when its start is over.
                registrar.start_role(Role::Hub)?;
            }
            Step::TryVersion(_) if args.no_start => {
                let version = &request.build.version;
                context.output.hint(format_args!(
                    "version {version} is in place, but was not tried; `picket install` without --no-start tries it"
                ));
            }
            Step::TryVersion(version) => return upgrade(context, args, version),
            _ => {}
        }
    }
    closing_words(context, &request, &facts);
    if args.json.json {
        return Ok(report_with(context, &plan, "installed", hub.as_ref()));
    }
    if let Some(hub) = &hub {
        super::hub::init::tell(context, hub);
    }
    Ok(report(context, args, &plan, "installed"))
}

/// What the machine is to be: what it is already and what is asked for; an agent where that is nothing.
fn roles(context: &Context<'_>, args: &InstallArgs) -> Result<Roles, CommandError> {
    let asked = args.roles.iter().copied().map(Role::from);
    let known = Receipt::load(&context.layout)?.map(|receipt| receipt.roles);
    Ok(known
        .map_or_else(|| Roles::from(asked.clone().collect::<Vec<_>>()), |known| asked.clone().fold(known, Roles::with)))
}

/// Makes what the hub lacks, as its user.
fn init_hub(context: &Context<'_>, args: &InstallArgs) -> Result<hub::init::Report, CommandError> {
    let wanted = HubInitArgs {
        names: Vec::new(),
        fleet: None,
        admin: "admin".to_owned(),
        password_file: args.hub_password_file.clone(),
        one_time: false,
        replace_lost_keys: false,
        json: args.json.clone(),
    };
    hub::init::make(context, &wanted)
}

/// The hub's configuration, where there is none yet; who machines are to look for is asked before anything is made.
fn hub_config(context: &Context<'_>, args: &InstallArgs) -> Result<Option<(PathBuf, Vec<u8>)>, CommandError> {
    if !context.layout.roles().has(Role::Hub) {
        let nothing = args.hub_names.is_empty() && args.hub_password_file.is_none();
        let unused =
            || CommandError::Usage("--hub-name and --hub-password-file are for a hub: add --role hub".to_owned());
        return if nothing { Ok(None) } else { Err(unused()) };
    }
    if settings::hub::file(&context.layout).is_some() {
        if !args.hub_names.is_empty() {
            context.output.hint("the hub's configuration is there already; change names in it to change them");
        }
        return Ok(None);
    }
    if args.hub_names.is_empty() {
        return Err(CommandError::Usage(
            "say by which name machines reach this hub: picket install --role hub --hub-name hub.example.com"
                .to_owned(),
        ));
    }
    let text = hub::init::config_text(&args.hub_names, None);
    Ok(Some((context.layout.hub_settings(), text.into_bytes())))
}

fn is_running(registrar: &dyn Registrar) -> bool {
    registrar.status().is_ok_and(|status| status.state == ServiceState::Running)
}

/// What the installation should be.
fn request(context: &Context<'_>, args: &InstallArgs) -> Result<Request, CommandError> {
    let root = match &args.root_keys {
        Some(path) => Some(read_root(path)?),
        None => None,
    };
    if let Some(releases) = &args.releases {
        Location::parse(releases).map_err(CommandError::Releases)?;
    }
    if let Some(channel) = args.channel.as_deref().filter(|name| !picket_protocol::channel::is_channel_name(name)) {
        return Err(CommandError::Usage(format!("{channel:?} cannot name a channel (a to z, 0 to 9 and -)")));
    }
    let layout = &context.layout;
    Ok(Request {
        sha256: sha256_of(&context.process.exe)?,
        exe: context.process.exe.clone(),
        build: build::info(),
        root,
        config: config_file(context, args),
        hub_config: hub_config(context, args)?,
        units: units::texts(layout),
        start: !args.no_start,
    })
}

/// Reads root metadata and makes sure that it is signed by itself before anything is made.
fn read_root(path: &std::path::Path) -> Result<Vec<u8>, CommandError> {
    let bytes = picket_durable::read_bounded(path, MAX_ROOT)?;
    let nowhere = TrustStore::new(PathBuf::from("/nonexistent"));
    TrustClient::new(&nowhere, &picket_update::Clock::system()).check_root(&bytes)?;
    Ok(bytes)
}

/// The configuration file that the options ask for; `None` when the one that is there says the same already.
fn config_file(context: &Context<'_>, args: &InstallArgs) -> Option<(PathBuf, Vec<u8>)> {
    let present = settings::read(&context.layout, context.process, &ConfigArgs::default());
    let wants = |given: &Option<String>, has: &str| given.as_deref().is_some_and(|given| given != has);
    let update = &present.settings.update;
    if !wants(&args.releases, &update.releases) && !wants(&args.channel, &update.channel) {
        return None;
    }
    let path = present.files.first().cloned().unwrap_or_else(|| context.layout.config_dir().join("config.yaml"));
    let mut text =
        String::from("# Picket's configuration. `picket config schema` and the manual list every key.\nupdate:\n");
    for (key, value) in [("releases", &args.releases), ("channel", &args.channel)] {
        if let Some(value) = value {
            // JSON's strings are YAML's, so nothing in a value can become another key.
            let _ = writeln!(text, "  {key}: {}", json!(value));
        }
    }
    Some((path, text.into_bytes()))
}

fn show(context: &Context<'_>, args: &InstallArgs, plan: &Plan) -> ExitCode {
    if args.json.json {
        return report(context, args, plan, "planned");
    }
    let output = context.output;
    output.field("Installation", context.layout.scope());
    output.field("Situation", situation(&plan.situation));
    for step in &plan.steps {
        output.marked(Tone::Plain, step.describe());
    }
    if let Some(bundle) = &args.bundle {
        output.marked(Tone::Plain, format_args!("take the release in {}, under a trial", bundle.display()));
    }
    for obstacle in &plan.obstacles {
        output.marked(Tone::Bad, obstacle);
    }
    if plan.steps.is_empty() && plan.obstacles.is_empty() {
        output.marked(Tone::Good, "nothing would change");
    }
    if plan.obstacles.is_empty() { ExitCode::Success } else { ExitCode::Failure }
}

fn situation(situation: &Situation) -> String {
    match situation {
        Situation::Fresh => "nothing is installed".to_owned(),
        Situation::Interrupted => "an earlier installation did not get to its end".to_owned(),
        Situation::Installed => "this version is installed".to_owned(),
        Situation::Upgrade { from } => format!("version {from} is installed"),
    }
}

fn report(context: &Context<'_>, args: &InstallArgs, plan: &Plan, result: &str) -> ExitCode {
    if args.json.json {
        return report_with(context, plan, result, None);
    }
    if plan.obstacles.is_empty() { ExitCode::Success } else { ExitCode::Failure }
}

fn report_with(context: &Context<'_>, plan: &Plan, result: &str, hub: Option<&hub::init::Report>) -> ExitCode {
    let steps: Vec<String> = plan.steps.iter().map(Step::describe).collect();
    let mut document = json!({
        "result": result,
        "scope": context.layout.scope(),
        "roles": context.layout.roles(),
        "version": build::info().version,
        "situation": situation(&plan.situation),
        "steps": steps,
        "obstacles": plan.obstacles,
    });
    if let Some(hub) = hub {
        document["hub"] = json!(hub);
    }
    context.output.json(&document);
    if plan.obstacles.is_empty() { ExitCode::Success } else { ExitCode::Failure }
}

/// Starts the agent and waits until it answers.
fn start(context: &Context<'_>, registrar: &dyn Registrar) -> Result<(), CommandError> {
    context.output.say(Step::Start(Role::Agent).describe());
    registrar.start_role(Role::Agent)?;
    let probe = super::service::probe(context);
    let began = Instant::now();
    while began.elapsed() < READY_LIMIT {
        let status = registrar.status()?;
        if matches!(status.state, ServiceState::Failed) {
            return Err(CommandError::NotReady(status.detail));
        }
        if probe.as_ref().is_some_and(|probe| probe.livez().is_some_and(|livez| Some(livez.pid) == status.pid)) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(CommandError::NotReady(format!("no answer on the health port after {} s", READY_LIMIT.as_secs())))
}

/// Lets the proven version try this one, and follows it.
fn upgrade(context: &Context<'_>, args: &InstallArgs, version: semver::Version) -> Result<ExitCode, CommandError> {
    let request = UpdateRequest {
        id: picket_update::random_id(),
        wanted: Wanted::Installed { version },
        by: context.process.person(),
    };
    let followed: Followed = follow::ask_updater(context, &request)?;
    Ok(follow::report(context, &followed, args.json.json))
}

fn closing_words(context: &Context<'_>, request: &Request, facts: &Facts) {
    let output = context.output;
    let roles: Vec<&str> = context.layout.roles().iter().map(Role::as_str).collect();
    let what =
        if context.layout.roles() == Roles::AGENT { String::new() } else { format!(", {}", roles.join(" and ")) };
    output.say(format_args!("Picket {} is installed ({}{what})", request.build.version, context.layout.scope()));
    let bin = context.layout.bin_link();
    let on_path = bin.parent().is_some_and(|dir| context.process.path().contains(&dir.to_owned()));
    if !on_path {
        output.hint(format_args!("{} is not on your PATH; call it as {}", picket_layout::EXECUTABLE, bin.display()));
    }
    let has_root = request.root.is_some()
        || facts.files.contains_key(&context.layout.release_root())
        || build::release_root().is_some();
    if !has_root {
        output.hint(
            "updates are off: no release root is trusted. `picket install --root-keys root.json --releases URL` turns \
             them on",
        );
    }
}
