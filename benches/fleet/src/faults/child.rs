//! An agent that is killed again and again, in a process of its own: the agent's queue on disk, its delivery, its certificate
//! store and its way of beating, and a source of numbered events in the place of watchers.

use super::marks::Marks;
use crate::beat::{Beating, Tally};
use crate::event::event;
use crate::machine::Machine;
use crate::uplink::{HubUplink, NatsUplink};
use jiff::Timestamp;
use picket_agent::hub::{CertStore, Identity, ledgers};
use picket_config::Interval;
use picket_outbox::delivery::{Delivery, DeliverySettings, Uplink};
use picket_outbox::{Options, Outbox, OutboxSettings, SystemClock, kernel_boot};
use picket_protocol::hub::StreamLedger;
use picket_seal::{Keyring, Sealer};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use uuid::Uuid;

/// How finely events are spread.
const TICK: Duration = Duration::from_millis(10);
/// How often what is durable is noted.
const NOTE: Duration = Duration::from_millis(200);

/// What the agent is told to do.
pub struct Orders {
    /// Its folder, with its identity in `certs`.
    pub folder: PathBuf,
    /// Its place among the agents.
    pub index: u32,
    /// Events a second.
    pub rate: u32,
    /// Whether its waits are short: a sample of a minute has no time for a breaker that is open for one.
    pub quick: bool,
    /// The server through which events go, where they do not go to the hub itself.
    pub nats: Option<String>,
}

/// Its books at the end.
#[derive(Debug, Serialize, Deserialize)]
pub struct LastWord {
    /// Emitted, acknowledged, queued and missing, by stream.
    pub streams: Vec<StreamLedger>,
    /// Whether the queue's books add up.
    pub holds: bool,
}

/// Where the books are left.
pub fn last_word(folder: &Path) -> PathBuf {
    folder.join("last-word.json")
}

/// Lives until standard input ends, or until it is told to stop there and everything is delivered.
pub fn live(orders: &Orders) {
    let certs = CertStore::new(orders.folder.join("certs"));
    let identity = certs.load().unwrap().unwrap();
    let machine = Machine {
        index: orders.index,
        id: identity.record.agent_id,
        hub: identity.record.hub.clone(),
        trust: identity.trust(),
        boot: kernel_boot().parse().unwrap(),
    };
    let keyring = Arc::new(Keyring::open_or_create(&orders.folder.join("store.key")).unwrap());
    let outbox = Outbox::open(Options {
        folder: orders.folder.join("outbox"),
        sealer: Arc::new(Sealer::new(keyring).unwrap()),
        limits: OutboxSettings::default().limits(),
        kernel_boot: kernel_boot(),
        clock: Arc::new(SystemClock),
    });
    let outbox = Arc::new(outbox.unwrap());
    let mut settings = DeliverySettings::new(&OutboxSettings::default(), &machine.id.to_string());
    if orders.quick {
        settings.retry = (Duration::from_millis(100), Duration::from_secs(2));
        settings.breaker.1 = Duration::from_secs(2);
    }
    let uplink = way(orders, &certs, &identity, &machine);
    let delivery = Delivery::start(Arc::clone(&outbox), uplink, settings, Arc::new(SystemClock)).unwrap();
    let delivery = Arc::new(delivery);
    let (stop, stopped) = watch::channel(false);
    let (heard, mut answers) = watch::channel(0);
    let beating = Beating {
        machine,
        tally: Arc::new(Tally::default()),
        heard,
        books: {
            let outbox = Arc::clone(&outbox);
            Box::new(move || ledgers(&outbox.status(), Uuid::nil()))
        },
        welcomed: {
            let delivery = Arc::clone(&delivery);
            Box::new(move || delivery.hurry())
        },
        eager: true,
    };
    let beats = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(beating.run(stopped));
    });
    let (marks, last) = Marks::open(&orders.folder);
    let marks = Arc::new(marks);
    let ended = Arc::new(AtomicBool::new(false));
    let source = {
        let (marks, outbox, ended) = (Arc::clone(&marks), Arc::clone(&outbox), Arc::clone(&ended));
        let (index, rate) = (orders.index, orders.rate);
        std::thread::spawn(move || emit(&marks, &outbox, &ended, index, rate, last))
    };
    let notes = {
        let (marks, outbox, ended) = (Arc::clone(&marks), Arc::clone(&outbox), Arc::clone(&ended));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let last = marks.last();
                if outbox.flush(Duration::from_secs(30)).is_ok() {
                    marks.durable(last);
                }
                std::thread::sleep(NOTE);
            }
        })
    };
    let orders_come = words();
    let mut told_to_stop = false;
    while let Ok(word) = orders_come.recv() {
        if word == "stop" {
            told_to_stop = true;
            break;
        }
    }
    ended.store(true, Ordering::Relaxed);
    source.join().unwrap();
    notes.join().unwrap();
    if told_to_stop {
        // Whoever gave the orders has the patience, and kills who is too slow.
        while outbox.flush(Duration::from_secs(30)).is_err() {}
        marks.durable(marks.last());
        let delivered = || {
            let status = outbox.status();
            status.queued.total() == 0 && status.in_memory == 0 && status.untold == 0
        };
        while !delivered() {
            std::thread::sleep(Duration::from_millis(50));
        }
        // The hub hears of the last books with the next heartbeat but one: the next may be on its way already.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = *answers.borrow();
        runtime.block_on(answers.wait_for(|heard| *heard >= seen + 2)).unwrap();
        let status = outbox.status();
        let word = LastWord { streams: ledgers(&status, Uuid::nil()), holds: status.ledger_holds };
        fs::write(last_word(&orders.folder), serde_json::to_vec(&word).unwrap()).unwrap();
        println!("delivered");
    }
    let _ = stop.send(true);
    beats.join().unwrap();
}

/// Where its events go.
fn way(orders: &Orders, certs: &CertStore, identity: &Identity, machine: &Machine) -> Box<dyn Uplink> {
    let patience = Interval::seconds(if orders.quick { 5 } else { 60 });
    match &orders.nats {
        Some(server) => Box::new(NatsUplink::new(server, certs, identity, patience)),
        None => Box::new(HubUplink::new(machine)),
    }
}

/// The lines of standard input. Nobody waits for a thread that reads.
fn words() -> mpsc::Receiver<String> {
    let (say, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = say.send(line);
        }
    });
    hear
}

fn emit(marks: &Marks, outbox: &Outbox, ended: &AtomicBool, index: u32, rate: u32, last: u64) {
    let began = Instant::now();
    let mut made = 0_u64;
    while !ended.load(Ordering::Relaxed) {
        let due = u64::try_from(began.elapsed().as_millis()).unwrap() * u64::from(rate) / 1000;
        let now = Timestamp::now();
        while made < due {
            made += 1;
            let number = last + made;
            marks.intend(number);
            outbox.emit_event(event(index, number, now));
            marks.handed(number);
        }
        std::thread::sleep(TICK);
    }
}
