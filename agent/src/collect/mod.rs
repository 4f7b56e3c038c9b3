//! System metrics: what the machine is and does, measured group by group.
//!
//! | group | from | thread |
//! |---|---|---|
//! | facts | sysinfo, `/proc`, `/sys/class/dmi`, utmp | `picket-collect` |
//! | cpu, memory, network, processes, own | `/proc`, files kept open | `picket-collect` |
//! | temperatures | sysinfo (`/sys/class/hwmon`) | `picket-collect` |
//! | disk | mount table, `statvfs`, `/proc/diskstats` | `picket-disks`, and one a remote file system |
//!
//! Each group has an interval of its own. Disks have a thread of their own, since a file system that does not answer
//! blocks whoever asks: then the disk group grows old, the collector's check says so, and all else is measured on.
//!
//! What is measured goes to [`Latest`], for those who show it, and to one callback ([`OnSample`]), for those who keep
//! or judge it. Nothing here is exported that could hold a secret: no command lines, no environments.

mod accounts;
mod cpu;
mod devices;
mod disk;
mod facts;
mod flat;
mod measure;
mod memory;
mod mounts;
mod network;
mod own;
mod processes;
mod sample;
mod schedule;
mod settings;
mod stat;
mod temperature;
mod text;

pub use cpu::{CoreUsage, CpuSample, CpuTimes, MAX_CORES};
pub use devices::{DeviceSample, MAX_DEVICES};
pub use disk::{DiskSample, FileSystem};
pub use facts::{Facts, boot_id};
pub use flat::Reading;
pub use measure::Measurer;
pub use memory::MemorySample;
pub use mounts::MAX_FILE_SYSTEMS;
pub use network::{InterfaceSample, MAX_INTERFACES, NetworkSample};
pub use own::OwnUsage;
pub use processes::{MAX_PROCESSES, MAX_TOP, ProcessSample, ProcessStates, ProcessUse};
pub use sample::{Group, Latest, Sample, Taken};
pub use schedule::MIN_INTERVAL;
pub use settings::CollectSettings;
pub use temperature::{MAX_SENSORS, Sensor, TemperatureSample};

use picket_config::Interval;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a thread measures.
const LANES: [(&str, &[Group]); 2] = [
    (
        "picket-collect",
        &[Group::Facts, Group::Own, Group::Memory, Group::Network, Group::Temperatures, Group::Cpu, Group::Processes],
    ),
    ("picket-disks", &[Group::Disk]),
];

/// What is measured, and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The keys below `collect`.
    pub settings: CollectSettings,
    /// The interval of groups without one of their own.
    pub default_interval: Interval,
    /// The agent's own state, whose size is measured.
    pub state_dir: PathBuf,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            settings: CollectSettings::default(),
            default_interval: Interval::seconds(60),
            state_dir: PathBuf::from("/var/lib/picket"),
        }
    }
}

/// Called with each sample, on the thread that took it. It must return at once: what takes time belongs in a queue.
pub type OnSample = Arc<dyn Fn(&Arc<Taken>) + Send + Sync>;

/// What measures, as those see it who steer it. Clones steer the same.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Steering>);

#[derive(Debug)]
struct Steering {
    state: Mutex<Steered>,
    changed: Condvar,
}

#[derive(Debug, Clone)]
struct Steered {
    plan: Plan,
    factor: u32,
    stop: bool,
}

impl Pace {
    /// The pace of `plan`.
    pub fn new(plan: Plan) -> Self {
        let state = Mutex::new(Steered { plan, factor: 1, stop: false });
        Self(Arc::new(Steering { state, changed: Condvar::new() }))
    }

    /// Makes every interval `factor` times as long, but for the agent's look at itself; 1 is as configured.
    pub fn slow_down(&self, factor: u32) {
        // Told at each look of the agent at itself: who has nothing new to hear must not be woken for it.
        if self.lock().factor != factor.max(1) {
            self.change(|state| state.factor = factor.max(1));
        }
    }

    /// Takes over settings that changed; they hold from the next sample on.
    pub fn reload(&self, settings: CollectSettings, default_interval: Interval) {
        self.change(|state| {
            state.plan.settings = settings;
            state.plan.default_interval = default_interval;
        });
    }

    /// The interval in force for `group`.
    pub fn interval(&self, group: Group) -> Duration {
        self.lock().interval(group)
    }

    fn change(&self, change: impl FnOnce(&mut Steered)) {
        change(&mut self.lock());
        self.0.changed.notify_all();
    }

    // A panic elsewhere cannot leave half a change behind.
    fn lock(&self) -> MutexGuard<'_, Steered> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steered {
    fn interval(&self, group: Group) -> Duration {
        let interval = self.plan.settings.interval(group, self.plan.default_interval);
        // Who watches the cost must not look away while it is high.
        if group == Group::Own { interval } else { interval.saturating_mul(self.factor) }
    }
}

/// The threads that measure. They end with this value.
#[derive(Debug)]
pub struct Collectors {
    pace: Pace,
    threads: Vec<(&'static str, JoinHandle<()>)>,
}

impl Collectors {
    /// Starts measuring at `pace`; each sample is put into `latest`, then given to `on_sample`.
    ///
    /// # Errors
    /// Only when the system refuses a thread.
    pub fn spawn(pace: Pace, latest: &Latest, on_sample: &OnSample) -> std::io::Result<Self> {
        let mut collectors = Self { pace, threads: Vec::new() };
        for (name, groups) in LANES {
            let (pace, latest, on_sample) = (collectors.pace.clone(), latest.clone(), Arc::clone(on_sample));
            let thread = std::thread::Builder::new().name(name.to_owned());
            let thread = thread.spawn(move || run(&pace, groups, &latest, &on_sample))?;
            collectors.threads.push((name, thread));
        }
        Ok(collectors)
    }
}

impl Drop for Collectors {
    fn drop(&mut self) {
        self.pace.change(|state| state.stop = true);
        for (name, thread) in self.threads.drain(..) {
            // A thread that waits for a dead disk cannot be waited for; the process' end is its end.
            if name == LANES[0].0 {
                let _ = thread.join();
            }
        }
    }
}

/// Measures `groups`, each when it is due, until told to stop.
fn run(pace: &Pace, groups: &[Group], latest: &Latest, on_sample: &OnSample) {
    let start = Instant::now();
    let mut steered = pace.lock().clone();
    let mut measurer = Measurer::new(&steered.plan);
    let mut lasts: Vec<(Group, Option<Duration>)> = groups.iter().map(|group| (*group, None)).collect();
    let mut failing: Vec<Group> = Vec::new();
    while !steered.stop {
        for (group, last) in &mut lasts {
            let now = start.elapsed();
            if schedule::due(*group, *last, steered.interval(*group)) > now {
                continue;
            }
            *last = Some(now);
            let operation = format!("collect_{}", group.as_str());
            let span = tracing::info_span!("collect", operation = operation.as_str(), error = tracing::field::Empty);
            let measured = span.in_scope(|| measurer.sample(*group));
            if let Err(error) = &measured {
                span.record("error", describe(error));
            }
            drop(span);
            match measured {
                Ok(sample) => {
                    failing.retain(|failing| failing != group);
                    let taken = Arc::new(Taken::now(sample));
                    latest.set(Arc::clone(&taken));
                    on_sample(&taken);
                }
                // Told once: the collector's check says for how long.
                Err(error) if !failing.contains(group) => {
                    failing.push(*group);
                    tracing::error!(group = group.as_str(), error = %describe(&error), "this group cannot be measured");
                }
                Err(_) => {}
            }
        }
        let plan = steered.plan.clone();
        steered = wait(pace, &lasts, start);
        if plan != steered.plan {
            measurer.reload(&steered.plan.settings);
        }
    }
}

/// Waits until the first of `lasts` is due or something was changed.
fn wait(pace: &Pace, lasts: &[(Group, Option<Duration>)], start: Instant) -> Steered {
    let mut state = pace.lock();
    loop {
        let next = lasts.iter().map(|(group, last)| schedule::due(*group, *last, state.interval(*group))).min();
        let pause = next.unwrap_or(Duration::MAX).saturating_sub(start.elapsed());
        if state.stop || pause.is_zero() {
            return state.clone();
        }
        state = pace.0.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// An error of the kernel's files with what the system said.
fn describe(error: &picket_durable::Error) -> String {
    format!("{error}: {}", error.source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn quick(interval: Interval) -> Plan {
        let dir = std::env::temp_dir();
        Plan { default_interval: interval, state_dir: dir.join("picket-no-such-folder"), ..Plan::default() }
    }

    #[test]
    fn every_group_is_measured_shared_and_told_of_and_the_threads_end_with_their_owner() {
        let (sender, samples) = mpsc::channel();
        let on_sample: OnSample = Arc::new(move |taken: &Arc<Taken>| {
            let _ = sender.send(taken.group());
        });
        let latest = Latest::default();
        let collectors = Collectors::spawn(Pace::new(quick(Interval::seconds(60))), &latest, &on_sample).unwrap();
        let mut seen: Vec<Group> = (0..8).map(|_| samples.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        seen.sort();
        let mut all = Group::ALL;
        all.sort();
        assert_eq!(seen, all);
        assert!(latest.cpu(|cpu| cpu.usage_percent).is_some_and(|usage| (0.0..=100.0).contains(&usage)));
        let json = latest.to_json();
        assert!(json["memory"]["total_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{json}");
        drop(collectors);
        drop(on_sample);
        // Both threads are gone when the last sender is.
        assert_eq!(samples.recv_timeout(Duration::from_secs(20)), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_new_interval_holds_at_once_and_a_slower_pace_is_a_longer_interval() {
        let (sender, samples) = mpsc::channel();
        let on_sample: OnSample = Arc::new(move |taken: &Arc<Taken>| {
            let _ = sender.send(taken.group());
        });
        let pace = Pace::new(quick(Interval::days(1)));
        let _collectors = Collectors::spawn(pace.clone(), &Latest::default(), &on_sample).unwrap();
        for _ in 0..8 {
            samples.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        let settings = CollectSettings { memory: Some(Interval::seconds(0)), ..CollectSettings::default() };
        pace.reload(settings, Interval::days(1));
        let next = samples.iter().find(|group| *group != Group::Own);
        assert_eq!(next, Some(Group::Memory));
        pace.slow_down(4);
        assert_eq!(pace.interval(Group::Cpu), Interval::days(4).get());
        assert_eq!(pace.interval(Group::Own), Duration::from_secs(4));
    }
}
