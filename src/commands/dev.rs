//! `picket dev`: a hub and an agent of its in one process, for looking and trying, as Vault and Consul have it.
//!
//! Everything is as it would be: real keys, a real database, mutual TLS, an enrolment with a token. Only where it lies and
//! how long is different: one folder below the temporary one, ports of loopback, until the process is told to end.

use super::Context;
use super::hub;
use crate::cli::{ConfigArgs, DevArgs, HubInitArgs, JsonArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::process;
use picket_hub::app::tokens::TokenWish;
use picket_hub::life;
use picket_layout::{Layout, Roles, Scope};
use serde::Serialize;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use zeroize::Zeroizing;

/// How the only user is called.
const ADMIN: &str = "admin";

/// What was made, for people and scripts.
#[derive(Serialize)]
struct Made {
    /// Where people and programs are answered.
    api: String,
    /// What agents reach.
    agents: String,
    /// The agent's health server.
    agent_health: String,
    user: &'static str,
    password: String,
    /// May do everything, as the user.
    token: String,
    /// By which certificate the hub is known.
    ca: PathBuf,
    folder: PathBuf,
    watched: Vec<PathBuf>,
}

/// Runs both until told to stop, then removes everything.
pub(super) fn run(context: &Context<'_>, args: &DevArgs) -> Result<ExitCode, CommandError> {
    // From here on Ctrl-C is a wish, so that the folder goes in any case.
    let stop = process::stop_flag().map_err(|error| CommandError::system("cannot listen for signals", error))?;
    let folder = Folder::make(context)?;
    let layout = Layout::of(Scope::Prefix(folder.0.clone()))?.with_roles(Roles::ALL);
    let context = &Context { layout, ..*context };
    for entry in context.layout.entries().iter().filter(|entry| entry.kind == picket_layout::Kind::Dir) {
        picket_durable::create_dir(&entry.path, 0o700)?;
    }
    let watched = watched(&folder.0, args)?;
    let ports = Ports::find()?;
    write_settings(&context.layout, &ports, &watched)?;
    let password = Zeroizing::new(picket_update::random_id());
    let password_file = folder.0.join("password");
    picket_durable::write_atomic(&password_file, password.as_bytes(), 0o600)?;
    let init = HubInitArgs {
        names: Vec::new(),
        fleet: None,
        admin: ADMIN.to_owned(),
        password_file: Some(password_file),
        one_time: false,
        replace_lost_keys: false,
        json: JsonArgs::default(),
    };
    hub::init::make(context, &init)?;
    // The log of the process is the agent's to set up.
    let (app, export) = super::agent::app(context, &ConfigArgs::default())?;

    let runtime = hub::runtime()?;
    let (options, _) = hub::options(context)?;
    let running = runtime.block_on(life::start(options)).map_err(Box::new)?;
    let ended = (|| {
        let by = hub::actor(context);
        let (enrolment, token) = runtime.block_on(async {
            let (_, enrolment) = running.hub().create_token(TokenWish::default(), &by).await?;
            let hub = running.hub();
            let user = hub.db.user_by_name(hub.tenant, ADMIN).await.map_err(picket_hub::refusal::Refusal::from)?;
            let principal = user.map(|user| format!("user:{}", user.id)).unwrap_or_default();
            let (_, token) = hub.create_api_token("dev", &principal, None, &by).await?;
            Ok::<_, CommandError>((enrolment, token))
        })?;
        super::enroll::silently(context, &enrolment)?;
        tell(
            context,
            args,
            &Made {
                api: format!("https://{}", running.api_address()),
                agents: format!("https://{}", running.agents_address()),
                agent_health: format!("http://{}/health", ports.agent_health),
                user: ADMIN,
                password: password.to_string(),
                token: token.to_string(),
                ca: context.layout.hub_keys_dir().join("root.crt"),
                folder: folder.0.clone(),
                watched,
            },
        );
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        Ok(app.spawn().and_then(picket_agent::Running::run_until_signal)?)
    })();
    runtime.block_on(running.stop());
    export.end();
    ended.map(|()| ExitCode::Success)
}

/// The folder of everything. It goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn make(context: &Context<'_>) -> Result<Self, CommandError> {
        let above = Path::new(context.process.variable("TMPDIR").unwrap_or("/tmp"));
        let dir = above.join(format!("picket-dev-{}", picket_update::random_id()));
        // One that is there already is somebody else's.
        let made = std::fs::DirBuilder::new().create(&dir);
        made.map_err(|error| CommandError::system(format!("cannot make {}", dir.display()), error))?;
        let folder = Self(dir);
        picket_durable::create_dir(&folder.0, 0o700)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = picket_durable::remove_tree(&self.0) {
            tracing::warn!(%error, "the temporary folder could not be removed");
        }
    }
}

/// Ports that nobody has now.
struct Ports {
    hub: [SocketAddr; 3],
    agent_health: SocketAddr,
    agent_metrics: SocketAddr,
}

impl Ports {
    fn find() -> Result<Self, CommandError> {
        let found = || -> std::io::Result<Self> {
            // All at once, so that no two are the same.
            let held: Result<Vec<TcpListener>, _> =
                (0..5).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
            let held = held?;
            let at = |index: usize| held[index].local_addr();
            Ok(Self { hub: [at(0)?, at(1)?, at(2)?], agent_health: at(3)?, agent_metrics: at(4)? })
        };
        found().map_err(|error| CommandError::system("no port of loopback can be had", error))
    }
}

fn watched(folder: &Path, args: &DevArgs) -> Result<Vec<PathBuf>, CommandError> {
    if args.watch.is_empty() {
        let own = folder.join("watched");
        picket_durable::create_dir(&own.join(".ssh"), 0o700)?;
        return Ok(vec![own]);
    }
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|error| CommandError::system(format!("{} is no path", path.display()), error))
    };
    args.watch.iter().map(absolute).collect()
}

/// JSON is YAML, whatever is in the texts.
fn write_settings(layout: &Layout, ports: &Ports, watched: &[PathBuf]) -> Result<(), CommandError> {
    let [agents, api, health] = ports.hub;
    let hub = json!({
        "names": ["127.0.0.1", "localhost"],
        "fleet": "dev",
        "listen": {"agents": agents, "api": api, "health": health},
        "heartbeat": "5s",
    });
    let agent = json!({
        "health": {"listen": ports.agent_health},
        "metrics": {"listen": ports.agent_metrics},
        "file_monitor": {"paths": watched},
    });
    for (name, settings) in [("hub", hub), ("config", agent)] {
        let path = layout.config_dir().join(name).with_extension("yaml");
        picket_durable::write_atomic(&path, format!("{settings:#}\n").as_bytes(), 0o600)?;
    }
    Ok(())
}

fn tell(context: &Context<'_>, args: &DevArgs, made: &Made) {
    let output = context.output;
    if args.json.json {
        output.json(made);
        return;
    }
    output.field("API", &made.api);
    output.field("Agents", &made.agents);
    output.field("Agent's health", &made.agent_health);
    output.field("User", made.user);
    output.field("Password", &made.password);
    output.field("API token", &made.token);
    output.field("Hub's certificate", made.ca.display());
    output.field("Folder", made.folder.display());
    for watched in &made.watched {
        output.field("Watched", watched.display());
    }
    if let Some(keys) = made.watched.first().map(|dir| dir.join(".ssh")).filter(|dir| dir.is_dir()) {
        output.hint(format_args!("make a finding: echo ssh-ed25519 >> {}", keys.join("authorized_keys").display()));
    }
    output.hint(format_args!(
        "see it: curl --cacert {} -H 'Authorization: Bearer TOKEN' {}/api/v1/findings",
        made.ca.display(),
        made.api
    ));
    output.hint("Ctrl-C ends it and removes the folder");
}
