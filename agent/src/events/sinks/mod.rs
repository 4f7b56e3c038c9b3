//! Where events go besides the outbox: standard output, a file, the system log.
//!
//! Each is a [`EventSink`] behind a queue and a thread of its own ([`Queued`]). What one of them cannot take is counted for
//! that sink and told once until it takes again; the event itself is safe in the outbox.

mod file;
mod queued;
mod stdout;
mod syslog;

pub(crate) use file::FileSink;
pub(crate) use queued::{Queued, Tallies};
pub(crate) use stdout::StdoutSink;
pub(crate) use syslog::SyslogSink;

use picket_protocol::Priority;

/// An event in its wire form.
pub(crate) struct Outgoing<'a> {
    /// Its class.
    pub(crate) class: Priority,
    /// JSON on one line, without the line's end and without the identity, which the outbox gives.
    pub(crate) line: &'a str,
}

/// A place that takes events.
pub(crate) trait EventSink: Send {
    /// Its word in the configuration.
    fn name(&self) -> &'static str;

    /// Whether an event that was taken is still in memory until it is flushed, and lost if writing fails.
    fn is_buffered(&self) -> bool {
        false
    }

    /// Takes one event.
    fn put(&mut self, outgoing: &Outgoing<'_>) -> Result<(), SinkError>;

    /// Called when a moment of calm comes, about once a second: what is buffered goes out.
    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// A sink did not take an event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    /// A file could not be written.
    #[error("the event file cannot be written")]
    File(#[from] picket_durable::Error),
    /// Standard output or the log's socket took nothing.
    #[error("cannot write to {place}")]
    Write {
        /// Where to.
        place: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}
