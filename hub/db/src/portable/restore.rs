//! Putting a backup in a database's place: all of it or nothing.

use super::closed::{Closed, set_closed};
use super::format::{BackupHeader, BackupReader, BackupTotals, Frame};
use super::import::{Fill, cells, import, is_empty};
use super::revoked::{RevocationRecord, Standing, standing};
use super::{OnRows, Source, tables};
use crate::postgres::Postgres;
use crate::shared::{Engine as _, Tx, params};
use crate::sqlite::{Sqlite, file_of};
use crate::{DbError, Location, Options, Result};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a backup was found to be. Whether its hub is to be believed is for the caller to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What it says of itself.
    pub header: BackupHeader,
    /// What is in it.
    pub totals: BackupTotals,
    /// The SHA-256 of all that.
    pub digest: [u8; 32],
    /// What was signed.
    pub signature: String,
}

/// How a backup is restored.
#[derive(Debug, Clone)]
pub struct Restore {
    /// Replace what is there.
    pub replace: bool,
    /// The time now.
    pub now: Timestamp,
    /// When the backup was taken.
    pub taken: Timestamp,
    /// On which days its events were received.
    pub days: std::collections::BTreeSet<i32>,
    /// What must stay revoked, beside what the present database says, unless that one knows better.
    pub revoked: Vec<RevocationRecord>,
    /// For the backup of another hub: the setting, as key and value, that says whose the database is from now on. Keys that
    /// the other hub sealed are left out, as they do not open here.
    pub adopted: Option<(String, Vec<u8>)>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What is there now.
    pub totals: BackupTotals,
    /// Where the file that was replaced is kept.
    pub kept: Option<PathBuf>,
    /// Why the database that was replaced could not be asked what it had revoked.
    pub unread: Option<String>,
    /// How many revocations were held to.
    pub revoked: u64,
}

/// Reads a whole backup and sees that nothing of it is missing or changed.
///
/// # Errors
/// [`DbError::Invalid`] for one that is damaged, cut off, or of a later version.
pub fn verify(source: &Source) -> Result<Verified> {
    let wrong = |why: &str| DbError::backup(format!("it is damaged ({why}); take another one"));
    let mut reader = BackupReader::new(source()?)?;
    let Some(Frame::Header(header)) = reader.next()? else { return Err(wrong("it has no header")) };
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    let (mut table, mut totals) = (None, None);
    loop {
        match reader.next()? {
            Some(Frame::Table(frame)) => {
                if tables::find(&frame.name).is_none() {
                    let why = format!("it has a table {}, which this version of Picket does not know", frame.name);
                    return Err(DbError::backup(format!("{why}; use the one that wrote it, or a later one")));
                }
                counted.insert(frame.name.clone(), 0);
                table = Some(frame);
            }
            Some(Frame::Rows(bytes)) => {
                let table = table.as_ref().ok_or_else(|| wrong("rows without a table"))?;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    cells(&mut rest, table.columns.len())?;
                    *counted.entry(table.name.clone()).or_default() += 1;
                }
            }
            Some(Frame::Totals(told)) => totals = Some(told),
            Some(Frame::Signature(signature)) => {
                let digest = reader.digest();
                if reader.next()?.is_some() {
                    return Err(wrong("something follows its end"));
                }
                let totals: BackupTotals = totals.ok_or_else(|| wrong("it has no totals"))?;
                if totals.tables != counted {
                    return Err(wrong("rows are missing"));
                }
                return Ok(Verified { header, totals, digest, signature });
            }
            Some(Frame::Header(_)) | None => return Err(wrong("its parts are not in their order")),
        }
    }
}

/// Puts a backup in the place of whatever is at `location`. What was verified before is read again; the digest of that
/// is compared before anything becomes visible.
///
/// # Errors
/// [`DbError::Invalid`] while a hub runs on the database, and for one that is not empty, unless it is to be replaced.
/// Nothing is changed then, nor after any other error.
pub async fn restore(
    location: &str,
    options: &Options,
    source: Source,
    digest: [u8; 32],
    wish: Restore,
    progress: OnRows,
) -> Result<Restored> {
    let options = Options { even_closed: true, ..options.clone() };
    let filling = Filling { source, digest, progress };
    match Location::parse(location)? {
        Location::Sqlite(path) => into_file(&path, &options, filling, wish).await,
        Location::Postgres(url) => into_server(&url, &options, filling, wish).await,
    }
}

/// Where the rows come from.
#[derive(Clone)]
pub(super) struct Filling {
    pub(super) source: Source,
    pub(super) digest: [u8; 32],
    pub(super) progress: OnRows,
}

impl Filling {
    pub(super) fn fill(&self, tx: &mut dyn Tx, fill: &Fill) -> Result<BackupTotals> {
        let mut reader = BackupReader::new((self.source)()?)?;
        let totals = import(tx, &mut reader, fill, &self.progress)?;
        if reader.digest() == self.digest {
            Ok(totals)
        } else {
            Err(DbError::backup("it changed while it was read; nothing was restored"))
        }
    }
}

/// Refuses while a hub works on the database, and when there is something that is not to be replaced.
fn check(tx: &mut dyn Tx, wish: &Restore) -> Result<()> {
    no_hub(tx, wish.now, "restore the backup")?;
    if !wish.replace && !is_empty(tx)? {
        let why = "there is a hub's data in the database already; --replace puts the backup in its place";
        return Err(DbError::invalid("restore the backup", why));
    }
    Ok(())
}

/// Refuses while a hub works on the database: it holds leases then.
pub(super) fn no_hub(tx: &mut dyn Tx, now: Timestamp, operation: &'static str) -> Result<()> {
    let held =
        "SELECT name, expires_at FROM leases WHERE expires_at > $1 AND holder <> '' ORDER BY expires_at DESC LIMIT 1";
    let Some(row) = tx.row(held, params![now])? else { return Ok(()) };
    let (name, until) = (row.text(0)?, row.time(1)?);
    let why =
        format!("a hub runs on it, and holds {name} until {until}: stop it first; if it was killed, wait until then");
    Err(DbError::Busy { operation, why })
}

/// Makes the backup of another hub this one's.
fn adopt(tx: &mut dyn Tx, wish: &Restore) -> Result<()> {
    let Some((key, value)) = &wish.adopted else { return Ok(()) };
    tx.execute("DELETE FROM signing_keys", &[])?;
    tx.execute("DELETE FROM settings WHERE key = $1", params![key])?;
    tx.execute(
        "INSERT INTO settings (tenant_id, key, value, revision, updated_at) \
         SELECT tenant_id, $1, $2, 1, $3 FROM tenants",
        params![key, value, wish.now],
    )?;
    Ok(())
}

async fn into_server(url: &str, options: &Options, filling: Filling, wish: Restore) -> Result<Restored> {
    let engine = Postgres::open(url, options).await?;
    engine.make_days(&wish.days).await?;
    let done = engine
        .write("restore the backup", move |tx| {
            check(tx, &wish)?;
            let standing = standing(tx, wish.taken)?.settled(&wish.revoked, wish.taken);
            let revoked = standing.revoked.len() as u64;
            let fill =
                Fill { replace: true, keep_events: false, standing, restored_at: Some(wish.now), marks: Vec::new() };
            let totals = filling.fill(tx, &fill)?;
            adopt(tx, &wish)?;
            Ok(Restored { totals, kept: None, unread: None, revoked })
        })
        .await;
    engine.close().await;
    done
}

/// What stands at the path now, and was found fit to be replaced.
async fn look_at(path: &Path, options: &Options, wish: &Restore) -> Result<(Standing, Sqlite)> {
    let (path, options) = (path.to_owned(), options.clone());
    let opening = tokio::task::spawn_blocking(move || Sqlite::open(&path, &options));
    let present =
        opening.await.map_err(|error| DbError::Io { operation: "open the database", why: error.to_string() })??;
    let wish = wish.clone();
    let looked = present
        .read("read what is revoked", move |tx| {
            check(tx, &wish)?;
            standing(tx, wish.taken)
        })
        .await;
    match looked {
        Ok(standing) => Ok((standing, present)),
        Err(error) => {
            present.close().await;
            Err(error)
        }
    }
}

async fn into_file(path: &Path, options: &Options, filling: Filling, wish: Restore) -> Result<Restored> {
    let path = file_of(path)?;
    let mut unread = None;
    let present = if path.metadata().is_ok_and(|meta| meta.len() > 0) {
        match look_at(&path, options, &wish).await {
            Ok(present) => Some(present),
            Err(error @ (DbError::Corrupt { .. } | DbError::Newer { .. })) if wish.replace => {
                unread = Some(error.to_string());
                None
            }
            Err(error) => return Err(error),
        }
    } else {
        None
    };
    let (before, present) = present.map_or((Standing::default(), None), |(standing, db)| (standing, Some(db)));
    let standing = before.settled(&wish.revoked, wish.taken);
    let revoked = standing.revoked.len() as u64;
    let new = beside(&path, ".restoring");
    let now = wish.now;
    let made = make_file(&new, options, filling, standing, &wish).await;
    let totals = match made {
        Ok(totals) => totals,
        Err(error) => {
            if let Some(present) = present {
                present.close().await;
            }
            let _ = remove_files(&new);
            return Err(error);
        }
    };
    if let Some(present) = present {
        // From here on no hub stores anything in the file that goes.
        let closing = Closed::Restoring { at: now };
        let closed = present
            .write("restore the backup", move |tx| {
                no_hub(tx, now, "restore the backup")?;
                set_closed(tx, Some(&closing))
            })
            .await;
        let emptied = match closed {
            Ok(()) => present.maintain(now).await,
            Err(error) => Err(error),
        };
        present.close().await;
        if let Err(error) = emptied {
            let _ = remove_files(&new);
            return Err(error);
        }
    }
    let kept = tokio::task::spawn_blocking(move || swap(&path, &new, now, unread.is_some()).map(|kept| (kept, unread)));
    let (kept, unread) =
        kept.await.map_err(|error| DbError::Io { operation: "restore the backup", why: error.to_string() })??;
    Ok(Restored { totals, kept, unread, revoked })
}

/// Makes a new file of the backup.
async fn make_file(
    new: &Path,
    options: &Options,
    filling: Filling,
    standing: Standing,
    wish: &Restore,
) -> Result<BackupTotals> {
    remove_files(new)?;
    let (path, options) = (new.to_owned(), options.clone());
    let opening = tokio::task::spawn_blocking(move || Sqlite::open(&path, &options));
    let engine =
        opening.await.map_err(|error| DbError::Io { operation: "restore the backup", why: error.to_string() })??;
    let (wish, now) = (wish.clone(), wish.now);
    let fill =
        Arc::new(Fill { replace: false, keep_events: false, standing, restored_at: Some(now), marks: Vec::new() });
    let filled = move |tx: &mut dyn Tx| {
        let totals = filling.fill(tx, &fill)?;
        adopt(tx, &wish)?;
        Ok(totals)
    };
    let totals = engine.write("restore the backup", filled).await;
    let emptied = engine.maintain(now).await;
    engine.close().await;
    emptied.and(totals)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn io(error: &std::io::Error) -> DbError {
    DbError::Io { operation: "restore the backup", why: error.to_string() }
}

fn remove_files(path: &Path) -> Result<()> {
    for path in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// Puts the new file in the place of the old one, in one step, and keeps the old one under another name.
fn swap(path: &Path, new: &Path, now: Timestamp, damaged: bool) -> Result<Option<PathBuf>> {
    let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| io(&error));
    let folder = path.parent().unwrap_or(Path::new("/"));
    let (log, shared) = (beside(path, "-wal"), beside(path, "-shm"));
    let mut kept = None;
    if path.exists() {
        let name = beside(path, &format!(".replaced-{}", now.strftime("%Y%m%dT%H%M%SZ")));
        std::fs::hard_link(path, &name).map_err(|error| io(&error))?;
        // A log belongs to the file beside which it lies: left here, it would be played into the new one. That of a file
        // that could be read is empty by now.
        if damaged && log.exists() {
            std::fs::hard_link(&log, beside(&name, "-wal")).map_err(|error| io(&error))?;
        } else if log.metadata().is_ok_and(|meta| meta.len() > 0) {
            let why = "another process has the database open; stop it, and restore again";
            return Err(DbError::invalid("restore the backup", why));
        }
        sync(folder)?;
        kept = Some(name);
    }
    for path in [&log, &shared] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&error)),
            _ => {}
        }
    }
    sync(new)?;
    let moved = picket_durable::rename(new, path);
    moved.map_err(|error| DbError::Io { operation: "restore the backup", why: error.to_string() })?;
    Ok(kept)
}
