//! Events in the system log, through the socket that syslog daemons and the systemd journal both listen on.
//!
//! The line is `<PRI>picket-event[PID]: {…}`: the local form of RFC 3164 that rsyslog, syslog-ng and journald take, the
//! time being the daemon's own. `PRI` is facility `daemon` (3) with a severity by class (RFC 5424, §6.2.1).

use super::{EventSink, Outgoing, SinkError};
use picket_protocol::event::Priority;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where the system log listens.
const SOCKET: &str = "/dev/log";
/// Facility `daemon`.
const FACILITY: u8 = 3;

/// Sends a datagram an event.
pub(crate) struct SyslogSink {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl SyslogSink {
    /// A sink that connects when the first event comes.
    pub(crate) fn new() -> Self {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), socket: None }
    }

    fn send(&mut self, datagram: &[u8]) -> std::io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(&self.path)?;
                // A log daemon that does not read must not stand in the events' way.
                socket.set_nonblocking(true)?;
                socket
            }
        };
        socket.send(datagram)?;
        // Kept only if it works: a daemon that was started anew has a new socket.
        self.socket = Some(socket);
        Ok(())
    }
}

impl EventSink for SyslogSink {
    fn name(&self) -> &'static str {
        "syslog"
    }

    fn put(&mut self, outgoing: &Outgoing<'_>) -> Result<(), SinkError> {
        let severity = match outgoing.class {
            Priority::High => 5,
            Priority::Normal => 6,
            Priority::Low => 7,
        };
        let priority = FACILITY * 8 + severity;
        let datagram = format!("<{priority}>picket-event[{}]: {}", std::process::id(), outgoing.line);
        self.send(datagram.as_bytes()).map_err(|source| SinkError::Write { place: "the system log (/dev/log)", source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_datagram_and_a_daemon_that_was_started_anew_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = r#"{"type":"file"}"#;
        let outgoing = Outgoing { class: Priority::Normal, line };
        let mut sink = SyslogSink::at(&path);
        assert!(sink.put(&outgoing).is_err(), "nobody listens yet");
        for _ in 0..2 {
            let daemon = UnixDatagram::bind(&path).unwrap();
            // The first attempt may find that the old daemon is gone.
            let _ = sink.put(&outgoing);
            sink.put(&outgoing).unwrap();
            let mut buffer = vec![0; 4096];
            let length = daemon.recv(&mut buffer).unwrap();
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            assert!(text.starts_with("<30>picket-event[") && text.ends_with(line), "{text}");
            drop(daemon);
            std::fs::remove_file(&path).unwrap();
        }
    }
}
