//! The journal on disk, and the journals of updates that ended.
//!
//! `journal.json` is the update under way; it is replaced whole, atomically and synced, at every mark. When the update
//! is settled it becomes `history/<id>.json` by one rename.

use super::{Entry, Journal, Mark, Step};
use crate::clock::Clock;
use crate::failpoint;
use std::path::{Path, PathBuf};

/// The largest journal, in bytes; evidence is bounded far below.
const MAX_BYTES: u64 = 4 << 20;
/// Above this many bytes (without the blanks that people read it by), evidence is written without its words.
const MAX_WRITTEN: usize = 1 << 20;
/// How many ended updates are kept.
const HISTORY: usize = 50;

/// Where journals are.
#[derive(Debug, Clone)]
pub struct JournalStore {
    dir: PathBuf,
    clock: Clock,
}

/// A journal that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed.
    #[error("the journal cannot be kept")]
    File(#[from] picket_durable::Error),
    /// It is not a journal.
    #[error("the journal {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A step was out of order: a bug, caught before it did harm.
    #[error("the step {step} ({mark:?}) cannot follow {after:?}; this is a bug in Picket, please report it")]
    OutOfOrder {
        /// The step.
        step: &'static str,
        /// Begun or done.
        mark: Mark,
        /// Where the update stood.
        after: Option<(Step, Mark)>,
    },
}

impl JournalStore {
    /// The journals below `dir`, the updater's state folder.
    pub fn new(dir: &Path, clock: &Clock) -> Self {
        Self { dir: dir.to_owned(), clock: clock.clone() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("journal.json")
    }

    fn history_dir(&self) -> PathBuf {
        self.dir.join("history")
    }

    /// The update under way, if there is one.
    pub fn load(&self) -> Result<Option<Journal>, JournalError> {
        match picket_durable::read_if_present(&self.path(), MAX_BYTES) {
            Ok(Some(bytes)) => parse(&self.path(), &bytes).map(Some),
            Ok(None) => Ok(None),
            // Not ours as we wrote it, and no reason to be stuck.
            Err(error) if error.source.kind() == std::io::ErrorKind::FileTooLarge => {
                Err(JournalError::Damaged { path: self.path(), source: serde::de::Error::custom(error) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sets a damaged journal aside, so that the machine is not stuck with it.
    pub fn set_aside(&self) -> Result<PathBuf, JournalError> {
        let aside = self.dir.join("journal.damaged.json");
        picket_durable::rename(&self.path(), &aside)?;
        Ok(aside)
    }

    /// Writes the journal as it is; one that is too large, without the words of its evidence: what could not be read
    /// again would be in the way of every later update.
    pub fn save(&self, journal: &Journal) -> Result<(), JournalError> {
        let length = serde_json::to_vec(journal).map_or(0, |bytes| bytes.len());
        if length <= MAX_WRITTEN {
            return Ok(picket_durable::write_json(&self.path(), journal, 0o600)?);
        }
        let mut short = journal.clone();
        short.evidence.shorten();
        Ok(picket_durable::write_json(&self.path(), &short, 0o600)?)
    }

    /// Adds a mark and writes the journal; it is on disk when this returns.
    ///
    /// # Errors
    /// [`JournalError::OutOfOrder`] when the mark may not come next; the journal is then unchanged.
    pub fn mark(&self, journal: &mut Journal, step: Step, mark: Mark) -> Result<(), JournalError> {
        let turned_back =
            step == Step::Revert && mark == Mark::Began && journal.allows_revert() && !journal.has_passed();
        if !journal.allows(step, mark) && !turned_back {
            return Err(JournalError::OutOfOrder { step: step.as_str(), mark, after: journal.position() });
        }
        let word = if mark == Mark::Began { "began" } else { "done" };
        failpoint::reach(&format!("{}-{word}-before", step.as_str()));
        let took_ms = journal.stopwatch.take(mark);
        journal.entries.push(Entry { step, mark, at: self.clock.now(), took_ms });
        self.save(journal)?;
        failpoint::reach(&format!("{}-{word}-after", step.as_str()));
        Ok(())
    }

    /// Moves the settled journal into the history, and forgets the oldest beyond the last [`HISTORY`].
    pub fn archive(&self, journal: &Journal) -> Result<(), JournalError> {
        let history = self.history_dir();
        picket_durable::create_dir(&history, 0o700)?;
        picket_durable::rename(&self.path(), &history.join(format!("{}.json", journal.id)))?;
        failpoint::reach("settle-archived");
        let mut names = self.history_names();
        while names.len() > HISTORY {
            picket_durable::remove_if_present(&history.join(names.remove(0)))?;
        }
        Ok(())
    }

    /// Ended updates, newest first; one that cannot be read is left out. Each is read when it is asked for.
    pub fn ended(&self) -> impl Iterator<Item = Journal> {
        let history = self.history_dir();
        let names = self.history_names().into_iter().rev().map(move |name| history.join(name));
        names.filter_map(|path| parse(&path, &picket_durable::read_bounded(&path, MAX_BYTES).ok()?).ok())
    }

    /// All of [`JournalStore::ended`].
    pub fn history(&self) -> Vec<Journal> {
        self.ended().collect()
    }

    /// The file names of ended updates, oldest first: ids of version 7 sort by time.
    fn history_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.history_dir()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| Path::new(name).extension().is_some_and(|e| e == "json") && !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Journal, JournalError> {
    Journal::parse(bytes).map_err(|source| JournalError::Damaged { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::super::tests::journal;
    use super::*;

    #[test]
    fn a_mark_out_of_order_is_refused_and_leaves_the_journal_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = JournalStore::new(dir.path(), &Clock::system());
        let mut journal = journal(true);
        store.mark(&mut journal, Step::Fetch, Mark::Began).unwrap();
        let error = store.mark(&mut journal, Step::Commit, Mark::Began).unwrap_err();
        assert!(matches!(error, JournalError::OutOfOrder { step: "commit", .. }));
        assert_eq!(store.load().unwrap().unwrap(), journal);
    }

    #[test]
    fn the_history_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let store = JournalStore::new(dir.path(), &Clock::system());
        for number in 0..HISTORY + 5 {
            let mut journal = journal(true);
            journal.id = format!("{number:04}");
            store.save(&journal).unwrap();
            store.archive(&journal).unwrap();
        }
        let history = store.history();
        assert_eq!((history.len(), history[0].id.as_str()), (HISTORY, "0054"));
        assert!(store.load().unwrap().is_none());
    }

    #[test]
    fn a_journal_too_large_to_be_read_again_is_written_without_words_and_one_that_is_there_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = JournalStore::new(dir.path(), &Clock::system());
        let mut journal = journal(true);
        let loud = crate::hooks::HookResult {
            hook: "h".into(),
            kind: crate::hooks::HookKind::Wanted,
            required: false,
            ok: true,
            detail: "exit status: 0".into(),
            output: "x".repeat(MAX_WRITTEN / 100),
            ms: 1,
        };
        journal.evidence.hooks = vec![loud; 1000];
        store.save(&journal).unwrap();
        let kept = store.load().unwrap().unwrap();
        assert!(kept.evidence.hooks.len() == 1000 && kept.evidence.hooks.iter().all(|hook| hook.output.is_empty()));

        let huge = vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1];
        picket_durable::write_atomic(&dir.path().join("journal.json"), &huge, 0o600).unwrap();
        assert!(matches!(store.load(), Err(JournalError::Damaged { .. })));
        store.set_aside().unwrap();
        assert!(store.load().unwrap().is_none());
    }

    #[test]
    fn a_damaged_journal_is_reported_and_can_be_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = JournalStore::new(dir.path(), &Clock::system());
        picket_durable::write_atomic(&dir.path().join("journal.json"), b"{\"schema\":", 0o600).unwrap();
        assert!(matches!(store.load(), Err(JournalError::Damaged { .. })));
        store.set_aside().unwrap();
        assert!(store.load().unwrap().is_none());
    }
}
