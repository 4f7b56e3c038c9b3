//! A watched folder, and what was told of it.

use picket_config::{Interval, Node, Origin, Problems, Setting, Value};
use picket_filewatch::{FileMonitorSettings, FileWatcher, Options, Pattern, Privileged, WatchPath};
use picket_protocol::event::{EventBody, FileAction, FileEvent, GapEvent};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn interval(text: &str) -> Interval {
    let node = Node { value: Value::Text(text.into()), origin: Origin::Default };
    Interval::read(&node, "interval", &mut Problems::default()).unwrap()
}

pub fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

/// Runs a test with inotify and, where this process may, with fanotify.
pub fn each(test: impl Fn(Watched)) {
    println!("with inotify");
    test(Watched::new(Privileged::Never));
    let mut watched = Watched::new(Privileged::Auto);
    watched.start();
    let sight = watched.watcher.as_ref().unwrap().sight();
    if !sight.method.contains("fanotify") {
        println!("not run with fanotify: {}", sight.detail);
        return;
    }
    drop(watched);
    println!("with fanotify");
    test(Watched::new(Privileged::Auto));
}

pub struct Watched {
    /// Holds everything.
    pub home: TempDir,
    /// The watched folder.
    pub root: PathBuf,
    pub settings: FileMonitorSettings,
    pub privileged: Privileged,
    pub watcher: Option<FileWatcher>,
    inbox: Option<Receiver<EventBody>>,
    /// All file events that came.
    pub events: Vec<FileEvent>,
    /// All gaps that came.
    pub gaps: Vec<GapEvent>,
}

impl Watched {
    pub fn new(privileged: Privileged) -> Self {
        Self::on(tempfile::tempdir().unwrap(), privileged)
    }

    pub fn on(home: TempDir, privileged: Privileged) -> Self {
        let root = home.path().join("w");
        fs::create_dir(&root).unwrap();
        fs::create_dir(home.path().join("state")).unwrap();
        let settings = FileMonitorSettings {
            paths: vec![WatchPath::new(&root).unwrap()],
            debounce: interval("30ms"),
            write_pause: interval("300ms"),
            ..FileMonitorSettings::default()
        };
        Self { home, root, settings, privileged, watcher: None, inbox: None, events: Vec::new(), gaps: Vec::new() }
    }

    pub fn is_fanotify(&self) -> bool {
        self.watcher.as_ref().unwrap().sight().method.contains("fanotify")
    }

    /// Starts, and waits until the first look is done.
    pub fn start(&mut self) {
        self.start_with(|_| {});
        self.wait("the first look", |watched| watched.watcher.as_ref().unwrap().counters().rescans > 0);
    }

    /// Starts with something to do before each event is passed on.
    pub fn start_with(&mut self, before: impl Fn(&EventBody) + Send + Sync + 'static) {
        let_the_clock_step();
        let (sender, inbox) = channel();
        self.inbox = Some(inbox);
        let options = Options {
            settings: self.settings.clone(),
            state_dir: self.home.path().join("state"),
            own: Vec::new(),
            privileged: self.privileged,
            ignore_self: false,
        };
        let sink = Arc::new(move |event| {
            before(&event);
            let _ = sender.send(event);
        });
        self.watcher = Some(FileWatcher::start(options, sink).unwrap());
    }

    /// Stops, and takes what was told to the last.
    pub fn stop(&mut self) {
        self.watcher.take().unwrap().stop();
        for event in self.inbox.take().unwrap() {
            self.keep(event);
        }
    }

    fn keep(&mut self, event: EventBody) {
        match event {
            EventBody::File(event) => self.events.push(event),
            EventBody::Gap(gap) => self.gaps.push(gap),
            other => panic!("a file watcher told {other:?}"),
        }
    }

    /// Waits until `holds`, looking after each event and every few milliseconds.
    pub fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "{what} did not come; events: {:#?}, gaps: {:?}",
                self.brief(),
                self.gaps
            );
            if let Ok(event) = self.inbox.as_ref().unwrap().recv_timeout(Duration::from_millis(5)) {
                self.keep(event);
            }
        }
    }

    /// Waits for an action on a path below the root, and gives the first such event.
    pub fn expect(&mut self, action: FileAction, path: &str) -> FileEvent {
        let whole = self.path(path).to_str().unwrap().to_owned();
        let is_it = |event: &&FileEvent| event.action == action && event.path == whole;
        self.wait(&format!("{action:?} {path}"), |watched| watched.events.iter().any(|event| is_it(&event)));
        self.events.iter().find(is_it).unwrap().clone()
    }

    /// Makes a file that no test uses and waits until it is told: all before it was applied.
    pub fn barrier(&mut self) {
        let name = (0..1_000).map(|turn| format!("barrier-{turn}")).find(|name| !self.path(name).exists()).unwrap();
        self.barrier_named(&name);
    }

    pub fn barrier_named(&mut self, name: &str) {
        fs::write(self.path(name), "x").unwrap();
        self.expect(FileAction::Modified, name);
    }

    /// Waits until the events, applied to `before`, give what is there.
    pub fn settle(&mut self, before: &BTreeSet<PathBuf>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let there = listing(&self.root);
            let told = fold(before, &self.events);
            if told == there {
                return;
            }
            if Instant::now() > deadline {
                let missed: Vec<_> = there.difference(&told).take(20).collect();
                let wrong: Vec<_> = told.difference(&there).take(20).collect();
                let last: Vec<_> = self.brief().into_iter().rev().take(80).rev().collect();
                panic!("not told: {missed:?}; told and not there: {wrong:?}; events: {last:#?}");
            }
            while let Ok(event) = self.inbox.as_ref().unwrap().recv_timeout(Duration::from_millis(20)) {
                self.keep(event);
                if Instant::now() > deadline {
                    break;
                }
            }
        }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    /// The events on a path below the root, in their order.
    pub fn actions(&self, path: &str) -> Vec<FileAction> {
        let whole = self.path(path);
        self.events.iter().filter(|event| Path::new(&event.path) == whole).map(|event| event.action).collect()
    }

    pub fn brief(&self) -> Vec<String> {
        let brief = |event: &FileEvent| {
            let from = event.path_from.as_ref().map(|from| format!(" from {from}")).unwrap_or_default();
            format!("{:?} {}{from} ({:?}, {:?})", event.action, event.path, event.method, event.kind)
        };
        self.events.iter().map(brief).collect()
    }
}

/// Waits until a file made now is younger than one made before by the clock that stamps files, which moves in steps of
/// up to 10 ms: what is as old as the watcher's start is told as new.
fn let_the_clock_step() {
    let end = Instant::now() + Duration::from_millis(21);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// All paths below a folder.
pub fn listing(root: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            all.insert(entry.path());
        }
    }
    all
}

/// What a reader of the events believes to be there.
pub fn fold(before: &BTreeSet<PathBuf>, events: &[FileEvent]) -> BTreeSet<PathBuf> {
    let mut there = before.clone();
    for event in events {
        let path = PathBuf::from(&event.path);
        match event.action {
            FileAction::Created => {
                there.insert(path);
            }
            FileAction::Deleted => {
                there.remove(&path);
            }
            FileAction::Renamed => {
                let from = event.path_from.as_ref().map(PathBuf::from);
                let moved: Vec<PathBuf> = match &from {
                    Some(from) => there.iter().filter(|old| old.starts_with(from)).cloned().collect(),
                    None => Vec::new(),
                };
                there.retain(|old| !old.starts_with(&path) && from.as_ref().is_none_or(|from| !old.starts_with(from)));
                there.insert(path.clone());
                for old in moved {
                    let below = old.strip_prefix(from.as_ref().unwrap()).unwrap();
                    if below.as_os_str().is_empty() {
                        continue;
                    }
                    there.insert(path.join(below));
                }
            }
            FileAction::Modified | FileAction::Attributes => {}
        }
    }
    there
}
