//! The judge: each event once, in the order of commits, against the rules in force.
//!
//! A shard (one kind of events) is judged by one replica at a time, which holds its lease. Findings and the place up to
//! which was judged are one transaction, fenced by the lease's epoch: whatever dies whenever, no event is judged twice and
//! none is left out. Who takes over a shard shows its correlations the events of their windows again, without reporting.

mod lag;

use crate::server::told_to_stop;
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{
    DbError, Effect, Entity, EventFilter, Evidence, FindingChange, JudgeCommit, Judged, Lease, PageRequest, Position,
    Result as DbResult, Severity, Shard as DbShard, StoredEvent,
};
use picket_hub_rules::{EntityKind, EventView, Level, Match, Product, Received, RuleEngine, Shard};
use picket_telemetry::histograms::durations;
use prometheus_client::metrics::histogram::Histogram;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// For how long a shard is leased, and after which time the lease is renewed.
const LEASE: SignedDuration = SignedDuration::from_secs(15);
const RENEW_AFTER: Duration = Duration::from_secs(5);
/// How long a replica waits before it asks for a shard again that another one has.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// How long it waits for events before it looks anyway: a replica may have stored some.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Events that are judged together.
const RUN: u32 = 2_000;
/// How much earlier than its window a correlation is warmed up, for transactions that took long.
const MARGIN: SignedDuration = SignedDuration::from_mins(2);

/// What the judge counted.
#[derive(Debug)]
pub struct JudgeCounters {
    /// Events judged, by shard.
    pub events: [AtomicU64; Shard::ALL.len()],
    /// New findings, by severity.
    pub findings: Mutex<BTreeMap<Severity, u64>>,
    /// Events that could not be judged, by shard.
    pub unjudged: [AtomicU64; Shard::ALL.len()],
    /// The time that judging took, for each run of events.
    pub processing: Histogram,
    /// From when the event that completes a finding was received until the finding was stored.
    pub delay: Histogram,
    /// How long the oldest event that is not judged had waited at a moment, by shard; none when all are, or another replica
    /// judges.
    waiting: [Mutex<Option<(Instant, Duration)>>; Shard::ALL.len()],
    /// Which shards this replica holds.
    pub held: Mutex<Vec<&'static str>>,
}

impl Default for JudgeCounters {
    fn default() -> Self {
        Self {
            events: Default::default(),
            findings: Mutex::default(),
            unjudged: Default::default(),
            processing: durations(),
            delay: durations(),
            waiting: Default::default(),
            held: Mutex::default(),
        }
    }
}

/// Judges a shard for as long as the hub lives and the lease can be had.
pub async fn run(hub: Arc<Hub>, shard: Shard) {
    let name = lease_name(shard);
    let holder = hub.replica.to_string();
    let mut stop = hub.stop.clone();
    loop {
        let now = hub.clock.now();
        let expires = now.checked_add(LEASE).unwrap_or(now);
        match hub.db.acquire_lease(hub.tenant, &name, &holder, now, expires).await {
            Ok(Some(lease)) => {
                tracing::debug!(shard = shard.as_str(), epoch = lease.epoch, "this replica judges");
                hub.judged.hold(shard, true);
                let mut bench = Bench::new(&hub, shard, lease);
                let ended = tokio::select! {
                    ended = bench.sit() => ended,
                    () = told_to_stop(&mut stop) => Ok(()),
                };
                hub.judged.hold(shard, false);
                if *stop.borrow() {
                    hub.judged.clear_lag(shard);
                    // Another replica need not wait until it is over.
                    let _ = hub.db.release_lease(hub.tenant, &bench.lease).await;
                    return;
                }
                // What waits goes on waiting, and its lag grows, until somebody judges it.
                if let Err(error) = ended {
                    tracing::warn!(shard = shard.as_str(), %error, "judging is interrupted");
                }
            }
            // Another replica judges, and says how late it is.
            Ok(None) => hub.judged.clear_lag(shard),
            Err(error) => {
                tracing::warn!(shard = shard.as_str(), %error, "the lease cannot be asked for");
                lag::note(&hub, shard).await;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_AGAIN) => {}
            () = told_to_stop(&mut stop) => return,
        }
    }
}

/// Under which name a shard is leased, and under which its place is kept.
pub fn lease_name(shard: Shard) -> String {
    format!("judge/{}", shard.as_str())
}

impl JudgeCounters {
    fn hold(&self, shard: Shard, holds: bool) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|name| *name != shard.as_str());
        if holds {
            held.push(shard.as_str());
        }
    }
}

/// A shard that is held.
struct Bench<'a> {
    hub: &'a Arc<Hub>,
    shard: Shard,
    lease: Lease,
    renewed: Instant,
    /// Up to where is committed.
    committed: Position,
    /// Up to where was read: nothing of this shard lies between the two.
    read: Position,
    /// When the latest of the judged events was received: from then on correlations are warmed up.
    judged_until: Option<Timestamp>,
}

impl<'a> Bench<'a> {
    fn new(hub: &'a Arc<Hub>, shard: Shard, lease: Lease) -> Self {
        let start = Position::START;
        Self { hub, shard, lease, renewed: Instant::now(), committed: start, read: start, judged_until: None }
    }

    /// Judges until the lease is lost.
    async fn sit(&mut self) -> DbResult<()> {
        let mut wake = self.hub.wake.subscribe();
        let progress = self.hub.db.progress(self.hub.tenant, &self.lease.name).await?;
        self.committed = progress.position;
        self.judged_until = progress.state.as_deref().and_then(read_state);
        self.read = self.committed;
        // What waits does so while correlations are warmed up, too.
        self.hub.judged.note(self.shard, lag::oldest_after(self.hub, self.shard, self.committed).await?);
        self.hub.rules.engine().forget(self.shard);
        self.hub.rules.take_cold(self.shard);
        self.warm_up().await?;
        loop {
            self.keep().await?;
            wake.borrow_and_update();
            let tail = self.hub.db.events_after(self.hub.tenant, self.read, &[db_shard(self.shard)], RUN).await?;
            self.read = tail.next;
            if !tail.events.is_empty() {
                self.judge(tail.events, tail.next).await?;
            }
            if tail.at_end {
                self.hub.judged.clear_lag(self.shard);
                let _ = tokio::time::timeout(LOOK_AGAIN, wake.changed()).await;
            }
        }
    }

    async fn keep(&mut self) -> DbResult<()> {
        if self.renewed.elapsed() < RENEW_AFTER {
            return Ok(());
        }
        let now = self.hub.clock.now();
        let until = now.checked_add(LEASE).unwrap_or(now);
        self.lease = self.hub.db.renew_lease(self.hub.tenant, &self.lease, until).await?;
        self.renewed = Instant::now();
        Ok(())
    }

    /// Shows correlations what was before the place that is committed: from a window before the last judged event was
    /// received, which may be long ago when the hub was away.
    async fn warm_up(&mut self) -> DbResult<()> {
        let engine = Arc::clone(self.hub.rules.engine());
        let window = engine.warm_up_window(self.shard);
        if window.is_zero() || self.committed == Position::START {
            return Ok(());
        }
        let now = self.hub.clock.now();
        let until = self.judged_until.map_or(now, |until| until.min(now));
        let since = until.checked_sub(window + MARGIN).unwrap_or(Timestamp::MIN);
        let filter = EventFilter { since: Some(since), oldest_first: true, ..EventFilter::default() };
        let first = self.hub.db.events(self.hub.tenant, &filter, &PageRequest::first(1)).await?;
        let Some(first) = first.items.first() else { return Ok(()) };
        let mut position = first.position;
        let mut shown = 0_u64;
        // The first one itself, which `events_after` leaves out.
        let mut next = vec![first.clone()];
        while position < self.committed || !next.is_empty() {
            self.keep().await?;
            for event in next.iter().filter(|event| event.position <= self.committed) {
                if let Some(view) = view(event) {
                    engine.warm_up(self.shard, &view);
                    shown += 1;
                }
            }
            if position >= self.committed {
                break;
            }
            let tail = self.hub.db.events_after(self.hub.tenant, position, &[db_shard(self.shard)], RUN).await?;
            let is_last = tail.at_end || tail.next >= self.committed;
            position = if is_last { self.committed } else { tail.next };
            next = tail.events;
        }
        tracing::debug!(shard = self.shard.as_str(), events = shown, "correlations are warm");
        Ok(())
    }

    async fn judge(&mut self, events: Vec<StoredEvent>, to: Position) -> DbResult<()> {
        let began = Instant::now();
        let count = events.len() as u64;
        let heard: Heard = events.iter().map(|event| (event.id, Came::of(event))).collect();
        let now = self.hub.clock.now();
        if let Some(oldest) = heard.values().map(|came| came.at).min() {
            self.hub.judged.set_lag(self.shard, now.duration_since(oldest).max(SignedDuration::ZERO));
        }
        let judged_until = heard.values().map(|came| came.at).max().max(self.judged_until);
        let (engine, shard) = (Arc::clone(self.hub.rules.engine()), self.shard);
        // The set is not replaced from the last look whether anything of it is cold until the events are judged.
        let settled = loop {
            let settled = self.hub.rules.settled().await;
            if !self.hub.rules.take_cold(shard) {
                break settled;
            }
            drop(settled);
            // All of it anew: what is shown twice would be counted twice.
            engine.forget(shard);
            self.warm_up().await?;
        };
        let evaluated = tokio::task::spawn_blocking(move || evaluate(engine.as_ref(), shard, &events)).await;
        drop(settled);
        // Nothing is committed: the same events are judged again.
        let evaluated = evaluated.map_err(|error| DbError::Io { operation: "judge events", why: error.to_string() })?;
        let unjudged = evaluated.unjudged;
        let mut changes = self.changes(evaluated.matches, evaluated.places).await?;
        self.hub.tell_of_findings(&mut changes).await?;
        let state = judged_until.map(write_state);
        let commit = JudgeCommit { from: self.committed, to, state, now: self.hub.clock.now(), changes };
        let judged = self.hub.db.commit_findings(self.hub.tenant, &self.lease, &commit).await?;
        self.committed = to;
        self.judged_until = judged_until;
        let counters = &self.hub.judged;
        counters.events[self.shard as usize].fetch_add(count - unjudged, Ordering::Relaxed);
        counters.unjudged[self.shard as usize].fetch_add(unjudged, Ordering::Relaxed);
        counters.processing.observe(began.elapsed().as_secs_f64());
        self.tell(&commit, &judged, &heard);
        if !judged.outcomes.is_empty() {
            self.hub.tell_findings_changed();
        }
        for (rule, why) in self.hub.rules.engine().take_suspensions() {
            self.hub.note_suspension(rule, &why).await;
        }
        Ok(())
    }

    /// Counts the findings that are new, and writes them to the log.
    fn tell(&self, commit: &JudgeCommit, judged: &Judged, heard: &Heard) {
        let counters = &self.hub.judged;
        for (change, outcome) in commit.changes.iter().zip(&judged.outcomes) {
            if matches!(outcome.effect, Effect::New | Effect::Reopened) {
                *counters
                    .findings
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(change.severity)
                    .or_default() += 1;
                let last = change.evidence.last();
                let came = last.and_then(|evidence| heard.get(&evidence.event));
                let delay = came.and_then(|came| Duration::try_from(commit.now.duration_since(came.at)).ok());
                if let Some(delay) = delay {
                    counters.delay.observe(delay.as_secs_f64());
                }
                tracing::info!(
                    finding = %outcome.finding, rule = change.rule, severity = change.severity.as_str(),
                    agent = change.agent.map(display), event = last.map(|last| display(last.event)),
                    correlation_id = came.map(|came| display(format!("{}:{}", came.boot_id, came.seq))),
                    title = change.title, "a finding"
                );
            }
        }
    }

    /// What matches come to. The places of events that were judged before this run are asked of the database.
    async fn changes(&self, matches: Vec<Match>, mut places: Places) -> DbResult<Vec<FindingChange>> {
        let mut changes = Vec::with_capacity(matches.len());
        for found in matches {
            let unknown: Vec<Uuid> = found.evidence.iter().filter(|id| !places.contains_key(id)).copied().collect();
            for ids in unknown.chunks(usize::try_from(picket_hub_db::PAGE_MAX).unwrap_or(1)) {
                for event in self.hub.db.events_by_id(self.hub.tenant, ids).await? {
                    places.insert(event.id, (event.position, event.timestamp));
                }
            }
            let evidence: Vec<Evidence> = found
                .evidence
                .iter()
                .filter_map(|id| {
                    places.get(id).map(|(position, at)| Evidence { event: *id, position: *position, at: *at })
                })
                .collect();
            // Everything behind it is gone by retention: nothing to show.
            if !evidence.is_empty() {
                changes.push(change(found, evidence));
            }
        }
        Ok(changes)
    }
}

/// Where events are, and when they happened.
type Places = HashMap<Uuid, (Position, Timestamp)>;

/// How an event of the run came: when, and where it stands in its agent's stream, by which it is found again in the logs
/// on its way here.
struct Came {
    at: Timestamp,
    boot_id: Uuid,
    seq: u64,
}

impl Came {
    fn of(event: &StoredEvent) -> Self {
        Self { at: event.received_at, boot_id: event.boot_id, seq: event.seq }
    }
}

/// The events of a run, by their ids.
type Heard = HashMap<Uuid, Came>;

/// What a run of events came to.
#[derive(Default)]
struct Evaluated {
    matches: Vec<Match>,
    places: Places,
    /// How many events could not be judged.
    unjudged: u64,
}

fn evaluate(engine: &dyn RuleEngine, shard: Shard, events: &[StoredEvent]) -> Evaluated {
    let mut evaluated = Evaluated::default();
    for event in events {
        // A fault of the engine costs the judgement of one event, and is named; not that of the run, nor the judge.
        let judged = catch_unwind(AssertUnwindSafe(|| view(event).map(|view| engine.evaluate(shard, &view))));
        match judged {
            Ok(Some(found)) => evaluated.matches.extend(found),
            Ok(None) => evaluated.unjudged += 1,
            Err(_) => {
                tracing::error!(event = %event.id, shard = shard.as_str(), "the engine failed at an event");
                evaluated.unjudged += 1;
            }
        }
        evaluated.places.insert(event.id, (event.position, event.timestamp));
    }
    evaluated
}

/// What is kept beside the place up to which was judged: when the latest of those events was received, in microseconds.
fn write_state(judged_until: Timestamp) -> Vec<u8> {
    judged_until.as_microsecond().to_string().into_bytes()
}

fn read_state(state: &[u8]) -> Option<Timestamp> {
    let micros = std::str::from_utf8(state).ok()?.parse().ok()?;
    Timestamp::from_microsecond(micros).ok()
}

/// An event as its agent wrote it, as far as rules are concerned.
pub fn text(event: &StoredEvent) -> String {
    let kind = Value::String(event.kind.clone());
    format!(
        r#"{{"boot_id":"{}","seq":{},"class":"{}","type":{kind},"details":{}}}"#,
        event.boot_id,
        event.seq,
        event.class.as_str(),
        event.data
    )
}

/// An event as rules see it. One that cannot be looked at is stored and not judged.
fn view(event: &StoredEvent) -> Option<EventView> {
    let received = Received { id: event.id, agent: event.agent, at: event.received_at, product: Product::Linux };
    match EventView::parse(received, text(event).as_bytes()) {
        Ok(view) => Some(view),
        Err(error) => {
            tracing::warn!(event = %event.id, %error, "an event is not judged");
            None
        }
    }
}

fn change(found: Match, evidence: Vec<Evidence>) -> FindingChange {
    let kind = match found.entity.kind {
        EntityKind::File => "file",
        EntityKind::Address => "ip",
        EntityKind::Metric => "metric",
        EntityKind::Agent => "agent",
        EntityKind::Group => "group",
    };
    let details = json!({
        "sigma_id": found.sigma_id,
        "tags": found.tags,
        "false_positives": found.false_positives,
        "match_key": found.match_key,
        "match": found.kind,
    });
    FindingChange {
        rule: found.rule.id.to_string(),
        rule_version: i64::from(found.rule.version),
        dedupe_key: found.dedupe_key,
        severity: severity(found.level),
        title: found.title,
        description: found.description,
        entity: Some(Entity { kind: kind.to_owned(), value: found.entity.value }),
        agent: Some(found.agent),
        evidence,
        details,
        deliveries: Vec::new(),
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Informational => Severity::Informational,
        Level::Low => Severity::Low,
        Level::Medium => Severity::Medium,
        Level::High => Severity::High,
        Level::Critical => Severity::Critical,
    }
}

fn db_shard(shard: Shard) -> DbShard {
    match shard {
        Shard::File => DbShard::File,
        Shard::Network => DbShard::Network,
        Shard::Alert => DbShard::Alert,
        Shard::Config => DbShard::Config,
        Shard::Other => DbShard::Other,
    }
}
