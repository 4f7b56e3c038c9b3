//! Two clocks: the one people read, and the one that only goes forward.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The time, as the outbox and the delivery ask for it.
pub trait Clock: Send + Sync {
    /// The wall clock: what is written beside an event. It may jump; nothing is decided by it.
    fn wall(&self) -> jiff::Timestamp;
    /// Time since the machine booted, sleep included: ages, backoff and the breaker go by it. Comparable between
    /// processes of one boot.
    fn since_boot(&self) -> Duration;
}

/// Where the kernel tells its boot id (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's boot id. Where there is none (no /proc) each process counts as a boot: ids stay unique.
pub fn kernel_boot() -> String {
    picket_durable::read_text(std::path::Path::new(BOOT_ID), 256)
        .map_or_else(|_| jiff::Timestamp::now().to_string(), |text| text.trim().to_owned())
}

/// The machine's clocks (`CLOCK_REALTIME` and `CLOCK_BOOTTIME`, `clock_gettime(2)`).
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn since_boot(&self) -> Duration {
        #[cfg(target_os = "linux")]
        let id = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let id = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(id);
        Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
    }
}

/// Clocks that a test moves.
#[derive(Debug)]
pub struct ManualClock {
    times: Mutex<(jiff::Timestamp, Duration)>,
}

impl ManualClock {
    /// Clocks that stand at `wall`, some time after a boot.
    pub fn new(wall: jiff::Timestamp) -> Self {
        Self { times: Mutex::new((wall, Duration::from_secs(60))) }
    }

    /// Lets time pass on both.
    pub fn advance(&self, by: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.0 = times.0.checked_add(by).unwrap_or(jiff::Timestamp::MAX);
        times.1 += by;
    }

    /// Sets the wall clock, as somebody with a wrong idea of the date would.
    pub fn set_wall(&self, wall: jiff::Timestamp) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).0 = wall;
    }

    /// The machine boots: time since boot begins again.
    pub fn reboot(&self) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).1 = Duration::from_secs(1);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> jiff::Timestamp {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn since_boot(&self) -> Duration {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}
