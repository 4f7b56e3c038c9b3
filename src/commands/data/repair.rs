//! `picket data verify` and `recover`: find what is damaged, and save the rest.

use super::super::Context;
use super::{Following, agent_runs, keyring, store_dir};
use crate::cli::{JsonArgs, VerifyDataArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::wiring::as_owner;
use picket_store::{RecoverReport, VerifyReport};

/// How many findings are listed for people; all that are named are in the JSON form.
const SHOWN: usize = 50;

/// Runs `picket data verify`.
pub(super) fn verify(context: &Context<'_>, args: &VerifyDataArgs) -> Result<ExitCode, CommandError> {
    let following = Following::begin(context, "rows")?;
    let report = as_owner(&context.layout, || {
        let dir = store_dir(context)?;
        let keyring = if args.without_key { None } else { Some(keyring(context)?) };
        Ok(picket_store::verify(&dir, keyring.as_ref(), &mut |progress| following.look(progress))?)
    })?;
    drop(following);
    if args.json.json {
        let mut value = serde_json::to_value(&report).unwrap_or_default();
        value["whole"] = report.is_whole().into();
        context.output.json(&value);
    } else {
        show_verified(context, &report);
    }
    Ok(if report.is_whole() { ExitCode::Success } else { ExitCode::Damaged })
}

fn show_verified(context: &Context<'_>, report: &VerifyReport) {
    let output = context.output;
    for finding in report.findings.iter().take(SHOWN) {
        output.marked(Tone::Bad, finding);
    }
    let more = report.findings.len().saturating_sub(SHOWN) as u64 + report.unnamed;
    if more > 0 {
        output.marked(Tone::Plain, format_args!("and {more} more"));
    }
    for note in &report.notes {
        output.marked(Tone::Warn, note);
    }
    let how = if report.opened { "checksum and seal" } else { "checksum only" };
    if report.is_whole() {
        output.marked(Tone::Good, format_args!("{} rows are as they were written ({how})", report.rows));
    } else {
        output.say(format_args!("{} rows were looked at ({how})", report.rows));
        output.hint("`picket service stop`, then `picket data recover` saves every row that is intact");
    }
}

/// Runs `picket data recover`.
pub(super) fn recover(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let following = Following::begin(context, "pages")?;
    let (report, runs) = as_owner(&context.layout, || {
        let dir = store_dir(context)?;
        let report = picket_store::recover(&dir, &keyring(context)?, &mut |progress| following.look(progress))?;
        Ok((report, agent_runs(context)))
    })?;
    drop(following);
    if json.json {
        let mut value = serde_json::to_value(&report).unwrap_or_default();
        value["rows"] = report.rows().into();
        value["missing_rows"] = report.missing_rows().into();
        value["complete"] = report.is_complete().into();
        context.output.json(&value);
    } else {
        show_recovered(context, &report);
        super::say_start(context, runs);
    }
    Ok(if report.is_complete() { ExitCode::Success } else { ExitCode::Damaged })
}

fn show_recovered(context: &Context<'_>, report: &RecoverReport) {
    let output = context.output;
    output.marked(Tone::Good, format_args!("{} rows saved", report.rows()));
    for (table, rows) in report.salvaged.iter().filter(|(_, rows)| *rows > 0) {
        output.marked(Tone::Plain, format_args!("{rows} of {table}"));
    }
    for missing in report.missing.iter().take(SHOWN) {
        let ids = match missing.last.abs_diff(missing.first) {
            0 => format!("row {}", missing.first),
            _ => format!("rows {} to {}", missing.first, missing.last),
        };
        let (tone, what) =
            if missing.known { (Tone::Bad, "lost") } else { (Tone::Warn, "not found: lost, or removed before") };
        output.marked(tone, format_args!("{ids} of {} {what}", missing.table));
    }
    if report.missing.len() > SHOWN {
        output.marked(Tone::Plain, format_args!("and {} more ranges", report.missing.len() - SHOWN));
    }
    for (table, id) in report.foreign.iter().take(SHOWN) {
        output.marked(Tone::Warn, format_args!("row {id} of {table} is whole, but does not open with this key file"));
    }
    for (pages, what) in [
        (report.broken_pages.len(), "are damaged"),
        (report.zeroed_pages.len(), "hold nothing but zeroes"),
        (report.unreadable_pages.len(), "cannot be read"),
        (report.cut_pages as usize, "at the end are no longer there"),
    ] {
        if pages > 0 {
            output.marked(Tone::Bad, format_args!("{pages} pages {what}; what was on them is lost"));
        }
    }
    if !report.is_complete() {
        output.say("not everything could be saved");
    }
    if report.lost_log_frames > 0 {
        let frames = report.lost_log_frames;
        output.marked(Tone::Warn, format_args!("{frames} frames at the end of the write-ahead log do not count"));
    }
    for kept in &report.kept {
        output.say(format_args!("what was there is kept: {}", kept.display()));
    }
}
