//! How late the judge is.

use super::{JudgeCounters, db_shard, lease_name};
use crate::state::Hub;
use jiff::SignedDuration;
use picket_hub_db::{Position, Result as DbResult};
use picket_hub_rules::Shard;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How often it is looked for the oldest event that waits before that is left to the judging itself.
const LOOKS: u32 = 50;

impl JudgeCounters {
    /// How long the oldest event of a shard waits that is not judged, as far as this replica knows. It grows with the
    /// clock until that event is judged, whatever keeps it from being; zero where another replica judges.
    pub fn lag(&self, shard: Shard) -> Duration {
        let since = *self.waiting[shard as usize].lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|(at, lag)| lag.saturating_add(at.elapsed())).unwrap_or_default()
    }

    /// The longest of those.
    pub fn longest_lag(&self) -> Duration {
        Shard::ALL.into_iter().map(|shard| self.lag(shard)).max().unwrap_or_default()
    }

    pub(super) fn set_lag(&self, shard: Shard, lag: SignedDuration) {
        // By the steady clock from here on, which nobody sets back. The clock of who received it may be ahead of ours.
        let waits = (Instant::now(), Duration::try_from(lag).unwrap_or_default());
        *self.waiting[shard as usize].lock().unwrap_or_else(PoisonError::into_inner) = Some(waits);
    }

    pub(super) fn clear_lag(&self, shard: Shard) {
        *self.waiting[shard as usize].lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn note(&self, shard: Shard, waits: Waits) {
        match waits {
            Waits::Nothing => self.clear_lag(shard),
            Waits::For(lag) => self.set_lag(shard, lag),
            Waits::Unknown => {}
        }
    }
}

/// Notes how long events of a shard wait that nobody is known to judge. Where not even that can be asked, what was noted
/// before goes on growing.
pub(super) async fn note(hub: &Hub, shard: Shard) {
    if let Ok(progress) = hub.db.progress(hub.tenant, &lease_name(shard)).await
        && let Ok(waits) = oldest_after(hub, shard, progress.position).await
    {
        hub.judged.note(shard, waits);
    }
}

/// What is known of the events that are not judged.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waits {
    /// There are none.
    Nothing,
    /// The oldest one waits for so long.
    For(SignedDuration),
    /// It was not found in the part that was looked at.
    Unknown,
}

/// How long the oldest event of a shard after a position waits.
pub(super) async fn oldest_after(hub: &Hub, shard: Shard, mut position: Position) -> DbResult<Waits> {
    for _ in 0..LOOKS {
        let tail = hub.db.events_after(hub.tenant, position, &[db_shard(shard)], 1).await?;
        if let Some(oldest) = tail.events.first() {
            return Ok(Waits::For(hub.clock.now().duration_since(oldest.received_at)));
        }
        if tail.at_end {
            return Ok(Waits::Nothing);
        }
        position = tail.next;
    }
    Ok(Waits::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_goes_on_waiting_until_it_is_judged() {
        let counters = JudgeCounters::default();
        assert_eq!(counters.longest_lag(), Duration::ZERO);
        counters.set_lag(Shard::File, SignedDuration::from_secs(61));
        let lag = counters.longest_lag();
        assert!(lag >= Duration::from_secs(61), "{lag:?}");
        counters.note(Shard::File, Waits::Unknown);
        assert!(counters.longest_lag() >= lag, "it grows by itself");
        // Received by a replica whose clock is ahead: it waits all the same.
        counters.set_lag(Shard::File, SignedDuration::from_secs(-5));
        assert!(counters.lag(Shard::File) > Duration::ZERO);
        counters.note(Shard::File, Waits::Nothing);
        assert_eq!(counters.longest_lag(), Duration::ZERO);
    }
}
