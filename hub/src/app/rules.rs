//! Which rules are in force: the starter pack, the files of `rules.d`, and what the API added.
//!
//! The database holds them all, in versions; replicas look at its revision and load anew when it moved. A file of `rules.d`
//! is the same rule as long as its id is; a file that is gone takes its rule along, but for the findings. A folder that cannot
//! be read takes nothing along: it may only be out of reach for the moment. A machine that is gone for good keeps its rules
//! in force until somebody removes them through the API.

use crate::app::replicas::Telling;
use crate::refusal::Outcome;
use crate::state::Hub;
use picket_hub_db::{DbError, NewRule, PageRequest, Rule, RuleFilter, RuleOrigin};
use picket_hub_rules::{
    Figures, Origin, Problem, RuleEngine, RuleHealth, RuleKey, RuleSource, Settings, Shard, SigmaEngine, Suspension,
    pack, validate,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{RwLock, RwLockReadGuard};

/// Who writes the rules that no person wrote.
const BY: &str = "hub";
/// The most files of `rules.d` that are read.
const MAX_FILES: usize = 5_000;
/// Under which keys each machine keeps the ids of the rules that its `rules.d` has.
const OWNED: &str = "rule-files/";
/// Under which keys it is kept that a rule is suspended.
const SUSPENDED: &str = "rule-suspended/";

/// The engine, and what is known of its set.
pub struct RuleSet {
    engine: Arc<dyn RuleEngine>,
    /// The revision of the database that is loaded; -1 before the first.
    revision: AtomicI64,
    /// Which shards have correlations that must be shown what was before.
    cold: [AtomicBool; Shard::ALL.len()],
    /// Which files of `rules.d` were refused the last time, by their names.
    refused_files: Mutex<Refused>,
    /// Which rules of the database were refused the last time, by their ids.
    refused_rules: Mutex<Refused>,
    /// What `rules.d` was like the last time.
    files: Mutex<Seen>,
    /// What kept the folder from being read the last time: told once.
    trouble: Mutex<Option<String>>,
    /// Held shared while events are judged, and alone while the set is replaced and the cold shards are named: no event is
    /// judged by a correlation that was not shown what was before.
    settled: RwLock<()>,
    /// Held by who looks at the files.
    looking: tokio::sync::Mutex<()>,
    /// Held by who replaces the set: of two at once, the one that asked the database first may be done last.
    loading: tokio::sync::Mutex<()>,
    dir: Option<PathBuf>,
}

/// The files of a folder with their digests, and why these may not be all.
type Seen = (BTreeMap<PathBuf, [u8; 32]>, Option<String>);
/// What is wrong with what cannot be used, by its name.
type Refused = BTreeMap<String, Vec<Problem>>;

impl std::fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleSet").field("revision", &self.revision).field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl RuleSet {
    /// An empty set; files come from `dir`.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self {
            engine: Arc::new(SigmaEngine::new(Settings::default())),
            revision: AtomicI64::new(-1),
            cold: Default::default(),
            refused_files: Mutex::default(),
            refused_rules: Mutex::default(),
            files: Mutex::default(),
            trouble: Mutex::default(),
            settled: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            dir,
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<dyn RuleEngine> {
        &self.engine
    }

    /// Whether the shard must be shown what was before; it is taken for done.
    pub fn take_cold(&self, shard: Shard) -> bool {
        self.cold[shard as usize].swap(false, Ordering::AcqRel)
    }

    /// What was refused the last time.
    pub fn refused(&self) -> BTreeMap<String, Vec<Problem>> {
        let mut all = self.refused_files.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(self.refused_rules.lock().unwrap_or_else(PoisonError::into_inner).clone());
        all
    }

    /// Keeps the set from being replaced while what this gives is held.
    pub async fn settled(&self) -> RwLockReadGuard<'_, ()> {
        self.settled.read().await
    }

    fn known_files(&self) -> Seen {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells once what keeps the folder from being read, and once that it can be read again.
    fn note_trouble(&self, dir: &Path, trouble: Option<String>) {
        let mut last = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == trouble {
            return;
        }
        match &trouble {
            Some(why) => {
                tracing::warn!(dir = %dir.display(), why, "rules.d cannot be read as a whole; no rule is removed meanwhile");
            }
            None => tracing::info!(dir = %dir.display(), "rules.d can be read again"),
        }
        *last = trouble;
    }

    /// How each rule is doing.
    pub fn health(&self) -> Vec<RuleHealth> {
        self.engine.health()
    }

    /// What a shard has done.
    pub fn figures(&self, shard: Shard) -> Figures {
        self.engine.figures(shard)
    }
}

impl Hub {
    /// Puts the starter pack of this build into the database.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn put_pack(&self) -> Outcome<()> {
        let mut present = BTreeSet::new();
        for rule in pack() {
            match new_rule(rule.yaml, RuleOrigin::Pack) {
                Ok(new) => {
                    present.insert(new.id.clone());
                    self.put_owned(&new).await?;
                }
                Err(problems) => tracing::error!(name = rule.name, ?problems, "a rule of the pack cannot be used"),
            }
        }
        self.remove_missing(RuleOrigin::Pack, &present).await
    }

    /// Takes over the files of `rules.d`, if one of them changed. Says whether one did.
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
            files.iter().map(|(path, text)| (path.clone(), super::people::hash(text))).collect();
        let seen = (seen, trouble);
        if self.rules.known_files() == seen {
            return Ok(false);
        }
        let mut present = BTreeSet::new();
        for (path, text) in &files {
            match new_rule(text, RuleOrigin::File) {
                Ok(new) => {
                    present.insert(new.id.clone());
                    self.put_owned(&new).await?;
                }
                Err(problems) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    tracing::warn!(file = %path.display(), problems = %told(&problems), "a rule cannot be used");
                    // A rule whose new text is wrong stays as it was.
                    present.extend(validate(text).ids.first().map(ToString::to_string));
                    refused.insert(name, problems);
                }
            }
        }
        *self.rules.refused_files.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        if whole {
            self.remove_gone(&present).await?;
        }
        *self.rules.files.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(true)
    }

    /// Removes the rules whose files are gone from this machine's `rules.d`. Each machine keeps the ids that its folder has:
    /// of replicas whose folders differ, none removes a rule that it never had, or that another one has still.
    async fn remove_gone(&self, present: &BTreeSet<String>) -> Outcome<()> {
        let own = format!("{OWNED}{}", host());
        let lists = self.db.settings(self.tenant, OWNED).await?;
        let ids = |value: &[u8]| serde_json::from_slice::<BTreeSet<String>>(value).unwrap_or_default();
        let before = lists.iter().find(|list| list.key == own).map(|list| ids(&list.value));
        let others: BTreeSet<String> =
            lists.iter().filter(|list| list.key != own).flat_map(|list| ids(&list.value)).collect();
        for id in before.iter().flatten().filter(|id| !present.contains(*id) && !others.contains(*id)) {
            let kept = self.db.rule(self.tenant, id).await?;
            if kept.is_some_and(|kept| kept.origin == RuleOrigin::File) {
                tracing::info!(rule = id, "the file of a rule is gone, and the rule with it");
                self.db.delete_rule(self.tenant, id).await?;
            }
        }
        // After the removals: who is interrupted removes the rest the next time.
        if before.as_ref() != Some(present) {
            let value = serde_json::to_vec(present).unwrap_or_default();
            self.db.put_setting(self.tenant, &own, &value, None, self.clock.now()).await?;
        }
        Ok(())
    }

    /// A rule that the pack or a file owns. One that the API made under the same id is left alone.
    async fn put_owned(&self, new: &NewRule) -> Outcome<()> {
        let kept = self.db.rule(self.tenant, &new.id).await?;
        if kept.is_some_and(|kept| kept.origin == RuleOrigin::Api) {
            return Ok(());
        }
        match self.db.put_rule(self.tenant, new, None, BY, self.clock.now()).await {
            // In a conflict a replica does the same at the same time.
            Ok(_) | Err(DbError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn remove_missing(&self, origin: RuleOrigin, present: &BTreeSet<String>) -> Outcome<()> {
        for rule in self.all_rules(&RuleFilter { origin: Some(origin), ..RuleFilter::default() }).await? {
            if !present.contains(&rule.id) {
                tracing::info!(rule = rule.id, title = rule.title, "a rule is gone from where it came from");
                self.db.delete_rule(self.tenant, &rule.id).await?;
            }
        }
        Ok(())
    }

    /// Loads the rules anew, if the database has others. Says whether it did.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load_rules(&self) -> Outcome<bool> {
        let _one_at_a_time = self.rules.loading.lock().await;
        let revision = self.db.rules_revision(self.tenant).await?;
        if self.rules.revision.load(Ordering::Acquire) == revision {
            return Ok(false);
        }
        let rules = self.all_rules(&RuleFilter { enabled: Some(true), ..RuleFilter::default() }).await?;
        let suspended = self.suspended().await?;
        let sources: Vec<RuleSource> = rules.iter().filter_map(source).collect();
        let suspended: Vec<RuleKey> =
            sources.iter().map(|source| source.key).filter(|key| suspended.contains(&key.id.to_string())).collect();
        let engine = Arc::clone(&self.rules.engine);
        let alone = self.rules.settled.write().await;
        let replaced = tokio::task::spawn_blocking(move || engine.replace(&sources, &suspended)).await;
        let Ok(replaced) = replaced else { return Ok(false) };
        for cold in &replaced.cold {
            self.rules.cold[cold.shard as usize].store(true, Ordering::Release);
        }
        drop(alone);
        let mut refused = BTreeMap::new();
        for (key, problems) in replaced.refused {
            tracing::warn!(rule = %key.id, problems = %told(&problems), "a rule is not in force");
            refused.insert(key.id.to_string(), problems);
        }
        tracing::info!(rules = replaced.loaded, refused = refused.len(), revision, "rules are in force");
        *self.rules.refused_rules.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        self.rules.revision.store(revision, Ordering::Release);
        Ok(true)
    }

    /// Loads the rules anew after a change that was made here, and tells the other replicas.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rules_changed(&self) -> Outcome<()> {
        self.load_rules().await?;
        self.replicas.tell(Telling::Rules);
        Ok(())
    }

    /// All rules that match, in pieces.
    async fn all_rules(&self, filter: &RuleFilter) -> Outcome<Vec<Rule>> {
        let mut rules = Vec::new();
        let mut request = PageRequest::first(500);
        loop {
            let page = self.db.rules(self.tenant, filter, &request).await?;
            rules.extend(page.items);
            match page.next {
                Some(next) => request = PageRequest::after(next, 500),
                None => return Ok(rules),
            }
        }
    }

    /// The ids of rules that are suspended.
    async fn suspended(&self) -> Outcome<BTreeSet<String>> {
        let kept = self.db.settings(self.tenant, SUSPENDED).await?;
        Ok(kept.into_iter().filter_map(|kept| kept.key.strip_prefix(SUSPENDED).map(str::to_owned)).collect())
    }

    /// Keeps and tells that the engine suspended a rule.
    pub async fn note_suspension(&self, rule: RuleKey, why: &Suspension) {
        let id = rule.id.to_string();
        tracing::warn!(rule = id, version = rule.version, %why, "a rule is suspended");
        let words = why.to_string();
        let key = format!("{SUSPENDED}{id}");
        let kept = self.db.put_setting(self.tenant, &key, words.as_bytes(), None, self.clock.now()).await;
        if let Err(error) = kept {
            tracing::error!(%error, "that a rule is suspended is not kept");
        }
        self.report("rule_suspended", serde_json::json!({"rule_id": id, "rule_version": rule.version, "why": words}))
            .await;
    }

    /// Asks a suspended rule again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn resume_rule(&self, rule: &Rule) -> Outcome<bool> {
        let was = self.db.delete_setting(self.tenant, &format!("{SUSPENDED}{}", rule.id)).await?;
        let resumed = source(rule).is_some_and(|source| self.rules.engine.resume(source.key));
        Ok(was || resumed)
    }
}

/// A rule as the database keeps it, if its source can be used.
///
/// # Errors
/// What is wrong with it.
pub fn new_rule(yaml: &str, origin: RuleOrigin) -> Result<NewRule, Vec<Problem>> {
    let validation = validate(yaml);
    let Some(id) = validation.ids.first().filter(|_| validation.is_usable()) else { return Err(validation.problems) };
    // What lists show; the engine reads the source itself.
    let word = |name: &str| {
        let found = yaml.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
    };
    let level = Some(word("level")).filter(|level| !level.is_empty()).unwrap_or_else(|| "medium".to_owned());
    Ok(NewRule {
        id: id.to_string(),
        title: validation.title.clone().unwrap_or_default(),
        level,
        logsource: logsource(yaml),
        source: yaml.to_owned(),
        origin,
        enabled: None,
    })
}

/// The log source of the first document in a word or two, for lists; a correlation has those of its rules.
fn logsource(yaml: &str) -> String {
    let inside = yaml.lines().skip_while(|line| !line.starts_with("logsource:")).skip(1);
    let words = inside.take_while(|line| line.starts_with(' ')).filter_map(|line| line.trim().split_once(':'));
    let words: Vec<&str> = words.map(|(_, word)| word.trim()).collect();
    if words.is_empty() { "correlation".to_owned() } else { words.join("/") }
}

fn source(rule: &Rule) -> Option<RuleSource> {
    let key = RuleKey { id: rule.id.parse().ok()?, version: u32::try_from(rule.version).ok()? };
    let origin = match rule.origin {
        RuleOrigin::Pack => Origin::Pack(rule.title.clone()),
        RuleOrigin::File => Origin::File(rule.title.clone()),
        RuleOrigin::Api => Origin::Api(rule.updated_by.clone()),
    };
    Some(RuleSource { key, yaml: rule.source.clone(), origin })
}

fn told(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
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
                    severity: picket_hub_rules::Severity::Error,
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

    #[test]
    fn every_rule_of_the_pack_can_be_kept() {
        let mut ids = BTreeSet::new();
        for rule in pack() {
            let new =
                new_rule(rule.yaml, RuleOrigin::Pack).unwrap_or_else(|problems| panic!("{}: {problems:?}", rule.name));
            assert!(!new.title.is_empty() && !new.logsource.is_empty(), "{new:?}");
            assert!(ids.insert(new.id), "{} twice", rule.name);
        }
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

    #[test]
    fn a_rule_without_an_id_is_refused_with_words() {
        let problems = new_rule("title: x\nlogsource: {product: linux}\n", RuleOrigin::File).unwrap_err();
        assert!(!problems.is_empty() && !told(&problems).is_empty());
    }
}
