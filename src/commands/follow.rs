//! Asking the updater that the service manager owns, and following it: safe to break off, it goes on.

use super::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::{Bar, Tone, human};
use picket_protocol::UpdateOutcome;
use picket_service::Registrar;
use picket_update::progress::{Event, Line, Trouble};
use picket_update::request::Request;
use semver::Version;
use serde_json::json;
use std::time::{Duration, Instant};

/// How often the progress is read.
const LOOK: Duration = Duration::from_millis(100);
/// How long an updater that ended without a word may take to have its last words seen.
const GRACE: Duration = Duration::from_secs(1);
/// The largest progress that is read, in bytes.
const MAX_BYTES: u64 = 8 << 20;

/// How what was asked for ended.
pub(super) struct Followed {
    /// How the update ended; `None` when there was nothing to do.
    pub(super) outcome: Option<UpdateOutcome>,
    /// The version that is proven now.
    pub(super) version: Option<Version>,
    /// In words.
    pub(super) reason: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
    /// What kept the updater from deciding, where something did.
    pub(super) trouble: Option<Trouble>,
}

/// Leaves `request` for the updater, starts it, and follows it to its end.
///
/// # Errors
/// When the updater cannot be started, or ends without an answer.
pub(super) fn ask_updater(context: &Context<'_>, request: &Request) -> Result<Followed, CommandError> {
    let registrar = picket_service::registrar(&context.layout);
    request.leave(context.layout.update_dir())?;
    registrar.start_updater().inspect_err(|_| {
        // What nobody takes up must not surprise anybody later.
        let _ = Request::take(context.layout.update_dir());
    })?;
    let mut view = View { context, bar: context.output.bar(), shown: 0, step: None };
    let mut silent_since = Instant::now();
    loop {
        if let Some(finished) = view.advance(&request.id) {
            view.bar.clear();
            return Ok(finished);
        }
        if is_at_work(context, registrar.as_ref())? {
            silent_since = Instant::now();
        } else if Request::is_waiting(context.layout.update_dir()) {
            // An updater that was just ending did not see it: start another one.
            registrar.start_updater()?;
        } else if silent_since.elapsed() > GRACE {
            view.bar.clear();
            return Err(CommandError::UpdaterGone);
        }
        std::thread::sleep(LOOK);
    }
}

fn is_at_work(context: &Context<'_>, registrar: &dyn Registrar) -> Result<bool, CommandError> {
    let waiting = Request::is_waiting(context.layout.update_dir());
    Ok(!waiting && registrar.updater_is_running()?)
}

/// What has been shown so far.
struct View<'a> {
    context: &'a Context<'a>,
    bar: Bar,
    shown: usize,
    step: Option<(String, Instant)>,
}

impl View<'_> {
    /// Shows what is new since the last call; returns the end once it is there.
    fn advance(&mut self, id: &str) -> Option<Followed> {
        let bytes = picket_durable::read_if_present(&self.context.layout.update_progress(), MAX_BYTES).ok()??;
        let text = String::from_utf8_lossy(&bytes);
        // A line that is still being written has no newline yet, and is read the next time.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = complete.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let ours = lines.skip_while(|line| !matches!(&line.event, Event::Started { request: Some(r) } if r == id));
        let fresh: Vec<Line> = ours.skip(self.shown).collect();
        for line in fresh {
            self.shown += 1;
            if let Some(finished) = self.show(line.event) {
                return Some(finished);
            }
        }
        None
    }

    fn show(&mut self, event: Event) -> Option<Followed> {
        match event {
            Event::Started { .. } => {}
            Event::Update { from, to, .. } => self.say(&format!("Updating from {from} to {to}")),
            Event::Step { step, text } => {
                self.end_step();
                self.say(&format!("{step:>9}  {text}"));
                self.step = Some((step, Instant::now()));
            }
            Event::Download { done, total } => self.bar.bytes(done, total),
            Event::Gate { elapsed_ms, ready, left_ms } => {
                let elapsed = human(Duration::from_millis(elapsed_ms));
                self.bar.text(match (ready, left_ms) {
                    (false, _) => format!("waiting for it to become ready ({elapsed})"),
                    (true, Some(0)) => format!("all is well so far; finishing the last checks ({elapsed})"),
                    (true, Some(left)) => format!("all is well so far; {} left", human(Duration::from_millis(left))),
                    (true, None) => format!("watching ({elapsed})"),
                });
            }
            Event::Note { text } => self.say(&format!("{:>9}  {text}", "")),
            Event::Finished { outcome, version, reason, hint, trouble } => {
                self.end_step();
                return Some(Followed { outcome, version, reason, hint, trouble });
            }
        }
        None
    }

    fn end_step(&mut self) {
        self.bar.clear();
        if let Some((step, began)) = self.step.take()
            && began.elapsed() > Duration::from_secs(1)
        {
            self.context.output.say(format_args!("{:>9}  {step} took {}", "", human(began.elapsed())));
        }
    }

    fn say(&self, text: &str) {
        self.bar.clear();
        self.context.output.say(text);
    }
}

/// Prints how it ended, and chooses the exit code.
pub(super) fn report(context: &Context<'_>, followed: &Followed, as_json: bool) -> ExitCode {
    let Followed { outcome, version, reason, hint, trouble } = followed;
    if as_json {
        let told = json!({
            "outcome": outcome, "version": version, "reason": reason, "hint": hint, "trouble": trouble,
        });
        context.output.json(&told);
    } else {
        let tone = match (outcome, trouble) {
            (Some(UpdateOutcome::Committed), _) => Tone::Good,
            (None, None) => Tone::Plain,
            (Some(_), _) | (None, Some(_)) => Tone::Bad,
        };
        context.output.marked(tone, headline(*outcome, version.as_ref(), reason));
        if let Some(hint) = hint {
            context.output.hint(hint);
        }
    }
    exit_code(*outcome, *trouble)
}

fn headline(outcome: Option<UpdateOutcome>, version: Option<&Version>, reason: &str) -> String {
    let runs = version.map(|version| format!(" Version {version} runs.")).unwrap_or_default();
    match outcome {
        Some(UpdateOutcome::Committed) | None => reason.to_owned(),
        Some(UpdateOutcome::RolledBack) => format!("rolled back: {reason}.{runs}"),
        Some(UpdateOutcome::Refused) => format!("not tried: {reason}.{runs}"),
        Some(UpdateOutcome::Interrupted) => format!("interrupted: {reason}.{runs}"),
    }
}

fn exit_code(outcome: Option<UpdateOutcome>, trouble: Option<Trouble>) -> ExitCode {
    match (outcome, trouble) {
        (Some(UpdateOutcome::Committed), _) | (None, None) => ExitCode::Success,
        (Some(UpdateOutcome::RolledBack), _) => ExitCode::RolledBack,
        (Some(UpdateOutcome::Interrupted), _) => ExitCode::Interrupted,
        (_, Some(Trouble::Untrusted)) => ExitCode::Untrusted,
        (_, Some(Trouble::Network)) => ExitCode::Network,
        (Some(UpdateOutcome::Refused), _) | (None, Some(Trouble::Refused)) => ExitCode::NotTried,
        (None, Some(Trouble::Machine)) => ExitCode::Failure,
    }
}
