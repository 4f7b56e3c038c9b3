//! How long to wait before the next attempt.

use std::time::Duration;

/// The wait after the `attempt`th failure (from 1): `first` doubled each time, at most `longest`, of which a random half
/// is left out, so that ten thousand machines that lost the same mail server do not return at the same instant. `random`
/// is any 64 bits.
pub(super) fn wait(attempt: u32, first: Duration, longest: Duration, random: u64) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX)).min(longest);
    let half = doubled / 2;
    // 53 bits are what an f64 holds exactly.
    half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u64> = (1..=8).map(|attempt| wait(attempt, SECOND, SECOND * 60, u64::MAX).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    proptest! {
        #[test]
        fn a_wait_is_between_half_and_all_of_its_bound(attempt in any::<u32>(), random in any::<u64>()) {
            let found = wait(attempt, SECOND, SECOND * 60, random);
            prop_assert!(found >= SECOND / 2 && found <= SECOND * 60);
        }
    }
}
