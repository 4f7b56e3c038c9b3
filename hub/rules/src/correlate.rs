//! Correlations: what several events say together. Pure: no clock, no randomness, no order but that of arrival.
//!
//! A correlation keeps, for each group of its `group-by` fields, the events that matched one of its rules. An arriving event
//! is looked at in the sliding window that ends with it, and in the one that ends with the latest event less than a window
//! ahead of it: so two events that overtook each other on the way still count together. The condition's first being met
//! within a stretch of one window's length (stretches are fixed: event time divided by `timespan`) is a match; further
//! events of the same stretch only add to the window. A siege of a day in windows of an hour is 24 matches, not a million.
//!
//! **What is remembered is a function of what arrived lately.** An entry is kept for [`horizon`] of the hub's receive time
//! (its running maximum), then forgotten, whatever else happened. Hence a replay of that much gives the same state, as long
//! as the delays between an event and its receipt vary by less than [`lateness`] within a group. What is given up for want
//! of room is given up in the order of arrival, and counted.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use uuid::Uuid;

use crate::found::{Correlated, CorrelationKind, MAX_EVIDENCE, cut};
use crate::rule::MAX_GROUP_ENTRIES;
use crate::view::EventView;

/// The longest value of a group's key in bytes; a longer one is cut and told apart by a hash.
const MAX_KEY_BYTES: usize = 256;

/// How much delays may vary, in µs: as long as the window, at least a minute and at most a quarter of an hour.
pub(crate) fn lateness(timespan: i64) -> i64 {
    timespan.clamp(60_000_000, 900_000_000)
}

/// How long an entry is remembered after it arrived, in µs: the window it stands in, and the window that decided whether
/// its stretch had matched before.
pub(crate) fn horizon(timespan: i64) -> i64 {
    2 * timespan + lateness(timespan)
}

/// A comparison of what was counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Compare {
    Lt(f64),
    Lte(f64),
    Gt(f64),
    Gte(f64),
    Eq(f64),
    Neq(f64),
}

impl Compare {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::Lt(limit) => value < limit,
            Self::Lte(limit) => value <= limit,
            Self::Gt(limit) => value > limit,
            Self::Gte(limit) => value >= limit,
            Self::Eq(limit) => (value - limit).abs() < f64::EPSILON,
            Self::Neq(limit) => (value - limit).abs() >= f64::EPSILON,
        }
    }
}

/// A condition over which rules were seen: indexes into [`Plan::members`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Rule(u16),
    All(Vec<Seen>),
    Any(Vec<Seen>),
    Not(Box<Seen>),
    AtLeast(u64, Vec<u16>),
}

impl Seen {
    fn holds(&self, seen: &[bool]) -> bool {
        let is = |rule: u16| seen.get(usize::from(rule)).copied().unwrap_or(false);
        match self {
            Self::Rule(rule) => is(*rule),
            Self::All(terms) => terms.iter().all(|term| term.holds(seen)),
            Self::Any(terms) => terms.iter().any(|term| term.holds(seen)),
            Self::Not(term) => !term.holds(seen),
            Self::AtLeast(count, rules) => rules.iter().filter(|rule| is(**rule)).count() as u64 >= *count,
        }
    }
}

/// One field of `group-by`: its name, and what it is called in the events of each member.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupField {
    pub name: String,
    pub by_member: Vec<String>,
}

/// A correlation, compiled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub kind: CorrelationKind,
    /// How many rules it refers to.
    pub members: u16,
    pub group_by: Vec<GroupField>,
    /// The window in µs.
    pub timespan: i64,
    /// All must hold; of temporal correlations without a condition: all members seen.
    pub compare: Vec<Compare>,
    /// Over members seen, where the condition is an expression.
    pub seen: Option<Seen>,
    /// Whose values are counted.
    pub fields: Vec<String>,
    /// Of a percentile.
    pub percentile: f64,
}

/// How much all correlations of a shard may remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub groups: usize,
    pub entries: usize,
}

/// What is remembered of one event.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    /// The running maximum of receive times when it arrived, µs.
    seen: i64,
    /// When it happened, µs.
    at: i64,
    id: Uuid,
    /// The bits of its number, or the hash of its value.
    value: u64,
    weight: u32,
    member: u16,
}

#[derive(Debug, Default)]
struct Group {
    /// In the order of arrival, so the oldest in `seen` is first.
    entries: VecDeque<Entry>,
    /// Stretches that have matched, and `seen` at that time.
    matched: VecDeque<(i64, i64)>,
    /// The arrival number of the last event.
    touched: u64,
}

type Key = Box<[Option<Box<str>>]>;

/// The state of one correlation.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    groups: HashMap<Key, Group>,
    entries: usize,
    arrivals: u64,
    /// The running maximum of receive times, µs.
    latest: i64,
    /// The same with every silence cut to a timespan, µs: what was received before an outage of the hub, or of a site, still
    /// meets what is received after it, if it happened within a timespan.
    seen: i64,
    swept: i64,
    pub groups_evicted: u64,
    pub entries_evicted: u64,
}

/// One event on its way into a correlation.
#[derive(Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub event: &'a EventView,
    /// Which of the plan's members matched it.
    pub member: u16,
    /// The group of the correlation that matched, where the member is one itself.
    pub group: &'a [(String, String)],
}

/// A condition that was met, and the events behind it.
#[derive(Debug, PartialEq)]
pub(crate) struct Met {
    pub correlated: Correlated,
    pub evidence: Vec<Uuid>,
}

impl Windows {
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    pub fn entries(&self) -> usize {
        self.entries
    }

    /// What is remembered, in bytes: entries and keys at their usual size.
    pub fn bytes(&self) -> usize {
        self.entries * size_of::<Entry>() + self.groups.len() * (size_of::<Group>() + 96)
    }

    /// Takes an event in, and says whether it completes something.
    pub fn arrive(&mut self, plan: &Plan, arrival: Arrival, room: Room) -> Option<Met> {
        let latest = self.latest.max(arrival.event.received_at().as_microsecond());
        let seen = self.seen + (latest - self.latest).min(plan.timespan);
        let entry = plan.entry(arrival, seen)?;
        let key = plan.key(arrival);
        self.arrivals += 1;
        self.latest = latest;
        self.seen = seen;
        let oldest = seen - horizon(plan.timespan);
        self.sweep(plan, oldest);
        self.make_room(room);
        let group = self.groups.entry(key).or_default();
        group.touched = self.arrivals;
        self.entries -= group.forget(oldest);
        if group.entries.len() >= MAX_GROUP_ENTRIES {
            group.entries.pop_front();
            self.entries -= 1;
            self.entries_evicted += 1;
        }
        group.entries.push_back(entry);
        self.entries += 1;
        group.check(plan, entry, arrival)
    }

    /// Forgets groups that nothing has come for in a horizon; every eighth of a horizon is often enough.
    fn sweep(&mut self, plan: &Plan, oldest: i64) {
        if oldest - self.swept < horizon(plan.timespan) / 8 {
            return;
        }
        self.swept = oldest;
        let mut freed = 0;
        self.groups.retain(|_, group| {
            freed += group.forget(oldest);
            !group.entries.is_empty()
        });
        self.entries -= freed;
    }

    /// Gives up the tenth of the groups that was touched longest ago, when there are too many groups or entries.
    fn make_room(&mut self, room: Room) {
        if self.groups.is_empty() || (self.groups.len() < room.groups && self.entries < room.entries) {
            return;
        }
        let mut touched: Vec<u64> = self.groups.values().map(|group| group.touched).collect();
        let nth = touched.len() / 10;
        let (_, limit, _) = touched.select_nth_unstable(nth);
        let limit = *limit;
        let mut freed = 0;
        let before = self.groups.len();
        self.groups.retain(|_, group| {
            let keep = group.touched > limit;
            freed += if keep { 0 } else { group.entries.len() };
            keep
        });
        self.entries -= freed;
        self.groups_evicted += (before - self.groups.len()) as u64;
        self.entries_evicted += freed as u64;
    }
}

impl Group {
    /// Drops what arrived at `oldest` or before; how many entries that were.
    fn forget(&mut self, oldest: i64) -> usize {
        let before = self.entries.len();
        while self.entries.front().is_some_and(|entry| entry.seen <= oldest) {
            self.entries.pop_front();
        }
        while self.matched.front().is_some_and(|(_, seen)| *seen <= oldest) {
            self.matched.pop_front();
        }
        before - self.entries.len()
    }

    /// Whether the entry that arrived last completes something.
    fn check(&mut self, plan: &Plan, last: Entry, arrival: Arrival) -> Option<Met> {
        let ahead = self
            .entries
            .iter()
            .map(|entry| entry.at)
            .filter(|at| *at > last.at && *at - last.at <= plan.timespan)
            .max();
        for end in std::iter::once(last.at).chain(ahead) {
            // Asked first: in a siege most events end here.
            let stretch = end.div_euclid(plan.timespan);
            if self.matched.iter().any(|(matched, _)| *matched == stretch) {
                continue;
            }
            let window = self.entries.iter().filter(|entry| entry.at <= end && end - entry.at <= plan.timespan);
            if plan.kind == CorrelationKind::EventCount && plan.counts(window.clone()).is_none() {
                continue;
            }
            let mut window: Vec<Entry> = window.copied().collect();
            let Some(value) = plan.met(&mut window) else { continue };
            self.matched.push_back((stretch, last.seen));
            return Some(plan.tell(&mut window, value, last, arrival));
        }
        None
    }
}

impl Plan {
    /// What is remembered of an event; nothing where it has no value to be counted.
    fn entry(&self, arrival: Arrival, seen: i64) -> Option<Entry> {
        let event = arrival.event;
        let value = match self.kind {
            CorrelationKind::ValueCount => {
                let mut hasher = DefaultHasher::new();
                for field in &self.fields {
                    text(event, field)?.hash(&mut hasher);
                }
                hasher.finish()
            }
            CorrelationKind::EventCount | CorrelationKind::Temporal | CorrelationKind::TemporalOrdered => 0,
            _ => {
                let value = event.field(self.fields.first()?)?;
                let number = value.as_f64().or_else(|| value.as_str()?.parse().ok())?;
                Some(number).filter(|number| number.is_finite())?.to_bits()
            }
        };
        Some(Entry {
            seen,
            at: event.at().as_microsecond(),
            id: event.id(),
            value,
            weight: u32::try_from(event.weight()).unwrap_or(u32::MAX),
            member: arrival.member,
        })
    }

    fn key(&self, arrival: Arrival) -> Key {
        self.group_by.iter().map(|field| self.key_part(field, arrival).map(String::into_boxed_str)).collect()
    }

    fn key_part(&self, field: &GroupField, arrival: Arrival) -> Option<String> {
        if let Some((_, value)) = arrival.group.iter().find(|(name, _)| *name == field.name) {
            return Some(value.clone());
        }
        text(arrival.event, field.by_member.get(usize::from(arrival.member))?)
    }

    /// The value that meets the condition, if one does. Puts the window into the order of time.
    fn met(&self, window: &mut [Entry]) -> Option<f64> {
        let number = |entry: &Entry| f64::from_bits(entry.value);
        let value = match self.kind {
            CorrelationKind::EventCount => return self.counts(window.iter()),
            CorrelationKind::ValueCount => {
                let mut values: Vec<u64> = window.iter().map(|entry| entry.value).collect();
                values.sort_unstable();
                values.dedup();
                values.len() as f64
            }
            CorrelationKind::Temporal | CorrelationKind::TemporalOrdered => return self.met_temporal(window),
            CorrelationKind::ValueSum => window.iter().map(number).sum(),
            CorrelationKind::ValueAvg => window.iter().map(number).sum::<f64>() / window.len() as f64,
            CorrelationKind::ValuePercentile | CorrelationKind::ValueMedian => {
                let mut values: Vec<f64> = window.iter().map(number).collect();
                values.sort_by(f64::total_cmp);
                percentile(&values, self.percentile)
            }
        };
        self.compare.iter().all(|compare| compare.holds(value)).then_some(value)
    }

    /// How many events a window stands for, if that meets the condition.
    fn counts<'a>(&self, window: impl Iterator<Item = &'a Entry>) -> Option<f64> {
        let count = window.map(|entry| u64::from(entry.weight)).sum::<u64>() as f64;
        self.compare.iter().all(|compare| compare.holds(count)).then_some(count)
    }

    fn met_temporal(&self, window: &mut [Entry]) -> Option<f64> {
        let mut seen = vec![false; usize::from(self.members)];
        for entry in window.iter() {
            if let Some(member) = seen.get_mut(usize::from(entry.member)) {
                *member = true;
            }
        }
        let count = seen.iter().filter(|member| **member).count() as f64;
        if self.seen.as_ref().is_some_and(|condition| !condition.holds(&seen)) {
            return None;
        }
        if self.kind == CorrelationKind::TemporalOrdered {
            window.sort_by_key(|entry| entry.at);
            let mut next = 0;
            for entry in window.iter() {
                if entry.member == next {
                    next += 1;
                }
            }
            // An expression names what must be there; without one, all members must be, and in order in any case.
            if self.seen.is_none() && next < self.members {
                return None;
            }
            if self.seen.is_some() && !in_order(window) {
                return None;
            }
        } else if self.seen.is_none() && self.compare.is_empty() && count < f64::from(self.members) {
            return None;
        }
        self.compare.iter().all(|compare| compare.holds(count)).then_some(count)
    }

    fn tell(&self, window: &mut [Entry], value: f64, last: Entry, arrival: Arrival) -> Met {
        window.sort_by_key(|entry| entry.at);
        let time = |at: i64| jiff::Timestamp::from_microsecond(at).unwrap_or_default();
        let group = self
            .group_by
            .iter()
            .filter_map(|field| Some((field.name.clone(), self.key_part(field, arrival)?)))
            .collect();
        let skip = window.len().saturating_sub(MAX_EVIDENCE);
        let mut evidence: Vec<Uuid> = window[skip..].iter().map(|entry| entry.id).filter(|id| *id != last.id).collect();
        evidence.dedup();
        evidence.push(last.id);
        Met {
            correlated: Correlated {
                kind: self.kind,
                group,
                timespan: jiff::SignedDuration::from_micros(self.timespan),
                first: time(window.first().map_or(last.at, |entry| entry.at)),
                last: time(window.last().map_or(last.at, |entry| entry.at)),
                value,
                events: window.iter().map(|entry| u64::from(entry.weight)).sum(),
            },
            evidence,
        }
    }
}

/// Whether the first sightings of the members that were seen are in the members' order.
fn in_order(window: &[Entry]) -> bool {
    let mut firsts: Vec<u16> = Vec::new();
    for entry in window {
        if !firsts.contains(&entry.member) {
            firsts.push(entry.member);
        }
    }
    firsts.is_sorted()
}

/// A percentile of sorted values, interpolated linearly between the closest ranks (Hyndman and Fan's type 7).
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let Some(top) = sorted.len().checked_sub(1) else { return f64::NAN };
    let rank = percent.clamp(0.0, 100.0) / 100.0 * top as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number of values")]
    let low = rank.floor() as usize;
    let high = (low + 1).min(top);
    sorted[low] + (sorted[high] - sorted[low]) * (rank - rank.floor())
}

/// A field as text that tells values apart, bounded.
fn text(event: &EventView, field: &str) -> Option<String> {
    let text = match event.field(field)? {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number) => number.to_string(),
        serde_json::Value::Bool(value) => value.to_string(),
        _ => return None,
    };
    if text.len() <= MAX_KEY_BYTES {
        return Some(text);
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Some(format!("{}…{:016x}", cut(&text, MAX_KEY_BYTES - 20), hasher.finish()))
}
