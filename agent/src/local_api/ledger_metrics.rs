//! The books of events, the delivery and the way of events, as metrics at each scrape.

use crate::events::Pipeline;
use crate::keep::Kept;
use picket_outbox::delivery::DeliveryStatus;
use picket_outbox::{BreakerState, DELAY_BOUNDS_MS, Delays, QueueStatus};
use picket_protocol::Priority;
use picket_telemetry::Scrape;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Turns the books into metrics.
pub(crate) struct LedgerCollector {
    /// Outbox and delivery.
    pub(crate) kept: Arc<Kept>,
    /// The way of events.
    pub(crate) pipeline: Option<Arc<Pipeline>>,
}

impl std::fmt::Debug for LedgerCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LedgerCollector")
    }
}

impl Collector for LedgerCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Scrape(encoder);
        if let Some(report) = self.kept.queue() {
            books(&mut out, &report.queue)?;
            if let Some(delivery) = &report.delivery {
                deliveries(&mut out, delivery)?;
            }
        }
        let Some(pipeline) = &self.pipeline else { return Ok(()) };
        let counters = pipeline.counters();
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        out.counter("events_taken", "Events that watchers and the monitor handed on", read(&counters.taken))?;
        out.counter("events_folded", "Events that became part of an identical one", read(&counters.folded))?;
        out.counter("events_rate_limited", "Events over their type's budget", read(&counters.limited))?;
        out.counter("events_shed", "Events given up to keep the agent within its own budget", read(&counters.shed))?;
        out.counter("events_unformatted", "Events that could not be written as JSON", read(&counters.unformatted))?;
        let sinks = counters.sinks.all();
        let lost = sinks.iter().map(|(_, tally)| read(&tally.failed) + read(&tally.dropped)).sum::<u64>();
        let help = "Events that a sink other than the outbox did not take";
        out.counter("event_sink_failures", help, lost)?;
        let outcomes = sinks.iter().flat_map(|(sink, tally)| {
            let counts = [("written", &tally.written), ("failed", &tally.failed), ("dropped", &tally.dropped)];
            counts.map(|(outcome, count)| (vec![("outcome", outcome), ("sink", *sink)], read(count)))
        });
        let help = "Events by sink other than the outbox, and what became of them there";
        out.family("event_sink_events", help, MetricType::Counter, outcomes)
    }
}

fn books(out: &mut Scrape<'_>, queue: &QueueStatus) -> Result<(), Error> {
    let ledger = &queue.ledger;
    let each = |count: fn(&picket_outbox::Account) -> u64| {
        Priority::ALL.into_iter().map(move |class| (vec![("class", class.as_str())], count(ledger.of(class))))
    };
    let counter = MetricType::Counter;
    out.family(
        "events_emitted",
        "Events handed to the outbox, and those given up before",
        counter,
        each(|a| a.emitted),
    )?;
    out.family("events_acknowledged", "Events that the receiver has stored", counter, each(|a| a.acknowledged))?;
    out.family("events_queued", "Events that wait for the receiver", MetricType::Gauge, each(|a| a.queued))?;
    let gaps = Priority::ALL.into_iter().flat_map(|class| {
        let gaps = ledger.of(class).gaps.iter();
        gaps.map(move |(reason, count)| (vec![("class", class.as_str()), ("reason", reason.as_str())], *count))
    });
    out.family("events_missing", "Events that are missing and accounted for, by reason", counter, gaps)?;
    let help = "Gaps of which nobody can know the size: the kernel dropped events unseen";
    out.counter("events_unknown_gaps", help, queue.unknown_gaps)?;
    let holds = f64::from(u8::from(queue.ledger_holds));
    out.gauge("ledger_holds", "1 while emitted = acknowledged + queued + missing, in each class", None, holds)?;
    out.gauge("outbox_size", "What the outbox takes", Some(&Unit::Bytes), queue.bytes as f64)?;
    durable(out, &queue.delays)?;
    if let Some(oldest) = queue.oldest_seconds {
        let help = "How long the oldest event has waited";
        out.gauge("outbox_oldest_event_age", help, Some(&Unit::Seconds), oldest as f64)?;
    }
    Ok(())
}

/// The delays as a histogram.
fn durable(out: &mut Scrape<'_>, delays: &Delays) -> Result<(), Error> {
    let bounds = DELAY_BOUNDS_MS.map(|bound| bound as f64 / 1_000.0);
    let help = "From when an event happened until it was durable in the queue";
    out.durations("event_durable", help, &bounds, &delays.counts, delays.sum_ms as f64 / 1_000.0)
}

fn deliveries(out: &mut Scrape<'_>, delivery: &DeliveryStatus) -> Result<(), Error> {
    let states = [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen];
    let states = states.map(|state| (vec![("state", state.as_str())], u64::from(delivery.breaker == state)));
    out.family("circuit_breaker_state", "1 for the state the circuit breaker is in", MetricType::Gauge, states)?;
    let help = "How often the circuit breaker opened";
    out.counter("circuit_breaker_opened", help, delivery.breaker_opened)?;
    let failures = delivery.consecutive_failures;
    out.gauge("delivery_consecutive_failures", "Deliveries that failed in a row", None, f64::from(failures))?;
    out.counter("delivered_batches", "Batches that the receiver has stored", delivery.batches)?;
    out.counter("delivered_records", "Records that the receiver has stored", delivery.records)
}
