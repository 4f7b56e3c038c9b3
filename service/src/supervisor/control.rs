//! The words between `picket` and a running supervisor: one JSON object each way over a Unix socket.

use crate::registrar::{ServiceError, ServiceStatus};
use picket_layout::Layout;
use semver::Version;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest message either way, in bytes.
pub(super) const MAX_MESSAGE: u64 = 64 << 10;
/// How long an answer may take: the supervisor never waits for anything before it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The longest path of a Unix socket, without the final NUL (`unix(7)`).
const MAX_SOCKET_PATH: usize = 107;

/// What the supervisor can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub(super) enum Request {
    /// How things are.
    Status,
    /// Start the agent.
    Start,
    /// Stop the agent.
    Stop,
    /// Restart the agent.
    Restart,
    /// Run another executable as the agent until told otherwise or until the supervisor ends; restarts it.
    BeginTrial {
        /// The version, for people.
        version: Version,
        /// The executable.
        exe: PathBuf,
    },
    /// Forget the trial; the running process is left alone.
    EndTrial,
    /// Start the updater.
    Update,
    /// Stop the agent and end.
    Shutdown,
}

/// The supervisor's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Why it was not done.
    pub(super) error: Option<String>,
    /// The agent.
    pub(super) agent: ServiceStatus,
    /// The version on trial.
    pub(super) trial: Option<Version>,
    /// Whether an updater runs.
    pub(super) updater: bool,
    /// The supervisor's process.
    pub(super) pid: u32,
}

/// A path that a Unix socket can have.
///
/// # Errors
/// When it is too long, with the way out: the limit is the kernel's.
pub(super) fn socket_path(path: &Path) -> Result<&Path, ServiceError> {
    let length = path.as_os_str().len();
    if length <= MAX_SOCKET_PATH {
        return Ok(path);
    }
    Err(ServiceError::Supervisor(format!(
        "the path {} has {length} bytes, a socket's may have {MAX_SOCKET_PATH}; use a prefix with a shorter path",
        path.display()
    )))
}

/// Asks the supervisor of `layout`; `Ok(None)` when none runs.
pub(super) fn ask(layout: &Layout, request: &Request) -> Result<Option<Answer>, ServiceError> {
    let path = layout.supervisor_socket();
    let stream = match UnixStream::connect(socket_path(&path)?) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(ServiceError::Supervisor(format!("cannot reach {}: {e}", path.display()))),
    };
    let answer = match exchange(stream, request) {
        Ok(answer) => answer,
        // It ended between the call and the answer.
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => None,
        Err(e) => return Err(ServiceError::Supervisor(format!("no answer: {e}"))),
    };
    match answer {
        Some(Answer { error: Some(error), .. }) => Err(ServiceError::Supervisor(error)),
        answer => Ok(answer),
    }
}

/// Sends the request and reads the answer; `None` when the supervisor closed the connection without one.
fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Option<Answer>> {
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut bytes = Vec::new();
    stream.take(MAX_MESSAGE).read_to_end(&mut bytes)?;
    if bytes.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&bytes)?)) }
}
