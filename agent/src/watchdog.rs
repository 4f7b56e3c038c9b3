//! The agent's budget of the machine: how much it may use, and what it gives up when it uses more.
//!
//! A service manager's limit ends the process, and an agent that is killed sees nothing (and a killed auditor has taken
//! its rules with it, as osquery's users found). So the agent degrades by itself, step by step, long before:
//!
//! | step | what is given up |
//! |---|---|
//! | `normal` | nothing |
//! | `slow` | collection intervals are four times as long |
//! | `fold` | and like events are folded into one with a count as soon as they repeat |
//! | `shed` | and file and network events are dropped, each counted in the ledger; alerts are not |
//!
//! The decision is a pure function of what was measured and when. A budget must be exceeded for the whole window before
//! a step is taken; the same time must pass before the next one; and for five windows everything must be below
//! four fifths of its budget before a step is taken back. Between the two thresholds nothing changes: no flapping.

use crate::collect::OwnUsage;
use picket_config::{ByteSize, Interval};
use picket_telemetry::Finding;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

picket_config::settings! {
    /// What the agent may use of its machine before it does less.
    pub struct LimitSettings {
        /// Processor time, percent of one core, averaged over `limits.window`.
        pub cpu_percent: u32 = 25,
        /// Memory.
        pub memory: ByteSize = ByteSize(100 << 20),
        /// Space of its state on disk: store, outbox, audit log.
        pub state_dir: ByteSize = ByteSize(2 << 30),
        /// Open files, in percent of what the service manager allows.
        pub files_percent: u32 = 80,
        /// For how long a budget must be exceeded before the agent does less.
        pub window: Interval = Interval::seconds(12),
    }
}

/// A step back is taken when everything was below this share of its budget ...
const RECOVERED: f64 = 0.8;
/// ... for this many windows: giving up is quick, coming back is not.
const RECOVERY_WINDOWS: u32 = 5;
/// The shortest window: less than three looks of the agent at itself is no trend.
const MIN_WINDOW: Duration = Duration::from_secs(8);
/// The most readings that are kept; at one in four seconds a window of an hour.
const MAX_READINGS: usize = 900;

/// How much the agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Step {
    /// Everything.
    #[default]
    Normal,
    /// It measures four times less often.
    Slow,
    /// It folds like events at once, too.
    Fold,
    /// Of file and network events it passes on a tenth of the rate, too.
    Shed,
}

impl Step {
    /// All steps, the mildest first.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Slow, Self::Fold, Self::Shed];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Slow => "slow",
            Self::Fold => "fold",
            Self::Shed => "shed",
        }
    }

    /// Its number: 0 for normal, 3 for the last.
    pub fn number(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Slow => 1,
            Self::Fold => 2,
            Self::Shed => 3,
        }
    }

    /// By how much collection intervals are longer.
    pub fn interval_factor(self) -> u32 {
        if self == Self::Normal { 1 } else { 4 }
    }

    fn of(number: u8) -> Self {
        Self::ALL.into_iter().find(|step| step.number() == number).unwrap_or(Self::Shed)
    }

    fn up(self) -> Self {
        Self::of(self.number() + 1)
    }

    fn down(self) -> Self {
        Self::of(self.number().saturating_sub(1))
    }
}

/// What the watchdog decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The step that holds now.
    pub step: Step,
    /// Whether it is another than before.
    pub changed: bool,
    /// The resource that is nearest to its budget, or furthest beyond it.
    pub reason: Reason,
}

/// How one resource stands to its budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reason {
    /// Which resource.
    pub resource: Resource,
    /// What is used of it, in its own unit.
    pub used: f64,
    /// The budget.
    pub budget: f64,
}

/// A resource with a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Processor time, percent of one core.
    Cpu,
    /// Memory in bytes.
    Memory,
    /// Space of the state folder in bytes.
    StateDir,
    /// Open files.
    Files,
}

impl Reason {
    fn share(&self) -> f64 {
        if self.budget > 0.0 { self.used / self.budget } else { 0.0 }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, budget) = (self.used, self.budget);
        let mib = f64::from(1 << 20);
        match self.resource {
            Resource::Cpu => write!(f, "processor time {used:.1}% of a core (budget {budget:.0}%, limits.cpu_percent)"),
            Resource::Memory => {
                write!(f, "memory {:.1} MiB (budget {:.0} MiB, limits.memory)", used / mib, budget / mib)
            }
            Resource::StateDir => {
                write!(f, "state on disk {:.1} MiB (budget {:.0} MiB, limits.state_dir)", used / mib, budget / mib)
            }
            Resource::Files => write!(f, "{used:.0} open files (budget {budget:.0}, limits.files_percent)"),
        }
    }
}

/// The decision: what was seen so far, and the step it led to.
#[derive(Debug, Clone)]
pub struct Watchdog {
    limits: LimitSettings,
    step: Step,
    /// Processor time used, by time of reading.
    cpu: VecDeque<(Duration, f64)>,
    over_since: Option<Duration>,
    calm_since: Option<Duration>,
}

impl Watchdog {
    /// A watchdog over `limits` that has seen nothing yet.
    pub fn new(limits: LimitSettings) -> Self {
        Self { limits, step: Step::Normal, cpu: VecDeque::new(), over_since: None, calm_since: None }
    }

    /// Takes over limits that changed; the step stays until they were exceeded or kept for their time.
    pub fn reload(&mut self, limits: LimitSettings) {
        self.limits = limits;
        self.over_since = None;
        self.calm_since = None;
    }

    /// Decides on what was measured at `now`, which counts from any fixed moment and never goes back.
    pub fn observe(&mut self, now: Duration, usage: &OwnUsage) -> Verdict {
        let window = self.limits.window.get().max(MIN_WINDOW);
        let reason = self.tightest(now, usage, window);
        let (over, calm) = (reason.share() > 1.0, reason.share() < RECOVERED);
        self.over_since = over.then(|| self.over_since.unwrap_or(now));
        self.calm_since = calm.then(|| self.calm_since.unwrap_or(now));
        let lasted =
            |since: Option<Duration>, time: Duration| since.is_some_and(|since| now.saturating_sub(since) >= time);
        let before = self.step;
        if lasted(self.over_since, window) {
            self.step = before.up();
            // The time counts anew for the next step: this one must have had its chance to help.
            self.over_since = Some(now);
        } else if lasted(self.calm_since, window * RECOVERY_WINDOWS) {
            self.step = before.down();
            self.calm_since = Some(now);
        }
        Verdict { step: self.step, changed: self.step != before, reason }
    }

    /// The resource that is nearest to its budget. A budget of 0 is none.
    fn tightest(&mut self, now: Duration, usage: &OwnUsage, window: Duration) -> Reason {
        let cpu = self.cpu_percent(now, usage.cpu_seconds, window);
        let limits = &self.limits;
        // What the service manager does not limit needs no budget.
        let files = usage.max_fds.map_or(0.0, |max| max as f64 * f64::from(limits.files_percent) / 100.0);
        let all = [
            (Resource::Cpu, cpu, f64::from(limits.cpu_percent)),
            (Resource::Memory, usage.rss_bytes as f64, limits.memory.0 as f64),
            (Resource::StateDir, usage.state_dir_bytes as f64, limits.state_dir.0 as f64),
            (Resource::Files, usage.fds as f64, files),
        ];
        let reasons = all.map(|(resource, used, budget)| Reason { resource, used, budget });
        reasons.into_iter().fold(
            reasons[0],
            |tightest, reason| {
                if reason.share() > tightest.share() { reason } else { tightest }
            },
        )
    }

    /// Percent of a core over the window, or over the time there are readings of.
    fn cpu_percent(&mut self, now: Duration, cpu_seconds: f64, window: Duration) -> f64 {
        // The newest reading that is a window old stays: it is where the window begins.
        while self.cpu.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= window) || self.cpu.len() > MAX_READINGS
        {
            self.cpu.pop_front();
        }
        self.cpu.push_back((now, cpu_seconds));
        let Some((at, before)) = self.cpu.front() else { return 0.0 };
        let seconds = now.saturating_sub(*at).as_secs_f64();
        if seconds > 0.0 { (cpu_seconds - before).max(0.0) * 100.0 / seconds } else { 0.0 }
    }
}

/// The step that holds, for everybody who gives something up. Clones show the same step.
#[derive(Debug, Clone, Default)]
pub struct Degradation(Arc<AtomicU8>);

impl Degradation {
    /// The step that holds now.
    pub fn step(&self) -> Step {
        Step::of(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, step: Step) {
        self.0.store(step.number(), Ordering::Relaxed);
    }
}

/// The watchdog at work: decides, shows the step, and says what it decided.
#[derive(Debug)]
pub struct Watch {
    watchdog: Mutex<Watchdog>,
    degradation: Degradation,
}

impl Watch {
    /// Watches over `limits`.
    pub fn new(limits: LimitSettings) -> Self {
        Self { watchdog: Mutex::new(Watchdog::new(limits)), degradation: Degradation::default() }
    }

    /// Where the step can be seen.
    pub fn degradation(&self) -> Degradation {
        self.degradation.clone()
    }

    /// Takes over limits that changed.
    pub fn reload(&self, limits: LimitSettings) {
        self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).reload(limits);
    }

    /// [`Watchdog::observe`], shown to all and logged when it changed something.
    pub fn observe(&self, now: Duration, usage: &OwnUsage) -> Verdict {
        let verdict = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).observe(now, usage);
        self.degradation.set(verdict.step);
        if verdict.changed {
            tracing::warn!(step = verdict.step.as_str(), reason = %verdict.reason, "the agent changes how much it does");
        }
        verdict
    }
}

impl Verdict {
    /// What it means for the agent's health: doing less is worth a look, and no failure.
    pub fn finding(&self) -> Finding {
        let finding = match self.step {
            Step::Normal => Finding::pass(format!("within budget; nearest is {}", self.reason)),
            step => Finding::warn(format!("the agent does less (step {}): {}", step.as_str(), self.reason)),
        };
        finding.figure("degradation_step", self.step.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;
    use proptest::prelude::*;

    fn limits() -> LimitSettings {
        LimitSettings { cpu_percent: 10, memory: ByteSize(100), state_dir: ByteSize(1_000), ..LimitSettings::default() }
    }

    fn usage(cpu_seconds: f64, rss_bytes: u64) -> OwnUsage {
        OwnUsage { cpu_seconds, rss_bytes, ..OwnUsage::default() }
    }

    /// Looks every four seconds at memory as `rss` says; the steps, one a look.
    fn steps(watchdog: &mut Watchdog, from: u64, rss: &[u64]) -> Vec<Step> {
        let looks = rss.iter().zip(from..);
        looks.map(|(rss, look)| watchdog.observe(Duration::from_secs(4 * look), &usage(0.0, *rss)).step).collect()
    }

    #[test]
    fn each_step_needs_a_whole_window_beyond_the_budget_and_the_last_one_stays() {
        use Step::{Fold, Normal, Shed, Slow};
        let over = [101; 13];
        assert_eq!(
            steps(&mut Watchdog::new(limits()), 0, &over),
            [Normal, Normal, Normal, Slow, Slow, Slow, Fold, Fold, Fold, Shed, Shed, Shed, Shed]
        );
    }

    #[test]
    fn a_moment_beyond_the_budget_and_the_budget_itself_change_nothing() {
        let mut watchdog = Watchdog::new(limits());
        let uneven = [500, 500, 500, 90, 500, 500, 500, 90, 100, 100, 100, 100, 100];
        assert!(steps(&mut watchdog, 0, &uneven).iter().all(|step| *step == Step::Normal));
    }

    #[test]
    fn coming_back_takes_five_windows_of_calm_for_each_step() {
        let mut watchdog = Watchdog::new(limits());
        assert_eq!(steps(&mut watchdog, 0, &[200; 7]).last(), Some(&Step::Fold));
        // Between four fifths and the whole nothing changes, however long.
        assert!(steps(&mut watchdog, 7, &[90; 100]).iter().all(|step| *step == Step::Fold));
        // 15 looks are 60 seconds.
        let calm = steps(&mut watchdog, 107, &[79; 31]);
        assert_eq!((calm[14], calm[15], calm[29], calm[30]), (Step::Fold, Step::Slow, Step::Slow, Step::Normal));
    }

    #[test]
    fn processor_time_counts_over_the_window_and_not_at_the_moment() {
        let mut watchdog = Watchdog::new(limits());
        // 0.6 s in 4 s are 15 percent, but over twelve seconds they are five.
        for (look, cpu) in [(0, 0.0), (1, 0.6), (2, 0.6), (3, 0.6), (4, 1.2)] {
            let verdict = watchdog.observe(Duration::from_secs(4 * look), &usage(cpu, 0));
            assert_eq!(verdict.step, Step::Normal, "{verdict:?}");
        }
        let verdict = watchdog.observe(Duration::from_secs(20), &usage(1.2, 0));
        assert!((verdict.reason.used - 5.0).abs() < 1e-9, "{verdict:?}");
        let busy = (6_u32..20).map(|look| {
            let cpu = 1.2 + (f64::from(look) - 5.0) * 0.8;
            watchdog.observe(Duration::from_secs(4 * u64::from(look)), &usage(cpu, 0)).step
        });
        assert_eq!(busy.last(), Some(Step::Shed));
    }

    #[test]
    fn every_resource_has_a_budget_and_the_reason_names_the_one_and_its_key() {
        for (usage, key) in [
            (OwnUsage { rss_bytes: 200, ..OwnUsage::default() }, "limits.memory"),
            (OwnUsage { state_dir_bytes: 2_000, ..OwnUsage::default() }, "limits.state_dir"),
            (OwnUsage { fds: 900, max_fds: Some(1_000), ..OwnUsage::default() }, "limits.files_percent"),
        ] {
            let mut watchdog = Watchdog::new(limits());
            for look in 0..4 {
                watchdog.observe(Duration::from_secs(look * 4), &usage);
            }
            let verdict = watchdog.observe(Duration::from_secs(16), &usage);
            assert_eq!((verdict.step, verdict.finding().status), (Step::Slow, CheckStatus::Warn), "{verdict:?}");
            assert!(verdict.finding().message.contains(key), "{}", verdict.finding().message);
        }
        let unlimited = OwnUsage { fds: 900, max_fds: None, ..OwnUsage::default() };
        let verdict = Watchdog::new(limits()).observe(Duration::ZERO, &unlimited);
        assert_eq!(verdict.finding().status, CheckStatus::Pass);
    }

    #[test]
    fn the_step_is_seen_by_all() {
        let watch = Watch::new(limits());
        let seen = watch.degradation();
        for look in 0..4 {
            watch.observe(Duration::from_secs(look * 4), &usage(0.0, 200));
        }
        assert_eq!((seen.step(), seen.step().interval_factor()), (Step::Slow, 4));
    }

    proptest! {
        #[test]
        fn a_step_is_never_skipped_nor_taken_twice_within_a_window(looks in proptest::collection::vec((0_u64..60, 0_u64..300), 1..200)) {
            let mut watchdog = Watchdog::new(limits());
            let (mut now, mut before, mut changed_at) = (Duration::ZERO, Step::Normal, None::<Duration>);
            for (pause, rss) in looks {
                now += Duration::from_secs(pause);
                let verdict = watchdog.observe(now, &usage(0.0, rss));
                prop_assert!(verdict.step.number().abs_diff(before.number()) <= 1);
                prop_assert_eq!(verdict.changed, verdict.step != before);
                if verdict.changed {
                    prop_assert!(changed_at.is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(12)));
                    changed_at = Some(now);
                }
                before = verdict.step;
            }
        }
    }
}
