//! The engine: its shards, each behind a lock of its own.

use jiff::SignedDuration;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

use super::read::{Body, read, validate};
use super::set::{Set, build};
use super::shard::{Judged, ShardState};
use super::state::SourceState;
use crate::engine::{DryRun, DryRunLimits, Figures, Replaced, RuleEngine, WarmUp};
use crate::found::Match;
use crate::health::{Budget, RuleHealth, Suspension};
use crate::problem::Validation;
use crate::rule::{Origin, RuleKey, RuleSource};
use crate::shard::Shard;
use crate::view::{EventView, Product};

/// How an engine is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What rules may cost.
    pub budget: Budget,
    /// The operating systems whose rules are loaded; rules of others are kept and never asked.
    pub products: Vec<Product>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { budget: Budget::default(), products: vec![Product::Linux] }
    }
}

/// [`RuleEngine`] over `rsigma`.
pub struct SigmaEngine {
    settings: Settings,
    shards: [Shelf; 5],
    /// Sources in force and their states; the lock that a replacement holds throughout.
    book: Mutex<Book>,
    /// Grows when a source is suspended or resumed; shards sort themselves out when they see it.
    turn: AtomicU64,
}

struct Shelf {
    state: Mutex<ShardState>,
    /// The turn it has sorted itself out for.
    turn: AtomicU64,
}

#[derive(Default)]
struct Book {
    sources: Arc<Vec<RuleSource>>,
    /// Those that have filters in them.
    filters: BTreeSet<RuleKey>,
    states: Vec<Arc<SourceState>>,
    suspensions: Vec<(RuleKey, Suspension)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for SigmaEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigmaEngine").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl SigmaEngine {
    /// An engine without rules.
    pub fn new(settings: Settings) -> Self {
        let empty = build(&[], &[], &settings.products);
        let mut rules = empty.shards.into_iter();
        let shards = Shard::ALL.map(|shard| Shelf {
            state: Mutex::new(ShardState::new(shard, rules.next().unwrap_or_default())),
            turn: AtomicU64::new(0),
        });
        Self { settings, shards, book: Mutex::default(), turn: AtomicU64::new(0) }
    }

    /// A shard, sorted out.
    fn shelf(&self, shard: Shard) -> MutexGuard<'_, ShardState> {
        let shelf = &self.shards[shard.index()];
        let mut state = lock(&shelf.state);
        let turn = self.turn.load(Ordering::Acquire);
        if shelf.turn.swap(turn, Ordering::AcqRel) != turn {
            state.sort_out();
        }
        state
    }

    /// Suspends what broke its budget, and keeps it to be told.
    fn stop(&self, suspensions: Vec<(RuleKey, Suspension)>) {
        let mut book = lock(&self.book);
        for (key, why) in suspensions {
            let state = book.states.iter().find(|state| state.key == key).map(Arc::clone);
            if state.is_some_and(|state| state.suspend(why.clone())) {
                tracing::warn!(rule = %key.id, version = key.version, "a rule is suspended: {why}");
                book.suspensions.push((key, why));
                self.turn.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn change(&self, rule: RuleKey, change: impl Fn(&SourceState) -> bool) -> bool {
        let book = lock(&self.book);
        let changed = book.states.iter().find(|state| state.key == rule).is_some_and(|state| change(state));
        if changed {
            self.turn.fetch_add(1, Ordering::AcqRel);
        }
        changed
    }

    /// The source under trial and those of the set it needs: what it refers to, and every filter.
    fn trial(&self, yaml: &str, key: RuleKey) -> Vec<RuleSource> {
        let (sources, filters) = {
            let book = lock(&self.book);
            (Arc::clone(&book.sources), book.filters.clone())
        };
        let mut wanted: BTreeSet<String> = references(&read(yaml).1);
        let mut taken: BTreeSet<RuleKey> = BTreeSet::new();
        loop {
            let before = taken.len();
            for source in sources.iter().filter(|source| source.key.id != key.id) {
                // Reading takes a third of a millisecond: only what can be wanted is read.
                let text = source.yaml.to_ascii_lowercase();
                let named = wanted.iter().any(|name| text.contains(&name.to_ascii_lowercase()));
                if taken.contains(&source.key) || !(named || filters.contains(&source.key)) {
                    continue;
                }
                let (_, documents) = read(&source.yaml);
                let is_wanted = documents.iter().any(|document| {
                    matches!(document.body, Body::Filter(_))
                        || wanted.contains(&document.id.to_string())
                        || document.name().is_some_and(|name| wanted.contains(name))
                });
                if is_wanted {
                    taken.insert(source.key);
                    wanted.extend(references(&documents));
                }
            }
            if taken.len() == before {
                break;
            }
        }
        let mut set = vec![RuleSource { key, yaml: yaml.to_owned(), origin: Origin::Api(String::new()) }];
        set.extend(sources.iter().filter(|source| taken.contains(&source.key)).cloned());
        set
    }
}

/// What the correlations of a source refer to; ids in their one spelling.
fn references(documents: &[super::read::Document]) -> BTreeSet<String> {
    let rules = documents.iter().filter_map(|document| match &document.body {
        Body::Correlation(rule) => Some(rule.rules.iter()),
        _ => None,
    });
    rules.flatten().map(|name| Uuid::try_parse(name).map_or_else(|_| name.clone(), |id| id.to_string())).collect()
}

impl RuleEngine for SigmaEngine {
    fn validate(&self, yaml: &str) -> Validation {
        validate(yaml)
    }

    fn replace(&self, rules: &[RuleSource], suspended: &[RuleKey]) -> Replaced {
        let Set { sources, shards, refused, warned, filters } = build(rules, suspended, &self.settings.products);
        let mut book = lock(&self.book);
        let loaded = sources.len();
        let mut cold = Vec::new();
        {
            // All shards at once: an event is judged by the old set or by the new one.
            let mut held: Vec<MutexGuard<ShardState>> = self.shards.iter().map(|shelf| lock(&shelf.state)).collect();
            for ((shard, rules), state) in Shard::ALL.into_iter().zip(shards).zip(&mut held) {
                if let Some(window) = state.replace(rules) {
                    cold.push(WarmUp { shard, window: SignedDuration::from_micros(window) });
                }
            }
        }
        let usable = |source: &&RuleSource| !refused.iter().any(|(key, _)| *key == source.key);
        book.sources = Arc::new(rules.iter().filter(usable).cloned().collect());
        book.states = sources;
        book.filters = filters;
        Replaced { loaded, refused, warned, cold }
    }

    fn evaluate(&self, shard: Shard, event: &EventView) -> Vec<Match> {
        if event.shard() != shard {
            return Vec::new();
        }
        let Judged { matches, suspensions } = self.shelf(shard).judge(event, &self.settings.budget);
        if !suspensions.is_empty() {
            self.stop(suspensions);
        }
        matches
    }

    fn warm_up(&self, shard: Shard, event: &EventView) {
        if event.shard() == shard {
            self.shelf(shard).warm_up(event, &self.settings.budget);
        }
    }

    fn warm_up_window(&self, shard: Shard) -> SignedDuration {
        SignedDuration::from_micros(self.shelf(shard).warm_up_window())
    }

    fn forget(&self, shard: Shard) {
        self.shelf(shard).forget();
    }

    fn health(&self) -> Vec<RuleHealth> {
        lock(&self.book).states.iter().map(|state| state.health()).collect()
    }

    fn take_suspensions(&self) -> Vec<(RuleKey, Suspension)> {
        std::mem::take(&mut lock(&self.book).suspensions)
    }

    fn suspend(&self, rule: RuleKey) -> bool {
        self.change(rule, |state| state.suspend(Suspension::Held))
    }

    fn resume(&self, rule: RuleKey) -> bool {
        self.change(rule, SourceState::resume)
    }

    fn figures(&self, shard: Shard) -> Figures {
        self.shelf(shard).figures()
    }

    fn dry_run(
        &self,
        yaml: &str,
        events: &mut dyn Iterator<Item = EventView>,
        limits: DryRunLimits,
    ) -> Result<DryRun, Validation> {
        let mut found = validate(yaml);
        if !found.is_usable() {
            return Err(found);
        }
        let key = RuleKey { id: found.ids.first().copied().unwrap_or(Uuid::nil()), version: 0 };
        let set = build(&self.trial(yaml, key), &[], &self.settings.products);
        if let Some((_, problems)) = set.refused.into_iter().find(|(refused, _)| *refused == key) {
            found.problems.splice(0..0, problems);
            return Err(found);
        }
        // Every event is measured and nothing is suspended: what it costs is what is asked for.
        let budget = Budget { mean: Duration::MAX, matches_per_minute: u32::MAX, sample_every: 1, samples: u32::MAX };
        let mut shards: Vec<ShardState> =
            Shard::ALL.into_iter().zip(set.shards).map(|(shard, rules)| ShardState::new(shard, rules)).collect();
        let mut run = DryRun::default();
        let began = Instant::now();
        for event in events {
            if run.events >= limits.events || began.elapsed() >= limits.time {
                run.cut_short = true;
                break;
            }
            run.events += 1;
            let state = &mut shards[event.shard().index()];
            if !state.concerns(key, &event) {
                continue;
            }
            run.evaluated += 1;
            for matched in state.judge(&event, &budget).matches.into_iter().filter(|matched| matched.rule == key) {
                run.matches += 1;
                if run.first.len() < limits.matches {
                    run.first.push(matched);
                }
            }
        }
        if let Some(health) = set.sources.iter().find(|state| state.key == key).map(|state| state.health()) {
            run.mean_nanos = health.mean_nanos;
            run.max_nanos = health.max_nanos;
        }
        Ok(run)
    }
}
