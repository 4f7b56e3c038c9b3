//! What the watcher counts, and how much it sees.

use picket_protocol::{Sight, SightLevel};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A number that several threads count up.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($( $(#[doc = $doc:literal])* $name:ident, )*) => {
        /// The running counts.
        #[derive(Debug, Default)]
        pub(crate) struct Counts {
            $( pub(crate) $name: Count, )*
        }

        /// What the watcher counted since it started.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counters {
            $( $(#[doc = $doc])* pub $name: u64, )*
        }

        impl Counts {
            pub(crate) fn read(&self) -> Counters {
                Counters { $( $name: self.$name.get(), )* }
            }
        }
    };
}

counters! {
    /// What the kernel said of watched folders.
    seen,
    /// What the kernel said of anything else on a marked file system (fanotify); it goes no further.
    foreign,
    /// File events given to the sink.
    told,
    /// Gaps given to the sink.
    gaps,
    /// How often the kernel's queue ran over.
    overflows,
    /// How often all paths, or the folders that could not be watched, were compared with the baseline, the first
    /// look included.
    rescans,
    /// Folders watched at present.
    watched_dirs,
    /// Folders that could not be watched for want of watches; they are compared with the baseline from time to time.
    unwatched_dirs,
    /// Folders that this process may not read.
    unreadable_dirs,
    /// Files whose content was hashed.
    hashed,
    /// Files whose content was not hashed because there was no time: events came faster than hashes are made.
    unhashed,
    /// What came while the baseline could not be used and was dropped, each counted in a gap.
    dropped,
}

/// What the sight is told from.
#[derive(Debug, Default)]
pub(crate) struct Status(Mutex<Facts>);

#[derive(Debug, Default, Clone)]
pub(crate) struct Facts {
    /// By which means: `fanotify`, `inotify`, both, or empty.
    pub(crate) method: String,
    /// Why there is no fanotify.
    pub(crate) unprivileged: Option<String>,
    /// Configured paths that are not there.
    pub(crate) missing: Vec<String>,
    /// How many paths are configured.
    pub(crate) paths: usize,
    /// Why the baseline cannot be used.
    pub(crate) sick: Option<String>,
    /// File systems that are covered by inotify though fanotify is there, and why.
    pub(crate) uncovered: Option<String>,
    /// Whether the first look is still going on.
    pub(crate) looking: bool,
    /// When the tracker last had its turn.
    pub(crate) turned: Option<Instant>,
}

/// After what time without a turn of the tracker something holds it up. It has one every other second.
const HELD_UP: Duration = Duration::from_secs(30);

impl Status {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn facts(&self) -> Facts {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The sight these facts give.
    pub(crate) fn sight(&self, counts: &Counts) -> Sight {
        judge(&self.facts(), &counts.read(), Instant::now())
    }
}

fn judge(facts: &Facts, counters: &Counters, now: Instant) -> Sight {
    let mut detail = String::new();
    let mut say = |text: std::fmt::Arguments| {
        if !detail.is_empty() {
            detail.push_str("; ");
        }
        // Writing to a string cannot fail.
        let _ = detail.write_fmt(text);
    };
    let mut level = SightLevel::Full;
    if let Some(sick) = &facts.sick {
        level = SightLevel::Blind;
        say(format_args!("{sick}"));
    } else if let Some(held_up) = facts.turned.map(|at| now.duration_since(at)).filter(|time| *time > HELD_UP) {
        level = SightLevel::Blind;
        say(format_args!(
            "nothing was looked at for {} s: a file system below file_monitor.paths may not answer (a dead network mount?)",
            held_up.as_secs()
        ));
    } else if facts.missing.len() == facts.paths {
        level = SightLevel::Blind;
    }
    if !facts.missing.is_empty() {
        level = if level == SightLevel::Full { SightLevel::Reduced } else { level };
        say(format_args!("not there yet: {}", facts.missing.join(", ")));
    }
    if let Some(why) = &facts.unprivileged {
        level = if level == SightLevel::Full { SightLevel::Reduced } else { level };
        say(format_args!("who did it is not known: {why}"));
    }
    if let Some(uncovered) = &facts.uncovered {
        level = if level == SightLevel::Full { SightLevel::Reduced } else { level };
        say(format_args!("{uncovered}"));
    }
    if counters.unwatched_dirs > 0 {
        level = if level == SightLevel::Full { SightLevel::Reduced } else { level };
        say(format_args!(
            "{} folders are only compared from time to time: raise file_monitor.max_watches or the kernel's \
             fs.inotify.max_user_watches",
            counters.unwatched_dirs
        ));
    }
    if counters.unreadable_dirs > 0 {
        level = if level == SightLevel::Full { SightLevel::Reduced } else { level };
        say(format_args!("{} folders may not be read: give the agent the right to", counters.unreadable_dirs));
    }
    if facts.looking {
        say(format_args!("the first look at all files is under way"));
    }
    Sight { source: "files".to_owned(), level, method: facts.method.clone(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_missing_or_a_limit_that_was_met_is_told_with_the_way_out() {
        let now = Instant::now();
        let facts = Facts { method: "fanotify".into(), paths: 2, ..Facts::default() };
        let sight = judge(&facts, &Counters::default(), now);
        assert_eq!((sight.level, sight.detail.as_str()), (SightLevel::Full, ""));
        let facts = Facts { missing: vec!["/mnt/shared".into()], ..facts };
        let sight = judge(&facts, &Counters { unwatched_dirs: 7, ..Counters::default() }, now);
        assert_eq!(sight.level, SightLevel::Reduced);
        assert!(sight.detail.contains("/mnt/shared") && sight.detail.contains("7 folders"));
        assert!(sight.detail.contains("max_user_watches"));
        let facts = Facts { paths: 1, ..facts };
        assert_eq!(judge(&facts, &Counters::default(), now).level, SightLevel::Blind);
    }

    #[test]
    fn a_file_system_that_does_not_answer_is_not_called_seen() {
        let now = Instant::now();
        let facts = Facts { paths: 1, turned: Some(now), ..Facts::default() };
        assert_eq!(judge(&facts, &Counters::default(), now + HELD_UP).level, SightLevel::Full);
        let sight = judge(&facts, &Counters::default(), now + HELD_UP * 2);
        assert_eq!(sight.level, SightLevel::Blind);
        assert!(sight.detail.starts_with("nothing was looked at for 60 s"), "{}", sight.detail);
    }
}
