//! Where rules come from: the pack of this build, the files of `rules.d`, and the API, which is asked elsewhere.
//!
//! Of several under one id that of the API is in force, then that of a file, then that of the pack. Whatever is not in
//! force is not written, so that nothing changes with a restart; what was in its way goes, and it is back. A file of
//! `rules.d` is the same rule as long as its id is; a file that is gone takes its rule along, but for the findings. A
//! folder that cannot be read takes nothing along: it may only be out of reach for the moment.
//!
//! Each machine says every day what its folder has. One that has not said so for a week is gone for good, and takes its
//! rules along, but for those that another one has; they go when a machine looks that can read its own folder as a whole.
//! What no machine has that is still there can be removed through the API, too.

use super::{Refused, Seen, new_rule, told};
use crate::refusal::Outcome;
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{DbError, NewRule, RuleFilter, RuleOrigin, Setting};
use picket_hub_rules::{Problem, Severity, pack, validate};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// Who writes the rules that no person wrote.
const BY: &str = "hub";
/// The most files of `rules.d` that are read.
const MAX_FILES: usize = 5_000;
/// Under which keys each machine keeps the ids of the rules that its `rules.d` has.
const OWNED: &str = "rule-files/";
/// How old the list of a machine that runs may become.
const ANEW: SignedDuration = SignedDuration::from_hours(24);
/// How old a list becomes before its machine is taken for gone.
const GONE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A file's name, and the rule in it, or what is wrong with it and the id that it has all the same.
type Read = (String, Result<NewRule, (Vec<Problem>, Option<String>)>);

/// What the machines say that their `rules.d` have, in ids of rules.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lists {
    /// This machine, and when it said so.
    own: Option<(BTreeSet<String>, Timestamp)>,
    /// The others that are there.
    others: BTreeSet<String>,
    /// Those that are gone, by the key under which that is kept.
    gone: BTreeMap<String, BTreeSet<String>>,
}

impl Lists {
    /// The lists as they are kept, at this time; that under `own` is this machine's.
    fn of(kept: Vec<Setting>, own: &str, now: Timestamp) -> Self {
        let mut lists = Self::default();
        for list in kept {
            let ids: BTreeSet<String> = serde_json::from_slice(&list.value).unwrap_or_default();
            if list.key == own {
                lists.own = Some((ids, list.updated_at));
            } else if now.duration_since(list.updated_at) < GONE {
                lists.others.extend(ids);
            } else {
                lists.gone.insert(list.key, ids);
            }
        }
        lists
    }

    /// Whether a machine that is there has a rule of this id.
    fn have(&self, id: &str) -> bool {
        self.others.contains(id) || self.own.as_ref().is_some_and(|(own, _)| own.contains(id))
    }

    /// The ids of the rules whose files are gone: from this machine, which has `present` now, or along with theirs.
    fn without_file(&self, present: &BTreeSet<String>) -> BTreeSet<&String> {
        let before = self.own.iter().flat_map(|(own, _)| own).chain(self.gone.values().flatten());
        before.filter(|id| !present.contains(*id) && !self.others.contains(*id)).collect()
    }

    /// Whether this machine has to say anew that it has `present`.
    fn is_due(&self, present: &BTreeSet<String>, now: Timestamp) -> bool {
        self.own.as_ref().is_none_or(|(own, at)| own != present || is_old(*at, now))
    }
}

/// Whether what a machine that is there said then has to be said anew. After a clock that went wrong, too.
fn is_old(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at).abs() >= ANEW
}

impl Hub {
    /// Puts the starter pack of this build into the database, but for rules that a file or the API has. The files come
    /// first ([`Self::put_files`]): what they have is not written twice.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn put_pack(&self) -> Outcome<()> {
        let files = self.file_lists().await?;
        let mut present = BTreeSet::new();
        for (name, read) in read_pack() {
            match read {
                Ok(new) => {
                    present.insert(new.id.clone());
                    self.put_owned(&new, files.have(&new.id)).await?;
                }
                Err((problems, _)) => tracing::error!(name, ?problems, "a rule of the pack cannot be used"),
            }
        }
        for rule in self.all_rules(&RuleFilter { origin: Some(RuleOrigin::Pack), ..RuleFilter::default() }).await? {
            if !present.contains(&rule.id) {
                tracing::info!(rule = rule.id, title = rule.title, "a rule is gone from where it came from");
                self.db.delete_rule(self.tenant, &rule.id).await?;
            }
        }
        Ok(())
    }

    /// Takes over the files of `rules.d`, if one of them changed or nothing was said of them for a day. Says whether it
    /// did.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn put_files(&self) -> Outcome<bool> {
        let Some(dir) = self.rules.dir.clone() else { return Ok(false) };
        // Of two who look at once, the one that looked first may be done last.
        let _one_at_a_time = self.rules.looking.lock().await;
        let folder = dir.clone();
        let read = tokio::task::spawn_blocking(move || read_files(&folder)).await;
        // A reader that failed has read nothing, which is not that there is nothing.
        let failed = |error: tokio::task::JoinError| Folder { trouble: Some(error.to_string()), ..Folder::default() };
        let Folder { files, mut refused, trouble } = read.unwrap_or_else(failed);
        let whole = trouble.is_none();
        // Who never had a folder needs none.
        let trouble_told = trouble.clone().filter(|_| dir.exists() || !self.rules.known_files().0.is_empty());
        self.rules.note_trouble(&dir, trouble_told);
        let seen: BTreeMap<PathBuf, [u8; 32]> =
            files.iter().map(|(path, text)| (path.clone(), crate::app::people::hash(text))).collect();
        let seen: Seen = (seen, trouble);
        if self.rules.known_files() == seen && !self.is_one_free().await? && !self.is_list_old().await? {
            return Ok(false);
        }
        // Compiled away from what serves everybody.
        let read = tokio::task::spawn_blocking(move || files.iter().map(read_rule).collect::<Vec<Read>>()).await;
        let Ok(read) = read else { return Ok(false) };
        let (mut present, mut taken, mut ignored) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        for (name, rule) in read {
            let problems = match rule {
                Ok(new) => {
                    present.insert(new.id.clone());
                    if let Some(other) = taken.insert(new.id.clone(), name.clone()) {
                        taken.insert(new.id.clone(), other.clone());
                        vec![taken_by_file(&new.id, &other)]
                    } else if self.put_owned(&new, false).await? {
                        continue;
                    } else {
                        ignored.push(new.id.clone());
                        vec![taken_by_api(&new.id)]
                    }
                }
                // A rule whose new text is wrong stays as it was.
                Err((problems, id)) => {
                    present.extend(id);
                    problems
                }
            };
            tracing::warn!(file = %dir.join(&name).display(), problems = %told(&problems), "a file of rules.d is not in force");
            refused.insert(name, problems);
        }
        *self.rules.refused_files.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        *self.rules.ignored.lock().unwrap_or_else(PoisonError::into_inner) = ignored;
        self.note_present(present, whole).await?;
        *self.rules.files.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(true)
    }

    /// Puts in force what a rule of the API was in the way of, now that it is gone.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rule_removed(&self, id: &str) -> Outcome<()> {
        self.put_files().await?;
        if self.db.rule(self.tenant, id).await?.is_none()
            && let Some(new) = of_pack(id)
        {
            self.put_owned(&new, false).await?;
        }
        Ok(())
    }

    /// Whether the API no longer has the rule that a file was ignored for.
    async fn is_one_free(&self) -> Outcome<bool> {
        let ignored = self.rules.ignored.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for id in &ignored {
            if self.db.rule(self.tenant, id).await?.is_none_or(|kept| kept.origin != RuleOrigin::Api) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a machine that is there has a rule of this id in its `rules.d`: removed, it would come back.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn is_in_a_file(&self, id: &str) -> Outcome<bool> {
        Ok(self.file_lists().await?.have(id))
    }

    /// What the machines say that their `rules.d` have.
    async fn file_lists(&self) -> Outcome<Lists> {
        let kept = self.db.settings(self.tenant, OWNED).await?;
        Ok(Lists::of(kept, &own_list(), self.clock.now()))
    }

    /// Whether what this machine said of its files is old, or was removed by one that took it for gone.
    async fn is_list_old(&self) -> Outcome<bool> {
        let own = self.db.setting(self.tenant, &own_list()).await?;
        Ok(own.is_none_or(|own| is_old(own.updated_at, self.clock.now())))
    }

    /// Removes the rules whose files are gone from this machine's `rules.d` or along with a machine, or puts those of the
    /// pack in their place. Each machine keeps the ids that its folder has: of replicas whose folders differ, none removes
    /// a rule that another one has still, nor, as long as that one is there, a rule that it never had. Of a folder that
    /// could not be read as a whole nothing is known to be gone.
    async fn note_present(&self, mut present: BTreeSet<String>, whole: bool) -> Outcome<()> {
        let lists = self.file_lists().await?;
        if whole {
            for id in lists.without_file(&present) {
                let kept = self.db.rule(self.tenant, id).await?;
                if kept.is_none_or(|kept| kept.origin != RuleOrigin::File) {
                    continue;
                }
                if let Some(new) = of_pack(id) {
                    tracing::info!(rule = id, "the file of a rule is gone, and the rule of the pack is back");
                    self.put_owned(&new, false).await?;
                } else {
                    tracing::info!(rule = id, "the file of a rule is gone, and the rule with it");
                    self.db.delete_rule(self.tenant, id).await?;
                }
            }
        } else {
            present.extend(lists.own.iter().flat_map(|(own, _)| own).cloned());
        }
        // After the removals: who is interrupted removes the rest the next time.
        for (list, ids) in &lists.gone {
            if whole || ids.is_empty() {
                tracing::info!(list, "a machine has not said for a week what its rules.d has, and is taken for gone");
                self.db.delete_setting(self.tenant, list).await?;
            }
        }
        let now = self.clock.now();
        if lists.is_due(&present, now) {
            let value = serde_json::to_vec(&present).unwrap_or_default();
            self.db.put_setting(self.tenant, &own_list(), &value, None, now).await?;
        }
        Ok(())
    }

    /// A rule that the pack or a file owns. One that the API made under the same id is left alone, and by the pack one
    /// that a file has. Says whether it is in force.
    async fn put_owned(&self, new: &NewRule, has_file: bool) -> Outcome<bool> {
        match self.db.rule(self.tenant, &new.id).await?.map(|kept| kept.origin) {
            Some(RuleOrigin::Api) => return Ok(false),
            Some(RuleOrigin::File) if new.origin == RuleOrigin::Pack && has_file => return Ok(false),
            _ => {}
        }
        match self.db.put_rule(self.tenant, new, None, BY, self.clock.now()).await {
            // In a conflict a replica does the same at the same time.
            Ok(_) | Err(DbError::Conflict { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn read_pack() -> impl Iterator<Item = Read> {
    let read = |text: &str| new_rule(text, RuleOrigin::Pack).map_err(|problems| (problems, None));
    pack().iter().map(move |rule| (rule.name.to_owned(), read(rule.yaml)))
}

/// The rule of the pack under an id.
fn of_pack(id: &str) -> Option<NewRule> {
    read_pack().filter_map(|(_, read)| read.ok()).find(|new| new.id == id)
}

fn read_rule((path, text): &(PathBuf, String)) -> Read {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let id = |text: &str| validate(text).ids.first().map(ToString::to_string);
    (name, new_rule(text, RuleOrigin::File).map_err(|problems| (problems, id(text))))
}

fn taken_by_api(id: &str) -> Problem {
    let help = format!(
        "remove that one (DELETE /api/v1/rules/{id}), and the file is in force at once; or remove the file, or give it an id \
         of its own"
    );
    let what = format!("the API has a rule under its id {id}, which is in force in its place");
    Problem { severity: Severity::Warning, code: "taken_by_api".to_owned(), place: None, what, help }
}

fn taken_by_file(id: &str, other: &str) -> Problem {
    let what = format!("{other} has the id {id}, too, and is in force in its place");
    let help = "give it an id of its own, or remove one of the two".to_owned();
    Problem { severity: Severity::Error, code: "duplicate_id".to_owned(), place: None, what, help }
}

/// What a folder holds.
#[derive(Default)]
struct Folder {
    /// The rules' files, by name.
    files: Vec<(PathBuf, String)>,
    /// Those that cannot be read.
    refused: Refused,
    /// Why this may not be all: what is missing may only be out of reach for the moment.
    trouble: Option<String>,
}

/// The rules' files in a folder; those that cannot be read are named.
fn read_files(dir: &Path) -> Folder {
    let mut read = Folder::default();
    let listed = std::fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = match listed {
        Ok(entries) => entries,
        Err(error) => return Folder { trouble: Some(error.to_string()), ..read },
    };
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yml" || extension == "yaml"));
    paths.sort();
    if paths.len() > MAX_FILES {
        read.trouble = Some(format!("there are {} files, and {MAX_FILES} are read", paths.len()));
        paths.truncate(MAX_FILES);
    }
    for path in paths {
        match picket_durable::read_text(&path, picket_hub_rules::MAX_SOURCE_BYTES as u64) {
            Ok(text) => read.files.push((path, text)),
            Err(error) => {
                read.trouble = Some(error.to_string());
                let problem = Problem {
                    severity: Severity::Error,
                    code: "unreadable".to_owned(),
                    place: None,
                    what: error.to_string(),
                    help: "make it readable for the hub's user, and smaller than the limit".to_owned(),
                };
                read.refused.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), vec![problem]);
            }
        }
    }
    read
}

/// Under which key this machine says what its `rules.d` has.
fn own_list() -> String {
    format!("{OWNED}{}", host())
}

/// What this machine is called among the replicas.
#[cfg(unix)]
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(not(unix))]
fn host() -> String {
    "hub".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids<const N: usize>(ids: [&str; N]) -> BTreeSet<String> {
        ids.map(str::to_owned).into()
    }

    fn day(number: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * number)
    }

    fn list<const N: usize>(key: &str, had: [&str; N], at: i64) -> Setting {
        let value = serde_json::to_vec(&ids(had)).unwrap();
        Setting { key: key.into(), value, revision: 1, updated_at: day(at) }
    }

    #[test]
    fn a_machine_that_was_not_heard_of_for_a_week_takes_along_what_no_other_one_has() {
        let kept = vec![list("away", ["b", "c", "d"], 1), list("here", ["b"], 2), list("own", ["a", "d"], 0)];
        let lists = Lists::of(kept.clone(), "own", day(8));
        assert!(lists.have("a") && lists.have("b") && !lists.have("c"), "who looks is there");
        assert_eq!(lists.gone, BTreeMap::from([("away".to_owned(), ids(["b", "c", "d"]))]));
        let without = |lists: &Lists| lists.without_file(&ids(["d"])).into_iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(without(&lists), ids(["a", "c"]));
        let before = Lists::of(kept, "own", day(8) - SignedDuration::from_secs(1));
        assert!(before.have("c") && before.gone.is_empty());
        assert_eq!(without(&before), ids(["a"]));
    }

    #[test]
    fn a_machine_says_what_it_has_when_that_changed_and_every_day() {
        let present = ids(["a"]);
        assert!(Lists::default().is_due(&present, day(5)), "for the first time, or after it was taken for gone");
        let is_due = |own: Setting, now| Lists::of(vec![own], "own", now).is_due(&present, now);
        assert!(is_due(list("own", ["b"], 5), day(5)));
        assert!(!is_due(list("own", ["a"], 5), day(6) - SignedDuration::from_secs(1)));
        assert!(is_due(list("own", ["a"], 5), day(6)));
        assert!(is_due(list("own", ["a"], 5), day(3)), "the clock went back");
    }

    #[test]
    fn a_folder_that_is_not_there_and_a_file_that_cannot_be_read_are_no_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_files(&dir.path().join("rules.d")).trouble.is_some());
        assert!(read_files(dir.path()).trouble.is_none());
        picket_durable::write_atomic(&dir.path().join("good.yml"), b"title: x", 0o644).unwrap();
        picket_durable::write_atomic(&dir.path().join("bad.yml"), b"\xff\xfe", 0o644).unwrap();
        let read = read_files(dir.path());
        assert_eq!((read.files.len(), read.refused.len()), (1, 1));
        assert!(read.trouble.is_some());
    }
}
