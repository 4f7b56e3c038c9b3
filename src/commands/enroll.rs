//! `picket enroll`: this machine becomes an agent of a hub.

use super::Context;
use super::cert::uplink;
use super::data::agent_runs;
use crate::build;
use crate::cli::{EnrollArgs, TokenArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::process;
use crate::wiring::as_owner;
use jiff::Timestamp;
use picket_agent::hub::{About, CertStore, Enrolment, Identity, NewSet, Via, enrol};
use picket_pki::EnrolmentToken;
use picket_protocol::hub::{Machine, Pending};
use picket_transport::hub::HubOptions;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// The longest file with a token, in bytes.
const MAX_TOKEN: u64 = 16 << 10;
/// How often a person waits at least and at most between two questions.
const ASK: (u64, u64) = (2, 300);

/// Runs `picket enroll`.
pub(super) fn run(context: &Context<'_>, args: &EnrollArgs) -> Result<ExitCode, CommandError> {
    context.require_root("enrolling")?;
    let uplink = uplink(context)?;
    if uplink.settings.via == Via::None {
        return Err(CommandError::NoHub);
    }
    let store = CertStore::new(context.layout.certs_dir());
    make_state_folder(context)?;
    as_owner(&context.layout, || may_enrol(&store, args.force))?;
    let token = token(context, &args.token)?.ok_or_else(|| {
        let text = "a token is needed: give --token-file FILE (- is standard input), or PICKET_ENROLL_TOKEN in the environment";
        CommandError::Usage(text.to_owned())
    })?;
    let options = uplink.options;
    let about = about(args);
    context.output.say(format_args!("enrolling {} at {} …", about.name, token.hub));
    let outcome =
        until_approved(context, args, &Task { store: &store, token: &token, about: &about, options: &options });
    if !matches!(outcome, Ok(Outcome::Waits(_))) {
        let counted = outcome.is_ok();
        let _ = as_owner(&context.layout, || {
            store.count(|counts| *(if counted { &mut counts.enrolled } else { &mut counts.not_enrolled }) += 1);
            Ok(())
        });
    }
    match outcome? {
        Outcome::Done(identity) => {
            show(context, args, &identity);
            Ok(ExitCode::Success)
        }
        Outcome::Waits(pending) => {
            show_waiting(context, args, &pending);
            Ok(ExitCode::AwaitsApproval)
        }
    }
}

/// Enrols with this token, and says nothing.
pub(super) fn silently(context: &Context<'_>, token: &str) -> Result<(), CommandError> {
    let token = EnrolmentToken::parse(token)?;
    let store = CertStore::new(context.layout.certs_dir());
    make_state_folder(context)?;
    let options = uplink(context)?.options;
    let about = about(&EnrollArgs { agent_type: "server".to_owned(), ..EnrollArgs::default() });
    once(context, &Task { store: &store, token: &token, about: &about, options: &options }).map(drop)
}

enum Outcome {
    Done(Box<Identity>),
    Waits(Pending),
}

struct Task<'a> {
    store: &'a CertStore,
    token: &'a EnrolmentToken,
    about: &'a About,
    options: &'a HubOptions,
}

/// A folder of one's own needs no installation.
fn make_state_folder(context: &Context<'_>) -> Result<(), CommandError> {
    let state = context.layout.state_dir();
    if context.layout.has_service_user() {
        return CommandError::require_installed(&context.layout);
    }
    picket_durable::create_dir(state, 0o700)?;
    Ok(())
}

/// Refuses for a machine that is an agent already. One whose identity was taken back, or cannot be used, is none.
fn may_enrol(store: &CertStore, force: bool) -> Result<(), CommandError> {
    if force {
        return Ok(());
    }
    match store.load()? {
        Some(identity) if store.lost(&identity).is_none() => Err(CommandError::Enrolled {
            hub: identity.record.hub.clone(),
            name: identity.record.name.clone(),
            agent: identity.record.agent_id.to_string(),
        }),
        _ => Ok(()),
    }
}

/// The token: from a file, the environment, or a person; never from the command line. `None` where nobody can be asked.
pub(super) fn token(context: &Context<'_>, args: &TokenArgs) -> Result<Option<EnrolmentToken>, CommandError> {
    let text = match &args.token_file {
        Some(file) if file == Path::new("-") => {
            let mut text = Zeroizing::new(String::new());
            let read = std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text);
            read.map_err(|source| CommandError::system("the token cannot be read from standard input", source))?;
            text
        }
        Some(file) => Zeroizing::new(picket_durable::read_text(file, MAX_TOKEN)?),
        None => match context.process.variable("PICKET_ENROLL_TOKEN") {
            Some(text) => Zeroizing::new(text.to_owned()),
            None if context.process.interactive => {
                let typed = rpassword::prompt_password("Enrolment token: ");
                Zeroizing::new(typed.map_err(|source| CommandError::system("the token cannot be read", source))?)
            }
            None => return Ok(None),
        },
    };
    Ok(Some(EnrolmentToken::parse(&text)?))
}

fn about(args: &EnrollArgs) -> About {
    let hostname = super::agent::hostname();
    let target = build::info().target.to_string();
    let mut facts = BTreeMap::new();
    if let Some(name) = os_name() {
        facts.insert("distribution".to_owned(), name);
    }
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    facts.insert("kernel".to_owned(), kernel);
    About {
        name: args.name.clone().unwrap_or_else(|| hostname.clone()),
        agent_type: args.agent_type.clone(),
        version: build::info().version,
        machine: Machine {
            hostname,
            os: "linux".to_owned(),
            arch: target.split('-').next().unwrap_or_default().to_owned(),
            machine_hint: picket_agent::agent_id(Path::new("/etc/machine-id")),
            facts,
        },
        // The agent begins a stream of its own for the hub once it has taken the identity.
        stream: None,
    }
}

/// The distribution's name (os-release(5)).
fn os_name() -> Option<String> {
    let text = picket_durable::read_text(Path::new("/etc/os-release"), 16 << 10).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').chars().take(100).collect())
}

/// Asks once, or, if told to wait, until somebody approved or a person has had enough.
fn until_approved(context: &Context<'_>, args: &EnrollArgs, task: &Task<'_>) -> Result<Outcome, CommandError> {
    let mut waiting = None;
    loop {
        let pending = match once(context, task)? {
            Outcome::Waits(pending) if args.wait => pending,
            outcome => return Ok(outcome),
        };
        if waiting.is_none() {
            let stop = process::stop_flag();
            waiting = Some(stop.map_err(|source| CommandError::system("signals cannot be listened for", source))?);
            let (fingerprint, until) = (&pending.fingerprint, pending.expires_at);
            context.output.say(format_args!("waiting for approval until {until}; the key is {fingerprint}"));
            context.output.hint("Ctrl-C ends the waiting; the same command with the same token goes on with it");
        }
        let again = Instant::now() + Duration::from_secs(pending.retry_after.clamp(ASK.0, ASK.1));
        while Instant::now() < again {
            if waiting.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Ok(Outcome::Waits(pending));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Asks once, with the key that was made for this token, and installs what comes.
fn once(context: &Context<'_>, task: &Task<'_>) -> Result<Outcome, CommandError> {
    let Task { store, token, about, options } = *task;
    let (key, earlier) = as_owner(&context.layout, || {
        let lock = store.lock()?;
        Ok(store.pending_key(&lock, token, Timestamp::now())?)
    })?;
    if earlier && context.verbose > 0 {
        context.output.say("an enrolment with this token was begun before; it is gone on with, with the same key");
    }
    let answer = enrol(token, key, about, options).inspect_err(|error| {
        if error.refuses_the_key() {
            // No answer is lost with it: the next run makes a new one.
            let _ = as_owner(&context.layout, || Ok(store.end_pending(&store.lock()?)?));
        }
    });
    match answer? {
        Enrolment::Pending(pending) => Ok(Outcome::Waits(pending)),
        Enrolment::Done(set) => as_owner(&context.layout, || install(store, &set)),
    }
}

fn install(store: &CertStore, set: &NewSet) -> Result<Outcome, CommandError> {
    let lock = store.lock()?;
    store.install(&lock, set)?;
    store.end_pending(&lock)?;
    let identity = store.load()?.ok_or(picket_agent::hub::IdentityError::NotEnrolled)?;
    Ok(Outcome::Done(Box::new(identity)))
}

fn show(context: &Context<'_>, args: &EnrollArgs, identity: &Identity) {
    let (output, record, leaf) = (context.output, &identity.record, identity.leaf());
    let runs = as_owner(&context.layout, || Ok(agent_runs(context))).unwrap_or(false);
    if args.json.json {
        output.json(&serde_json::json!({
            "state": "enrolled",
            "hub": record.hub,
            "agent_id": record.agent_id,
            "name": record.name,
            "serial": leaf.serial,
            "expires_at": leaf.not_after,
            "agent_runs": runs,
        }));
        return;
    }
    output.marked(Tone::Good, format_args!("enrolled at {} as {} ({})", record.hub, record.name, record.agent_id));
    output.field("Certificate", format_args!("{} until {}", leaf.serial, leaf.not_after));
    if runs {
        output.say("the agent that runs takes the identity within seconds");
    } else {
        output.hint(format_args!("`picket service start{}` starts the agent", context.layout.scope().as_options()));
    }
}

fn show_waiting(context: &Context<'_>, args: &EnrollArgs, pending: &Pending) {
    let output = context.output;
    if args.json.json {
        output.json(&serde_json::json!({
            "state": "pending",
            "fingerprint": pending.fingerprint,
            "expires_at": pending.expires_at,
            "retry_after": pending.retry_after,
        }));
        return;
    }
    output.marked(Tone::Warn, "a person has to approve this machine on the hub first");
    output.field("Key", &pending.fingerprint);
    output.field("Until", pending.expires_at);
    output.hint(
        "compare the key with what the hub shows, and run the same command again with the same token (or with --wait)",
    );
}
