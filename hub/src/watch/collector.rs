//! What the hub's parts count, as metrics at each scrape.

use crate::state::Hub;
use picket_hub_rules::{RuleHealth, RuleState, Shard};
use picket_telemetry::Scrape;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, Weak};

/// Of how many rules the cost is shown: those that cost most. Three lines each, so a scrape stays below a megabyte.
const RULES_SHOWN: usize = 500;

const GAUGE: MetricType = MetricType::Gauge;
const COUNTER: MetricType = MetricType::Counter;

/// Turns what the hub counts into metrics. It does not keep the hub alive.
pub struct HubCollector {
    hub: Weak<Hub>,
}

impl HubCollector {
    /// For this hub.
    pub fn new(hub: &Arc<Hub>) -> Self {
        Self { hub: Arc::downgrade(hub) }
    }
}

impl std::fmt::Debug for HubCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HubCollector")
    }
}

impl Collector for HubCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(hub) = self.hub.upgrade() else { return Ok(()) };
        let mut out = Scrape(encoder);
        agents(&mut out, &hub)?;
        intake(&mut out, &hub)?;
        judge(&mut out, &hub)?;
        rules(&mut out, &hub)?;
        listeners(&mut out, &hub)?;
        database(&mut out, &hub)?;
        bus(&mut out, &hub)
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn agents(out: &mut Scrape<'_>, hub: &Hub) -> Result<(), Error> {
    out.gauge("agents_connected", "Agents that are connected to this replica", None, hub.presence.count() as f64)?;
    if let Some(seen) = hub.watched.pulse.seen() {
        let agents = seen.agents.iter().map(|(status, count)| (vec![("status", status.as_str())], *count));
        out.family("agents", "Agents that are not retired, by what is known of them", GAUGE, agents)?;
    }
    let books = hub.books.seen();
    let help = "Agents of which events are missing that no gap tells of, for longer than two heartbeats";
    out.gauge("agents_unaccounted", help, None, books.agents as f64)?;
    out.gauge("events_unaccounted", "How many events those agents miss", None, books.events as f64)?;
    let heartbeats = hub.heartbeats.counters();
    let outcomes = [("stored", &heartbeats.stored), ("shed", &heartbeats.shed)];
    let outcomes = outcomes.map(|(outcome, count)| (vec![("outcome", outcome)], read(count)));
    out.family("heartbeats", "Heartbeats of agents, by what became of them", COUNTER, outcomes)?;
    let shed = hub.shed();
    let shed = shed.iter().map(|(what, count)| (vec![("what", *what)], *count));
    out.family("shed", "What was sent away for want of room or over its rate, with a time to come back", COUNTER, shed)
}

fn intake(out: &mut Scrape<'_>, hub: &Hub) -> Result<(), Error> {
    let counters = hub.intake.counters();
    let events = [("stored", &counters.events), ("duplicate", &counters.duplicates)];
    let events = events.map(|(outcome, count)| (vec![("outcome", outcome)], read(count)));
    out.family("events_received", "Events of agents: new ones, and those that were here already", COUNTER, events)?;
    let help = "Events of the hub's own that were given up because they could not be stored";
    out.counter("own_events_given_up", help, hub.own_events.given_up())?;
    out.counter("batches_stored", "Batches of events that were stored and acknowledged", read(&counters.batches))?;
    let transactions = [("committed", &counters.transactions), ("failed", &counters.failed)];
    let transactions = transactions.map(|(outcome, count)| (vec![("outcome", outcome)], read(count)));
    out.family("ingest_transactions", "Transactions that store events", COUNTER, transactions)?;
    let busy = [(Vec::new(), read(&counters.busy_us) as f64 / 1e6)];
    out.measures("ingest_busy", "Time that those transactions took, together", &Unit::Seconds, COUNTER, busy)?;
    let (batches, bytes) = hub.intake.waiting();
    let queues = [("events", batches as u64), ("heartbeats", hub.heartbeats.waiting() as u64)];
    let queues = queues.map(|(queue, length)| (vec![("queue", queue)], length));
    out.family("queue_length", "Items that wait to be stored: batches of events, heartbeats", GAUGE, queues)?;
    let help = "Bytes that are reserved for events on their way into the database";
    out.gauge("ingest_reserved", help, Some(&Unit::Bytes), bytes as f64)
}

fn judge(out: &mut Scrape<'_>, hub: &Hub) -> Result<(), Error> {
    let by_shard = |counts: &[AtomicU64; Shard::ALL.len()]| {
        Shard::ALL.map(|shard| (vec![("shard", shard.as_str())], read(&counts[shard as usize])))
    };
    out.family("events_processed", "Events judged by this replica", COUNTER, by_shard(&hub.judged.events))?;
    let help = "Events that could not be judged: one that is no event, or at which the engine failed";
    out.family("events_unjudged", help, COUNTER, by_shard(&hub.judged.unjudged))?;
    {
        let findings = hub.judged.findings.lock().unwrap_or_else(PoisonError::into_inner);
        let findings = findings.iter().map(|(severity, count)| (vec![("severity", severity.as_str())], *count));
        out.family("findings_generated", "Findings that are new or were opened again", COUNTER, findings)?;
    }
    let held = hub.judged.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let holds = Shard::ALL.map(|shard| (vec![("shard", shard.as_str())], u64::from(held.contains(&shard.as_str()))));
    out.family("shard_held", "1 for the kinds of events that this replica judges", GAUGE, holds)?;
    let lags = Shard::ALL.map(|shard| (vec![("shard", shard.as_str())], hub.judged.lag(shard).as_secs_f64()));
    let help = "How long the oldest event waits that is not judged";
    out.measures("judge_lag", help, &Unit::Seconds, GAUGE, lags)
}

fn rules(out: &mut Scrape<'_>, hub: &Hub) -> Result<(), Error> {
    let figures = Shard::ALL.map(|shard| (shard.as_str(), hub.rules.figures(shard)));
    let each = |count: fn(&picket_hub_rules::Figures) -> u64| {
        figures.iter().map(move |(shard, figures)| (vec![("shard", *shard)], count(figures)))
    };
    out.family("rules_loaded", "Rules in force", GAUGE, each(|figures| figures.rules))?;
    out.family("rule_events", "Events shown to the rules", COUNTER, each(|figures| figures.events))?;
    out.family("rule_matches", "Matches of rules", COUNTER, each(|figures| figures.matches))?;
    let busy = figures.iter().map(|(shard, figures)| (vec![("shard", *shard)], figures.busy.as_secs_f64()));
    out.measures("rule_busy", "Time that rules took", &Unit::Seconds, COUNTER, busy)?;
    out.family("correlation_groups", "Groups that correlations keep", GAUGE, each(|figures| figures.groups))?;
    out.family(
        "correlation_state_bytes",
        "What correlations keep in memory",
        GAUGE,
        each(|figures| figures.state_bytes),
    )?;
    let help = "Groups and entries that correlations gave up for want of room: they may miss a match";
    let evicted = each(|figures| figures.groups_evicted + figures.entries_evicted);
    out.family("correlation_evictions", help, COUNTER, evicted)?;
    out.gauge("rules_refused", "Rules that cannot be used", None, hub.rules.refused().len() as f64)?;
    let health = costliest(hub.rules.health());
    let ids: Vec<String> = health.iter().map(|rule| rule.rule.id.to_string()).collect();
    let rules = || ids.iter().zip(&health).map(|(id, rule)| (vec![("rule", id.as_str())], rule));
    let cost = rules().map(|(labels, rule)| (labels, rule.mean_nanos as f64 / 1e9));
    let help = "Mean time of one evaluation, of the rules that cost most";
    out.measures("rule_cost", help, &Unit::Seconds, GAUGE, cost)?;
    let suspended =
        rules().map(|(labels, rule)| (labels, u64::from(matches!(rule.state, RuleState::Suspended { .. }))));
    out.family("rule_suspended", "1 for a rule that is not asked any more, because it cost too much", GAUGE, suspended)
}

/// The rules that are shown: suspended ones, then those whose evaluations took longest.
fn costliest(mut health: Vec<RuleHealth>) -> Vec<RuleHealth> {
    let is_suspended = |rule: &RuleHealth| matches!(rule.state, RuleState::Suspended { .. });
    health.sort_by_key(|rule| std::cmp::Reverse((is_suspended(rule), rule.mean_nanos)));
    health.truncate(RULES_SHOWN);
    health
}

fn listeners(out: &mut Scrape<'_>, hub: &Hub) -> Result<(), Error> {
    let all = [("agents", &hub.listeners.agents), ("api", &hub.listeners.api)];
    let each = |count: fn(&crate::server::ListenerCounters) -> &AtomicU64| {
        all.map(|(listener, counters)| (vec![("listener", listener)], read(count(counters))))
    };
    out.family("connections_open", "Connections that are open", GAUGE, each(|counters| &counters.open))?;
    out.family("connections", "Connections that were accepted", COUNTER, each(|counters| &counters.accepted))?;
    let failed = each(|counters| &counters.failed_handshakes);
    out.family("tls_handshake_failures", "TLS handshakes that failed or took too long", COUNTER, failed)?;
    out.gauge("viewers", "Live views that are open", None, read(&hub.viewers.open) as f64)?;
    let help = "Items that did not fit a viewer's queue; each viewer was told how many of its own";
    out.counter("viewer_items_dropped", help, read(&hub.viewers.dropped))?;
    let keys = hub.keys();
    let ends = [("hub", &keys.hub.0), ("intermediate", keys.intermediate.certificate())];
    let ends = ends.into_iter().chain(keys.roots.first().map(|root| ("root", root)));
    let ends = ends.map(|(of, certificate)| {
        (vec![("of", of)], u64::try_from(certificate.not_after.as_second()).unwrap_or_default())
    });
    out.family("cert_expiration_timestamp", "When certificates end, in seconds since 1970", GAUGE, ends)
}

fn database(out: &mut Scrape<'_>, hub: &Hub) -> Result<(), Error> {
    let Some(seen) = hub.watched.pulse.seen() else { return Ok(()) };
    let stats = &seen.stats;
    out.gauge("database_size", "What the database takes", Some(&Unit::Bytes), stats.size_bytes as f64)?;
    let rows =
        [("events", stats.events), ("findings", stats.findings), ("deliveries_waiting", stats.deliveries_waiting)];
    let rows = rows.map(|(of, count)| (vec![("of", of)], count));
    out.family("database_rows", "What is in the database, perhaps as an estimate", GAUGE, rows)?;
    let help = "Requests that wait for the database's writer or for a connection";
    out.gauge("database_queue_length", help, None, stats.queued as f64)
}

fn bus(out: &mut Scrape<'_>, hub: &Hub) -> Result<(), Error> {
    let health = hub.replicas.health();
    out.gauge("bus_connected", "1 while replicas can hear this one", None, f64::from(u8::from(health.connected)))?;
    out.counter("bus_reconnects", "How often the connection to the bus was made again", health.reconnects)?;
    let help = "Messages of the bus that did not fit: they cost time, and nothing is lost by them";
    out.counter("bus_messages_lost", help, health.lost + hub.replicas.untold())?;
    out.counter("bus_messages", "Messages said on the bus", health.published)?;
    out.counter("bus_redeliveries", "Batches that came over the bus more than once", health.redeliveries)?;
    if !hub.settings.bus.events {
        return Ok(());
    }
    let relayed = &hub.relayed;
    let outcomes = [
        ("stored", &relayed.stored),
        ("refused", &relayed.refused),
        ("put_back", &relayed.put_back),
        ("dropped", &relayed.dropped),
    ];
    let outcomes = outcomes.map(|(outcome, count)| (vec![("outcome", outcome)], read(count)));
    out.family("bus_batches", "Batches of agents that came through NATS, by what became of them", COUNTER, outcomes)?;
    let help = "Batches of agents that wait in NATS, when it was last looked";
    out.gauge("bus_batches_waiting", help, None, read(&relayed.waiting) as f64)
}
