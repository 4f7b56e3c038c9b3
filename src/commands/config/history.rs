//! `picket config history` and `picket config diff`: what was in force, from the sealed store.
//!
//! The store keeps configuration files word for word, with the secrets they may hold, sealed under the device's key.
//! What is shown here is values, secrets left out; never a file's text.

use crate::cli::{DiffArgs, HistoryArgs, Pick};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::wiring;
use picket_agent::reload::{Change, Difference, InForce, KeyValue, changes, differences};
use picket_layout::Layout;
use picket_store::{Range, Table};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

/// The largest file of accounts that is read, in bytes.
const ACCOUNTS_MAX_BYTES: u64 = 1 << 20;

/// How many digits of a digest are shown.
const SHORT: usize = 12;

/// Shows what was in force, newest first.
pub(super) fn show(context: &Context<'_>, args: &HistoryArgs) -> Result<ExitCode, CommandError> {
    let mut entries = Vec::new();
    let unreadable = each(&context.layout, Some(args.limit), |_, entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    })?;
    if unreadable > 0 {
        context.output.warn(format_args!("{unreadable} entries cannot be read; `picket data verify` says why"));
    }
    let accounts = Accounts::read();
    if args.json.json {
        let shown: Vec<Value> = entries.iter().map(|entry| in_json(entry, &accounts)).collect();
        context.output.json(&shown);
        return Ok(ExitCode::Success);
    }
    let width = entries.iter().map(|entry| accounts.who(entry).len()).max().unwrap_or(0);
    for entry in &entries {
        let count = entry.changed.len();
        let keys = if count == 1 { "key" } else { "keys" };
        context.output.result(format_args!(
            "{}  {}  {:7}  {:width$}  {}  {count} {keys} changed",
            time(entry.at),
            plain(short(&entry.sha256)),
            entry.cause.as_str(),
            accounts.who(entry),
            plain(&entry.version),
        ));
    }
    Ok(ExitCode::Success)
}

/// Shows what differs between two entries.
pub(super) fn diff(context: &Context<'_>, args: &DiffArgs) -> Result<ExitCode, CommandError> {
    let (from, to) = (find(&context.layout, &args.from)?, find(&context.layout, &args.to)?);
    let found = differing(&from.values, &to.values);
    if args.json.json {
        let named = |entry: &InForce| json!({ "at": entry.at, "sha256": entry.sha256 });
        context.output.json(&json!({ "from": named(&from), "to": named(&to), "differences": found }));
        return Ok(ExitCode::Success);
    }
    let accounts = Accounts::read();
    for (sign, entry) in [("---", &from), ("+++", &to)] {
        let (cause, who) = (entry.cause.as_str(), accounts.who(entry));
        context.output.result(format_args!(
            "{sign} {} {} ({cause}, {who})",
            plain(short(&entry.sha256)),
            time(entry.at)
        ));
    }
    tell(context, &found);
    Ok(ExitCode::Success)
}

/// Prints differences, a line each.
pub(super) fn tell(context: &Context<'_>, found: &[Differing]) {
    if found.is_empty() {
        context.output.result("every value is the same");
    }
    let text =
        |value: &Option<Value>| value.as_ref().map_or("(not there)".to_owned(), |value| plain(&value.to_string()));
    for Differing { difference, needs_restart } in found {
        let Difference { key, from, to, hidden } = difference;
        let key = plain(key);
        let hidden = if *hidden { "  (what differs is not shown)" } else { "" };
        let restart = if *needs_restart { "  (at the next start)" } else { "" };
        context.output.result(format_args!("  {key}: {} -> {}{hidden}{restart}", text(from), text(to)));
    }
}

/// A value that differs, and when it takes effect.
#[derive(Debug, Serialize)]
pub(super) struct Differing {
    #[serde(flatten)]
    difference: Difference,
    needs_restart: bool,
}

/// What differs between two sets of values, secrets left out.
pub(super) fn differing(from: &BTreeMap<String, KeyValue>, to: &BTreeMap<String, KeyValue>) -> Vec<Differing> {
    changes(from, to).iter().flat_map(of_change).collect()
}

fn of_change(change: &Change) -> impl Iterator<Item = Differing> + use<> {
    let needs_restart = change.needs_restart;
    let found = differences(&change.key, change.from.as_ref(), change.to.as_ref()).into_iter();
    found.map(move |difference| Differing { difference, needs_restart })
}

fn in_json(entry: &InForce, accounts: &Accounts) -> Value {
    let files: Vec<&Path> = entry.files.iter().map(|file| file.path.as_path()).collect();
    let changed: Vec<Differing> = entry.changed.iter().flat_map(of_change).collect();
    json!({
        "at": entry.at,
        "sha256": entry.sha256,
        "cause": entry.cause,
        "who": accounts.who(entry),
        "version": entry.version,
        "files": files,
        "changed": changed,
    })
}

/// The entry that `pick` names.
///
/// # Errors
/// When it is not there, or a digest begins more than one configuration.
pub(super) fn find(layout: &Layout, pick: &Pick) -> Result<InForce, CommandError> {
    let mut found: Option<InForce> = None;
    let mut digests = BTreeSet::new();
    each(layout, None, |back, entry| match pick {
        Pick::Back(wanted) if *wanted == back => {
            found = Some(entry);
            ControlFlow::Break(())
        }
        Pick::Digest(prefix) if entry.sha256.starts_with(prefix) => {
            digests.insert(short(&entry.sha256).to_owned());
            found.get_or_insert(entry);
            // All are looked at, for another one may begin alike.
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    })?;
    let missing = match pick {
        Pick::Digest(prefix) if digests.len() > 1 => {
            let digests: Vec<String> = digests.into_iter().collect();
            return Err(CommandError::Usage(format!(
                "{prefix} begins more than one configuration: {}",
                digests.join(", ")
            )));
        }
        Pick::Digest(prefix) => format!("no configuration that was in force has a digest that begins {prefix}"),
        Pick::Back(0) => "no configuration was in force yet".to_owned(),
        Pick::Back(1) => "there was no configuration before the current one".to_owned(),
        Pick::Back(back) => format!("there were no {back} changes of the configuration yet"),
    };
    found.ok_or_else(|| CommandError::Usage(format!("{missing}; `picket config history` lists all")))
}

/// Gives every entry to `visit`, newest first, with how many changes back it is. Says how many cannot be read.
pub(super) fn each(
    layout: &Layout,
    limit: Option<u64>,
    mut visit: impl FnMut(u64, InForce) -> ControlFlow<()> + Send,
) -> Result<u64, CommandError> {
    wiring::read_store(layout, |reader| {
        let (mut back, mut unreadable) = (0, 0);
        // As they came into force: a clock that was wrong must not change their order.
        let range = Range { newest_first: true, as_written: true, limit, ..Range::default() };
        reader.rows(Table::ConfigBackups, &range, |row| {
            let entry = row.ok().and_then(|row| serde_json::from_slice::<InForce>(&row.payload).ok());
            let flow = match entry {
                Some(entry) => visit(back, entry),
                None => {
                    unreadable += 1;
                    ControlFlow::Continue(())
                }
            };
            back += 1;
            Ok(flow)
        })?;
        Ok(unreadable)
    })
}

/// `text` with every character escaped that a terminal would obey or that would change how the rest reads: entries come
/// from a store that the agent's user can write (Unicode's general categories Cc and Zl, Zp, and its bidirectional controls).
pub(super) fn plain(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if obeyed(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// The first digits of a digest.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..SHORT).unwrap_or(digest)
}

/// A time to the second, in UTC.
pub(super) fn time(at: jiff::Timestamp) -> impl std::fmt::Display {
    at.strftime("%Y-%m-%dT%H:%M:%SZ")
}

/// The accounts of this machine, by number.
struct Accounts(BTreeMap<u32, String>);

impl Accounts {
    /// Reads passwd(5). Accounts of a directory service are shown by their number.
    fn read() -> Self {
        let text = picket_durable::read_text(Path::new("/etc/passwd"), ACCOUNTS_MAX_BYTES).unwrap_or_default();
        let account = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        // The first name of a number is the one that counts.
        Self(text.lines().rev().filter_map(account).collect())
    }

    /// Who made a configuration: the person who restored it, or the owners of its files.
    fn who(&self, entry: &InForce) -> String {
        if let Some(by) = &entry.by {
            return plain(by);
        }
        let name = |uid: u32| self.0.get(&uid).cloned().unwrap_or_else(|| format!("user {uid}"));
        let names: BTreeSet<String> = entry.files.iter().map(|file| name(file.uid)).collect();
        if names.is_empty() { "-".to_owned() } else { names.into_iter().collect::<Vec<_>>().join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_can_command_a_terminal() {
        assert_eq!(
            plain("\u{1b}[2Jgone\u{9b}\r\n\u{202e}txt.exe"),
            "\\u{1b}[2Jgone\\u{9b}\\u{d}\\u{a}\\u{202e}txt.exe"
        );
        assert_eq!(plain("päth/ü → 日本"), "päth/ü → 日本");
    }
}
