//! `picket update history`: the updates of the past, and what each decision rests on.

use super::Context;
use super::update::outcome_word;
use crate::cli::JsonArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::{Output, Tone};
use picket_protocol::update_status::UpdateOutcome;
use picket_update::Clock;
use picket_update::history::{PastUpdate, Reach, Reached};
use picket_update::journal::JournalStore;

/// Shows the last `limit` updates, or the one that `id` means.
pub(super) fn run(
    context: &Context<'_>,
    id: Option<&str>,
    limit: usize,
    json: &JsonArgs,
) -> Result<ExitCode, CommandError> {
    context.require_root("reading the history")?;
    let journals = JournalStore::new(context.layout.update_dir(), &Clock::system());
    let mut past = journals.ended().filter_map(|journal| PastUpdate::of(&journal));
    let output = context.output;
    if let Some(id) = id {
        let meant = the_one(past.collect(), id)?;
        if json.json {
            output.json(&meant);
        } else {
            detail(output, &meant);
        }
        return Ok(ExitCode::Success);
    }
    let shown: Vec<PastUpdate> = past.by_ref().take(limit).collect();
    if json.json {
        output.json(&shown);
        return Ok(ExitCode::Success);
    }
    if shown.is_empty() {
        output.say("there was no update yet");
    }
    for update in &shown {
        headline(output, update);
        let evidence = update.evidence.to_string();
        if !evidence.is_empty() {
            output.marked(Tone::Plain, evidence);
        }
    }
    if let Some(last) = shown.first() {
        output.hint(format_args!("`picket update history {}` shows everything of the newest", end_of(&last.id)));
    }
    Ok(ExitCode::Success)
}

/// The last group of a UUID: random, where its beginning is the time.
fn end_of(id: &str) -> &str {
    id.rsplit('-').next().unwrap_or(id)
}

fn the_one(past: Vec<PastUpdate>, id: &str) -> Result<PastUpdate, CommandError> {
    let matches = |update: &PastUpdate| update.id.starts_with(id) || update.id.ends_with(id);
    let mut found: Vec<PastUpdate> = past.into_iter().filter(matches).collect();
    match (found.pop(), found.len()) {
        (Some(one), 0) if !id.is_empty() => Ok(one),
        (None, _) => Err(CommandError::Usage(format!(
            "no update in the history has an id that begins or ends with {id:?}; `picket update history` lists them"
        ))),
        (Some(_), others) => Err(CommandError::Usage(format!("{id:?} is of {} updates; give more of it", others + 1))),
    }
}

fn headline(output: Output, update: &PastUpdate) {
    let tone = if update.outcome == UpdateOutcome::Committed { Tone::Good } else { Tone::Bad };
    let line = format!(
        "{}  {} to {}  {}  (asked by {}; {})",
        update.finished,
        update.from,
        update.to,
        outcome_word(update.outcome),
        update.asked_by,
        end_of(&update.id)
    );
    output.marked(tone, line);
    output.marked(Tone::Plain, &update.reason);
}

fn detail(output: Output, update: &PastUpdate) {
    headline(output, update);
    output.field("Id", &update.id);
    let seconds = |ms: u64| format!("{}.{:03} s", ms / 1000, ms % 1000);
    for phase in &update.phases {
        let took = phase.ms.map_or_else(|| "not done".to_owned(), seconds);
        output.field("Step", format_args!("{}, begun {}: {took}", phase.step.as_str(), phase.began));
    }
    let evidence = &update.evidence;
    if let Some(self_test) = &evidence.self_test {
        output.field("Self-test", self_test);
    }
    if let Some(watched) = evidence.watched_ms {
        let ready = evidence.ready_after_ms.map_or_else(|| "never".to_owned(), |ms| format!("after {}", seconds(ms)));
        output.field("Trial", format_args!("ready {ready}, decided after {}", seconds(watched)));
        output.field("Restarts", evidence.restarts);
    }
    reached(output, "Release server", &evidence.release_server);
    reached(output, "Hub", &evidence.hub);
    for check in &evidence.checks {
        output.marked(if check.worse { Tone::Bad } else { Tone::Plain }, check);
    }
    for hook in &evidence.hooks {
        let tone = match (hook.ok, hook.required) {
            (true, _) => Tone::Good,
            (false, true) => Tone::Bad,
            (false, false) => Tone::Warn,
        };
        output.marked(tone, format_args!("{}, {}: {}", hook.hook, seconds(hook.ms), hook.detail));
        hook.output.lines().for_each(|line| output.marked(Tone::Plain, format_args!("| {line}")));
    }
}

fn reached(output: Output, what: &str, both: &Reached) {
    let word = |reach: &Option<Reach>| match reach {
        None => "did not try".to_owned(),
        Some(Reach { reached: true, .. }) => "yes".to_owned(),
        Some(Reach { detail, .. }) => format!("no ({detail})"),
    };
    if both.judge.is_some() || both.candidate.is_some() {
        let (old, new) = (word(&both.judge), word(&both.candidate));
        output.field(what, format_args!("reached by the old version: {old}; by the new one: {new}"));
    }
}
