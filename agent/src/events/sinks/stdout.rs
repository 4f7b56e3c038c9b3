//! Events on standard output, a line each: for a look, and for containers whose log is their output.

use super::{EventSink, Outgoing, SinkError};
use std::io::{BufWriter, Stdout, Write as _};

/// Writes a line an event: `[DEBUG] Event ready to send: {…}`.
pub(crate) struct StdoutSink(BufWriter<Stdout>);

impl StdoutSink {
    /// Takes standard output.
    pub(crate) fn new() -> Self {
        Self(BufWriter::new(std::io::stdout()))
    }

    /// Gives up what is in the buffer: it was counted as lost, and must not come later.
    fn forget(&mut self) {
        drop(std::mem::replace(&mut self.0, BufWriter::new(std::io::stdout())).into_parts());
    }
}

impl EventSink for StdoutSink {
    fn name(&self) -> &'static str {
        "stdout"
    }

    fn is_buffered(&self) -> bool {
        true
    }

    fn put(&mut self, outgoing: &Outgoing<'_>) -> Result<(), SinkError> {
        let written = writeln!(self.0, "[DEBUG] Event ready to send: {}", outgoing.line);
        if written.is_err() {
            self.forget();
        }
        written.map_err(failed)
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        let flushed = self.0.flush();
        if flushed.is_err() {
            self.forget();
        }
        flushed.map_err(failed)
    }
}

fn failed(source: std::io::Error) -> SinkError {
    SinkError::Write { place: "standard output", source }
}
