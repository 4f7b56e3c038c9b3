//! Looking at an outbox, and having it cleaned, from another process.

use crate::damage::Contents;
use crate::database::{self, Tables};
use crate::engine::{Engine, Files, Options};
use crate::error::{OutboxError, Trouble};
use crate::lane::Lane;
use crate::marks::LedgerFile;
use crate::state::StateError;
use crate::status::{Durable, QueueStatus};
use crate::work::CleanRequest;
use picket_durable::LockError;
use picket_protocol::event::Priority;
use picket_seal::Sealer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest wish or answer that is read, in bytes.
const WISH_BYTES_MAX: u64 = 4096;

/// Root may wish and the agent's user must read it; the folder is closed to all others.
const WISH_MODE: u32 = 0o644;

/// A wish, and once it is fulfilled the answer.
#[derive(Serialize, Deserialize)]
pub(crate) struct Wish {
    request: CleanRequest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
}

/// The queue in `folder` as it stands on disk, read only: what the owner holds in memory is not in it, and the books are
/// those of the last commit. `None` if there is no outbox.
///
/// # Errors
/// When it cannot be read; nothing is changed.
pub fn inspect(folder: &Path, sealer: &Sealer) -> Result<Option<QueueStatus>, OutboxError> {
    let files = Files { folder: folder.to_owned() };
    let path = files.database();
    if !path.exists() {
        return Ok(None);
    }
    let failed = |trouble: Trouble| trouble.into_error("read", &path);
    let db = database::connect_read_only(&path).map_err(failed)?;
    // Books and rows of the same commit.
    let snapshot = db.unchecked_transaction().map_err(|error| failed(error.into()))?;
    let tables = Tables { db: &snapshot, sealer };
    let state = match tables.state() {
        Ok(Some(state)) => state,
        Ok(None) => return Ok(None),
        Err(StateError::Later(form)) => return Err(OutboxError::Later { path, form }),
        Err(StateError::Damaged) => {
            LedgerFile::read(&files.ledger(), sealer).ok_or_else(|| OutboxError::OtherKeys(path.clone()))?
        }
    };
    let stats = Contents::claimed(tables).map_err(failed)?.stats;
    let mut oldest = None;
    for lane in Lane::ALL {
        let first = tables.first_aged(lane, state.lanes[lane.index()].removed_to).map_err(failed)?;
        oldest = oldest.into_iter().chain(first).min();
    }
    let ledger = state.ledger();
    Ok(Some(Durable::read(state, stats, oldest).status(ledger, 0, 0, None)))
}

/// The numbers of the keys that the outbox in `folder` is sealed under: its books and every record in the queue. Once
/// an older key is not among them it never will be again, for the owner seals the books anew with each commit, under the
/// newest key that it knows.
///
/// # Errors
/// When it cannot be read.
pub fn keys(folder: &Path) -> Result<BTreeSet<u32>, OutboxError> {
    let path = Files { folder: folder.to_owned() }.database();
    if !path.exists() {
        return Ok(BTreeSet::new());
    }
    let failed = |trouble: Trouble| trouble.into_error("read", &path);
    let db = database::connect_read_only(&path).map_err(failed)?;
    database::keys(&db).map_err(failed)
}

/// Drops queued records and counts them as shed, whether the agent runs (it is asked to, and does within about a
/// second) or not. Says how many events those were.
///
/// # Errors
/// [`OutboxError::NotYet`] if the owner did not answer within `limit`; it may still do it.
pub fn clean(options: Options, request: CleanRequest, limit: Duration) -> Result<u64, OutboxError> {
    let files = Files { folder: options.folder.clone() };
    match Engine::open(options) {
        Ok(mut engine) => engine.clean(request),
        Err(OutboxError::Lock(LockError::Held { .. })) => ask_owner(&files, request, limit),
        Err(error) => Err(error),
    }
}

/// Has the books of the outbox in `folder` written anew, under the newest key, whether the agent runs or not; no record
/// is dropped. For a rotation of keys.
///
/// # Errors
/// Those of [`clean`].
pub fn reseal_books(options: Options, limit: Duration) -> Result<(), OutboxError> {
    clean(options, CleanRequest { class: Priority::Low, older_than_seconds: u64::MAX }, limit).map(drop)
}

fn ask_owner(files: &Files, request: CleanRequest, limit: Duration) -> Result<u64, OutboxError> {
    picket_durable::write_json(&files.wish(), &Wish { request, dropped: None }, WISH_MODE)?;
    let deadline = Instant::now() + limit;
    // Nobody sends: the wait is for time to pass.
    let (_sender, never) = std::sync::mpsc::channel::<()>();
    while Instant::now() < deadline {
        let _ = never.recv_timeout(Duration::from_millis(100));
        if let Some(Wish { dropped: Some(dropped), .. }) = read_wish(files) {
            picket_durable::remove_if_present(&files.wish())?;
            return Ok(dropped);
        }
    }
    Err(OutboxError::NotYet("the agent that owns the outbox did not answer".to_owned()))
}

fn read_wish(files: &Files) -> Option<Wish> {
    let bytes = picket_durable::read_untrusted(&files.wish(), WISH_BYTES_MAX).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

/// Does what another process wished for, once. Says what to answer, for [`answer_wish`].
pub(crate) fn fulfil_wish(engine: &mut Engine) -> Option<Wish> {
    let Wish { request, dropped: None } = read_wish(&engine.files)? else { return None };
    // Whoever wishes may have rotated the keys. A key file that cannot be read is told of by the store.
    let _ = engine.options.sealer.keyring().refresh();
    match engine.clean(request) {
        Ok(dropped) => Some(Wish { request, dropped: Some(dropped) }),
        Err(error) => {
            tracing::warn!(%error, "cannot clean the outbox; trying again");
            None
        }
    }
}

/// Tells who wished what came of it.
pub(crate) fn answer_wish(files: &Files, answer: &Wish) {
    if let Err(error) = picket_durable::write_json(&files.wish(), answer, WISH_MODE) {
        tracing::warn!(%error, "cannot answer who asked for the outbox to be cleaned");
        // Not again and again, each second.
        let _ = std::fs::remove_file(files.wish());
    }
}
