//! `picket cert …`: this machine's certificate for its hub.

use super::Context;
use crate::build;
use crate::cli::{CertCommand, ConfigArgs, JsonArgs, RenewArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::settings;
use crate::wiring::as_owner;
use jiff::Timestamp;
use picket_agent::hub::{CertStore, Identity, IdentityError, Lost, UplinkSettings, renew};
use picket_pki::{ChainPolicy, Renewal, check_agent_chain, renewal};
use picket_store::StoreError;
use picket_transport::hub::HubOptions;
use serde_json::json;

/// Runs `picket cert …`.
pub(super) fn run(context: &Context<'_>, command: CertCommand) -> Result<ExitCode, CommandError> {
    match command {
        CertCommand::Check(json) => check(context, &json),
        CertCommand::Renew(args) => renew_now(context, &args),
        CertCommand::Rollback(json) => rollback(context, &json),
    }
}

/// What the configuration says of the way to the hub.
pub(super) fn uplink(context: &Context<'_>) -> Result<Uplink, CommandError> {
    let settings = settings::resolve(&context.layout, context.process, &ConfigArgs::default())?.0;
    let options = settings.uplink.options(&build::user_agent(), &settings.network.proxy());
    Ok(Uplink { settings: settings.uplink, options })
}

/// The way to the hub.
pub(super) struct Uplink {
    /// What is set.
    pub(super) settings: UplinkSettings,
    /// How the hub is called.
    pub(super) options: HubOptions,
}

/// The identity of this machine, and whether the hub took it back.
pub(super) fn identity(context: &Context<'_>) -> Result<(Identity, Option<Lost>), CommandError> {
    let store = CertStore::new(context.layout.certs_dir());
    let read = as_owner(&context.layout, || {
        let identity = store.load()?.ok_or(IdentityError::NotEnrolled)?;
        let lost = store.lost(&identity);
        Ok((identity, lost))
    });
    // Where there is no state, there is no identity.
    read.map_err(|error| match error {
        CommandError::Store(StoreError::Absent(_)) => IdentityError::NotEnrolled.into(),
        error => error,
    })
}

fn check(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let (identity, lost) = identity(context)?;
    let (leaf, record, now) = (identity.leaf(), &identity.record, Timestamp::now());
    let policy =
        ChainPolicy { roots: &identity.roots, identity: Some(identity.name()), pin: identity.client.key().pin(), now };
    let chain = check_agent_chain(identity.client.chain(), &policy);
    let days = leaf.not_after.duration_since(now).as_hours() / 24;
    let (state, due) = match renewal(leaf, now) {
        Renewal::Expired => ("expired", None),
        Renewal::Due => ("due", None),
        Renewal::NotBefore(at) => ("valid", Some(at)),
    };
    let state = if lost.is_some() {
        "lost"
    } else if chain.is_err() && state != "expired" {
        "invalid"
    } else {
        state
    };
    let good = matches!(state, "valid" | "due");
    let store = CertStore::new(context.layout.certs_dir());
    let previous = as_owner(&context.layout, || Ok(store.load_previous().ok())).ok().flatten();
    let counts = as_owner(&context.layout, || Ok(store.counts())).unwrap_or_default();
    let problem = match (&lost, &chain) {
        (Some(lost), _) => Some(format!(
            "the hub took the identity back at {} ({}): {}; enrol again with `picket enroll` and a new token",
            lost.at, lost.code, lost.detail
        )),
        (None, Err(_)) if state == "expired" => Some(format!(
            "it expired at {}; see whether the clock of this machine is right, then `picket cert renew`",
            leaf.not_after
        )),
        (None, Err(error)) => Some(error.to_string()),
        (None, Ok(_)) => None,
    };
    if json.json {
        context.output.json(&json!({
            "state": state,
            "problem": problem,
            "agent_id": record.agent_id,
            "name": record.name,
            "hub": record.hub,
            "serial": leaf.serial,
            "issuer": leaf.issuer,
            "not_before": leaf.not_before,
            "not_after": leaf.not_after,
            "expires_in_days": days,
            "renewal_from": due,
            "roots": identity.roots.iter().map(|root| root.pin.to_string()).collect::<Vec<_>>(),
            "previous": previous.as_ref().map(|previous| previous.leaf().serial.clone()),
            "renewed": counts.renewed,
            "last_error": counts.last_error,
        }));
        return Ok(if good { ExitCode::Success } else { ExitCode::Unhealthy });
    }
    let output = context.output;
    output.field("Agent", format_args!("{} ({})", record.name, record.agent_id));
    output.field("Hub", &record.hub);
    output.field("Serial", &leaf.serial);
    output.field("Holds", format_args!("from {} to {} ({days} days left)", leaf.not_before, leaf.not_after));
    output.field("Issuer", &leaf.issuer);
    for root in &identity.roots {
        output.field("Root", format_args!("{} {}, until {}", root.subject, root.pin, root.not_after));
    }
    if let Some(previous) = previous {
        output.field("Before", format_args!("{}, for `picket cert rollback`", previous.leaf().serial));
    }
    match (problem, due) {
        (Some(problem), _) => output.marked(Tone::Bad, problem),
        (None, Some(at)) => output.marked(Tone::Good, format_args!("it is renewed by itself after {at}")),
        (None, None) => output.marked(Tone::Warn, "its renewal is due; the agent renews it by itself"),
    }
    if let Some(error) = counts.last_error {
        output.marked(Tone::Warn, format_args!("the last renewal failed: {error}"));
    }
    Ok(if good { ExitCode::Success } else { ExitCode::Unhealthy })
}

fn renew_now(context: &Context<'_>, args: &RenewArgs) -> Result<ExitCode, CommandError> {
    context.require_root("renewing the certificate")?;
    let options = uplink(context)?.options;
    identity(context)?;
    let store = CertStore::new(context.layout.certs_dir());
    // Held over the network, too: the agent must not renew the same certificate at the same time. What is renewed is read
    // under it: it may have been renewed a moment ago.
    let lock = as_owner(&context.layout, || Ok(store.lock()?))?;
    let (identity, _) = identity(context)?;
    let reason = match renewal(identity.leaf(), Timestamp::now()) {
        Renewal::NotBefore(at) if !args.force => {
            if args.json.json {
                context.output.json(&json!({ "renewed": false, "renewal_from": at }));
            } else {
                context.output.result(format_args!("not due before {at}"));
                context.output.hint("--force renews it all the same");
            }
            return Ok(ExitCode::Success);
        }
        Renewal::NotBefore(_) => "forced",
        Renewal::Due => "due",
        Renewal::Expired => "expired",
    };
    let renewed = renew(&identity, reason, &options).map_err(CommandError::from);
    let installed = as_owner(&context.layout, || {
        let outcome = renewed.and_then(|set| {
            store.install(&lock, &set)?;
            store.tidy(&lock, Timestamp::now());
            Ok(set)
        });
        store.count(|counts| match &outcome {
            Ok(_) => (counts.renewed, counts.last_error) = (counts.renewed + 1, None),
            Err(error) => {
                (counts.not_renewed, counts.last_error) = (counts.not_renewed + 1, Some(error.to_string()));
            }
        });
        outcome
    })?;
    let leaf = &installed.chain[0];
    if args.json.json {
        context.output.json(&json!({ "renewed": true, "serial": leaf.serial, "expires_at": leaf.not_after }));
    } else {
        context.output.marked(Tone::Good, format_args!("renewed: {} until {}", leaf.serial, leaf.not_after));
        context
            .output
            .say("the one before is kept for seven days; an agent that runs takes the new one within seconds");
    }
    Ok(ExitCode::Success)
}

fn rollback(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    context.require_root("going back to the certificate before")?;
    let store = CertStore::new(context.layout.certs_dir());
    let back = as_owner(&context.layout, || {
        let lock = store.lock()?;
        Ok(store.rollback(&lock, Timestamp::now())?)
    })?;
    let leaf = back.leaf();
    if json.json {
        context.output.json(&json!({ "serial": leaf.serial, "expires_at": leaf.not_after }));
    } else {
        context.output.marked(Tone::Good, format_args!("back at {}, until {}", leaf.serial, leaf.not_after));
        context
            .output
            .hint("`picket test-connection` says whether the hub takes it; the same command goes forth again");
    }
    Ok(ExitCode::Success)
}
