//! A baseline that fails: nothing is told from it then, everything is counted, and it is tried again.

use super::Tracker;
use super::pending::Pending;
use super::scan::Scan;
use crate::baseline::Baseline;
use jiff::Timestamp;
use picket_protocol::event::GapReason;
use std::time::{Duration, Instant};

/// How soon a baseline that failed is tried again, doubled each time, and the most.
const HEAL_AFTER: Duration = Duration::from_secs(1);
const HEAL_AFTER_MOST: Duration = Duration::from_secs(60);

/// A baseline that cannot be used, and until when.
pub(super) struct Sick {
    retry: Instant,
    pause: Duration,
    pub(super) since: Timestamp,
    pub(super) dropped: u64,
    pub(super) reason: GapReason,
}

impl Tracker {
    /// Gives up the baseline for now: without it no event can be told from a repetition.
    pub(super) fn fall_sick(&mut self, error: &rusqlite::Error) {
        let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        let folder = self.parts.state_dir.display();
        let text = format!(
            "cannot use the baseline of watched files in {folder}: {error}; file events are dropped until it can be used \
             again, which is tried from time to time: look at the disk"
        );
        tracing::error!("{text}");
        self.baseline.roll_back();
        let reason = if full { GapReason::DiskFull } else { GapReason::Corruption };
        self.tell_gap(reason, None, None, &text);
        self.parts.status.change(|facts| facts.sick = Some(text));
        let pause = HEAL_AFTER;
        self.sick = Some(Sick { retry: Instant::now() + pause, pause, since: Timestamp::now(), dropped: 0, reason });
    }

    /// Drops and counts what comes, and tries the baseline again from time to time.
    pub(super) fn be_sick(&mut self) {
        let Some(mut sick) = self.sick.take() else { return };
        sick.dropped += self.buffer.len() as u64;
        self.parts.counts.dropped.add(self.buffer.len() as u64);
        self.buffer.clear();
        if Instant::now() < sick.retry {
            self.wait_until(sick.retry);
            self.sick = Some(sick);
            return;
        }
        match self.heal() {
            Ok(()) => {
                let text = "the baseline of watched files failed; a comparison with what it knew follows";
                self.tell_gap(sick.reason, Some(sick.dropped), Some(sick.since), text);
            }
            Err(error) => {
                tracing::warn!(%error, "the baseline of watched files still cannot be used");
                self.baseline.roll_back();
                sick.pause = (sick.pause * 2).min(HEAL_AFTER_MOST);
                sick.retry = Instant::now() + sick.pause;
                self.sick = Some(sick);
            }
        }
    }

    /// Begins anew: ids that were never committed stand for nothing now.
    fn heal(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let (baseline, _) = Baseline::open(&self.parts.state_dir)?;
        self.baseline = baseline;
        self.watches.uncover_all();
        self.folders.forget();
        let settings = &self.parts.settings;
        self.pending = Pending::new(settings.debounce.get(), settings.write_pause.get());
        self.scan = Scan::default();
        self.incomplete.clear();
        self.unwatched.clear();
        self.unreadable.clear();
        self.begin()?;
        Ok(())
    }
}
