//! One shard at work: an event in, matches out.

use rsigma_eval::result::{DetectionBody, ResultBody};
use rsigma_eval::{CompiledRule, Engine, evaluate_rule};
use rsigma_parser::LogSource;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::compile::FILTERED;
use super::event::Seen;
use super::set::{Meta, ShardRules, engine};
use crate::correlate::{Arrival, Met, Windows};
use crate::engine::Figures;
use crate::found::{Entity, EntityKind, FieldMatch, Match, MatchKind, cut};
use crate::health::{Budget, Suspension};
use crate::rule::RuleKey;
use crate::shard::Shard;
use crate::view::{EventView, Product};

/// An event that took so long is measured rule by rule at once, whatever the sampling says.
const SLOW_EVENT: Duration = Duration::from_millis(20);

/// What a match tells of one event, bounded.
const MAX_FIELDS: usize = 64;
const MAX_VALUE: usize = 512;
const MAX_PATTERN: usize = 256;

/// The rules of a shard and what they remember.
pub(super) struct ShardState {
    shard: Shard,
    rules: ShardRules,
    windows: Vec<Remembered>,
    /// Rules taken out of the engines while their source is suspended.
    aside: Vec<(usize, CompiledRule)>,
    pub figures: Figures,
    tick: u32,
    systems: [LogSource; 3],
}

#[derive(Default)]
struct Remembered {
    windows: Windows,
    /// Nothing was judged since it was made: a warm-up may still feed it.
    cold: bool,
}

/// What became of an event.
#[derive(Default)]
pub(super) struct Judged {
    pub matches: Vec<Match>,
    /// Sources that broke their budget.
    pub suspensions: Vec<(RuleKey, Suspension)>,
}

impl ShardState {
    pub fn new(shard: Shard, rules: ShardRules) -> Self {
        let systems = [Product::Linux, Product::Macos, Product::Windows]
            .map(|product| LogSource { product: Some(product.as_str().into()), ..LogSource::default() });
        let windows = rules.plans.iter().map(|_| Remembered { cold: true, ..Remembered::default() }).collect();
        let mut state =
            Self { shard, rules, windows, aside: Vec::new(), figures: Figures::default(), tick: 0, systems };
        state.sort_out();
        state
    }

    /// Puts new rules in the place of the old ones; correlations that did not change keep what they remember. How far back
    /// the others must be warmed up, in µs, if there are any.
    pub fn replace(&mut self, rules: ShardRules) -> Option<i64> {
        let mut old: BTreeMap<[u8; 32], Remembered> =
            self.rules.plans.iter().map(|planned| planned.fingerprint).zip(self.windows.drain(..)).collect();
        let mut windows: Vec<Remembered> = rules
            .plans
            .iter()
            .map(|planned| {
                old.remove(&planned.fingerprint).unwrap_or_else(|| Remembered { cold: true, ..Remembered::default() })
            })
            .collect();
        // What a cold correlation counts are matches of those below it: they must be seen again as well.
        for place in (0..windows.len()).rev() {
            if !windows[place].cold {
                continue;
            }
            let document = rules.plans[place].document;
            let below = |below: usize| {
                let feeds = rules.feeds.get(&rules.plans[below].document);
                feeds.is_some_and(|feeds| feeds.iter().any(|(above, _)| rules.plans[*above].document == document))
            };
            for below in (0..place).filter(|place| below(*place)).collect::<Vec<_>>() {
                windows[below] = Remembered { cold: true, ..Remembered::default() };
            }
        }
        self.windows = windows;
        self.rules = rules;
        self.aside.clear();
        self.sort_out();
        let cold = self.rules.plans.iter().zip(&self.windows).filter(|(_, remembered)| remembered.cold);
        cold.map(|(planned, _)| planned.warm_up).max()
    }

    pub fn warm_up_window(&self) -> i64 {
        self.rules.plans.iter().map(|planned| planned.warm_up).max().unwrap_or(0)
    }

    pub fn forget(&mut self) {
        for remembered in &mut self.windows {
            *remembered = Remembered { cold: true, ..Remembered::default() };
        }
    }

    /// Takes suspended rules out of the engines and puts resumed ones back.
    pub fn sort_out(&mut self) {
        let metas = &self.rules.metas;
        let is_active =
            |rule: &CompiledRule| number(rule).and_then(|n| metas.get(&n)).is_some_and(|m| m.source.is_active());
        for (place, (_, engine_of_kind)) in self.rules.engines.iter_mut().enumerate() {
            let leaving = engine_of_kind.rules().iter().filter(|rule| !is_active(rule)).count();
            let coming = self.aside.iter().filter(|(of, rule)| *of == place && is_active(rule)).count();
            if leaving + coming == 0 {
                continue;
            }
            let (mut stay, leave): (Vec<_>, Vec<_>) = engine_of_kind.rules().iter().cloned().partition(&is_active);
            let (back, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.aside).into_iter().partition(|(of, rule)| *of == place && is_active(rule));
            stay.extend(back.into_iter().map(|(_, rule)| rule));
            self.aside = rest;
            self.aside.extend(leave.into_iter().map(|rule| (place, rule)));
            *engine_of_kind = engine(stay);
        }
    }

    /// Whether an event is of a log source that a source's rules, or the rules its correlations refer to, ask for.
    pub fn concerns(&self, key: RuleKey, event: &EventView) -> bool {
        let own = |document: usize| self.rules.metas.get(&document).is_some_and(|meta| meta.source.key == key);
        let feeds = |document: usize| self.rules.feeds.contains_key(&document);
        let engines = self.rules.engines.iter().filter(|(kind, _)| event.kinds().contains(kind));
        engines
            .flat_map(|(_, engine)| engine.rules())
            .filter_map(number)
            .any(|document| own(document) || feeds(document))
    }

    /// Judges an event.
    pub fn judge(&mut self, event: &EventView, budget: &Budget) -> Judged {
        let began = Instant::now();
        let mut judged = Judged::default();
        for remembered in &mut self.windows {
            remembered.cold = false;
        }
        let found = self.detect(event);
        let mut fired = Vec::with_capacity(found.len());
        for (document, body) in found {
            let Some(meta) = self.rules.metas.get(&document) else { continue };
            fired.push(document);
            if !meta.silent {
                count_match(meta, event, budget, &mut judged);
                judged.matches.push(detection(meta, self.shard, event, body));
            }
        }
        self.correlate(event, fired, false, budget, &mut judged);
        let took = began.elapsed();
        self.tick = self.tick.wrapping_add(1);
        if self.tick.is_multiple_of(budget.sample_every.max(1)) || took > SLOW_EVENT {
            self.measure(event, budget, &mut judged);
        }
        self.figures.events += 1;
        self.figures.matches += judged.matches.len() as u64;
        self.figures.busy += took;
        judged
    }

    /// Shows an event to cold correlations only.
    pub fn warm_up(&mut self, event: &EventView, budget: &Budget) {
        if self.windows.iter().any(|remembered| remembered.cold) {
            let fired = self.detect(event).into_keys().collect();
            self.correlate(event, fired, true, budget, &mut Judged::default());
        }
    }

    /// The documents that match by themselves, in the order of the set.
    fn detect(&self, event: &EventView) -> BTreeMap<usize, DetectionBody> {
        let seen = Seen(event);
        let mut found = BTreeMap::new();
        for (kind, engine) in &self.rules.engines {
            if !event.kinds().contains(kind) || engine.rule_count() == 0 {
                continue;
            }
            let results = match kind.service() {
                Some(_) => engine.evaluate(&seen),
                None => engine.evaluate_pruned(&seen, &self.systems[event.product() as usize]),
            };
            for result in results {
                let document = result.header.rule_id.as_deref().and_then(|id| id.parse::<usize>().ok());
                let (Some(document), ResultBody::Detection(body)) = (document, result.body) else { continue };
                if self.rules.metas.get(&document).is_some_and(|meta| meta.source.is_active()) {
                    found.entry(document).or_insert(body);
                }
            }
        }
        found
    }

    fn correlate(&mut self, event: &EventView, fired: Vec<usize>, cold: bool, budget: &Budget, judged: &mut Judged) {
        if self.rules.plans.is_empty() || fired.is_empty() {
            return;
        }
        // By plan, in the order of the plans: those below come first.
        let mut waiting: BTreeSet<(usize, u16)> = BTreeSet::new();
        let mut groups: BTreeMap<(usize, u16), Vec<(String, String)>> = BTreeMap::new();
        let feeds = |document: usize| self.rules.feeds.get(&document).into_iter().flatten().copied();
        waiting.extend(fired.into_iter().flat_map(feeds));
        while let Some((place, member)) = waiting.pop_first() {
            let planned = &self.rules.plans[place];
            let remembered = &mut self.windows[place];
            let Some(meta) = self.rules.metas.get(&planned.document) else { continue };
            if !meta.source.is_active() || (cold && !remembered.cold) {
                continue;
            }
            let group = groups.remove(&(place, member)).unwrap_or_default();
            let began = Instant::now();
            let met = remembered.windows.arrive(&planned.plan, Arrival { event, member, group: &group }, planned.room);
            if !cold && let Some(why) = meta.source.measured(began.elapsed(), budget) {
                judged.suspensions.push((meta.source.key, why));
            }
            let Some(met) = met else { continue };
            for next in feeds(planned.document) {
                groups.insert(next, met.correlated.group.clone());
                waiting.insert(next);
            }
            if cold {
                continue;
            }
            if !meta.silent {
                count_match(meta, event, budget, judged);
                judged.matches.push(correlation(meta, self.shard, event, met));
            }
        }
    }

    /// Evaluates every rule of the event's log sources by itself and writes down what it took.
    fn measure(&self, event: &EventView, budget: &Budget, judged: &mut Judged) {
        let seen = Seen(event);
        let engines = self.rules.engines.iter().filter(|(kind, _)| event.kinds().contains(kind));
        for rule in engines.flat_map(|(_, engine)| Engine::rules(engine)) {
            let Some(meta) = number(rule).and_then(|document| self.rules.metas.get(&document)) else { continue };
            let began = Instant::now();
            let _ = evaluate_rule(rule, &seen);
            if let Some(why) = meta.source.measured(began.elapsed(), budget) {
                judged.suspensions.push((meta.source.key, why));
            }
        }
    }

    pub fn figures(&self) -> Figures {
        let all = |of: &dyn Fn(&Windows) -> u64| self.windows.iter().map(|remembered| of(&remembered.windows)).sum();
        let active = self
            .rules
            .plans
            .iter()
            .filter(|planned| self.rules.metas.get(&planned.document).is_some_and(|meta| meta.source.is_active()));
        let mut documents: BTreeSet<usize> = active.map(|planned| planned.document).collect();
        for (_, engine) in &self.rules.engines {
            documents.extend(engine.rules().iter().filter_map(number));
        }
        Figures {
            rules: documents.len() as u64,
            groups: all(&|windows| windows.groups() as u64),
            entries: all(&|windows| windows.entries() as u64),
            state_bytes: all(&|windows| windows.bytes() as u64),
            groups_evicted: all(&|windows| windows.groups_evicted),
            entries_evicted: all(&|windows| windows.entries_evicted),
            ..self.figures
        }
    }
}

/// The document a compiled rule came from.
fn number(rule: &CompiledRule) -> Option<usize> {
    rule.id.as_deref()?.parse().ok()
}

fn count_match(meta: &Meta, event: &EventView, budget: &Budget, judged: &mut Judged) {
    if let Some(why) = meta.source.matched(event.at(), budget) {
        judged.suspensions.push((meta.source.key, why));
    }
}

fn detection(meta: &Meta, shard: Shard, event: &EventView, body: DetectionBody) -> Match {
    let mut selections: Vec<String> =
        body.matched_selections.into_iter().filter(|name| !name.starts_with(FILTERED)).collect();
    selections.sort();
    selections.dedup();
    let fields = body
        .matched_fields
        .into_iter()
        .filter(|field| !field.selection.as_deref().is_some_and(|name| name.starts_with(FILTERED)))
        .take(MAX_FIELDS)
        .map(|field| FieldMatch {
            selection: field.selection,
            value: match &field.value {
                serde_json::Value::String(text) => cut(text, MAX_VALUE).to_owned(),
                other => cut(&other.to_string(), MAX_VALUE).to_owned(),
            },
            field: field.field,
            pattern: field.pattern.map(|pattern| cut(&pattern, MAX_PATTERN).to_owned()),
        })
        .collect();
    let entity = event.entity().clone();
    let story = format!("{}\0{:?}\0{}", event.agent(), entity.kind, entity.value);
    let kind = MatchKind::Detection { selections, fields };
    build(meta, shard, event, entity, vec![event.id()], &story, kind)
}

fn correlation(meta: &Meta, shard: Shard, event: &EventView, met: Met) -> Match {
    let group = &met.correlated.group;
    let words: Vec<String> = group.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let entity = match group.as_slice() {
        [] => event.entity().clone(),
        _ => Entity { kind: EntityKind::Group, value: cut(&words.join(", "), 1024).to_owned() },
    };
    let story = format!("group\0{}", words.join("\0"));
    build(meta, shard, event, entity, met.evidence, &story, MatchKind::Correlation(Box::new(met.correlated)))
}

fn build(
    meta: &Meta,
    shard: Shard,
    event: &EventView,
    entity: Entity,
    evidence: Vec<uuid::Uuid>,
    story: &str,
    kind: MatchKind,
) -> Match {
    let key = meta.source.key;
    let version = key.version.to_be_bytes();
    let ids: [&[u8]; 2] = [key.id.as_bytes(), meta.sigma_id.as_bytes()];
    Match {
        rule: key,
        sigma_id: meta.sigma_id,
        title: meta.title.clone(),
        description: meta.description.clone(),
        false_positives: meta.false_positives.clone(),
        level: meta.level,
        tags: meta.tags.clone(),
        shard,
        agent: event.agent(),
        at: event.at(),
        entity,
        evidence,
        dedupe_key: digest(&[b"story", ids[0], ids[1], story.as_bytes()]),
        match_key: digest(&[b"match", ids[0], &version, ids[1], event.id().as_bytes(), story.as_bytes()]),
        kind,
    }
}

/// 128 bits of SHA-256 over parts, each with its length before it, in hexadecimal digits.
fn digest(parts: &[&[u8]]) -> String {
    use std::fmt::Write;
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut text = String::with_capacity(32);
    for byte in &hasher.finalize()[..16] {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
