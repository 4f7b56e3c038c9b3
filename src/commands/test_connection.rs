//! `picket test-connection`: walks the way to the hub and names the step that fails.

use super::Context;
use super::cert::{Uplink, identity, uplink};
use super::enroll::token;
use crate::cli::TestConnectionArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use picket_agent::hub::Relay;
use picket_agent::hub::walk::{Goal, Step, StepName, StepState, walk};
use picket_agent::hub::{CertStore, IdentityError, Via};

/// Runs `picket test-connection`.
pub(super) fn run(context: &Context<'_>, args: &TestConnectionArgs) -> Result<ExitCode, CommandError> {
    let Uplink { settings, options } = uplink(context)?;
    if settings.via == Via::None {
        return Err(CommandError::NoHub);
    }
    let mut steps = Vec::new();
    let mut tell = |step: Step| {
        if !args.json.json {
            show(context, &step);
        }
        steps.push(step);
    };
    let all = match identity(context) {
        Ok((identity, _)) => {
            let store = CertStore::new(context.layout.certs_dir());
            let relay = Relay::wanted(&settings, &store, &identity);
            let relay = relay.map_err(|error| CommandError::system("cannot start a thread", error))?;
            let (hub, pins) = (&identity.record.hub, &identity.record.pins);
            let goal = Goal { hub, pins, identity: Some(&identity), relay: relay.as_ref() };
            walk(&goal, &options, &mut tell)
        }
        // Before enrolment, the token says where to and whom to believe.
        Err(CommandError::Identity(IdentityError::NotEnrolled)) => {
            let token = token(context, &args.token)?.ok_or(IdentityError::NotEnrolled)?;
            walk(&Goal { hub: &token.hub, pins: &token.pins, identity: None, relay: None }, &options, &mut tell)
        }
        Err(error) => return Err(error),
    };
    if args.json.json {
        context.output.json(&serde_json::json!({ "ok": all, "steps": steps }));
    }
    Ok(if all { ExitCode::Success } else { code(steps.last()) })
}

fn show(context: &Context<'_>, step: &Step) {
    let tone = match step.state {
        StepState::Ok => Tone::Good,
        StepState::Warn => Tone::Warn,
        StepState::Failed => Tone::Bad,
    };
    let took = if step.took_ms > 0.0 { format!(" ({:.1} ms)", step.took_ms) } else { String::new() };
    context.output.marked(tone, format_args!("{:<13} {}{took}", step.step.as_str(), step.message));
    if let Some(fix) = &step.fix {
        context.output.marked(Tone::Plain, format_args!("{:<13} fix: {fix}", ""));
    }
}

/// What the step that failed amounts to.
fn code(last: Option<&Step>) -> ExitCode {
    match last.map(|step| step.step) {
        Some(StepName::Pin) => ExitCode::Untrusted,
        Some(StepName::Certificate | StepName::Clock) => ExitCode::Unhealthy,
        Some(StepName::Authorization) => ExitCode::Refused,
        Some(StepName::Address) => ExitCode::Config,
        Some(StepName::Dns | StepName::Tcp | StepName::Tls | StepName::RoundTrip | StepName::Nats) | None => {
            ExitCode::Network
        }
    }
}
