//! Delays in classes that grow by a fiftieth: a quantile is right to two percent, and a million delays take no more room than
//! ten.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The classes reach from a microsecond to beyond a day.
const CLASSES: usize = 1_300;
const GROWTH: f64 = 1.02;

/// Many delays.
pub struct Delays(Vec<AtomicU64>);

impl Default for Delays {
    fn default() -> Self {
        Self((0..CLASSES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Delays {
    /// Counts one.
    pub fn note(&self, delay: Duration) {
        let class = (delay.as_secs_f64() * 1e6).max(1.0).ln() / GROWTH.ln();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the last class")]
        let class = (class as usize).min(CLASSES - 1);
        self.0[class].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|class| class.load(Ordering::Relaxed)).sum()
    }

    /// The delay that this share of all does not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut left = self.count() as f64 * share;
        for (class, count) in self.0.iter().enumerate() {
            left -= count.load(Ordering::Relaxed) as f64;
            if left <= 0.0 {
                return Duration::from_secs_f64(GROWTH.powf(class as f64 + 1.0) / 1e6);
            }
        }
        Duration::ZERO
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.0.iter().for_each(|class| class.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_right_to_two_percent() {
        let delays = Delays::default();
        (1..=1000).for_each(|ms| delays.note(Duration::from_millis(ms)));
        for (share, ms) in [(0.5, 500.0), (0.99, 990.0)] {
            let found = delays.quantile(share).as_secs_f64() * 1000.0;
            assert!((found / ms - 1.0).abs() < 0.021, "{share}: {found}");
        }
        delays.clear();
        assert_eq!(delays.count(), 0);
    }
}
