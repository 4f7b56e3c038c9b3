//! How many agents a hub holds: connected, heart-beating, and each heartbeat stored within a second. And how they come back
//! when the hub was away.

use super::{Bench, ms};
use crate::beat::{Beating, Tally};
use crate::hub::{Hub, HubPlan};
use crate::machine::{Machine, enrol_many};
use crate::process::{cpu_seconds, own_resident, resident};
use crate::uplink::{HubUplink, batch};
use picket_testkit::postgres::Postgres;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the 99th of a hundred heartbeats may take.
const LIMIT: Duration = Duration::from_secs(1);
/// How long a fleet may take to connect.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a fleet may take to come back.
const BACK: Duration = Duration::from_secs(60);
/// Enrolments at once.
const AT_ONCE: usize = 8;

/// A fleet that beats.
pub struct Fleet {
    runtime: Runtime,
    tally: Arc<Tally>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    heard: Vec<watch::Receiver<u64>>,
}

impl Default for Fleet {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (tally, stop) = (Arc::new(Tally::default()), watch::channel(false).0);
        Self { runtime, tally, stop, tasks: JoinSet::new(), heard: Vec::new() }
    }
}

impl Fleet {
    /// Lets these machines connect and beat, too.
    pub fn add(&mut self, machines: Vec<Machine>) {
        let _inside = self.runtime.enter();
        for machine in machines {
            let beating = Beating::quiet(machine, Arc::clone(&self.tally));
            self.heard.push(beating.heard.subscribe());
            self.tasks.spawn(beating.run(self.stop.subscribe()));
        }
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.tally.connected.load(Ordering::Relaxed)
    }

    /// What they count.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Waits until all are connected; says how many are.
    pub fn wait_connected(&self) -> usize {
        let began = Instant::now();
        while self.connected() < self.heard.len() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.connected()
    }

    /// How often each was heard so far.
    pub fn counts(&self) -> Vec<u64> {
        self.heard.iter().map(|heard| *heard.borrow()).collect()
    }

    /// Waits until each was heard more often than in `before`, at most `limit`; says how long it took and how many were.
    pub fn wait_heard(&self, before: &[u64], limit: Duration) -> (Duration, usize) {
        let began = Instant::now();
        loop {
            let count = self.counts().iter().zip(before).filter(|(now, before)| now > before).count();
            if count == before.len() || began.elapsed() > limit {
                return (began.elapsed(), count);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it.
    pub fn end(mut self) {
        let _ = self.stop.send(true);
        self.runtime.block_on(async { while self.tasks.join_next().await.is_some() {} });
    }
}

fn hub(bench: &Bench, folder: &std::path::Path, postgres: Option<&Postgres>) -> Hub {
    let mut hub = Hub::make(&HubPlan {
        exe: &bench.picket,
        folder,
        database: postgres.map(|server| server.url("hub")),
        heartbeat: "30s",
        // What is measured is the fleet, not the gate before it.
        more: "enrolment: {per_second: 10000, per_second_each: 10000}\n",
    });
    hub.start();
    hub
}

/// Enrols and connects more and more agents, holds each number, and says what that cost.
pub fn run(bench: &Bench, steps: &[u32], hold: Duration) {
    let folder = bench.folder();
    let hub = hub(bench, folder.path(), None);
    let pid = hub.pid().unwrap();
    let most = steps.iter().copied().max().unwrap();
    let token = hub.token(most as usize);
    let idle = resident(pid).unwrap();
    println!("beats: SQLite, a heartbeat every 30 s; the hub alone takes {:.1} MiB", mib(idle));
    let (mut fleet, mut have) = (Fleet::default(), 0);
    for &step in steps {
        let enrolled = enrol_many(&token, have, step - have, AT_ONCE);
        let rate = f64::from(step - have) / enrolled.took.as_secs_f64();
        have = step;
        let connecting = Instant::now();
        fleet.add(enrolled.machines);
        let connected = fleet.wait_connected();
        let took = connecting.elapsed();
        // A whole interval goes by before: every agent has beaten, and what connecting cost is over.
        std::thread::sleep(Duration::from_secs(30));
        fleet.tally().delays.clear();
        let (before, heard) = (cpu_seconds(pid), fleet.tally().heard.load(Ordering::Relaxed));
        std::thread::sleep(hold);
        let cpu = (cpu_seconds(pid) - before) / hold.as_secs_f64() * 100.0;
        let heard = fleet.tally().heard.load(Ordering::Relaxed) - heard;
        let (delays, resident) = (&fleet.tally().delays, resident(pid).unwrap_or_default());
        println!(
            "  {step:>6} agents: {connected} connected in {:.1} s, {} still are, shed {}, broken {}; {:.0} heartbeats/s, p50 {}, \
             p99 {}; hub {:.1} MiB ({:.1} KiB an agent), {cpu:.0} % of a core; enrolled {rate:.0}/s, load's own memory {:.0} MiB",
            took.as_secs_f64(),
            fleet.connected(),
            fleet.tally().shed.load(Ordering::Relaxed),
            fleet.tally().broken.load(Ordering::Relaxed),
            heard as f64 / hold.as_secs_f64(),
            ms(delays.quantile(0.5)),
            ms(delays.quantile(0.99)),
            mib(resident),
            resident.saturating_sub(idle) as f64 / 1024.0 / f64::from(step),
            mib(own_resident()),
        );
        if delays.quantile(0.99) > LIMIT || connected < step as usize {
            println!("  that is the limit: p99 is beyond {} or not all are connected", ms(LIMIT));
            break;
        }
    }
    fleet.end();
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Enrolments a second, and how long until a new agent is usable: enrolled, its first heartbeat and its first batch stored.
pub fn enrolment(bench: &Bench, count: u32) {
    println!(
        "enrolment: {count} machines, {AT_ONCE} at once, each with two handshakes, a key and a request of its own"
    );
    let postgres = Postgres::start_new(true);
    postgres.create_database("hub");
    for (name, server) in [("SQLite", None), ("PostgreSQL", Some(&postgres))] {
        let folder = bench.folder();
        let hub = hub(bench, folder.path(), server);
        let (pid, token) = (hub.pid().unwrap(), hub.token(count as usize + 200));
        let cpu = (cpu_seconds(pid), cpu_seconds(std::process::id()));
        let enrolled = enrol_many(&token, 0, count, AT_ONCE);
        let cpu = (cpu_seconds(pid) - cpu.0, cpu_seconds(std::process::id()) - cpu.1);
        let usable = usable(&token, count, 40);
        println!(
            "  {name:10} {:.0} enrolments/s, one takes p50 {} p99 {}; usable after p50 {} p99 {}; sent away {}; processor: hub \
             {:.1} s, load {:.1} s",
            f64::from(count) / enrolled.took.as_secs_f64(),
            ms(enrolled.delays.quantile(0.5)),
            ms(enrolled.delays.quantile(0.99)),
            ms(usable.quantile(0.5)),
            ms(usable.quantile(0.99)),
            enrolled.shed,
            cpu.0,
            cpu.1,
        );
    }
}

/// One after the other, from the first packet on.
fn usable(token: &picket_pki::EnrolmentToken, first: u32, count: u32) -> crate::delays::Delays {
    let delays = crate::delays::Delays::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for index in first..first + count {
        let began = Instant::now();
        let machine = enrol_many(token, index, 1, 1).machines.remove(0);
        let events = batch(&machine, 1..=10);
        let uplink = HubUplink::new(&machine);
        let mut beating = Beating::quiet(machine, Arc::new(Tally::default()));
        beating.eager = true;
        let mut heard = beating.heard.subscribe();
        let (stop, stopped) = watch::channel(false);
        let task = runtime.spawn(beating.run(stopped));
        assert_eq!(uplink.deliver(&events).unwrap().stored, 10);
        runtime.block_on(heard.wait_for(|heard| *heard > 0)).unwrap();
        delays.note(began.elapsed());
        let _ = stop.send(true);
        runtime.block_on(task).unwrap();
    }
    delays
}

/// What came of a fleet whose hub went away and came back.
#[derive(Debug)]
pub struct Return {
    /// How many there are.
    pub agents: usize,
    /// How many were heard again within the limit.
    pub back: usize,
    /// How long it took until the last of them was.
    pub took: Duration,
    /// Attempts that the hub sent away, with a time to come back.
    pub shed: u64,
    /// Attempts that found nobody or broke.
    pub failed: u64,
}

/// Takes the hub away from a fleet that beats, by SIGKILL or by SIGTERM, and gives it back at once.
pub fn come_back(hub: &mut Hub, fleet: &Fleet, kill: bool, limit: Duration) -> Return {
    let tally = fleet.tally();
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let before = (load(&tally.shed), load(&tally.failed) + load(&tally.broken));
    if kill {
        hub.kill();
    } else {
        hub.stop();
    }
    let counts = fleet.counts();
    hub.start();
    let (took, back) = fleet.wait_heard(&counts, limit);
    Return {
        agents: counts.len(),
        back,
        took,
        shed: load(&tally.shed) - before.0,
        failed: load(&tally.failed) + load(&tally.broken) - before.1,
    }
}

/// A fleet of `agents` that beats, and its hub.
pub fn beating(bench: &Bench, folder: &std::path::Path, agents: u32, more: &str) -> (Hub, Fleet) {
    let mut hub = Hub::make(&HubPlan { exe: &bench.picket, folder, database: None, heartbeat: "30s", more });
    hub.start();
    let machines = enrol_many(&hub.token(agents as usize), 0, agents, AT_ONCE).machines;
    let mut fleet = Fleet::default();
    fleet.add(machines);
    let connected = fleet.wait_connected();
    assert_eq!(connected, agents as usize, "all connect before the hub goes away");
    (hub, fleet)
}

/// The same as a measurement, both ways of going.
pub fn reconnect(bench: &Bench, agents: u32) {
    println!("reconnect: {agents} agents at once after a restart of the hub, at its default limits");
    let folder = bench.folder();
    let (mut hub, fleet) =
        beating(bench, folder.path(), agents, "enrolment: {per_second: 10000, per_second_each: 10000}\n");
    for (name, kill) in [("killed (SIGKILL)", true), ("stopped (SIGTERM)", false)] {
        let came = come_back(&mut hub, &fleet, kill, BACK * 2);
        println!(
            "  {name:17} {} of {} heart-beating after {:.1} s (limit {} s); {} sent away with a time to come back, {} found nobody",
            came.back,
            came.agents,
            came.took.as_secs_f64(),
            BACK.as_secs(),
            came.shed,
            came.failed
        );
    }
    fleet.end();
}
