//! Durable events a second over mutual TLS, and how long a batch waits for its answer, beside the store alone in the same run.

use super::{Bench, median, ms};
use crate::delays::Delays;
use crate::hub::{Hub, HubPlan};
use crate::machine::{Machine, enrol_many};
use crate::process::cpu_seconds;
use crate::uplink::{HubUplink, batch};
use picket_outbox::EncodedBatch;
use picket_testkit::postgres::Postgres;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Events of a batch: what an agent that tells 500 a second sends each second.
const BATCH: u64 = 500;
const BATCH_ROWS: usize = 500;
/// Rounds of each, by turns.
const ROUNDS: usize = 3;
/// Agents that deliver at once, each one batch after the other.
const AGENTS: u32 = 16;
/// Connections that copy at once, where the store is measured alone.
const COPIES: usize = 4;

/// What a round came to.
struct Round {
    rate: f64,
    p50: Duration,
    p99: Duration,
    shed: u64,
    hub_cpu: f64,
    own_cpu: f64,
    server_cpu: f64,
}

/// Measures on SQLite and on PostgreSQL.
pub fn run(bench: &Bench, events: u64) {
    let a_machine = events / u64::from(AGENTS) / BATCH * BATCH;
    println!(
        "ingest: {AGENTS} agents, batches of {BATCH} events of about 400 bytes, {} events a round, {ROUNDS} rounds by turns, medians",
        a_machine * u64::from(AGENTS)
    );
    one(bench, None, a_machine);
    let postgres = Postgres::start_new(true);
    postgres.create_database("hub");
    postgres.create_database("plain");
    one(bench, Some(&postgres), a_machine);
}

fn one(bench: &Bench, postgres: Option<&Postgres>, a_machine: u64) {
    let folder = bench.folder();
    let mut hub = Hub::make(&HubPlan {
        exe: &bench.picket,
        folder: folder.path(),
        database: postgres.map(|server| server.url("hub")),
        heartbeat: "30s",
        more: "",
    });
    hub.start();
    let token = hub.token(AGENTS as usize);
    let mut machines = enrol_many(&token, 0, AGENTS, 4).machines;
    let (mut alone, mut alone_cpu, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Another boot is another stream: the same numbers are new events.
        machines.iter_mut().for_each(|machine| machine.boot = Uuid::now_v7());
        let (rate, cpu) = match postgres {
            None => {
                let file = folder.path().join(format!("plain-{round}.db"));
                let figures = super::plain::sqlite(&file, &machines, a_machine, BATCH_ROWS);
                std::fs::remove_file(file).unwrap();
                figures
            }
            Some(server) => super::plain::copy(server, "plain", &machines, a_machine, BATCH_ROWS, COPIES),
        };
        alone.push(rate);
        alone_cpu.push(cpu);
        ours.push(deliver(&hub, postgres, &machines, a_machine));
    }
    let name = if postgres.is_some() { "PostgreSQL, COPY" } else { "SQLite, rusqlite" };
    let alone = median(alone);
    let rate = median(ours.iter().map(|round| round.rate).collect());
    let [p50, p99] = [|round: &Round| round.p50, |round: &Round| round.p99]
        .map(|of: fn(&Round) -> Duration| median(ours.iter().map(|round| of(round).as_secs_f64()).collect()));
    let shed: u64 = ours.iter().map(|round| round.shed).sum();
    let cpu = median(ours.iter().map(|round| round.hub_cpu).collect());
    let own = median(ours.iter().map(|round| round.own_cpu).collect());
    println!(
        "  {name:17} hub {rate:>7.0} events/s, store alone {alone:>7.0}, ratio {:.2}; a batch p50 {} p99 {}; {shed} refused",
        rate / alone,
        ms(Duration::from_secs_f64(p50)),
        ms(Duration::from_secs_f64(p99)),
    );
    // Of a machine that others use, too, this is what can be compared.
    let each = |cpu: f64| cpu * 1e6 / (a_machine * u64::from(AGENTS)) as f64;
    let server = median(ours.iter().map(|round| round.server_cpu).collect());
    let server = if postgres.is_some() { format!(", PostgreSQL {:.0}", each(server)) } else { String::new() };
    println!(
        "  {name:17} processor, microseconds an event: hub {:.0}, load {:.0}{server}, store alone {:.0}",
        each(cpu),
        each(own),
        each(median(alone_cpu)),
    );
    hub.stop();
}

/// All machines deliver at once; batches are made before.
fn deliver(hub: &Hub, postgres: Option<&Postgres>, machines: &[Machine], a_machine: u64) -> Round {
    let ready: Vec<Vec<EncodedBatch>> = machines
        .iter()
        .map(|machine| (0..a_machine / BATCH).map(|n| batch(machine, n * BATCH + 1..=(n + 1) * BATCH)).collect())
        .collect();
    let (delays, shed, stored) = (Delays::default(), AtomicU64::new(0), AtomicU64::new(0));
    let pid = hub.pid().unwrap();
    let server_cpu = || postgres.map(super::plain::server_cpu).unwrap_or_default();
    let cpu = (cpu_seconds(pid), cpu_seconds(std::process::id()), server_cpu());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (machine, batches) in machines.iter().zip(&ready) {
            let (delays, shed, stored) = (&delays, &shed, &stored);
            scope.spawn(move || {
                let uplink = HubUplink::new(machine);
                for batch in batches {
                    loop {
                        let asked = Instant::now();
                        match uplink.deliver(batch) {
                            Ok(answer) => {
                                delays.note(asked.elapsed());
                                stored.fetch_add(answer.stored, Ordering::Relaxed);
                                break;
                            }
                            Err(error) => {
                                shed.fetch_add(1, Ordering::Relaxed);
                                let wait = error.retry_after.unwrap_or_else(|| panic!("{error}"));
                                std::thread::sleep(wait);
                            }
                        }
                    }
                }
            });
        }
    });
    let took = began.elapsed();
    let cpu = (cpu_seconds(pid) - cpu.0, cpu_seconds(std::process::id()) - cpu.1, server_cpu() - cpu.2);
    let all = a_machine * machines.len() as u64;
    assert_eq!(stored.into_inner(), all, "each event is stored once");
    Round {
        rate: all as f64 / took.as_secs_f64(),
        p50: delays.quantile(0.5),
        p99: delays.quantile(0.99),
        shed: shed.into_inner(),
        hub_cpu: cpu.0,
        own_cpu: cpu.1,
        server_cpu: cpu.2,
    }
}
