//! A set of rules, compiled and sorted by shard. Pure: sources in, rules and refusals out.

use rsigma_eval::{CompiledRule, Engine, MatchDetailLevel};
use rsigma_parser::{FilterRule, FilterRuleTarget};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

use super::compile;
use super::plan;
use super::read::{Body, Document, cannot_compile, read};
use super::state::SourceState;
use crate::correlate::{Plan, Room, horizon};
use crate::found::Level;
use crate::problem::{Problem, Severity};
use crate::reach::LogSource;
use crate::rule::{MAX_RULES, RuleKey, RuleSource};
use crate::shard::Shard;
use crate::view::{Kind, Product};

/// What a match says of the document that matched.
#[derive(Debug)]
pub(super) struct Meta {
    pub source: Arc<SourceState>,
    pub sigma_id: Uuid,
    pub title: String,
    pub description: String,
    pub false_positives: Vec<String>,
    pub level: Level,
    pub tags: Vec<String>,
    /// It only feeds a correlation of its own source.
    pub silent: bool,
}

/// A correlation of a shard.
#[derive(Debug)]
pub(super) struct Planned {
    pub document: usize,
    pub plan: Plan,
    /// The same as long as nothing changed that decides what it counts.
    pub fingerprint: [u8; 32],
    /// How far back a warm-up of it begins, in µs.
    pub warm_up: i64,
    pub room: Room,
}

/// The rules of one shard.
#[derive(Default)]
pub(super) struct ShardRules {
    pub engines: Vec<(Kind, Engine)>,
    /// Correlations, each after those it refers to.
    pub plans: Vec<Planned>,
    /// By document: the plans it feeds, and as which member.
    pub feeds: HashMap<usize, Vec<(usize, u16)>>,
    pub metas: Arc<BTreeMap<usize, Meta>>,
}

/// A set of rules.
pub(super) struct Set {
    pub sources: Vec<Arc<SourceState>>,
    pub shards: Vec<ShardRules>,
    pub refused: Vec<(RuleKey, Vec<Problem>)>,
    /// Sources that may not do what is meant.
    pub warned: Vec<(RuleKey, Vec<Problem>)>,
    /// Sources that have filters in them.
    pub filters: BTreeSet<RuleKey>,
}

/// How much all correlations of a shard may remember together.
const ROOM: Room = Room { groups: 200_000, entries: 1_000_000 };

/// A document on its way into the set.
struct Draft {
    source: usize,
    document: Document,
    compiled: Option<CompiledRule>,
    kinds: Vec<Kind>,
    shards: BTreeSet<Shard>,
    plan: Option<(Plan, Vec<usize>)>,
    fingerprint: [u8; 32],
}

struct Builder<'a> {
    sources: &'a [RuleSource],
    products: &'a [Product],
    drafts: Vec<Draft>,
    titles: Vec<String>,
    refused: BTreeMap<usize, Vec<Problem>>,
    warned: BTreeMap<usize, Problem>,
}

/// Compiles a set.
pub(super) fn build(sources: &[RuleSource], suspended: &[RuleKey], products: &[Product]) -> Set {
    let mut builder = Builder {
        sources,
        products,
        drafts: Vec::new(),
        titles: Vec::new(),
        refused: BTreeMap::new(),
        warned: BTreeMap::new(),
    };
    builder.read();
    builder.compile(suspended);
    builder.correlate();
    builder.finish(suspended)
}

/// What is to be said of a correlation over events of several kinds: each kind is counted by itself.
pub(super) fn split_windows(shards: &BTreeSet<Shard>) -> Option<Problem> {
    if shards.len() < 2 {
        return None;
    }
    let kinds = shards.iter().map(|shard| shard.as_str()).collect::<Vec<_>>().join(", ");
    Some(Problem {
        severity: Severity::Warning,
        code: "split_windows".into(),
        place: None,
        what: format!(
            "its rules are about events of several kinds ({kinds}), and each kind is counted in a window of its own"
        ),
        help: "add a `category` to the log source of the rules it refers to: `file_change` or `network_connection`"
            .into(),
    })
}

fn error(code: &str, what: String, help: &str) -> Problem {
    Problem { severity: Severity::Error, code: code.into(), place: None, what, help: help.into() }
}

impl Builder<'_> {
    fn refuse(&mut self, source: usize, problem: Problem) {
        self.refused.entry(source).or_default().push(problem);
    }

    fn read(&mut self) {
        let mut ids: HashMap<Uuid, usize> = HashMap::new();
        for (number, source) in self.sources.iter().enumerate() {
            let (found, documents) = read(&source.yaml);
            self.titles.push(found.title.clone().unwrap_or_default());
            if number >= MAX_RULES {
                let what = format!("there are more than {MAX_RULES} rules");
                self.refuse(number, error("too_many_rules", what, "remove some"));
                continue;
            }
            if !found.is_usable() {
                self.refused.insert(number, found.errors().cloned().collect());
                continue;
            }
            let taken = documents.iter().map(|document| document.id).find(|id| ids.contains_key(id));
            if let Some(id) = taken {
                let other = &self.titles[ids[&id]];
                let what = format!("the id {id} belongs to another rule, \"{other}\"");
                self.refuse(number, error("duplicate_id", what, "give it an id of its own: `uuidgen`"));
                continue;
            }
            for document in documents {
                ids.insert(document.id, number);
                self.drafts.push(Draft {
                    source: number,
                    document,
                    compiled: None,
                    kinds: Vec::new(),
                    shards: BTreeSet::new(),
                    plan: None,
                    fingerprint: [0; 32],
                });
            }
        }
    }

    fn compile(&mut self, suspended: &[RuleKey]) {
        let filters: Vec<(usize, FilterRule)> = self
            .drafts
            .iter()
            .filter(|draft| !suspended.contains(&self.sources[draft.source].key))
            .filter_map(|draft| match &draft.document.body {
                Body::Filter(filter) => Some((draft.source, (**filter).clone())),
                _ => None,
            })
            .filter(|(_, filter)| compile::filter(filter).is_ok())
            .collect();
        for number in 0..self.drafts.len() {
            let (source, id) = (self.drafts[number].source, self.drafts[number].document.id);
            let problem = match &mut self.drafts[number].document.body {
                Body::Rule(rule) => {
                    let mut digest = Sha256::new();
                    digest.update(&self.sources[source].yaml);
                    digest.update(id.as_bytes());
                    for (place, (owner, filter)) in filters.iter().enumerate() {
                        if is_about(filter, rule, id) {
                            compile::add_filter(rule, filter, place);
                            digest.update(&self.sources[*owner].yaml);
                        }
                    }
                    let log_source = compile::log_source(&rule.logsource);
                    // The number finds the document again: ids are the rule's own, and not to be trusted as keys.
                    rule.id = Some(number.to_string());
                    let compiled = compile::rule(rule);
                    let draft = &mut self.drafts[number];
                    draft.fingerprint = digest.finalize().into();
                    draft.kinds = reached(&log_source, self.products);
                    draft.shards = draft.kinds.iter().map(|kind| kind.shard()).collect();
                    match compiled {
                        Ok(compiled) => {
                            draft.compiled = Some(compiled);
                            None
                        }
                        Err(what) => Some(cannot_compile(id, &what)),
                    }
                }
                Body::Filter(filter) => compile::filter(filter).err().map(|what| cannot_compile(id, &what)),
                Body::Correlation(_) => None,
            };
            if let Some(problem) = problem {
                self.refuse(source, problem);
            }
        }
    }

    /// The document that `reference` names for a source: one of its own first, then anyone's.
    fn find(&self, source: usize, reference: &str) -> Option<usize> {
        let id = Uuid::try_parse(reference).ok();
        let named = |draft: &Draft| {
            !matches!(draft.document.body, Body::Filter(_))
                && !self.refused.contains_key(&draft.source)
                && (Some(draft.document.id) == id || draft.document.name() == Some(reference))
        };
        let own = self.drafts.iter().position(|draft| draft.source == source && named(draft));
        own.or_else(|| self.drafts.iter().position(named))
    }

    /// Resolves correlations until nothing changes: a refusal may take away what another one refers to.
    fn correlate(&mut self) {
        loop {
            let before = self.refused.len();
            for number in 0..self.drafts.len() {
                let source = self.drafts[number].source;
                if self.refused.contains_key(&source) {
                    continue;
                }
                let Body::Correlation(rule) = &self.drafts[number].document.body else { continue };
                let members: Result<Vec<usize>, &String> =
                    rule.rules.iter().map(|name| self.find(source, name).ok_or(name)).collect();
                let outcome = match members {
                    Ok(members) => plan::plan(rule)
                        .map(|plan| (plan, members))
                        .map_err(|what| cannot_compile(self.drafts[number].document.id, &what)),
                    Err(name) => Err(error(
                        "unknown_rule",
                        format!("it refers to the rule `{name}`, which is not in the set"),
                        "load that rule, or put it into the same source",
                    )),
                };
                match outcome {
                    Ok(planned) => self.drafts[number].plan = Some(planned),
                    Err(problem) => self.refuse(source, problem),
                }
            }
            self.order();
            if self.refused.len() == before {
                return;
            }
        }
    }

    /// Gives correlations their shards and fingerprints, members first; refuses circles and those of two kinds of events.
    fn order(&mut self) {
        let mut done: BTreeSet<usize> =
            (0..self.drafts.len()).filter(|number| self.drafts[*number].plan.is_none()).collect();
        loop {
            let ready: Vec<usize> = (0..self.drafts.len())
                .filter(|number| !done.contains(number))
                .filter(|number| self.members(*number).iter().all(|member| done.contains(member)))
                .collect();
            if ready.is_empty() {
                break;
            }
            for number in ready {
                done.insert(number);
                self.join(number);
            }
        }
        for number in 0..self.drafts.len() {
            let source = self.drafts[number].source;
            if !done.contains(&number) && !self.refused.contains_key(&source) {
                let what = "its correlations refer to each other in a circle".to_owned();
                self.refuse(source, error("circle", what, "break the circle"));
            }
        }
    }

    fn members(&self, number: usize) -> &[usize] {
        self.drafts[number].plan.as_ref().map_or(&[], |(_, members)| members)
    }

    fn join(&mut self, number: usize) {
        let source = self.drafts[number].source;
        let members = self.members(number).to_vec();
        let mut digest = Sha256::new();
        digest.update(&self.sources[source].yaml);
        digest.update(self.drafts[number].document.id.as_bytes());
        let mut shards: BTreeSet<Shard> = Shard::ALL.into_iter().collect();
        let mut unreached = false;
        for member in &members {
            let member = &self.drafts[*member];
            digest.update(member.fingerprint);
            shards = shards.intersection(&member.shards).copied().collect();
            unreached |= member.shards.is_empty();
        }
        if shards.is_empty() && !unreached && !self.refused.contains_key(&source) {
            let what = "it refers to rules of different kinds of events".to_owned();
            let help = "correlate events of files, or of connections, but not both: they are judged apart";
            self.refuse(source, error("mixed_kinds", what, help));
        }
        if let Some(problem) = split_windows(&shards) {
            self.warned.insert(source, problem);
        }
        let draft = &mut self.drafts[number];
        draft.fingerprint = digest.finalize().into();
        draft.shards = shards;
    }

    fn finish(mut self, suspended: &[RuleKey]) -> Set {
        let states: Vec<Arc<SourceState>> = (0..self.sources.len())
            .map(|source| {
                let mine = self.drafts.iter().filter(|draft| draft.source == source);
                let shards: BTreeSet<Shard> = mine.flat_map(|draft| draft.shards.iter().copied()).collect();
                let key = self.sources[source].key;
                let title = std::mem::take(&mut self.titles[source]);
                let held = suspended.contains(&key);
                Arc::new(SourceState::new(key, title, shards.into_iter().collect(), held))
            })
            .collect();
        let silent = self.silent();
        let metas: BTreeMap<usize, Meta> = (0..self.drafts.len())
            .filter(|number| !self.refused.contains_key(&self.drafts[*number].source))
            .filter_map(|number| {
                let draft = &self.drafts[number];
                Some((number, meta(draft, Arc::clone(&states[draft.source]), silent.contains(&number))?))
            })
            .collect();
        let metas = Arc::new(metas);
        let shards = Shard::ALL.into_iter().map(|shard| self.shard(shard, &metas)).collect();
        let sources = (0..self.sources.len())
            .filter(|source| !self.refused.contains_key(source))
            .map(|source| Arc::clone(&states[source]))
            .collect();
        let filters = self.drafts.iter().filter(|draft| matches!(draft.document.body, Body::Filter(_)));
        let filters = filters.map(|draft| self.sources[draft.source].key).collect();
        let warned = self.warned.into_iter().filter(|(source, _)| !self.refused.contains_key(source));
        let warned = warned.map(|(source, why)| (self.sources[source].key, vec![why])).collect();
        let refused = self.refused.into_iter().map(|(source, why)| (self.sources[source].key, why)).collect();
        Set { sources, shards, refused, warned, filters }
    }

    /// Documents that only feed correlations: those of the same source that do not ask for them to be told as well
    /// (`generate`). A correlation never silences somebody else's rule.
    fn silent(&self) -> BTreeSet<usize> {
        let mut silent = BTreeSet::new();
        for (number, draft) in self.drafts.iter().enumerate() {
            if let Body::Correlation(rule) = &draft.document.body
                && !rule.generate
            {
                let mine = |member: &&usize| self.drafts[**member].source == draft.source;
                silent.extend(self.members(number).iter().filter(mine).copied());
            }
        }
        silent
    }

    fn shard(&mut self, shard: Shard, metas: &Arc<BTreeMap<usize, Meta>>) -> ShardRules {
        let mut engines = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.shard() == shard) {
            let rules: Vec<CompiledRule> = metas
                .iter()
                .filter(|(number, _)| self.drafts[**number].kinds.contains(&kind))
                .filter_map(|(number, _)| self.drafts[*number].compiled.clone())
                .collect();
            engines.push((kind, engine(rules)));
        }
        let mut numbers: Vec<usize> = metas
            .keys()
            .copied()
            .filter(|number| self.drafts[*number].plan.is_some() && self.drafts[*number].shards.contains(&shard))
            .collect();
        numbers.sort_by_key(|number| self.height(*number));
        let share = numbers.len().max(1);
        let room = Room { groups: (ROOM.groups / share).max(1000), entries: (ROOM.entries / share).max(10_000) };
        let mut feeds: HashMap<usize, Vec<(usize, u16)>> = HashMap::new();
        let mut plans: Vec<Planned> = Vec::new();
        for (place, number) in numbers.iter().enumerate() {
            let draft = &self.drafts[*number];
            let Some((plan, members)) = &draft.plan else { continue };
            for (member, document) in (0u16..).zip(members) {
                feeds.entry(*document).or_default().push((place, member));
            }
            let below = members
                .iter()
                .filter_map(|member| plans.iter().find(|planned| planned.document == *member))
                .map(|planned| planned.warm_up)
                .max();
            plans.push(Planned {
                document: *number,
                plan: plan.clone(),
                fingerprint: draft.fingerprint,
                warm_up: horizon(plan.timespan) + below.unwrap_or(0),
                room,
            });
        }
        ShardRules { engines, plans, feeds, metas: Arc::clone(metas) }
    }

    /// How many correlations stand below one: circles are refused before.
    fn height(&self, number: usize) -> usize {
        self.members(number).iter().map(|member| 1 + self.height(*member)).max().unwrap_or(0)
    }
}

/// An engine over compiled rules. It says why a rule matched, too.
pub(super) fn engine(rules: Vec<CompiledRule>) -> Engine {
    let mut engine = Engine::new();
    engine.set_match_detail(MatchDetailLevel::Full);
    engine.extend_compiled_rules(rules);
    engine
}

fn reached(source: &LogSource, products: &[Product]) -> Vec<Kind> {
    let here = source.system().is_none_or(|system| products.contains(&system));
    source.kinds().filter(|_| here).collect()
}

fn is_about(filter: &FilterRule, rule: &rsigma_parser::SigmaRule, id: Uuid) -> bool {
    let named = match &filter.rules {
        FilterRuleTarget::Any => true,
        FilterRuleTarget::Specific(names) => names.iter().any(|name| {
            Uuid::try_parse(name).ok() == Some(id) || rule.name.as_deref() == Some(name) || rule.title == *name
        }),
    };
    named && compile::filter_covers(filter.logsource.as_ref(), &rule.logsource)
}

fn meta(draft: &Draft, source: Arc<SourceState>, silent: bool) -> Option<Meta> {
    let sigma_id = draft.document.id;
    let level = |level: Option<rsigma_parser::Level>| match level {
        Some(rsigma_parser::Level::Informational) => Level::Informational,
        Some(rsigma_parser::Level::Low) => Level::Low,
        Some(rsigma_parser::Level::High) => Level::High,
        Some(rsigma_parser::Level::Critical) => Level::Critical,
        Some(rsigma_parser::Level::Medium) | None => Level::Medium,
    };
    Some(match &draft.document.body {
        Body::Rule(rule) => Meta {
            source,
            sigma_id,
            title: rule.title.clone(),
            description: rule.description.clone().unwrap_or_default(),
            false_positives: rule.falsepositives.clone(),
            level: level(rule.level),
            tags: rule.tags.clone(),
            silent,
        },
        Body::Correlation(rule) => Meta {
            source,
            sigma_id,
            title: rule.title.clone(),
            description: rule.description.clone().unwrap_or_default(),
            false_positives: rule.falsepositives.clone(),
            level: level(rule.level),
            tags: rule.tags.clone(),
            silent,
        },
        Body::Filter(_) => return None,
    })
}
