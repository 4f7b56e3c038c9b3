//! A hub whose database file is torn, and one whose disk is full: what it says, and how it ends.
//!
//! What must hold: it serves, or it ends by itself with a code of its own (no panic, no signal) and words that name the
//! database and say what is wrong; and it does the same when it is started again, so that who restarts it makes nothing worse.

use super::books::Books;
use crate::hub::{Hub, HubPlan};
use crate::machine::{Machine, become_agent};
use crate::uplink::{HubUplink, batch};
use picket_outbox::delivery::UplinkError;
use picket_protocol::hub::EventsAnswer;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// How long a hub may take to serve or to end.
const DECIDE: Duration = Duration::from_secs(30);
/// Events that are there before the damage.
const EVENTS: u64 = 2_000;
/// The bytes of a SQLite page.
const PAGE: u64 = 4096;
/// Words of which one must stand in what a hub says that ends.
const WORDS: [&str; 6] = ["damaged", "not a database", "malformed", "corrupt", "disk", "space"];

/// What a hub did when it was started.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Did {
    Serve,
    End(Option<i32>, String),
    Nothing,
}

/// A hub under test.
struct Patient {
    hub: Hub,
    machine: Machine,
    next: u64,
}

impl Patient {
    fn new(picket: &Path, folder: &Path) -> Self {
        let mut hub = Hub::make(&HubPlan { exe: picket, folder, database: None, heartbeat: "30s", more: "" });
        hub.start();
        let machine = Machine::of(0, become_agent(&hub.token(1), 0, &AtomicUsize::new(0)));
        Self { hub, machine, next: 1 }
    }

    /// Sends the next so many events; they are the next ones until the hub has them.
    fn send(&mut self, events: u64) -> Result<EventsAnswer, UplinkError> {
        let last = self.next + events - 1;
        let answer = HubUplink::new(&self.machine).deliver(&batch(&self.machine, self.next..=last))?;
        self.next = last + 1;
        Ok(answer)
    }

    /// Starts it, and waits until it serves or ends.
    fn start(&mut self) -> Did {
        self.hub.spawn();
        let began = Instant::now();
        while began.elapsed() < DECIDE {
            if let Some(status) = self.hub.ended() {
                return Did::End(status.code(), self.hub.log_tail(2));
            }
            if self.hub.listens() {
                return Did::Serve;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.hub.kill();
        Did::Nothing
    }
}

/// A way of tearing a database.
struct Tear {
    name: &'static str,
    /// Whether it is torn as a killed hub leaves it, with a log beside it; else as one leaves it that was stopped.
    killed: bool,
    apply: fn(&Path),
}

fn file(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn wal(database: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", database.display()))
}

fn scribble(path: &Path, from: u64, bytes: usize) {
    let noise: Vec<u8> = (0..bytes).map(|at| u8::try_from(at * 37 % 251).unwrap()).collect();
    file(path).write_all_at(&noise, from).unwrap();
}

const TEARS: [Tear; 6] = [
    Tear { name: "the header is overwritten", killed: false, apply: |db| scribble(db, 0, 512) },
    Tear {
        name: "the file is cut in half",
        killed: false,
        apply: |db| {
            let file = file(db);
            file.set_len(file.metadata().unwrap().len() / 2 / PAGE * PAGE).unwrap();
        },
    },
    Tear {
        name: "the file is cut within a page",
        killed: false,
        apply: |db| file(db).set_len(PAGE * 7 + 100).unwrap(),
    },
    Tear {
        name: "every page from the third on is overwritten",
        killed: false,
        apply: |db| {
            let pages = file(db).metadata().unwrap().len() / PAGE;
            (2..pages).for_each(|page| scribble(db, page * PAGE, 64));
        },
    },
    Tear {
        name: "the log is cut in half",
        killed: true,
        apply: |db| {
            let file = file(&wal(db));
            file.set_len(file.metadata().unwrap().len() / 2 + 13).unwrap();
        },
    },
    Tear {
        name: "the log's middle is overwritten",
        killed: true,
        apply: |db| {
            let half = file(&wal(db)).metadata().unwrap().len() / 2;
            scribble(&wal(db), half, 9000);
        },
    },
];

/// Tears the database of a hub that was killed, in several ways. Gives what is not as it must be.
pub fn torn(picket: &Path, base: &Path) -> Vec<String> {
    let folder = super::folder(base);
    let mut patient = Patient::new(picket, folder.path());
    let database = patient.hub.database();
    let fill = |patient: &mut Patient| (0..EVENTS / 100).for_each(|_| assert!(patient.send(100).is_ok()));
    fill(&mut patient);
    patient.hub.stop();
    let stopped = (fs::read(&database).unwrap(), None, patient.next);
    patient.hub.start();
    fill(&mut patient);
    patient.hub.kill();
    let killed = (fs::read(&database).unwrap(), Some(fs::read(wal(&database)).unwrap()), patient.next);
    let mut wrong = Vec::new();
    for Tear { name, killed: was_killed, apply } in TEARS {
        let (file, log, next) = if was_killed { &killed } else { &stopped };
        for name in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{name}", database.display()));
        }
        fs::write(&database, file).unwrap();
        if let Some(log) = log {
            fs::write(wal(&database), log).unwrap();
        }
        apply(&database);
        patient.next = *next;
        let mut told = Vec::new();
        for _ in 0..2 {
            let did = patient.start();
            wrong.extend(judge(name, &did));
            told.push(match &did {
                Did::Serve => served(&mut patient, *next - 1, name, &mut wrong),
                Did::End(code, words) => format!("ends with {code:?}: {}", words.lines().last().unwrap_or_default()),
                Did::Nothing => "neither serves nor ends".into(),
            });
        }
        told.dedup();
        println!("  torn, {name}: {}", told.join("; then "));
    }
    wrong
}

/// What a hub does that serves, and what it still has of `acknowledged` events: its books must know it.
fn served(patient: &mut Patient, acknowledged: u64, name: &str, wrong: &mut Vec<String>) -> String {
    let sent = patient.send(100).map_or_else(|error| format!("refuses events: {error}"), |_| "takes events".into());
    if patient.hub.ended().is_some() {
        wrong.push(format!("{name}: it ended while it served: {}", patient.hub.log_tail(2)));
    }
    patient.hub.stop();
    let books = Books::sqlite(&patient.hub.database());
    let (mut rows, mut old) = (0, 0);
    books.each_event(|agent, kind, details| {
        if agent == patient.machine.id && kind == "file" {
            rows += 1;
            old += u64::from(crate::event::number(details).unwrap() <= acknowledged);
        }
    });
    let stored: u64 =
        books.streams().iter().filter(|stream| stream.agent == patient.machine.id).map(|one| one.stored).sum();
    if rows != stored {
        wrong.push(format!("{name}: its books say {stored}, and it has {rows} events"));
    }
    format!("serves, {sent}; of {acknowledged} acknowledged events it has {old}, and its books say the same")
}

fn judge(name: &str, did: &Did) -> Option<String> {
    match did {
        Did::Serve => None,
        Did::Nothing => Some(format!("{name}: it neither serves nor ends")),
        Did::End(None | Some(0 | 101), words) => Some(format!("{name}: it panics or is killed: {words}")),
        Did::End(Some(_), words) => {
            let clear = WORDS.iter().any(|word| words.to_lowercase().contains(word));
            (!clear).then(|| format!("{name}: its words do not say what is wrong: {words}"))
        }
    }
}

/// A file system of so many MiB in memory; it goes with the value.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, mib: u32) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).status().ok()?;
        mounted.success().then_some(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Fills the disk of a hub with events, starts it anew on the full disk, and makes room again. Gives what is not as it must
/// be; nothing at all where no file system may be mounted.
pub fn full(picket: &Path, base: &Path) -> Option<Vec<String>> {
    let folder = super::folder(base);
    let disk = Disk::mount(folder.path().join("disk"), 48)?;
    let mut wrong = Vec::new();
    let mut patient = Patient::new(picket, &disk.0);
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![1; 16 << 20]).unwrap();
    let mut refused = None;
    for _ in 0..1_000 {
        if let Err(error) = patient.send(500) {
            refused = Some(error);
            break;
        }
    }
    let acknowledged = patient.next - 1;
    match &refused {
        None => wrong.push("full disk: half a million events fit into 48 MiB".into()),
        Some(error) => {
            println!("  full disk, after {acknowledged} events: {error} (come back in {:?})", error.retry_after);
        }
    }
    if patient.hub.ended().is_some() {
        wrong.push(format!("full disk: the hub ended: {}", patient.hub.log_tail(3)));
    } else {
        println!("  full disk, the log: {}", patient.hub.log_tail(1));
        match patient.hub.stop() {
            Some(status) if status.success() => {}
            status => wrong.push(format!("full disk: it was told to stop and ended with {status:?}")),
        }
    }
    // Whatever is left of the disk goes, too.
    let _ = fs::write(disk.0.join("rest"), vec![1; 48 << 20]);
    for _ in 0..2 {
        let did = patient.start();
        wrong.extend(judge("started on a full disk", &did));
        match &did {
            Did::Serve => println!("  started on a full disk: serves; {:?}", patient.send(1).map_err(|e| e.detail)),
            Did::End(code, words) => {
                println!("  started on a full disk: ends with {code:?}: {}", words.lines().last().unwrap_or_default());
            }
            Did::Nothing => {}
        }
        patient.hub.stop();
    }
    fs::remove_file(&ballast).unwrap();
    fs::remove_file(disk.0.join("rest")).unwrap();
    match patient.start() {
        Did::Serve => {
            if let Err(error) = patient.send(500) {
                wrong.push(format!("room again: events are refused: {error}"));
            }
        }
        did => wrong.push(format!("room again: {did:?}")),
    }
    patient.hub.stop();
    let sent = patient.next - 1;
    let mut rows = vec![0_u8; usize::try_from(sent + 1).unwrap()];
    Books::sqlite(&patient.hub.database()).each_event(|agent, kind, details| {
        if agent == patient.machine.id && kind == "file" {
            rows[usize::try_from(crate::event::number(details).unwrap()).unwrap()] += 1;
        }
    });
    let off = rows.iter().skip(1).filter(|count| **count != 1).count();
    if off > 0 {
        wrong.push(format!("room again: {off} of {sent} acknowledged events are not there once"));
    }
    println!("  room again: {sent} events acknowledged, each is there once: {}", off == 0);
    Some(wrong)
}
