//! Watchers, and how the sensor comes by them.

use picket_protocol::event::Sink;
use picket_protocol::{Sight, SightLevel};

/// Something that watches: files, connections. It began when it was made, and reports to the sink it was given.
pub trait Watcher: Send {
    /// How much it sees now.
    fn sight(&self) -> Sight;

    /// Whether it could not begin: the sensor begins it again after a while.
    fn failed(&self) -> bool {
        false
    }

    /// Ends it. What it saw is with the sink when this returns.
    fn stop(self: Box<Self>);
}

/// Begins to watch. A watcher that cannot begin is a [`Blind`] one: the others go on, and it is tried again.
pub type Start = Box<dyn Fn(&Sink) -> Box<dyn Watcher> + Send>;

/// A configuration that was read and found valid.
pub struct Reading {
    /// What the watchers depend on, in any form that is equal when they need not begin anew.
    pub settings: String,
    /// Begin to watch by it, one for each watcher.
    pub start: Vec<Start>,
    /// Lets all else follow it that can change while the sensor runs: the levels of the log.
    pub follow: Box<dyn FnOnce() + Send>,
}

/// Where the configuration comes from.
pub trait Plan: Send {
    /// Changes when the configuration may have changed. Asked every few seconds, so it looks and does not read.
    fn fingerprint(&self) -> u64;

    /// Reads the configuration.
    ///
    /// # Errors
    /// In words, when it cannot be used: what is in force then stays in force.
    fn read(&self) -> Result<Reading, String>;
}

/// A watcher that could not begin.
#[derive(Debug)]
pub struct Blind(Sight);

impl Blind {
    /// Says what is not watched (`files`, `network`), by which means it would be, and why it is not.
    pub fn new(source: &str, method: &str, reason: String) -> Self {
        tracing::error!(source, reason, "nothing is watched");
        Self(Sight { source: source.to_owned(), level: SightLevel::Blind, method: method.to_owned(), detail: reason })
    }
}

impl Watcher for Blind {
    fn sight(&self) -> Sight {
        self.0.clone()
    }

    fn failed(&self) -> bool {
        true
    }

    fn stop(self: Box<Self>) {}
}
