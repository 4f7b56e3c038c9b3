//! `picket data cleanup` and `rekey`: work on a store beside its writer.

use super::super::Context;
use super::{Following, keyring, queue, size, store_dir, tool_settings};
use crate::cli::{CleanupArgs, JsonArgs, RekeyArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::settings;
use crate::wiring::as_owner;
use jiff::Timestamp;
use picket_store::{Maintenance, Policy, StoreError, Table};
use serde_json::{Value, json};
use std::time::Duration;

const DAY: u64 = 86_400;
/// How long a running agent may take to seal the books of its queue anew.
const QUEUE_LIMIT: Duration = Duration::from_secs(10);

/// What a person's clean-up goes by: the configuration's times, shortened to `--days`; one table alone if it is named.
fn policy(args: &CleanupArgs, configured: Policy) -> Policy {
    let days = args.days.map(|days| Duration::from_secs(u64::from(days) * DAY));
    let Some(only) = args.table else {
        return days.map_or(configured.clone(), |days| configured.at_most(days));
    };
    let keep = match (days, configured.keep(only)) {
        (Some(days), Some(keep)) => Some(days.min(keep)),
        (days, keep) => days.or(keep),
    };
    let others = Table::ALL.into_iter().filter(|table| *table != only);
    // The limit of size takes rows from whichever table has the oldest.
    others.fold(configured.with_max_bytes(None), |policy, table| policy.with_keep(table, None)).with_keep(only, keep)
}

/// Runs `picket data cleanup`.
pub(super) fn clean_up(context: &Context<'_>, args: &CleanupArgs) -> Result<ExitCode, CommandError> {
    let policy = policy(args, Policy::from(&settings::data(&tool_settings(context)?)));
    let now = Timestamp::now();
    if args.dry_run || (context.process.interactive && !args.yes) {
        let following = Following::begin(context, "rows")?;
        let would = as_owner(&context.layout, || {
            let (dir, keyring, policy) = (store_dir(context)?, keyring(context)?, policy.clone());
            let watch = &mut |progress| following.look(progress);
            Ok(picket_store::rehearse_clean_up(&dir, &keyring, policy, now.as_millisecond(), watch)?)
        })?;
        drop(following);
        if args.dry_run {
            show_removed(context, &args.json, &would.removed, None);
            return Ok(ExitCode::Success);
        }
        context.confirm(false, &format!("Remove {} rows that are too old or too many?", would.rows()))?;
    }
    let following = Following::begin(context, "rows removed")?;
    let report = as_owner(&context.layout, || {
        let mut maintenance = Maintenance::open(&store_dir(context)?, &keyring(context)?)?;
        Ok(maintenance.clean_up(policy, now.as_millisecond(), &mut |progress| following.look(progress))?)
    })?;
    drop(following);
    show_removed(context, &args.json, &report.removed, Some(report.freed_bytes));
    Ok(ExitCode::Success)
}

fn show_removed(context: &Context<'_>, json: &JsonArgs, removed: &[(Table, u64)], freed: Option<u64>) {
    let (output, dry) = (context.output, freed.is_none());
    if json.json {
        let tables: serde_json::Map<String, Value> =
            removed.iter().map(|(table, rows)| (table.to_string(), (*rows).into())).collect();
        output.json(&json!({ "dry_run": dry, "removed": tables, "freed_bytes": freed }));
        return;
    }
    if removed.is_empty() {
        output.say("no row is old enough to be removed, and the store is within its size");
    }
    let verb = if dry { "would remove" } else { "removed" };
    for (table, rows) in removed {
        output.result(format_args!("{verb} {rows} rows of {table}"));
    }
    if let Some(freed) = freed.filter(|freed| *freed > 0) {
        output.say(format_args!("{} went back to the file system", size(freed)));
    }
}

/// Runs `picket data rekey`.
pub(super) fn rekey(context: &Context<'_>, args: &RekeyArgs) -> Result<ExitCode, CommandError> {
    let settings = tool_settings(context)?;
    let following = Following::begin(context, "rows")?;
    let outbox = context.layout.outbox_dir();
    let result = as_owner(&context.layout, || {
        let dir = store_dir(context)?;
        let keyring = keyring(context)?;
        let mut maintenance = Maintenance::open(&dir, &keyring)?;
        let mut asked = false;
        // The queue of events is sealed under the same keys.
        let mut needed = |key: u32| {
            if !std::mem::replace(&mut asked, true)
                && picket_outbox::keys(&outbox).is_ok_and(|keys| !keys.is_empty())
                && let Err(error) = queue(context, &settings, &keyring)
                    .and_then(|queue| Ok(picket_outbox::reseal_books(queue, QUEUE_LIMIT)?))
            {
                tracing::warn!(%error, "the books of the queue of events are not sealed anew yet");
            }
            // A queue that cannot be read may need any key.
            picket_outbox::keys(&outbox).map_or(true, |keys| keys.contains(&key))
        };
        Ok(maintenance.rekey(args.new_key, &mut needed, &mut |progress| following.look(progress)))
    })?;
    drop(following);
    if let Err(StoreError::Stopped) = result {
        context.output.hint("the store is whole; `picket data rekey` goes on where this stopped");
    }
    let report = result?;
    if args.json.json {
        context.output.json(&report);
    } else {
        let resumed = if report.resumed { ", going on where an earlier run stopped" } else { "" };
        context.output.result(format_args!("{} rows sealed anew under key {}{resumed}", report.rows, report.key));
        if let Some(made) = report.made.filter(|_| report.resumed) {
            let made = made.strftime("%Y-%m-%dT%H:%M:%SZ");
            context.output.warn(format_args!(
                "key {} is not new: the earlier run made it at {made}. For another one: picket data rekey --new-key",
                report.key
            ));
        }
        for key in &report.retired {
            context.output.result(format_args!("key {key} is forgotten"));
        }
        for key in &report.needed {
            context.output.warn(format_args!(
                "key {key} is kept: events in the queue are sealed under it. Run `picket data rekey` again once they \
                 are delivered; it makes no other key"
            ));
        }
        context.output.hint("copy the key file anew; a backup from before needs the copy of its time (restore --key)");
    }
    if report.damaged.is_empty() {
        return Ok(ExitCode::Success);
    }
    let keys: Vec<String> = report.kept.iter().map(ToString::to_string).collect();
    context.output.warn(format_args!(
        "{} rows do not open and stay as they are, and so does key {}; `picket data verify` names them",
        report.damaged.len(),
        keys.join(", ")
    ));
    Ok(ExitCode::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(args: &CleanupArgs) -> Vec<Option<u64>> {
        let policy = policy(args, Policy::default());
        Table::ALL.map(|table| policy.keep(table).map(|keep| keep.as_secs() / DAY)).to_vec()
    }

    fn args(days: Option<u32>, table: Option<Table>) -> CleanupArgs {
        CleanupArgs { days, table, dry_run: false, yes: true, json: JsonArgs::default() }
    }

    #[test]
    fn without_a_number_it_does_what_retention_does_and_with_one_no_table_is_kept_longer() {
        assert_eq!(days(&args(None, None))[..3], [Some(30), Some(30), Some(90)]);
        assert_eq!(
            days(&args(Some(45), None)),
            [Some(30), Some(30), Some(45), None, Some(7), None, Some(30), Some(45)]
        );
    }

    #[test]
    fn a_named_table_alone_is_touched_even_one_that_is_kept_for_ever() {
        let named = days(&args(Some(3), Some(Table::ConfigBackups)));
        assert_eq!(named, [None, None, None, None, None, Some(3), None, None]);
        assert_eq!(days(&args(None, Some(Table::Logs))), [None, Some(30), None, None, None, None, None, None]);
        assert_eq!(policy(&args(None, Some(Table::Logs)), Policy::default()).max_bytes(), None);
    }
}
