//! Starting and signalling processes, and burying those that nobody else buries.

use super::logfile::Sink;
use super::policy::WATCHDOG;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// The longest line of a child that is kept whole, in bytes.
const MAX_LINE: usize = 64 << 10;

/// Starts `exe` with `arguments` as a child whose lines go to `sink`.
pub(super) fn spawn(
    exe: &Path,
    arguments: &[OsString],
    notify_socket: Option<&Path>,
    sink: &Arc<Mutex<Sink>>,
) -> io::Result<Child> {
    let mut command = Command::new(exe);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A process group of its own: Ctrl-C on the supervisor's terminal is the supervisor's to handle.
        .process_group(0)
        .env("PICKET_SUPERVISED", "1")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID");
    if let Some(socket) = notify_socket {
        command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    }
    let mut child = command.spawn()?;
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(copy_lines(stdout, Arc::clone(sink)));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(copy_lines(stderr, Arc::clone(sink)));
    }
    Ok(child)
}

/// Copies lines until the pipe closes; ends with it, so nobody needs to own the task.
async fn copy_lines(pipe: impl AsyncRead + Unpin, sink: Arc<Mutex<Sink>>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        let end = {
            let Ok(bytes) = reader.fill_buf().await else { return };
            if bytes.is_empty() {
                if !line.is_empty() {
                    sink.lock().unwrap_or_else(PoisonError::into_inner).line(&line);
                }
                return;
            }
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..newline.unwrap_or(bytes.len())];
            // What does not fit is dropped: a line without end must not fill the memory.
            line.extend_from_slice(&part[..part.len().min(MAX_LINE.saturating_sub(line.len()))]);
            (newline.map_or(bytes.len(), |at| at + 1), newline.is_some())
        };
        reader.consume(end.0);
        if end.1 {
            sink.lock().unwrap_or_else(PoisonError::into_inner).line(&line);
            line.clear();
        }
    }
}

/// Sends `signal` to a child that has not been waited for.
pub(super) fn send(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// As the first process of a container: buries orphans that fell to us. Children of our own are left to their owners.
pub(super) fn bury_orphans(own: &HashSet<u32>) {
    let id = std::process::id();
    let children = format!("/proc/self/task/{id}/children");
    let Ok(list) = picket_durable::read_text(Path::new(&children), 1 << 20) else { return };
    for pid in list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()).filter(|pid| !own.contains(pid)) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}
