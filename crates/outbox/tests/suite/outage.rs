//! The receiver is away for 72 hours, on a clock that the test turns; and how the courier behaves in small.

use crate::bench::{Bench, Receiver, WAIT, draft};
use picket_outbox::delivery::{
    Accepted, Courier, Delivery, DeliverySettings, Step, Uplink, UplinkError, UplinkErrorKind,
};
use picket_outbox::{BatchLimits, BreakerState, Clock, EncodedBatch, Outbox, OutboxSettings};
use picket_protocol::event::{Event, EventBody, EventId, GapReason, Priority};
use picket_protocol::trace::TraceContext;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the simulated hub does with the next batches; when none is left, it stores them.
#[derive(Default)]
struct Hub {
    away: bool,
    /// Answers to give before anything else.
    answers: VecDeque<UplinkError>,
    /// Every so many batches it stores and its answer is lost.
    lose_answer_every: u64,
    /// It will never take events whose text has this.
    dislikes: Option<&'static str>,
    stored: HashMap<EventId, Event>,
    batches: u64,
    attempts: u64,
    duplicates: u64,
}

#[derive(Clone, Default)]
struct Line(Arc<Mutex<Hub>>);

fn error(kind: UplinkErrorKind) -> UplinkError {
    UplinkError { kind, retry_after: None, detail: "no\nanswer\x1b[31m".into() }
}

impl Uplink for Line {
    fn send(&self, batch: &EncodedBatch, _: &TraceContext) -> Result<Accepted, UplinkError> {
        let mut hub = self.0.lock().unwrap();
        hub.attempts += 1;
        if hub.away {
            return Err(error(UplinkErrorKind::Unreachable));
        }
        if let Some(answer) = hub.answers.pop_front() {
            return Err(answer);
        }
        let lines = zstd::bulk::decompress(&batch.bytes, batch.uncompressed_bytes).unwrap();
        let text = String::from_utf8(lines).unwrap();
        if hub.dislikes.is_some_and(|word| text.contains(word)) {
            return Err(error(UplinkErrorKind::Rejected));
        }
        for line in text.lines() {
            let event: Event = serde_json::from_str(line).unwrap();
            if let Some(before) = hub.stored.insert(event.id, event.clone()) {
                assert_eq!(before, event, "one id for two events");
                hub.duplicates += 1;
            }
        }
        hub.batches += 1;
        if hub.lose_answer_every > 0 && hub.batches.is_multiple_of(hub.lose_answer_every) {
            return Err(error(UplinkErrorKind::Unreachable));
        }
        Ok(Accepted)
    }
}

fn settings() -> DeliverySettings {
    DeliverySettings { batch_wait: Duration::ZERO, ..DeliverySettings::new(&OutboxSettings::default(), "agent-123") }
}

/// Steps as long as something happens at once; says how long to wait then.
fn run(courier: &mut Courier, outbox: &Outbox, clock: &dyn Clock) -> Step {
    loop {
        match courier.step(outbox, clock) {
            Step::Delivered(_) | Step::Again => {}
            step => return step,
        }
    }
}

#[test]
fn after_72_hours_without_a_hub_only_what_the_quota_names_is_missing() {
    let mut bench = Bench::quick();
    // Less than comes in: class low and a part of normal must go.
    bench.limits.max_bytes = 3_000_000;
    bench.limits.memory_records = 2000;
    let line = Line::default();
    line.0.lock().unwrap().lose_answer_every = 7;
    let mut courier = Courier::new(Box::new(line.clone()), settings());
    let mut outbox = bench.open();
    let mut emitted = [0_u64; 3];
    let mut high_given_up = 0;
    let step = Duration::from_secs(300);
    let hours = |h: u32| h * 12;
    for tick in 0..hours(80) {
        line.0.lock().unwrap().away = (hours(2)..hours(74)).contains(&tick);
        // Three reboots, of which one finds a wrong clock, and four kills.
        if [hours(10), hours(30), hours(50)].contains(&tick) {
            outbox.abandon();
            bench.kernel_boot = format!("boot-{tick}");
            bench.clock.reboot();
            if tick == hours(30) {
                bench.clock.set_wall("2036-01-01T00:00:00Z".parse().unwrap());
            }
            outbox = bench.open();
            courier = Courier::new(Box::new(line.clone()), settings());
        } else if [hours(5), hours(20), hours(41), hours(60)].contains(&tick) {
            outbox.abandon();
            outbox = bench.open();
            courier = Courier::new(Box::new(line.clone()), settings());
        }
        // The disk is full for three hours.
        if tick == hours(40) || tick == hours(43) || tick == hours(41) {
            outbox.limit_growth(tick != hours(43)).unwrap();
        }
        let full = (hours(40)..hours(43)).contains(&tick);
        // A rate that varies over the day, from 2 to 40 in five minutes.
        let rate = 2 + u64::from(tick * 7 % 20) * u64::from(tick % hours(24) > hours(8)) * 2;
        for n in 0..rate {
            let class = if n % 20 == 0 { 2 } else { usize::from(n % 3 == 0) };
            emitted[class] += 1 + n % 2;
            if !outbox.emit(draft(Priority::ALL[class], 1 + n % 2, 300)) && class == 2 {
                high_given_up += 1;
            }
        }
        let _ = outbox.flush(if full { Duration::from_millis(20) } else { WAIT });
        let waited = run(&mut courier, &outbox, bench.clock.as_ref());
        assert!(outbox.ledger().holds());
        let _ = waited;
        bench.clock.advance(step);
    }
    outbox.flush(WAIT).unwrap();
    for _ in 0..100 {
        if run(&mut courier, &outbox, bench.clock.as_ref()) == Step::Idle {
            break;
        }
        bench.clock.advance(step);
    }
    let status = outbox.status();
    assert_eq!((status.queued.total(), status.untold, status.ledger_holds), (0, 0, true), "{status:?}");
    for (class, emitted) in Priority::ALL.into_iter().zip(emitted) {
        assert_eq!(status.ledger.of(class).emitted, emitted, "{class:?}");
    }
    let hub = line.0.lock().unwrap();
    let (mut gaps, mut records) = (HashMap::<GapReason, u64>::new(), 0_u64);
    for event in hub.stored.values() {
        match &event.body {
            EventBody::Gap(gap) => *gaps.entry(gap.reason).or_default() += gap.count.unwrap(),
            _ => records += 1,
        }
    }
    let total = status.ledger.total();
    // What the hub was told is what the books say, reason by reason, and nothing is both stored and missing.
    assert_eq!(gaps, total.gaps.clone().into_iter().collect());
    assert_eq!(total.acknowledged + gaps.values().sum::<u64>(), emitted.iter().sum::<u64>());
    let high = &status.ledger.high;
    assert!(records > 5000 && hub.duplicates > 0, "{records} records, {} duplicates", hub.duplicates);
    assert!(gaps[&GapReason::QuotaBytes] > 1000, "{gaps:?}");
    // Of class high only what a kill took out of the memory, where the full disk had kept it.
    assert!(high.gaps.keys().all(|reason| *reason == GapReason::Corruption), "{high:?}");
    assert!(high_given_up == 0 && high.gap_total() < 5, "{high:?}");
    // 72 hours are 864 steps of five minutes: the waits were long, and never longer than the cap.
    assert!((100..2000).contains(&hub.attempts), "{} attempts", hub.attempts);
}

#[test]
fn a_batch_whose_answer_was_lost_is_sent_again_as_it_was() {
    let bench = Bench::quick();
    let outbox = bench.open();
    let line = Line::default();
    line.0.lock().unwrap().lose_answer_every = 1;
    let mut courier = Courier::new(Box::new(line.clone()), settings());
    (0..5).for_each(|_| assert!(outbox.emit(draft(Priority::Normal, 1, 10))));
    outbox.flush(WAIT).unwrap();
    assert!(matches!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Wait(_)));
    outbox.emit_durable(draft(Priority::High, 1, 10), WAIT).unwrap();
    line.0.lock().unwrap().lose_answer_every = 0;
    bench.clock.advance(Duration::from_secs(2));
    assert_eq!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Idle);
    let hub = line.0.lock().unwrap();
    assert_eq!((hub.stored.len(), hub.duplicates, hub.batches), (6, 5, 3));
    assert_eq!(outbox.ledger().total().acknowledged, 6);
}

#[test]
fn the_breaker_opens_lets_one_attempt_through_after_a_minute_and_closes() {
    let bench = Bench::quick();
    let outbox = bench.open();
    let line = Line::default();
    line.0.lock().unwrap().away = true;
    let mut courier = Courier::new(Box::new(line.clone()), settings());
    outbox.emit_durable(draft(Priority::Normal, 1, 10), WAIT).unwrap();
    let clock = bench.clock.as_ref();
    while courier.status(clock).breaker == BreakerState::Closed {
        let Step::Wait(wait) = run(&mut courier, &outbox, clock) else { panic!("it worked") };
        bench.clock.advance(wait.min(Duration::from_secs(30)));
    }
    let status = courier.status(clock);
    assert_eq!((status.consecutive_failures, status.breaker_opened), (5, 1));
    assert_eq!(status.last_error.as_deref(), Some("no answer [31m"), "no control characters");
    let attempts = line.0.lock().unwrap().attempts;
    line.0.lock().unwrap().away = false;
    bench.clock.advance(Duration::from_secs(29));
    assert!(matches!(run(&mut courier, &outbox, clock), Step::Wait(_)));
    assert_eq!(line.0.lock().unwrap().attempts, attempts, "nothing is tried while it is open");
    bench.clock.advance(Duration::from_secs(61));
    assert_eq!(run(&mut courier, &outbox, clock), Step::Idle);
    let status = courier.status(clock);
    assert_eq!((status.breaker, status.last_error, status.records), (BreakerState::Closed, None, 1));
}

#[test]
fn another_way_to_the_receiver_is_tried_at_once() {
    let bench = Bench::quick();
    let outbox = bench.open();
    outbox.emit_durable(draft(Priority::Normal, 1, 10), WAIT).unwrap();
    let line = Line::default();
    let patience = UplinkError { retry_after: Some(Duration::from_secs(600)), ..error(UplinkErrorKind::Busy) };
    line.0.lock().unwrap().answers.push_back(patience);
    let mut courier = Courier::new(Box::new(line.clone()), settings());
    assert_eq!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Wait(Duration::from_secs(600)));
    assert!(matches!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Wait(_)));
    courier.hurry();
    assert_eq!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Idle);
    assert_eq!(line.0.lock().unwrap().stored.len(), 1);
}

#[test]
fn a_hub_that_asks_for_patience_gets_it() {
    let bench = Bench::quick();
    let outbox = bench.open();
    let line = Line::default();
    let busy = UplinkError { retry_after: Some(Duration::from_secs(900)), ..error(UplinkErrorKind::Busy) };
    line.0.lock().unwrap().answers.push_back(busy);
    let mut courier = Courier::new(Box::new(line.clone()), settings());
    outbox.emit_durable(draft(Priority::Normal, 1, 10), WAIT).unwrap();
    assert_eq!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Wait(Duration::from_secs(900)));
    bench.clock.advance(Duration::from_secs(899));
    assert!(matches!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Wait(_)));
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(run(&mut courier, &outbox, bench.clock.as_ref()), Step::Idle);
}

#[test]
fn an_event_that_the_hub_will_never_take_is_found_counted_and_does_not_hold_up_the_others() {
    let bench = Bench::quick();
    let outbox = bench.open();
    let line = Line::default();
    line.0.lock().unwrap().dislikes = Some("poison");
    let mut courier = Courier::new(Box::new(line.clone()), settings());
    for n in 0..50 {
        let mut draft = draft(Priority::Normal, 2, 10);
        if n == 31 {
            draft.body = String::from_utf8(draft.body).unwrap().replace("planted", "poison").into_bytes();
        }
        assert!(outbox.emit(draft));
    }
    outbox.flush(WAIT).unwrap();
    for _ in 0..20 {
        run(&mut courier, &outbox, bench.clock.as_ref());
        bench.clock.advance(Duration::from_secs(2));
    }
    let ledger = outbox.ledger();
    assert_eq!((ledger.normal.acknowledged, ledger.normal.queued), (98, 0));
    assert_eq!(ledger.normal.gaps, [(GapReason::Format, 2)].into());
    assert_eq!(courier.status(bench.clock.as_ref()).rejected, 2);
    assert_eq!(line.0.lock().unwrap().stored.len(), 49 + 1);
}

#[test]
fn what_is_emitted_is_delivered_by_its_thread_and_stopping_delivers_the_rest() {
    let bench = Bench::quick();
    let outbox = Arc::new(bench.open());
    let line = Line::default();
    let clock = Arc::new(picket_outbox::SystemClock);
    let delivery = Delivery::start(Arc::clone(&outbox), Box::new(line.clone()), settings(), clock.clone()).unwrap();
    let sink = outbox.sink();
    let event: EventBody = serde_json::from_slice(&draft(Priority::High, 1, 5).body).unwrap();
    (0..500).for_each(|_| sink(event.clone()));
    drop(sink);
    assert!(delivery.stop(WAIT));
    assert_eq!(line.0.lock().unwrap().stored.len(), 500);
    assert_eq!(outbox.ledger().high.acknowledged, 500);
    // A hub that is away does not hold up the end.
    line.0.lock().unwrap().away = true;
    let delivery = Delivery::start(Arc::clone(&outbox), Box::new(line.clone()), settings(), clock).unwrap();
    outbox.emit_durable(draft(Priority::High, 1, 5), WAIT).unwrap();
    assert!(delivery.stop(WAIT));
    assert_eq!(outbox.ledger().high.queued, 1);
    let mut receiver = Receiver::default();
    receiver.drain(&outbox);
    assert!(outbox.next_batch(BatchLimits { bytes: 1, records: 1 }).unwrap().is_none());
}
