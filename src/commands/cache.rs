//! `picket cache …`: the queue of events that wait to be delivered.

use super::Context;
use super::data::{agent_runs, keyring, queue, size, tool_settings};
use crate::build;
use crate::cli::{CacheCommand, CleanArgs, JsonArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::{Tone, human};
use crate::wiring::as_owner;
use picket_outbox::delivery::DeliveryStatus;
use picket_outbox::{CleanRequest, QueueStatus};
use picket_protocol::event::Priority;
use picket_seal::Sealer;
use picket_transport::{Client, Network, Timeouts};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long the agent may take to answer, or to clean.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest answer of the agent that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What `cache status` reports.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// Whether a running agent said it; otherwise it is what lies on the disk.
    #[serde(default)]
    live: bool,
    /// The queue and its books.
    queue: QueueStatus,
    /// The delivery; only a running agent has one.
    delivery: Option<DeliveryStatus>,
}

/// Runs `picket cache …`.
pub(super) fn run(context: &Context<'_>, command: CacheCommand) -> Result<ExitCode, CommandError> {
    match command {
        CacheCommand::Status(json) => status(context, &json),
        CacheCommand::Clean(args) => clean(context, &args),
    }
}

fn status(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let Some(report) = look(context)? else {
        if json.json {
            context.output.json(&serde_json::Value::Null);
        } else {
            context.output.say("there is no queue yet; the agent makes it when it first starts");
        }
        return Ok(ExitCode::Success);
    };
    if json.json {
        context.output.json(&report);
    } else {
        show(context, &report);
    }
    Ok(if report.queue.ledger_holds { ExitCode::Success } else { ExitCode::Damaged })
}

/// The queue as the agent has it, or as it lies on the disk when none runs.
fn look(context: &Context<'_>) -> Result<Option<Report>, CommandError> {
    let state = context.layout.state_dir().symlink_metadata();
    if state.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let running = as_owner(&context.layout, || Ok(agent_runs(context)));
    match running {
        Ok(false) => on_disk(context),
        // What waits in memory is known to the agent only, and so is the delivery.
        Ok(true) => ask_agent(context)?.map_or_else(|| on_disk(context), |report| Ok(Some(report))),
        // Whoever may not look into the folder may still ask the agent.
        Err(error) => ask_agent(context)?.map_or(Err(error), |report| Ok(Some(report))),
    }
}

fn ask_agent(context: &Context<'_>) -> Result<Option<Report>, CommandError> {
    let address = tool_settings(context)?.metrics.listen.get();
    let timeouts = Timeouts { connect: LIMIT, response: LIMIT, stall: LIMIT };
    let Ok(url) = format!("http://{address}/queue").parse() else { return Ok(None) };
    let Ok(bytes) = Client::new(&build::user_agent(), timeouts, &Network::default()).get_bytes(&url, MAX_BYTES) else {
        return Ok(None);
    };
    // Another program may have the port.
    let report = serde_json::from_slice::<Report>(&bytes).ok();
    Ok(report.map(|report| Report { live: true, ..report }))
}

fn on_disk(context: &Context<'_>) -> Result<Option<Report>, CommandError> {
    as_owner(&context.layout, || {
        let folder = context.layout.outbox_dir();
        if folder.symlink_metadata().is_err() {
            return Ok(None);
        }
        let sealer = Sealer::new(keyring(context)?)?;
        let queue = picket_outbox::inspect(&folder, &sealer)?;
        Ok(queue.map(|queue| Report { live: false, queue, delivery: None }))
    })
}

fn show(context: &Context<'_>, report: &Report) {
    let (output, queue) = (context.output, &report.queue);
    let from = if report.live { "as the agent has it" } else { "as it lies on the disk; no agent answers" };
    let waiting = queue.queued;
    let memory = if queue.in_memory > 0 { format!(", {} more in memory", queue.in_memory) } else { String::new() };
    output.field("Queue", format_args!("{} records{memory} ({from})", waiting.total()));
    output.field(
        "Waiting",
        format_args!("{} high, {} normal, {} low, {} gaps", waiting.high, waiting.normal, waiting.low, waiting.gaps),
    );
    let limit = if queue.max_bytes > 0 { format!(" of {}", size(queue.max_bytes)) } else { String::new() };
    output.field("Size", format_args!("{}{limit}", size(queue.bytes)));
    match queue.oldest_seconds {
        Some(seconds) => output.field("Oldest", format_args!("waits for {}", human(Duration::from_secs(seconds)))),
        None => output.field("Oldest", "nothing waits"),
    }
    match &report.delivery {
        Some(delivery) => show_delivery(context, delivery),
        None => output.field("Delivery", "none at present"),
    }
    output.result(format_args!(
        "{:<7} {:>12} {:>13} {:>9} {:>9}",
        "events", "emitted", "acknowledged", "queued", "missing"
    ));
    let total = queue.ledger.total();
    let classes = Priority::ALL.into_iter().rev().map(|class| (class.as_str(), queue.ledger.of(class)));
    for (name, account) in classes.chain([("all", &total)]) {
        output.result(format_args!(
            "{name:<7} {:>12} {:>13} {:>9} {:>9}",
            account.emitted,
            account.acknowledged,
            account.queued,
            account.gap_total()
        ));
    }
    for (reason, count) in &total.gaps {
        let reason = serde_json::to_value(reason).ok().and_then(|word| word.as_str().map(str::to_owned));
        output.marked(Tone::Plain, format_args!("{count} missing: {}", reason.unwrap_or_default()));
    }
    if queue.unknown_gaps > 0 {
        output.marked(Tone::Warn, format_args!("{} gaps of unknown size", queue.unknown_gaps));
    }
    if queue.untold > 0 {
        output.marked(Tone::Plain, format_args!("the receiver has not been told of {} of them yet", queue.untold));
    }
    if queue.quarantined > 0 {
        output.marked(Tone::Warn, format_args!("{} records do not open and are in quarantine", queue.quarantined));
    }
    if let Some(trouble) = &queue.trouble {
        output.marked(Tone::Bad, format_args!("nothing becomes durable: {trouble}"));
    }
    if queue.ledger_holds {
        output.marked(Tone::Good, "the books hold: emitted = acknowledged + queued + missing, in each class");
    } else {
        output.marked(Tone::Bad, "the books do not add up; keep the outbox folder and report this");
    }
}

fn show_delivery(context: &Context<'_>, delivery: &DeliveryStatus) {
    let output = context.output;
    let last = delivery.last_delivery.map_or_else(|| "nothing yet".to_owned(), |at| format!("last at {at}"));
    output.field("Delivery", format_args!("{} records in {} batches, {last}", delivery.records, delivery.batches));
    let next = delivery.next_attempt_ms.map(|ms| format!(", next attempt in {}", human(Duration::from_millis(ms))));
    output.field(
        "Breaker",
        format_args!(
            "{}, opened {} times, {} failures in a row{}",
            delivery.breaker.as_str(),
            delivery.breaker_opened,
            delivery.consecutive_failures,
            next.unwrap_or_default()
        ),
    );
    if let Some(error) = &delivery.last_error {
        output.marked(Tone::Warn, error);
    }
    if delivery.rejected > 0 {
        output.marked(Tone::Warn, format_args!("{} events the receiver will never take", delivery.rejected));
    }
}

fn clean(context: &Context<'_>, args: &CleanArgs) -> Result<ExitCode, CommandError> {
    let settings = tool_settings(context)?;
    let Some(report) = look(context)? else {
        if args.json.json {
            context.output.json(&serde_json::json!({ "dropped": 0 }));
        } else {
            context.output.say("there is no queue yet; nothing was dropped");
        }
        return Ok(ExitCode::Success);
    };
    // Who may not do it is told before being asked.
    as_owner(&context.layout, || Ok(()))?;
    let classes: Vec<Priority> = Priority::ALL.into_iter().filter(|class| *class <= args.class).collect();
    let queued: u64 = classes.iter().map(|class| report.queue.ledger.of(*class).queued).sum();
    let names: Vec<&str> = classes.iter().map(|class| class.as_str()).collect();
    let age = args.older_than.as_secs();
    let old = if age > 0 { format!(" that have waited for {}", human(args.older_than)) } else { String::new() };
    let question = format!("Drop those of {queued} queued events ({}){old}?", names.join(", "));
    let question = if age > 0 { question } else { question.replace("those of ", "") };
    // Nothing to ask about; the request is made all the same, for what came in this moment.
    context.confirm(args.yes || queued == 0, &question)?;
    let request = CleanRequest { class: args.class, older_than_seconds: age };
    let dropped = as_owner(&context.layout, || {
        Ok(picket_outbox::clean(queue(context, &settings, &keyring(context)?)?, request, LIMIT)?)
    })?;
    if args.json.json {
        context.output.json(&serde_json::json!({ "dropped": dropped }));
    } else {
        context.output.result(format_args!("dropped {dropped} events"));
        if dropped > 0 {
            context.output.say("they are counted as missing, and the receiver is told with a gap record");
        }
    }
    Ok(ExitCode::Success)
}
