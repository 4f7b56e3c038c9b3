//! `picket hub backup` and `picket hub restore`.

use super::{actor, as_hub, options, runtime, with_hub};
use crate::cli::{HubBackupArgs, HubRestoreArgs};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Bar;
use picket_hub::app::{backup as word, belonging};
use picket_hub::authority::Keys;
use picket_hub::db::{self, BackupHeader, BackupWriter, Database, DbError, OnRows, Restore, Sink, Source, Verified};
use picket_hub::life::StartError;
use serde_json::json;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long one statement may take where everything is read or written: as long as it takes.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// A database for work on all of it, also one whose data moved.
pub(super) fn whole() -> db::Options {
    db::Options { connections: 2, statement: PATIENCE, even_closed: true, ..db::Options::default() }
}

pub(super) fn failed(error: DbError) -> CommandError {
    Box::new(StartError::Database(error)).into()
}

/// Shows the rows of one table after the other.
pub(super) fn shown(bar: Bar) -> OnRows {
    Arc::new(move |table, rows| bar.count(rows, None, &format!("rows of {table}")))
}

/// A file that is read from its beginning as often as asked, with the rights with which it was opened.
struct Reread {
    file: Arc<File>,
    at: u64,
}

impl Read for Reread {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Takes a backup.
pub(super) fn backup(context: &Context<'_>, args: &HubBackupArgs) -> Result<ExitCode, CommandError> {
    // Opened as whoever calls: the place is theirs to choose. Nothing is written over: it may be the only good backup.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&args.file).map_err(|error| {
        let way_out = match error.kind() {
            std::io::ErrorKind::AlreadyExists => " (give a name that is not taken)",
            std::io::ErrorKind::NotFound => " (make its folder first)",
            _ => "",
        };
        CommandError::system(format!("cannot make {}{way_out}", args.file.display()), error)
    })?;
    let made = write(context, args, &file);
    let (header, totals) = match made {
        Ok(made) => made,
        Err(error) => {
            let _ = picket_durable::remove_if_present(&args.file);
            return Err(error);
        }
    };
    file.sync_all().map_err(|error| CommandError::system(format!("cannot write {}", args.file.display()), error))?;
    if let Some(folder) = args.file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        picket_durable::sync_dir(folder)?;
    }
    let bytes = file.metadata().map_or(0, |meta| meta.len());
    let keys = context.layout.hub_keys_dir();
    let output = context.output;
    if args.json.json {
        output.json(&json!({
            "file": args.file, "bytes": bytes, "created_at": header.created_at, "database": header.backend,
            "rows": totals.tables, "keys_included": false, "keys": keys,
        }));
    } else {
        let rows: u64 = totals.tables.values().sum();
        output.field("backup", args.file.display());
        output.field("taken at", header.created_at);
        output.field("rows", rows);
        output.field("events", totals.tables.get("events").copied().unwrap_or_default());
        output.field("bytes", bytes);
        output.hint("it holds hashes of passwords and tokens, and sealed keys: keep it as you keep those");
        output.hint(format_args!(
            "the keys are not in it: keep a copy of {} apart from it; without them no agent comes back",
            keys.display()
        ));
    }
    Ok(ExitCode::Success)
}

fn write(
    context: &Context<'_>,
    args: &HubBackupArgs,
    file: &File,
) -> Result<(BackupHeader, db::BackupTotals), CommandError> {
    let bar = context.output.bar();
    let by = actor(context);
    let name = args.file.display().to_string();
    let written = as_hub(context, || {
        let (options, _) = options(context)?;
        there(&options.database)?;
        let keys = options.keys.load().map_err(|error| Box::new(StartError::Keys(error)))?;
        let out = file.try_clone().map_err(|error| CommandError::system(format!("cannot write {name}"), error))?;
        runtime()?.block_on(async {
            let db = db::open(&options.database, &whole()).await.map_err(failed)?;
            let written = snapshot(&*db, &keys, options.build.version.to_string(), out, shown(bar)).await;
            let closed = db.closed().await.map_err(failed)?;
            db.close().await;
            written.map(|written| (written, closed.is_some()))
        })
    })?;
    let ((header, totals), closed) = written;
    // What is left of a database whose data moved takes no entry.
    if !closed {
        with_hub(context, async |hub| {
            let details = json!({ "taken_at": header.created_at });
            Ok(hub.audit(&by, "hub.backup", &name, details).await?)
        })?;
    }
    Ok((header, totals))
}

async fn snapshot(
    db: &dyn Database,
    keys: &Keys,
    version: String,
    out: File,
    progress: OnRows,
) -> Result<(BackupHeader, db::BackupTotals), CommandError> {
    let stats = db.stats(db::TenantId::DEFAULT).await.map_err(failed)?;
    let header = BackupHeader {
        // Before the view is opened: what is issued from now on may not be in it.
        created_at: jiff::Timestamp::now(),
        version,
        backend: db.backend().as_str().to_owned(),
        schema: stats.schema,
        command_key: keys.command_key(),
    };
    let writer = BackupWriter::new(Box::new(BufWriter::new(out)) as Sink, &header).map_err(failed)?;
    let (writer, totals) = db.export(writer, progress).await.map_err(failed)?;
    let signature = word::sign(keys, writer.digest(), &header);
    let mut out = writer.finish(&signature).map_err(failed)?;
    out.flush().map_err(|error| CommandError::system("cannot write the backup", error))?;
    Ok((header, totals))
}

/// A database that is not there is not made by looking at it.
fn there(database: &str) -> Result<(), CommandError> {
    match db::Location::parse(database).map_err(failed)? {
        db::Location::Sqlite(path) if !path.exists() => Err(CommandError::system(
            format!("there is no database at {}; see what database says in hub.yaml", path.display()),
            std::io::ErrorKind::NotFound.into(),
        )),
        _ => Ok(()),
    }
}

/// Puts a backup in the database's place.
pub(super) fn restore(context: &Context<'_>, args: &HubRestoreArgs) -> Result<ExitCode, CommandError> {
    let opened = File::open(&args.file);
    let file = opened.map_err(|error| CommandError::system(format!("cannot open {}", args.file.display()), error))?;
    let file = Arc::new(file);
    let source: Source =
        Arc::new(move || Ok(Box::new(BufReader::with_capacity(1 << 18, Reread { file: Arc::clone(&file), at: 0 }))));
    context.output.say("verifying the backup");
    let verified = db::verify(&source).map_err(failed)?;
    let by = actor(context);
    let keys_dir = context.layout.hub_keys_dir();
    let bar = context.output.bar();
    let restored = as_hub(context, || {
        let (options, _) = options(context)?;
        let keys = options.keys.load().map_err(|error| Box::new(StartError::Keys(error)))?;
        let is_ours = word::is_ours(&keys, &verified);
        if !args.other_keys && !is_ours {
            return Err(CommandError::OtherHubsBackup(keys_dir.clone()));
        }
        let recorded = keys.revocations.read().map_err(|error| Box::new(StartError::Keys(error)))?;
        if recorded.unreadable > 0 {
            let file = keys_dir.join(picket_hub::authority::REVOKED);
            context.output.warn(format_args!("{} lines of {} cannot be read", recorded.unreadable, file.display()));
        }
        let wish = Restore {
            replace: args.replace,
            now: jiff::Timestamp::now(),
            taken: verified.header.created_at,
            days: verified.totals.days.clone(),
            revoked: recorded.records,
            adopted: (!is_ours).then(|| belonging::kept_as(&keys.pins())),
        };
        let whole = whole();
        let restoring = db::restore(&options.database, &whole, source, verified.digest, wish, shown(bar));
        runtime()?.block_on(restoring).map_err(failed)
    })?;
    // Whatever comes now: the database is another one, and whoever asked must know where the former one is.
    tell(context, args, &verified, &restored);
    with_hub(context, async |hub| {
        let details = json!({
            "taken_at": verified.header.created_at, "by_version": verified.header.version,
            "from": verified.header.backend, "replaced": args.replace, "revocations": restored.revoked,
            "other_keys": args.other_keys,
        });
        Ok(hub.audit(&by, "hub.restore", &args.file.display().to_string(), details).await?)
    })?;
    Ok(ExitCode::Success)
}

fn tell(context: &Context<'_>, args: &HubRestoreArgs, verified: &Verified, restored: &db::Restored) {
    let output = context.output;
    let kept = restored.kept.as_deref().map(Path::display);
    if args.json.json {
        output.json(&json!({
            "taken_at": verified.header.created_at, "from": verified.header.backend, "rows": restored.totals.tables,
            "revocations": restored.revoked, "kept": restored.kept, "unread": restored.unread,
        }));
        return;
    }
    let rows: u64 = restored.totals.tables.values().sum();
    output.field("taken at", verified.header.created_at);
    output.field("rows", rows);
    output.field("revocations held to", restored.revoked);
    if let Some(kept) = kept {
        output.field("the former database", kept);
        output.hint("remove it when you are content");
    }
    if let Some(why) = &restored.unread {
        output.warn(format_args!(
            "the former database could not be asked what it had revoked ({why}): the record beside the keys alone was held to"
        ));
    }
    if args.other_keys {
        output.hint("agents that were enrolled with other keys than this hub's have to enrol again");
        output.hint("what was sealed with other keys does not open: make web hooks anew");
    }
    output.hint("tokens to enrol and links to set a password are void; people sign in again");
    output.hint("start the hub with: picket service start, or picket hub serve");
}
