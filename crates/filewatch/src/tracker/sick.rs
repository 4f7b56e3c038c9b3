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
        // What fails again soon after it was healed was not: a page fits on a full disk now and then.
        let pause = match self.healed {
            Some((at, pause)) if at.elapsed() < HEAL_AFTER_MOST => (pause * 2).min(HEAL_AFTER_MOST),
            _ => HEAL_AFTER,
        };
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
                self.healed = Some((Instant::now(), sick.pause));
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
        self.baseline.let_go()?;
        let (baseline, found) = Baseline::open(&self.parts.state_dir)?;
        self.baseline = baseline;
        self.tell_found(found);
        self.baseline.try_to_write()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{Counts, Status};
    use crate::emit::Emitter;
    use crate::filter::Filter;
    use crate::reader::Queues;
    use crate::settings::{FileMonitorSettings, WatchPath};
    use crate::tracker::Parts;
    use picket_protocol::event::{EventBody, GapEvent};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel, sync_channel};

    fn tracker(home: &Path) -> (Tracker, Receiver<EventBody>) {
        let (send, told) = channel();
        let inotify = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
        let counts = Arc::new(Counts::default());
        let settings =
            FileMonitorSettings { paths: vec![WatchPath::new(&home.join("w")).unwrap()], ..Default::default() };
        let sink = Arc::new(move |event| drop(send.send(event)));
        let parts = Parts {
            filter: Filter::new(&settings, Vec::new()).unwrap(),
            settings,
            state_dir: home.join("state"),
            queues: Arc::new(Queues::new(Arc::new(inotify), None)),
            emitter: Emitter::start(sink, Arc::clone(&counts)).unwrap(),
            counts,
            status: Arc::new(Status::default()),
            batches: sync_channel(1).1,
        };
        (Tracker::new(parts).unwrap(), told)
    }

    fn gaps(tracker: &Tracker, told: &Receiver<EventBody>) -> Vec<GapEvent> {
        tracker.parts.emitter.wait_until_told();
        let gap = |event| if let EventBody::Gap(gap) = event { Some(gap) } else { None };
        told.try_iter().filter_map(gap).collect()
    }

    #[test]
    fn a_baseline_that_is_damaged_when_it_is_tried_again_is_told_as_lost() {
        let home = tempfile::tempdir().unwrap();
        for name in ["w", "state"] {
            std::fs::create_dir(home.path().join(name)).unwrap();
        }
        let (mut tracker, told) = tracker(home.path());
        tracker.begin().unwrap();
        tracker.finish().unwrap();
        tracker.fall_sick(&rusqlite::Error::QueryReturnedNoRows);
        let sick = gaps(&tracker, &told);
        assert_eq!(sick.len(), 1, "{sick:?}");
        tracker.baseline.let_go().unwrap();
        picket_durable::write_atomic(&home.path().join("state/files.db"), &[7; 8192], 0o600).unwrap();
        tracker.sick.as_mut().unwrap().retry = Instant::now();
        tracker.be_sick();
        assert!(tracker.sick.is_none());
        let healed = gaps(&tracker, &told);
        let is_loss = |gap: &GapEvent| gap.reason == GapReason::Corruption && gap.detail.contains("made anew");
        assert!(healed.iter().any(is_loss), "{healed:?}");
    }
}
