//! Processor time: whole and per core, split by what it was spent on, and the load averages.
//!
//! From `/proc/stat` and `/proc/loadavg` (proc(5)). Percentages are the difference between two readings; the counters
//! themselves are kept for those who make their own differences.

use super::text::{KeptFile, lines, number, numbers, percent, words};
use picket_durable::Error;
use serde::{Deserialize, Serialize};

/// Enough for the lines of 800 cores; the interrupts behind them are not wanted.
const STAT_LIMIT: usize = 64 << 10;
/// The most cores that are told apart.
pub const MAX_CORES: usize = 512;

/// What processors spent their time on, in ticks or in seconds since the machine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuTimes<T> {
    /// Programs, those for guests included.
    pub user: T,
    /// Programs of lower priority.
    pub nice: T,
    /// The kernel on behalf of programs.
    pub system: T,
    /// Nothing.
    pub idle: T,
    /// Nothing, while a disk was awaited.
    pub iowait: T,
    /// Interrupts.
    pub irq: T,
    /// Deferred interrupt work.
    pub softirq: T,
    /// Taken by the host of this virtual machine.
    pub steal: T,
}

impl<T: Copy> CpuTimes<T> {
    /// The times under the names that metrics give them.
    pub fn each(&self) -> [(&'static str, T); 8] {
        [
            ("user", self.user),
            ("nice", self.nice),
            ("system", self.system),
            ("idle", self.idle),
            ("iowait", self.iowait),
            ("irq", self.irq),
            ("softirq", self.softirq),
            ("steal", self.steal),
        ]
    }
}

/// Processor time and load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuSample {
    /// Time not idle, percent of all cores.
    pub usage_percent: f64,
    /// How the time since the sample before was spent, percent of all cores.
    pub percent: CpuTimes<f64>,
    /// How all time since the machine started was spent, in seconds, all cores together.
    pub seconds: CpuTimes<f64>,
    /// Each core.
    pub cores: Vec<CoreUsage>,
    /// Runnable and uninterruptible tasks, averaged over one minute.
    pub load1: f64,
    /// The same over five minutes.
    pub load5: f64,
    /// The same over fifteen minutes.
    pub load15: f64,
}

/// One core.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CoreUsage {
    /// Its number.
    pub core: u32,
    /// Time not idle, percent.
    pub usage_percent: f64,
}

/// One reading of `/proc/stat`.
#[derive(Debug, Clone, Default, PartialEq)]
struct Ticks {
    whole: CpuTimes<u64>,
    cores: Vec<(u32, CpuTimes<u64>)>,
}

/// Measures processors.
#[derive(Debug)]
pub(super) struct CpuCollector {
    stat: KeptFile,
    load: KeptFile,
    before: Ticks,
}

impl CpuCollector {
    /// Takes the first reading; the first sample tells of the time since.
    pub(super) fn new() -> Self {
        let mut collector = Self {
            stat: KeptFile::new("/proc/stat", STAT_LIMIT),
            load: KeptFile::new("/proc/loadavg", 256),
            before: Ticks::default(),
        };
        if let Ok(text) = collector.stat.read() {
            collector.before = parse(text);
        }
        collector
    }

    pub(super) fn sample(&mut self) -> Result<CpuSample, Error> {
        let now = parse(self.stat.read()?);
        let load = load_averages(self.load.read()?);
        let sample = compare(&self.before, &now, load);
        self.before = now;
        Ok(sample)
    }
}

/// Reads the lines of `/proc/stat` that begin with `cpu`.
fn parse(text: &[u8]) -> Ticks {
    let mut ticks = Ticks::default();
    for line in lines(text).take_while(|line| line.starts_with(b"cpu")) {
        let Some(name) = words(line).next() else { break };
        let times = times(&line[name.len().min(line.len())..]);
        match &name[3..] {
            b"" => ticks.whole = times,
            core if ticks.cores.len() < MAX_CORES => {
                if let Some(core) = number(core).and_then(|core| u32::try_from(core).ok()) {
                    ticks.cores.push((core, times));
                }
            }
            _ => {}
        }
    }
    ticks
}

/// The first eight columns; `guest` and `guest_nice` behind them are in `user` and `nice` already.
fn times(line: &[u8]) -> CpuTimes<u64> {
    let mut columns = numbers(line);
    let mut next = || columns.next().unwrap_or(0);
    CpuTimes {
        user: next(),
        nice: next(),
        system: next(),
        idle: next(),
        iowait: next(),
        irq: next(),
        softirq: next(),
        steal: next(),
    }
}

/// `0.52 0.58 0.59 2/1018 12345`.
fn load_averages(text: &[u8]) -> [f64; 3] {
    let mut values = words(text).map(|word| std::str::from_utf8(word).ok()?.parse::<f64>().ok());
    [(); 3].map(|()| values.next().flatten().filter(|load| load.is_finite()).unwrap_or(0.0))
}

fn compare(before: &Ticks, now: &Ticks, load: [f64; 3]) -> CpuSample {
    let spent = difference(&before.whole, &now.whole);
    let total = total(&spent);
    let tick = 1.0 / procfs::ticks_per_second().max(1) as f64;
    let cores = now.cores.iter().map(|(core, times)| {
        let known = before.cores.iter().find(|(known, _)| known == core).map(|(_, times)| *times);
        let usage_percent = known.map_or(0.0, |known| usage(&difference(&known, times)));
        CoreUsage { core: *core, usage_percent }
    });
    CpuSample {
        usage_percent: usage(&spent),
        percent: map(&spent, |ticks| percent(ticks, total)),
        seconds: map(&now.whole, |ticks| ticks as f64 * tick),
        cores: cores.collect(),
        load1: load[0],
        load5: load[1],
        load15: load[2],
    }
}

fn usage(spent: &CpuTimes<u64>) -> f64 {
    let total = total(spent);
    percent(total - spent.idle - spent.iowait, total)
}

fn total(times: &CpuTimes<u64>) -> u64 {
    times.each().iter().map(|(_, ticks)| ticks).sum()
}

/// Each counter's growth; `iowait` and `idle` may go back a little (proc(5)), which counts as standing.
fn difference(before: &CpuTimes<u64>, now: &CpuTimes<u64>) -> CpuTimes<u64> {
    // Bounded, so that the sum of eight cannot overflow whatever the text said.
    let grown = |before: u64, now: u64| now.saturating_sub(before).min(u64::MAX >> 4);
    CpuTimes {
        user: grown(before.user, now.user),
        nice: grown(before.nice, now.nice),
        system: grown(before.system, now.system),
        idle: grown(before.idle, now.idle),
        iowait: grown(before.iowait, now.iowait),
        irq: grown(before.irq, now.irq),
        softirq: grown(before.softirq, now.softirq),
        steal: grown(before.steal, now.steal),
    }
}

fn map(times: &CpuTimes<u64>, f: impl Fn(u64) -> f64) -> CpuTimes<f64> {
    CpuTimes {
        user: f(times.user),
        nice: f(times.nice),
        system: f(times.system),
        idle: f(times.idle),
        iowait: f(times.iowait),
        irq: f(times.irq),
        softirq: f(times.softirq),
        steal: f(times.steal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_time_between_two_readings_is_split_by_what_it_was_spent_on() {
        let before = parse(b"cpu  100 0 100 1000 0 0 0 0 50 0\ncpu0 100 0 100 1000 0 0 0 0 50 0\nintr 5\n");
        let now = parse(b"cpu  140 0 110 1030 10 0 0 10 70 0\ncpu0 140 0 110 1030 10 0 0 10 70 0\nintr 9\n");
        let sample = compare(&before, &now, [1.0, 2.0, 3.0]);
        // 100 ticks passed: 40 user, 10 system, 30 idle, 10 waiting, 10 stolen.
        assert!((sample.usage_percent - 60.0).abs() < 1e-9, "{sample:?}");
        assert!((sample.percent.steal - 10.0).abs() < 1e-9 && (sample.percent.iowait - 10.0).abs() < 1e-9);
        assert_eq!(sample.cores.len(), 1);
        assert!((sample.cores[0].usage_percent - 60.0).abs() < 1e-9);
        assert!((sample.load5 - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_core_that_came_and_a_counter_that_went_back_are_no_usage() {
        let before = parse(b"cpu 10 0 0 50 9\ncpu0 10 0 0 50 9\n");
        let now = parse(b"cpu 10 0 0 60 5\ncpu0 10 0 0 60 5\ncpu3 7 7 7 7\n");
        let sample = compare(&before, &now, [0.0; 3]);
        assert!(sample.usage_percent.abs() < 1e-9 && sample.cores[1].usage_percent.abs() < 1e-9, "{sample:?}");
    }

    #[test]
    fn this_machine_has_cores_and_a_load() {
        let mut collector = CpuCollector::new();
        let sample = collector.sample().unwrap();
        assert!(!sample.cores.is_empty() && sample.seconds.idle > 0.0, "{sample:?}");
        assert!((0.0..=100.0).contains(&sample.usage_percent));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_share_between_none_and_all(a in ".{0,200}", b in "(cpu[0-9]{0,3} ([0-9]{1,20} ){0,10}\n){0,4}") {
            let (before, now) = (parse(a.as_bytes()), parse(b.as_bytes()));
            let sample = compare(&before, &now, load_averages(a.as_bytes()));
            prop_assert!((0.0..=100.0).contains(&sample.usage_percent));
        }
    }
}
