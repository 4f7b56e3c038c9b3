//! Which rules are in force: the starter pack, the files of `rules.d`, and what the API added.
//!
//! The database holds them all, in versions; replicas look at its revision and load anew when it moved. Where they come from
//! is the business of [`files`], which of them are not asked that of [`suspended`].

mod files;
mod suspended;

use crate::app::replicas::Telling;
use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use picket_hub_db::{NewRule, PageRequest, Rule, RuleFilter, RuleOrigin};
use picket_hub_rules::{
    Figures, Origin, Problem, RuleEngine, RuleHealth, RuleKey, RuleSource, Settings, Shard, SigmaEngine, validate,
};
use picket_protocol::hub::ProblemCode;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, RwLock, RwLockReadGuard, Semaphore};

/// How many sources of people are compiled at once: it takes a processor, and up to some dozens of megabytes.
const COMPILED_AT_ONCE: usize = 2;
/// How long one waits for its turn, and when to come back.
const COMPILE_WAIT: Duration = Duration::from_secs(2);
const COME_BACK: Duration = Duration::from_secs(5);
/// How many dry runs there may be at once.
const TRIED_AT_ONCE: usize = 1;

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
    /// What should be looked at in rules that are in force, by their ids.
    warned: Mutex<Refused>,
    /// The rules that are suspended, as was last seen of the database: why, by their ids.
    suspended: Mutex<BTreeMap<String, String>>,
    /// Suspensions that are not yet in the database.
    unnoted: Mutex<Vec<(String, String)>>,
    /// What `rules.d` was like the last time.
    files: Mutex<Seen>,
    /// The ids of files that are ignored for a rule that the API has.
    ignored: Mutex<Vec<String>>,
    /// What kept the folder from being read the last time: told once.
    trouble: Mutex<Option<String>>,
    /// Held shared while events are judged, and alone while the set is replaced and the cold shards are named: no event is
    /// judged by a correlation that was not shown what was before.
    settled: RwLock<()>,
    /// Held by who looks at the files.
    looking: tokio::sync::Mutex<()>,
    /// Held by who replaces the set: of two at once, the one that asked the database first may be done last.
    loading: tokio::sync::Mutex<()>,
    /// Turns to compile a source.
    compiling: Arc<Semaphore>,
    /// Turns to try one.
    trying: Arc<Semaphore>,
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
            warned: Mutex::default(),
            suspended: Mutex::default(),
            unnoted: Mutex::default(),
            files: Mutex::default(),
            ignored: Mutex::default(),
            trouble: Mutex::default(),
            settled: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            compiling: Arc::new(Semaphore::new(COMPILED_AT_ONCE)),
            trying: Arc::new(Semaphore::new(TRIED_AT_ONCE)),
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

    /// Files of `rules.d` that are not in force, each with why and the way out.
    pub fn refused_files(&self) -> Vec<String> {
        let refused = self.refused_files.lock().unwrap_or_else(PoisonError::into_inner);
        refused.iter().map(|(name, problems)| format!("{name}: {}", told(problems))).collect()
    }

    /// What should be looked at in a rule that is in force.
    pub fn warnings(&self, id: &str) -> Vec<Problem> {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned().unwrap_or_default()
    }

    /// Runs what compiles a source that somebody sent, away from what serves everybody, and few at a time.
    ///
    /// # Errors
    /// `overloaded` when others had no end in time.
    pub async fn compile<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let turn = tokio::time::timeout(COMPILE_WAIT, Arc::clone(&self.compiling).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(busy("other rules are being compiled")) };
        let compiled = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        compiled.await.map_err(|_| Refusal::new(ProblemCode::Internal, "the rule could not be looked at"))
    }

    /// A turn to try a source on events.
    ///
    /// # Errors
    /// `overloaded` while somebody else does.
    pub fn turn_to_try(&self) -> Outcome<OwnedSemaphorePermit> {
        let turn = Arc::clone(&self.trying).try_acquire_owned();
        turn.map_err(|_| busy("another dry run is under way"))
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
    /// Loads the rules anew, if the database has others. Says whether it did.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load_rules(&self) -> Outcome<bool> {
        let _one_at_a_time = self.rules.loading.lock().await;
        self.note_suspensions().await;
        let revision = self.db.rules_revision(self.tenant).await?;
        let known = self.rules.known_suspensions();
        let suspended = self.suspensions().await?;
        if self.rules.revision.load(Ordering::Acquire) == revision {
            self.rules.follow(&known, &suspended);
            return Ok(false);
        }
        let rules = self.all_rules(&RuleFilter { enabled: Some(true), ..RuleFilter::default() }).await?;
        let sources: Vec<RuleSource> = rules.iter().filter_map(source).collect();
        let is_suspended = |key: &RuleKey| suspended.contains_key(&key.id.to_string());
        let held: Vec<RuleKey> = sources.iter().map(|source| source.key).filter(is_suspended).collect();
        let engine = Arc::clone(&self.rules.engine);
        let alone = self.rules.settled.write().await;
        let replaced = tokio::task::spawn_blocking(move || engine.replace(&sources, &held)).await;
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
        let mut warned = BTreeMap::new();
        for (key, problems) in replaced.warned {
            tracing::warn!(rule = %key.id, problems = %told(&problems), "a rule may not do what is meant");
            warned.insert(key.id.to_string(), problems);
        }
        *self.rules.warned.lock().unwrap_or_else(PoisonError::into_inner) = warned;
        self.rules.follow(&known, &suspended);
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

fn busy(why: &str) -> Refusal {
    Refusal::new(ProblemCode::Overloaded, format!("{why}; try again in a moment")).after(COME_BACK)
}

fn told(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_hub_rules::pack;
    use std::collections::BTreeSet;

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
    fn a_rule_without_an_id_is_refused_with_words() {
        let problems = new_rule("title: x\nlogsource: {product: linux}\n", RuleOrigin::File).unwrap_err();
        assert!(!problems.is_empty() && !told(&problems).is_empty());
    }
}
