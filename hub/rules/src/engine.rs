//! What the hub asks of an engine of rules.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::found::Match;
use crate::health::{RuleHealth, Suspension};
use crate::problem::{Problem, Validation};
use crate::rule::{RuleKey, RuleSource};
use crate::shard::Shard;
use crate::view::EventView;

/// What a replacement of the set did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Sources in force, unreached ones included.
    pub loaded: usize,
    /// Sources that were refused, each with what is wrong with it. The others are in force all the same.
    pub refused: Vec<(RuleKey, Vec<Problem>)>,
    /// Sources in force that may not do what is meant, each with why.
    pub warned: Vec<(RuleKey, Vec<Problem>)>,
    /// Shards that have correlations which did not run before: their state is empty until the shard is warmed up.
    pub cold: Vec<WarmUp>,
}

/// What a shard must be shown again before its correlations know what they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WarmUp {
    /// Which shard.
    pub shard: Shard,
    /// How far back, in the hub's receive time; see [`RuleEngine::warm_up_window`].
    pub window: SignedDuration,
}

/// What a shard has done since the engine was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Events evaluated, without those of a warm-up.
    pub events: u64,
    /// Matches reported.
    pub matches: u64,
    /// Time spent on those events.
    pub busy: Duration,
    /// Rules that are asked.
    pub rules: u64,
    /// Groups that correlations remember.
    pub groups: u64,
    /// Events that correlations remember.
    pub entries: u64,
    /// What they take, in bytes, by our own count.
    pub state_bytes: u64,
    /// Groups given up for want of room.
    pub groups_evicted: u64,
    /// Events of a group given up for want of room.
    pub entries_evicted: u64,
}

/// How far a dry run may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DryRunLimits {
    /// The most events to look at.
    pub events: u64,
    /// The most matches to return whole; further ones are counted.
    pub matches: usize,
    /// The longest time to take.
    pub time: Duration,
}

impl Default for DryRunLimits {
    fn default() -> Self {
        Self { events: 1_000_000, matches: 100, time: Duration::from_secs(10) }
    }
}

/// What a rule would have done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DryRun {
    /// Events looked at.
    pub events: u64,
    /// Those of them that are of a log source of the rule, and so were evaluated.
    pub evaluated: u64,
    /// Matches, without the silent ones of rules that only feed a correlation.
    pub matches: u64,
    /// The first matches.
    pub first: Vec<Match>,
    /// The mean time of one evaluation in nanoseconds.
    pub mean_nanos: u64,
    /// The longest one in nanoseconds.
    pub max_nanos: u64,
    /// Whether it stopped at a limit before the events ended.
    pub cut_short: bool,
}

/// An engine of rules. Every method may be called from any thread; each shard has a lock of its own, so that shards do not
/// wait for each other, and calls take microseconds, not I/O.
pub trait RuleEngine: Send + Sync {
    /// Says everything that is wrong with a source, alone.
    fn validate(&self, yaml: &str) -> Validation;

    /// Puts `rules` in the place of the whole set, atomically: an event is judged by the old set or by the new one. What
    /// cannot be used is refused with its reasons and does not keep the rest from being used. `suspended` rules are loaded
    /// and not asked. A correlation whose documents did not change keeps its state.
    ///
    /// Compiling takes about 0.5 ms a rule and happens before any lock is taken.
    fn replace(&self, rules: &[RuleSource], suspended: &[RuleKey]) -> Replaced;

    /// Judges one event of this shard: what it matches, detections first. Events of a shard must come in commit order.
    /// An event of another shard matches nothing.
    fn evaluate(&self, shard: Shard, event: &EventView) -> Vec<Match>;

    /// Lets correlations see an event that was judged before, without reporting anything: after a restart, a hand-over of
    /// the shard, or a replacement that named it cold. It must come before the shard's next [`Self::evaluate`]: from then on
    /// nothing is cold, and this does nothing. What is warm is never fed.
    fn warm_up(&self, shard: Shard, event: &EventView);

    /// How far back [`Self::warm_up`] must begin so that every later match is what it would have been without the
    /// interruption: with the first event (in commit order) whose receive time is later than the latest receive time judged
    /// so far less this. Zero where the shard has no correlations.
    fn warm_up_window(&self, shard: Shard) -> SignedDuration;

    /// Forgets what the shard's correlations remember: before a warm-up, and when the lease of the shard is lost.
    fn forget(&self, shard: Shard);

    /// How each rule of the set is doing, in the order of the set.
    fn health(&self) -> Vec<RuleHealth>;

    /// The rules suspended by the engine itself since the last call, each once: to be recorded and made a finding.
    fn take_suspensions(&self) -> Vec<(RuleKey, Suspension)>;

    /// Does not ask a rule any more. Whether it was asked before.
    fn suspend(&self, rule: RuleKey) -> bool;

    /// Asks a suspended rule again, its measurements forgotten. Whether it was suspended.
    fn resume(&self, rule: RuleKey) -> bool;

    /// What a shard has done.
    fn figures(&self, shard: Shard) -> Figures;

    /// Tries a source on events, away from the set in force.
    ///
    /// # Errors
    /// What is wrong with the source.
    fn dry_run(
        &self,
        yaml: &str,
        events: &mut dyn Iterator<Item = EventView>,
        limits: DryRunLimits,
    ) -> Result<DryRun, Validation>;
}
