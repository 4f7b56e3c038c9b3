//! Putting an update off on this machine's behalf, and for how long at most: a pure decision.
//!
//! Windows and busy hooks share one limit, which counts from when it was first this machine's turn. A machine that is
//! always busy, or never on in its window, is the one that nobody looks at: it must not be left behind.

use crate::hooks::HookResult;
use jiff::{SignedDuration, Timestamp};
use std::fmt;
use std::time::Duration;

/// How long until hooks that called the machine busy are asked again.
const ASK_AGAIN: SignedDuration = SignedDuration::from_mins(15);

/// What stands in the way of an update just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// No window is open.
    Window {
        /// When one opens.
        opens: Timestamp,
        /// Whose windows: `update.windows`, or the vendor's.
        whose: &'static str,
    },
    /// A hook calls the machine busy.
    Busy {
        /// The hook.
        hook: String,
        /// What it said.
        detail: String,
    },
}

impl Obstacle {
    /// The hook that stands in the way.
    pub(crate) fn of_hook(result: &HookResult) -> Self {
        Self::Busy { hook: result.hook.clone(), detail: result.detail.clone() }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window { opens, whose } => write!(f, "{whose} next open at {opens}"),
            Self::Busy { hook, detail } => write!(f, "{hook} calls the machine busy ({detail})"),
        }
    }
}

/// When to look again, for an update that has been put off since `since`; `None` when `limit` is over and it goes on all
/// the same.
pub(crate) fn until(obstacle: &Obstacle, now: Timestamp, since: Timestamp, limit: Duration) -> Option<Timestamp> {
    // A clock that was set back must not lengthen the wait.
    let since = since.min(now);
    let end = since.checked_add(SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX));
    let end = end.unwrap_or(Timestamp::MAX);
    if now >= end {
        return None;
    }
    let next = match obstacle {
        Obstacle::Window { opens, .. } => *opens,
        Obstacle::Busy { .. } => now.checked_add(ASK_AGAIN).unwrap_or(end),
    };
    Some(next.min(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_wait_ends_with_its_obstacle_or_with_its_limit_whichever_is_sooner() {
        let hour = Duration::from_secs(3600);
        let window = |opens| Obstacle::Window { opens: at(opens), whose: "its windows" };
        let busy = Obstacle::Busy { hook: "10-backup".into(), detail: String::new() };
        assert_eq!(until(&window(1800), at(0), at(0), hour), Some(at(1800)));
        assert_eq!(until(&window(9000), at(0), at(0), hour), Some(at(3600)));
        assert_eq!(until(&busy, at(0), at(0), hour), Some(at(900)));
        assert_eq!(until(&busy, at(3500), at(0), hour), Some(at(3600)));
        assert_eq!(until(&busy, at(3600), at(0), hour), None);
        assert_eq!(until(&window(9000), at(0), at(0), Duration::ZERO), None);
    }

    proptest! {
        #[test]
        fn nothing_is_put_off_into_the_past_or_beyond_the_limit(
            now in 0_i64..1_000_000, since in 0_i64..1_000_000, limit in 0_u64..1_000_000, opens in 0_i64..1_000_000,
        ) {
            let obstacle = Obstacle::Window { opens: at(now + opens + 1), whose: "its windows" };
            match until(&obstacle, at(now), at(since), Duration::from_secs(limit)) {
                Some(next) => {
                    prop_assert!(next > at(now));
                    prop_assert!(next <= at(since.min(now) + i64::try_from(limit).unwrap()));
                }
                None => prop_assert!(now - since.min(now) >= i64::try_from(limit).unwrap()),
            }
        }
    }
}
