//! What was there when last looked: names and numbers of every watched file, in a small database of their own.
//!
//! The files form a tree: a row holds its parent's id and its own name, so that the rename of a folder is one row, and
//! what the kernel says of an inode stays attached to its row wherever that moves. No content is kept. The database can
//! be rebuilt from the file system, so it is written with `synchronous=NORMAL`: a power cut costs the last moments of
//! it, and the next start finds them again as differences.

use crate::stat::{DIRECTORY, Stat};
use picket_durable::create_new;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The row of a file.
pub(crate) type Id = i64;

/// The parent of the configured paths, whose names are whole paths.
pub(crate) const TOP: Id = 0;

/// The form of the tables; a file of another form is made anew.
const FORM: i32 = 1;

/// How many folders' paths are kept at hand.
const PATHS_KEPT: usize = 4096;

/// The baseline could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the baseline of watched files {}", path.display())]
pub struct BaselineError {
    /// What was tried.
    pub operation: &'static str,
    /// The database.
    pub path: PathBuf,
    /// What the database or the system said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

type Result<T, E = rusqlite::Error> = std::result::Result<T, E>;

/// A file of the baseline.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) id: Id,
    pub(crate) parent: Id,
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
}

/// How the baseline was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// As it was left, or not at all.
    Whole,
    /// Damaged: it was thrown away, and what it knew is lost.
    Damaged,
}

/// Why a database was not opened.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// What is in it is no baseline (any more).
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Something else is in the way, and what is in it may be whole.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Failed(error.into()),
        }
    }
}

/// The tree of all watched files.
pub(crate) struct Baseline {
    connection: Connection,
    in_transaction: bool,
    paths: HashMap<Id, Arc<[u8]>>,
}

impl Baseline {
    /// Opens the database in `folder`, made with mode 0600 if absent. One that is damaged is made anew; one that cannot
    /// be opened for another reason (a full disk, no descriptors left, a disk that fails) is left as it is.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Found), BaselineError> {
        let path = folder.join("files.db");
        match Self::open_file(&path) {
            Ok(baseline) => Ok((baseline, Found::Whole)),
            Err(Refused::Failed(source)) => Err(BaselineError { operation: "open", path, source }),
            Err(Refused::Damaged(reason)) => {
                tracing::warn!(reason, path = %path.display(), "the baseline of watched files is made anew");
                for name in ["files.db", "files.db-wal", "files.db-shm"] {
                    let _ = std::fs::remove_file(folder.join(name));
                }
                match Self::open_file(&path) {
                    Ok(baseline) => Ok((baseline, Found::Damaged)),
                    Err(refused) => Err(BaselineError { operation: "make anew", path, source: refused.into() }),
                }
            }
        }
    }

    fn open_file(path: &Path) -> Result<Self, Refused> {
        if !path.try_exists().map_err(|error| Refused::Failed(error.into()))? {
            create_new(path, 0o600).map_err(|error| Refused::Failed(error.into()))?;
        }
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        // 8 MiB of pages: the working set of a busy tree, and a bound.
        connection.pragma_update(None, "cache_size", -8192)?;
        connection.set_prepared_statement_cache_capacity(32);
        let form: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if form != FORM && form != 0 {
            return Err(Refused::Damaged(format!("it has form {form}, and this version writes form {FORM}")));
        }
        // Only when it is new: a disk that is full lets us read what is there.
        if form == 0 {
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS node (
                     id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL,
                     dev INTEGER NOT NULL, ino INTEGER NOT NULL, btime INTEGER NOT NULL, mode INTEGER NOT NULL,
                     uid INTEGER NOT NULL, gid INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
                     ctime INTEGER NOT NULL, UNIQUE (parent, name)) STRICT;
                 CREATE INDEX IF NOT EXISTS node_ino ON node (ino);
                 CREATE TABLE IF NOT EXISTS root (id INTEGER PRIMARY KEY) STRICT;",
            )?;
            connection.pragma_update(None, "user_version", FORM)?;
        }
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(Refused::Damaged(check));
        }
        Ok(Self { connection, in_transaction: false, paths: HashMap::new() })
    }

    /// Lets go of the file before it is opened again. `SQLite` removes the write-ahead log by its name when the last that
    /// has the database open closes it; if the file was made anew by then, that would be the new one's.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        self.connection = Connection::open_in_memory()?;
        self.in_transaction = false;
        self.paths.clear();
        Ok(())
    }

    /// Whether a page can be written now.
    pub(crate) fn try_to_write(&self) -> Result<()> {
        self.connection.pragma_update(None, "user_version", FORM)
    }

    /// Opens a transaction unless one is open: every change goes into one, and [`Self::commit`] ends it.
    fn begin(&mut self) -> Result<()> {
        if !self.in_transaction {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Whether there is something to commit.
    pub(crate) fn is_dirty(&self) -> bool {
        self.in_transaction
    }

    /// Ends the transaction, if one is open.
    pub(crate) fn commit(&mut self) -> Result<()> {
        if self.in_transaction {
            self.connection.execute_batch("COMMIT")?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// Gives up what was not committed, after an error.
    pub(crate) fn roll_back(&mut self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        self.in_transaction = false;
        self.paths.clear();
    }

    /// The file called `name` in the folder.
    pub(crate) fn child(&self, parent: Id, name: &[u8]) -> Result<Option<Node>> {
        let sql = "SELECT * FROM node WHERE parent = ?1 AND name = ?2";
        self.connection.prepare_cached(sql)?.query_row(params![parent, name], read).optional()
    }

    /// The file with that id.
    pub(crate) fn node(&self, id: Id) -> Result<Option<Node>> {
        self.connection.prepare_cached("SELECT * FROM node WHERE id = ?1")?.query_row([id], read).optional()
    }

    /// The first child of a folder, in no order.
    pub(crate) fn any_child(&self, parent: Id) -> Result<Option<Node>> {
        self.connection
            .prepare_cached("SELECT * FROM node WHERE parent = ?1 LIMIT 1")?
            .query_row([parent], read)
            .optional()
    }

    /// The ids of all children of a folder.
    pub(crate) fn children(&self, parent: Id) -> Result<Vec<Id>> {
        self.connection
            .prepare_cached("SELECT id FROM node WHERE parent = ?1")?
            .query_map([parent], |row| row.get(0))?
            .collect()
    }

    /// Files whose inode has that number: at most 16, the rest would be hard links of one file.
    pub(crate) fn with_inode(&self, ino: u64) -> Result<Vec<Node>> {
        self.connection
            .prepare_cached("SELECT * FROM node WHERE ino = ?1 LIMIT 16")?
            .query_map([ino.cast_signed()], read)?
            .collect()
    }

    /// Adds a file. One that was there under the name must be gone.
    pub(crate) fn insert(&mut self, parent: Id, name: &[u8], stat: &Stat) -> Result<Id> {
        self.begin()?;
        self.connection
            .prepare_cached(
                "INSERT INTO node (parent, name, dev, ino, btime, mode, uid, gid, size, mtime, ctime)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?
            .insert(params![
                parent,
                name,
                stat.dev.cast_signed(),
                stat.ino.cast_signed(),
                stat.btime,
                stat.mode,
                stat.uid,
                stat.gid,
                stat.size.cast_signed(),
                stat.mtime,
                stat.ctime
            ])
    }

    /// Keeps what was seen of a file.
    pub(crate) fn update(&mut self, id: Id, stat: &Stat) -> Result<()> {
        self.begin()?;
        self.connection
            .prepare_cached(
                "UPDATE node SET dev = ?2, ino = ?3, btime = ?4, mode = ?5, uid = ?6, gid = ?7, size = ?8,
                 mtime = ?9, ctime = ?10 WHERE id = ?1",
            )?
            .execute(params![
                id,
                stat.dev.cast_signed(),
                stat.ino.cast_signed(),
                stat.btime,
                stat.mode,
                stat.uid,
                stat.gid,
                stat.size.cast_signed(),
                stat.mtime,
                stat.ctime
            ])
            .map(drop)
    }

    /// Takes one file out. Its children must be gone.
    pub(crate) fn remove(&mut self, id: Id) -> Result<()> {
        self.begin()?;
        self.paths.remove(&id);
        self.connection.prepare_cached("DELETE FROM node WHERE id = ?1")?.execute([id]).map(drop)
    }

    /// Gives a file another name, and with it all that lies below. Nothing may be there under that name.
    pub(crate) fn rename(&mut self, node: &Node, parent: Id, name: &[u8]) -> Result<()> {
        self.begin()?;
        if node.stat.is_directory() {
            self.paths.clear();
        }
        let sql = "UPDATE node SET parent = ?2, name = ?3 WHERE id = ?1";
        self.connection.prepare_cached(sql)?.execute(params![node.id, parent, name]).map(drop)
    }

    /// Whether `id` lies in the folder `above`, or is it.
    pub(crate) fn is_within(&self, id: Id, above: Id) -> Result<bool> {
        let mut at = id;
        while at != TOP {
            if at == above {
                return Ok(true);
            }
            let sql = "SELECT parent FROM node WHERE id = ?1";
            at = self.connection.prepare_cached(sql)?.query_row([at], |row| row.get(0)).optional()?.unwrap_or(TOP);
        }
        Ok(false)
    }

    /// The whole path of a folder.
    pub(crate) fn path(&mut self, id: Id) -> Result<Arc<[u8]>> {
        if let Some(path) = self.paths.get(&id) {
            return Ok(Arc::clone(path));
        }
        let mut names = Vec::new();
        let mut at = id;
        while at != TOP {
            let Some(node) = self.node(at)? else { break };
            at = node.parent;
            names.push(node.name);
        }
        let mut path = names.pop().unwrap_or_default();
        for name in names.iter().rev() {
            path = join(&path, name);
        }
        let path: Arc<[u8]> = path.into();
        if self.paths.len() >= PATHS_KEPT {
            self.paths.clear();
        }
        self.paths.insert(id, Arc::clone(&path));
        Ok(path)
    }

    /// The whole path of `name` in a folder.
    pub(crate) fn path_of(&mut self, parent: Id, name: &[u8]) -> Result<Vec<u8>> {
        if parent == TOP { Ok(name.to_vec()) } else { Ok(join(&self.path(parent)?, name)) }
    }

    /// Whether a configured path was looked through wholly once: from then on, what is new in it is told.
    pub(crate) fn is_complete(&self, root: Id) -> Result<bool> {
        let sql = "SELECT 1 FROM root WHERE id = ?1";
        Ok(self.connection.prepare_cached(sql)?.query_row([root], |_| Ok(())).optional()?.is_some())
    }

    /// Marks a configured path as looked through wholly, or as not.
    pub(crate) fn set_complete(&mut self, root: Id, complete: bool) -> Result<()> {
        self.begin()?;
        let sql =
            if complete { "INSERT OR IGNORE INTO root (id) VALUES (?1)" } else { "DELETE FROM root WHERE id = ?1" };
        self.connection.prepare_cached(sql)?.execute([root]).map(drop)
    }
}

/// A path and a name below it.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(path.len() + 1 + name.len());
    whole.extend_from_slice(path);
    if !whole.ends_with(b"/") {
        whole.push(b'/');
    }
    whole.extend_from_slice(name);
    whole
}

/// What stands for a file that was gone before anybody could look.
pub(crate) fn ghost(is_directory: bool) -> Stat {
    Stat { mode: if is_directory { DIRECTORY } else { 0 }, ..Stat::default() }
}

fn read(row: &Row) -> Result<Node> {
    Ok(Node {
        id: row.get(0)?,
        parent: row.get(1)?,
        name: row.get(2)?,
        stat: Stat {
            dev: row.get::<_, i64>(3)?.cast_unsigned(),
            ino: row.get::<_, i64>(4)?.cast_unsigned(),
            btime: row.get(5)?,
            mode: row.get(6)?,
            uid: row.get(7)?,
            gid: row.get(8)?,
            size: row.get::<_, i64>(9)?.cast_unsigned(),
            mtime: row.get(10)?,
            ctime: row.get(11)?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn baseline() -> (tempfile::TempDir, Baseline) {
        let folder = tempfile::tempdir().unwrap();
        let (baseline, found) = Baseline::open(folder.path()).unwrap();
        assert_eq!(found, Found::Whole);
        (folder, baseline)
    }

    #[test]
    fn a_renamed_folder_takes_all_below_along_and_keeps_its_ids() {
        let (_folder, mut base) = baseline();
        let root = base.insert(TOP, b"/w", &ghost(true)).unwrap();
        let a = base.insert(root, b"a", &ghost(true)).unwrap();
        let file = base.insert(a, b"\xff", &ghost(false)).unwrap();
        assert_eq!(base.path_of(a, b"\xff").unwrap(), b"/w/a/\xff");
        let node = base.node(a).unwrap().unwrap();
        base.rename(&node, root, b"b").unwrap();
        assert_eq!(base.path_of(a, b"\xff").unwrap(), b"/w/b/\xff");
        assert_eq!(base.child(a, b"\xff").unwrap().unwrap().id, file);
        assert!(base.is_within(file, root).unwrap() && !base.is_within(root, a).unwrap());
    }

    #[test]
    fn what_was_committed_is_there_again_and_only_for_its_owner() {
        let (folder, mut base) = baseline();
        let root = base.insert(TOP, b"/", &Stat { ino: u64::MAX, size: u64::MAX, ..ghost(true) }).unwrap();
        base.set_complete(root, true).unwrap();
        base.commit().unwrap();
        base.insert(root, b"lost", &ghost(false)).unwrap();
        drop(base);
        let (mut base, found) = Baseline::open(folder.path()).unwrap();
        assert_eq!(found, Found::Whole);
        assert!(base.is_complete(root).unwrap());
        assert_eq!(base.node(root).unwrap().unwrap().stat.size, u64::MAX);
        assert_eq!(base.child(root, b"lost").unwrap(), None);
        assert_eq!(base.path_of(root, b"x").unwrap(), b"/x");
        let mode = std::fs::metadata(folder.path().join("files.db")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_baseline_is_made_anew_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        picket_durable::write_atomic(&folder.path().join("files.db"), &[7; 8192], 0o600).unwrap();
        let (base, found) = Baseline::open(folder.path()).unwrap();
        assert_eq!(found, Found::Damaged);
        assert_eq!(base.children(TOP).unwrap(), Vec::<Id>::new());
    }

    #[test]
    fn a_baseline_that_cannot_be_opened_just_now_is_not_thrown_away() {
        let (folder, mut base) = baseline();
        let root = base.insert(TOP, b"/w", &ghost(true)).unwrap();
        base.commit().unwrap();
        drop(base);
        // SQLITE_CANTOPEN, as with no descriptors left.
        let log = folder.path().join("files.db-wal");
        std::fs::create_dir(&log).unwrap();
        assert!(Baseline::open(folder.path()).is_err());
        std::fs::remove_dir(&log).unwrap();
        let (base, found) = Baseline::open(folder.path()).unwrap();
        assert_eq!(found, Found::Whole);
        assert_eq!(base.child(TOP, b"/w").unwrap().unwrap().id, root);
    }

    #[test]
    fn a_baseline_that_is_there_is_opened_without_writing_to_it() {
        let (folder, base) = baseline();
        // Whoever writes has to wait for this one: as little can be written as to a full disk.
        base.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(Baseline::open(folder.path()).unwrap().1, Found::Whole);
    }

    #[test]
    fn a_baseline_of_another_form_is_made_anew() {
        let (folder, base) = baseline();
        base.connection.pragma_update(None, "user_version", FORM + 1).unwrap();
        drop(base);
        assert_eq!(Baseline::open(folder.path()).unwrap().1, Found::Damaged);
    }
}
