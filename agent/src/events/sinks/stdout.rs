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
}

impl EventSink for StdoutSink {
    fn name(&self) -> &'static str {
        "stdout"
    }

    fn put(&mut self, outgoing: &Outgoing<'_>) -> Result<(), SinkError> {
        writeln!(self.0, "[DEBUG] Event ready to send: {}", outgoing.line).map_err(failed)
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.0.flush().map_err(failed)
    }
}

fn failed(source: std::io::Error) -> SinkError {
    SinkError::Write { place: "standard output", source }
}
