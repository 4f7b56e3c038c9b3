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
use uuid::Uuid;

/// The longest wish or answer that is read, in bytes.
const WISH_BYTES_MAX: u64 = 4096;

/// Root may wish and the agent's user must read it; the folder is closed to all others.
const WISH_MODE: u32 = 0o644;

/// The longest time that a wish holds. One that holds for longer was not written by this program.
const WISH_LIMIT: Duration = Duration::from_secs(600);
/// How long an owner that took up a wish in the last moment may work on it, beyond the limit.
const GRACE: Duration = Duration::from_secs(5);

/// A wish, and once it is fulfilled the answer. The owner takes a wish up by removing its file: until then whoever wished
/// can withdraw it, and what was withdrawn or has lapsed is never carried out.
#[derive(Serialize, Deserialize)]
pub(crate) struct Wish {
    /// Whose wish: an answer to another is not taken for one to this.
    id: Uuid,
    request: CleanRequest,
    /// The boot of the kernel in which it was wished.
    boot: String,
    /// Until when it holds, in milliseconds since that boot.
    until_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
    /// Why it could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

impl Wish {
    fn new(options: &Options, request: CleanRequest, limit: Duration) -> Self {
        let until_ms = millis(options.clock.since_boot().saturating_add(limit.min(WISH_LIMIT)));
        let (id, boot) = (Uuid::now_v7(), options.kernel_boot.clone());
        Self { id, request, boot, until_ms, dropped: None, failed: None }
    }

    fn is_answer(&self) -> bool {
        self.dropped.is_some() || self.failed.is_some()
    }

    /// What came of it.
    fn into_outcome(self) -> Result<u64, OutboxError> {
        self.dropped.ok_or_else(|| OutboxError::NotYet(self.failed.unwrap_or_default()))
    }

    /// Whether it holds still.
    fn holds(&self, options: &Options) -> bool {
        let left = self.until_ms.checked_sub(millis(options.clock.since_boot()));
        self.boot == options.kernel_boot && left.is_some_and(|left| left > 0 && left <= millis(WISH_LIMIT))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
/// [`OutboxError::NotYet`] if the owner did not answer within `limit` (ten minutes at most), and whether it may still do
/// it: a wish that it did not take up is withdrawn.
pub fn clean(options: Options, request: CleanRequest, limit: Duration) -> Result<u64, OutboxError> {
    let files = Files { folder: options.folder.clone() };
    let wish = Wish::new(&options, request, limit);
    match Engine::open(options) {
        Ok(mut engine) => engine.clean(request),
        Err(OutboxError::Lock(LockError::Held { .. })) => ask_owner(&files, &wish, limit),
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

fn ask_owner(files: &Files, wish: &Wish, limit: Duration) -> Result<u64, OutboxError> {
    picket_durable::write_json(&files.wish(), wish, WISH_MODE)?;
    if let Some(answer) = await_answer(files, wish.id, limit) {
        return answer;
    }
    if let Some(outcome) = withdraw(files, wish.id)? {
        return outcome;
    }
    await_answer(files, wish.id, GRACE).unwrap_or_else(|| {
        Err(OutboxError::NotYet("the agent that owns the outbox took it up and did not say what came of it".to_owned()))
    })
}

/// Takes the wish `id` away from the owner; `None` if the owner has it already. The name goes first, and only then is it
/// looked at what had it: an answer that came in this moment counts.
fn withdraw(files: &Files, id: Uuid) -> Result<Option<Result<u64, OutboxError>>, OutboxError> {
    let aside = files.folder.join(format!("clean.wish.{id}"));
    match picket_durable::rename(&files.wish(), &aside) {
        Err(error) if error.is_not_found() => return Ok(None),
        renamed => renamed?,
    }
    let lay = read(&aside);
    if lay.as_ref().is_some_and(|wish| wish.id != id) {
        // Somebody else's by now.
        picket_durable::rename(&aside, &files.wish())?;
        return Ok(None);
    }
    picket_durable::remove_if_present(&aside)?;
    let what = "the agent that owns the outbox did not answer; nothing was dropped, and nothing will be";
    let withdrawn = || Err(OutboxError::NotYet(what.to_owned()));
    Ok(Some(lay.filter(Wish::is_answer).map_or_else(withdrawn, Wish::into_outcome)))
}

/// What the owner says to the wish `id`; `None` if it says nothing within `limit`.
fn await_answer(files: &Files, id: Uuid, limit: Duration) -> Option<Result<u64, OutboxError>> {
    let deadline = Instant::now() + limit;
    // Nobody sends: the wait is for time to pass.
    let (_sender, never) = std::sync::mpsc::channel::<()>();
    while Instant::now() < deadline {
        let _ = never.recv_timeout(Duration::from_millis(100));
        let Some(answer) = read_wish(files).filter(|wish| wish.id == id && wish.is_answer()) else { continue };
        // The next wish would replace it just as well.
        let _ = picket_durable::remove_if_present(&files.wish());
        return Some(answer.into_outcome());
    }
    None
}

fn read_wish(files: &Files) -> Option<Wish> {
    read(&files.wish())
}

fn read(path: &Path) -> Option<Wish> {
    let bytes = picket_durable::read_untrusted(path, WISH_BYTES_MAX).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

/// Does what another process wished for, once. Says what to answer, for [`answer_wish`].
pub(crate) fn fulfil_wish(engine: &mut Engine) -> Option<Wish> {
    let mut wish = read_wish(&engine.files).filter(|wish| !wish.is_answer())?;
    // Taken up, or withdrawn in this very moment; one that cannot be removed would be carried out again and again.
    if !matches!(picket_durable::remove_if_present(&engine.files.wish()), Ok(true)) || !wish.holds(&engine.options) {
        return None;
    }
    // Whoever wishes may have rotated the keys. A key file that cannot be read is told of by the store.
    let _ = engine.options.sealer.keyring().refresh();
    match engine.clean(wish.request) {
        Ok(dropped) => wish.dropped = Some(dropped),
        Err(error) => {
            tracing::warn!(%error, "cannot clean the outbox");
            wish.failed = Some(error.to_string());
        }
    }
    Some(wish)
}

/// Tells who wished what came of it.
pub(crate) fn answer_wish(files: &Files, answer: &Wish) {
    if let Err(error) = picket_durable::write_json(&files.wish(), answer, WISH_MODE) {
        tracing::warn!(%error, "cannot answer who asked for the outbox to be cleaned");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::draft::Draft;
    use crate::settings::OutboxSettings;
    use picket_seal::Keyring;
    use std::sync::Arc;

    const ALL: CleanRequest = CleanRequest { class: Priority::High, older_than_seconds: 0 };

    /// An owner with one event, in the hands of the test: it takes up wishes when the test says so.
    fn owner() -> (tempfile::TempDir, Arc<ManualClock>, Options, Engine) {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new("2026-11-21T12:00:00Z".parse().unwrap()));
        let keyring = Keyring::open_or_create(&dir.path().join("key")).unwrap();
        let options = Options {
            folder: dir.path().join("outbox"),
            sealer: Arc::new(Sealer::new(Arc::new(keyring)).unwrap()),
            limits: OutboxSettings::default().limits(),
            kernel_boot: "boot-1".to_owned(),
            clock: Arc::clone(&clock) as _,
        };
        let mut engine = Engine::open(options.clone()).unwrap();
        let draft = Draft { class: Priority::Low, weight: 1, at_ms: 0, body: b"{}".to_vec() };
        engine.commit(&[draft], &[]).unwrap();
        (dir, clock, options, engine)
    }

    #[test]
    fn a_wish_that_was_told_to_have_failed_is_never_carried_out_later() {
        let (_dir, _, options, mut engine) = owner();
        let refused = clean(options, ALL, Duration::from_millis(150));
        assert!(matches!(refused, Err(OutboxError::NotYet(_))), "{refused:?}");
        assert!(!engine.files.wish().exists());
        assert!(fulfil_wish(&mut engine).is_none());
        assert_eq!(engine.memory.state.ledger().low.queued, 1);
    }

    #[test]
    fn a_wish_that_lapsed_or_is_of_an_earlier_boot_is_removed_and_not_carried_out() {
        let (_dir, clock, options, mut engine) = owner();
        let leave = |wish: &Wish| picket_durable::write_json(&options_files(&options).wish(), wish, WISH_MODE).unwrap();
        leave(&Wish::new(&options, ALL, Duration::from_secs(10)));
        clock.advance(Duration::from_secs(11));
        assert!(fulfil_wish(&mut engine).is_none() && !engine.files.wish().exists());
        leave(&Wish { boot: "boot-0".to_owned(), ..Wish::new(&options, ALL, Duration::from_secs(10)) });
        assert!(fulfil_wish(&mut engine).is_none() && !engine.files.wish().exists());
        assert_eq!(engine.memory.state.ledger().low.queued, 1);
        // One that holds is taken up once; its file is gone before anything is dropped.
        leave(&Wish::new(&options, ALL, Duration::from_secs(10)));
        assert_eq!(fulfil_wish(&mut engine).unwrap().dropped, Some(1));
        assert!(!engine.files.wish().exists() && fulfil_wish(&mut engine).is_none());
    }

    #[test]
    fn a_pipe_in_the_place_of_the_database_is_refused_and_not_waited_on() {
        let (_dir, _, options, engine) = owner();
        drop(engine);
        let path = options_files(&options).database();
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let looked = inspect(&options.folder, &options.sealer).is_err();
            let _ = done.send((looked, keys(&options.folder).is_err()));
        });
        assert_eq!(ended.recv_timeout(Duration::from_secs(10)).expect("nobody hangs"), (true, true));
    }

    fn options_files(options: &Options) -> Files {
        Files { folder: options.folder.clone() }
    }
}
