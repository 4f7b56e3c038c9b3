//! How much of what happens to files is told: a load that knows what it did, against what each method told of it.
//!
//! `cargo bench -p picket-filewatch --bench recall [-- quick]`. Runs inotify with rescan, fanotify where this process may,
//! and `inotifywait -r -m` (inotify-tools) where it is installed, each on the same load in a folder of its own. Prints a
//! table, and the same as JSON in the last line.
#![expect(clippy::disallowed_methods, reason = "a benchmark makes and reads files directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use picket_filewatch::{FileMonitorSettings, FileWatcher, Options, Privileged, WatchPath};
use picket_protocol::event::{Confidence, EventBody, FileAction};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long nothing must have come before a method is taken to have told all it will.
const QUIET: Duration = Duration::from_secs(5);
/// How long each step of the paced load takes.
const PACED: Duration = Duration::from_secs(4);

fn main() {
    let quick = std::env::args().any(|word| word == "quick");
    let size = if quick { 10 } else { 1 };
    let mut results = Vec::new();
    println!(
        "{:<12} {:<16} {:>8} {:>8} {:>9} {:>5} {:>7} {:>6} {:>8} {:>8}",
        "load", "method", "steps", "told", "recall", "gaps", "silent", "wrong", "events", "inferred"
    );
    let loads: [(&str, Load); 3] = [("mkdir-storm", mkdir_storm), ("rename-trees", rename_trees), ("creates", creates)];
    for (name, load) in loads {
        for method in ["inotify", "fanotify", "inotifywait"] {
            let Some(result) = measure(name, method, |root| load(root, size)) else { continue };
            println!("{result}");
            results.push(result);
        }
    }
    let rates: &[u32] = if quick { &[1_000, 5_000] } else { &[1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 80_000] };
    let mut sustained = Vec::new();
    for method in ["inotify", "fanotify"] {
        if let Some(best) = sustain(method, rates) {
            println!("sustained before the first gap, {method}: {best} file events a second");
            sustained.push(serde_json::json!({ "method": method, "events_per_second": best }));
        }
    }
    let results: Vec<_> = results.iter().map(Outcome::json).collect();
    println!("{}", serde_json::json!({ "recall": results, "sustained": sustained }));
}

/// Does something to the files below a folder: all of it, or one of so many parts.
type Load = fn(&Path, usize) -> Truth;

/// What a load did.
#[derive(Default)]
struct Truth {
    /// Names that came into being, each once.
    created: BTreeSet<PathBuf>,
    /// Renames: to, from.
    renamed: Vec<(PathBuf, PathBuf)>,
}

impl Truth {
    fn folders(&mut self, root: &Path, below: &str) {
        fs::create_dir_all(root.join(below)).unwrap();
        let mut at = root.to_owned();
        for name in Path::new(below) {
            at.push(name);
            self.created.insert(at.clone());
        }
    }

    fn file(&mut self, path: PathBuf) {
        File::create(&path).unwrap();
        self.created.insert(path);
    }
}

/// Trees of folders made at once, with files at every depth at once.
fn mkdir_storm(root: &Path, part: usize) -> Truth {
    let mut truth = Truth::default();
    for turn in 0..2_000 / part {
        truth.folders(root, &format!("{turn}/a/b/c"));
        for folder in ["", "/a", "/a/b", "/a/b/c"] {
            truth.file(root.join(format!("{turn}{folder}/f")));
        }
    }
    truth
}

/// Trees that are renamed again and again, with a new file in them after each time.
fn rename_trees(root: &Path, part: usize) -> Truth {
    let mut truth = Truth::default();
    for tree in 0..300 / part {
        truth.folders(root, &format!("{tree}-0/a/b"));
        for turn in 1..6 {
            let (from, to) = (root.join(format!("{tree}-{}", turn - 1)), root.join(format!("{tree}-{turn}")));
            fs::rename(&from, &to).unwrap();
            truth.renamed.push((to.clone(), from));
            truth.file(to.join(format!("a/b/{turn}")));
        }
    }
    truth
}

/// A hundred thousand files in new folders.
fn creates(root: &Path, part: usize) -> Truth {
    let mut truth = Truth::default();
    for folder in 0..100 {
        truth.folders(root, &format!("{folder}"));
        for file in 0..1_000 / part {
            truth.file(root.join(format!("{folder}/{file}")));
        }
    }
    truth
}

/// What a method told.
#[derive(Default)]
struct Told {
    created: BTreeSet<PathBuf>,
    renamed: BTreeSet<(PathBuf, PathBuf)>,
    /// What a reader of the events believes to be there: children by folder.
    there: BTreeSet<PathBuf>,
    gaps: u64,
    events: u64,
    /// How many of them are differences, not the kernel's word.
    inferred: u64,
    last: Option<Instant>,
}

impl Told {
    fn apply(&mut self, action: FileAction, path: PathBuf, from: Option<PathBuf>) {
        self.events += 1;
        self.last = Some(Instant::now());
        match action {
            FileAction::Created => {
                self.created.insert(path.clone());
                self.there.insert(path);
            }
            FileAction::Deleted => {
                self.there.remove(&path);
            }
            FileAction::Renamed => {
                if let Some(from) = from {
                    let moved: Vec<_> =
                        self.there.range(from.clone()..).take_while(|old| old.starts_with(&from)).cloned().collect();
                    for old in moved {
                        self.there.remove(&old);
                        let below = old.strip_prefix(&from).unwrap();
                        self.there.insert(if below.as_os_str().is_empty() { path.clone() } else { path.join(below) });
                    }
                    self.renamed.insert((path.clone(), from));
                } else {
                    // Without the name before, all a reader knows is that it is there now.
                    self.created.insert(path.clone());
                }
                self.there.insert(path);
            }
            FileAction::Modified | FileAction::Attributes => {}
        }
    }
}

struct Outcome {
    load: String,
    method: String,
    done: usize,
    told: usize,
    gaps: u64,
    /// Names that are there and were never told.
    silent: usize,
    /// Names that were told and are not there.
    wrong: usize,
    events: u64,
    inferred: u64,
    load_ms: u128,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recall = 100.0 * self.told as f64 / self.done as f64;
        write!(
            f,
            "{:<12} {:<16} {:>8} {:>8} {recall:>8.3}% {:>5} {:>7} {:>6} {:>8} {:>8}",
            self.load,
            self.method,
            self.done,
            self.told,
            self.gaps,
            self.silent,
            self.wrong,
            self.events,
            self.inferred
        )
    }
}

impl Outcome {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "load": self.load, "method": self.method, "done": self.done, "told": self.told, "gaps": self.gaps,
            "silent": self.silent, "wrong": self.wrong, "events": self.events, "inferred": self.inferred, "load_ms": self.load_ms,
        })
    }
}

/// One method at work on a folder.
enum Method {
    Ours(FileWatcher),
    Theirs(Child),
}

/// Where the files of the load are: in memory where that can be had, so that the disk does not set the pace. The
/// baseline is on the disk all the same.
fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn settings(root: &Path) -> FileMonitorSettings {
    FileMonitorSettings { paths: vec![WatchPath::new(root).unwrap()], ..FileMonitorSettings::default() }
}

/// Starts one of our methods and waits for its first look; `None` where this process may not use it.
fn ours(method: &str, root: &Path, state: &Path, told: &Arc<Mutex<Told>>) -> Option<FileWatcher> {
    let told = Arc::clone(told);
    let sink = move |event| {
        let mut told = told.lock().unwrap();
        match event {
            EventBody::File(event) => {
                told.inferred += u64::from(event.confidence == Confidence::Inferred);
                told.apply(event.action, event.path.into(), event.path_from.map(PathBuf::from));
            }
            EventBody::Gap(_) => told.gaps += 1,
            _ => {}
        }
    };
    let options = Options {
        settings: settings(root),
        state_dir: state.to_owned(),
        own: Vec::new(),
        privileged: if method == "fanotify" { Privileged::Auto } else { Privileged::Never },
        ignore_self: false,
    };
    let watcher = FileWatcher::start(options, Arc::new(sink)).unwrap();
    while watcher.counters().rescans == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sight = watcher.sight();
    if !sight.method.contains(method) {
        println!("{method} is left out: {}", sight.detail);
        return None;
    }
    Some(watcher)
}

/// Starts inotifywait and reads what it prints.
fn theirs(root: &Path, told: &Arc<Mutex<Told>>) -> Option<Child> {
    let child = Command::new("inotifywait")
        .args(["-r", "-m", "-e", "create,delete,moved_from,moved_to", "--format", "%e|%w%f"])
        .arg(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("inotifywait is left out: it is not installed (apt-get install inotify-tools)");
        return None;
    };
    let mut words = BufReader::new(child.stderr.take().unwrap()).lines();
    words.find(|line| line.as_ref().is_ok_and(|line| line.contains("established"))).unwrap().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let told = Arc::clone(told);
    std::thread::spawn(move || words.for_each(drop));
    std::thread::spawn(move || {
        // It prints no cookies: a rename is the two lines that follow each other.
        let mut from: Option<PathBuf> = None;
        for line in stdout.lines().map_while(Result::ok) {
            let Some((event, path)) = line.split_once('|') else { continue };
            let path = PathBuf::from(path);
            let mut told = told.lock().unwrap();
            if event.starts_with("CREATE") {
                told.apply(FileAction::Created, path, None);
            } else if event.starts_with("DELETE") {
                told.apply(FileAction::Deleted, path, None);
            } else if event.starts_with("MOVED_FROM") {
                from = Some(path);
            } else if event.starts_with("MOVED_TO") {
                told.apply(FileAction::Renamed, path, from.take());
            } else if event.contains("OVERFLOW") {
                told.gaps += 1;
            }
        }
    });
    Some(child)
}

fn measure(load: &str, method: &str, work: impl Fn(&Path) -> Truth) -> Option<Outcome> {
    let (home, state) = (place(), tempfile::tempdir().unwrap());
    let (root, state) = (home.path().join("w"), state);
    fs::create_dir(&root).unwrap();
    let told = Arc::new(Mutex::new(Told::default()));
    let running = match method {
        "inotifywait" => Method::Theirs(theirs(&root, &told)?),
        _ => Method::Ours(ours(method, &root, state.path(), &told)?),
    };
    let began = Instant::now();
    let truth = work(&root);
    let load_ms = began.elapsed().as_millis();
    wait_until_quiet(&told, Instant::now());
    match running {
        Method::Ours(watcher) => watcher.stop(),
        Method::Theirs(mut child) => {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let told = told.lock().unwrap();
    let there = listing(&root);
    let created = truth.created.iter().filter(|path| told.created.contains(*path)).count();
    let renamed = truth.renamed.iter().filter(|pair| told.renamed.contains(*pair)).count();
    Some(Outcome {
        load: load.to_owned(),
        method: method.to_owned(),
        done: truth.created.len() + truth.renamed.len(),
        told: created + renamed,
        gaps: told.gaps,
        silent: there.difference(&told.there).count(),
        wrong: told.there.difference(&there).count(),
        events: told.events,
        inferred: told.inferred,
        load_ms,
    })
}

fn wait_until_quiet(told: &Arc<Mutex<Told>>, began: Instant) {
    loop {
        let last = told.lock().unwrap().last.unwrap_or(began).max(began);
        let Some(left) = QUIET.checked_sub(last.elapsed()) else { return };
        std::thread::sleep(left.max(Duration::from_millis(10)));
    }
}

fn listing(root: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            all.insert(entry.path());
        }
    }
    all
}

/// The highest of the rates at which files are made and written without a gap, in file events told a second; each file
/// is two of them.
fn sustain(method: &str, rates: &[u32]) -> Option<u64> {
    let mut best = 0;
    for rate in rates {
        let (home, state) = (place(), tempfile::tempdir().unwrap());
        let root = home.path().join("w");
        for folder in 0..100 {
            fs::create_dir_all(root.join(folder.to_string())).unwrap();
        }
        let told = Arc::new(Mutex::new(Told::default()));
        let watcher = ours(method, &root, state.path(), &told)?;
        let began = Instant::now();
        let mut made: u32 = 0;
        let mut names: HashMap<u32, u32> = HashMap::new();
        while began.elapsed() < PACED {
            let due = began.elapsed().as_millis() * u128::from(*rate) / 2_000;
            while u128::from(made) < due {
                let name = names.entry(made % 100).or_default();
                *name += 1;
                let path = root.join((made % 100).to_string()).join(name.to_string());
                File::create(path).unwrap().write_all(b"x").unwrap();
                made += 1;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = began.elapsed();
        wait_until_quiet(&told, Instant::now());
        watcher.stop();
        let told = told.lock().unwrap();
        let reached = u64::try_from(u128::from(made) * 2_000 / took.as_millis()).unwrap();
        println!("paced, {method}: {rate} asked, {reached} done a second, {} told, {} gaps", told.events, told.gaps);
        if told.gaps > 0 || reached < u64::from(*rate) * 8 / 10 {
            break;
        }
        best = reached;
    }
    Some(best)
}
