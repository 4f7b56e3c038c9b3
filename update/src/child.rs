//! Running a child for a limited time and keeping a limited part of what it prints.

use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a running child is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What a child did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How it ended; `None` when it was killed at its limit.
    pub(crate) status: Option<ExitStatus>,
    /// The first part of its standard output.
    pub(crate) stdout: Vec<u8>,
    /// The first part of its standard error.
    pub(crate) stderr: Vec<u8>,
}

impl Outcome {
    /// Whether it ended in time and said that all is well.
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// How it ended, with the end of what it had to say, for people.
    pub(crate) fn describe(&self, limit: Duration) -> String {
        let how = match self.status {
            Some(status) => status.to_string(),
            None => format!("no end after {} s", limit.as_secs()),
        };
        let said = if self.stderr.is_empty() { &self.stdout } else { &self.stderr };
        let said = String::from_utf8_lossy(said);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let last: String = last.chars().filter(|c| !c.is_control()).take(300).collect();
        if last.is_empty() { how } else { format!("{how}: {last}") }
    }
}

/// Runs `command` for at most `limit` and keeps at most `max_bytes` of each of its outputs.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(mut command: Command, limit: Duration, max_bytes: u64) -> io::Result<Outcome> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().map(|pipe| thread::spawn(move || keep(pipe, max_bytes)));
    let stderr = child.stderr.take().map(|pipe| thread::spawn(move || keep(pipe, max_bytes)));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() >= limit {
            // Where the right to kill another user's process is missing, it ends with the updater's unit.
            if child.kill().is_ok() {
                child.wait()?;
            }
            break None;
        }
        thread::sleep(LOOK);
    };
    let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| wait_for(reader, Duration::from_secs(1))).unwrap_or_default()
    };
    Ok(Outcome { status, stdout: collect(stdout), stderr: collect(stderr) })
}

/// A grandchild may hold the pipe open for ever; the child's own end is what counts.
fn wait_for(reader: thread::JoinHandle<Vec<u8>>, limit: Duration) -> Option<Vec<u8>> {
    let began = Instant::now();
    while !reader.is_finished() {
        if began.elapsed() >= limit {
            return None;
        }
        thread::sleep(LOOK);
    }
    reader.join().ok()
}

/// Keeps the first `max_bytes` and reads the rest away, so that the child is not stopped by a full pipe.
fn keep(mut pipe: impl Read, max_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.by_ref().take(max_bytes).read_to_end(&mut bytes);
    let _ = io::copy(&mut pipe, &mut io::sink());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_child_that_does_not_end_is_killed_at_its_limit() {
        let limit = Duration::from_millis(100);
        let outcome = run(shell("exec sleep 1000"), limit, 100).unwrap();
        assert!(outcome.status.is_none());
        assert!(outcome.describe(limit).starts_with("no end after"));
    }

    #[test]
    fn a_child_that_prints_without_end_costs_no_memory() {
        let outcome = run(shell("yes | head -c 3000000"), Duration::from_secs(20), 1000).unwrap();
        assert!(outcome.success());
        assert_eq!(outcome.stdout.len(), 1000);
    }

    #[test]
    fn the_last_words_of_a_failure_are_kept() {
        let outcome =
            run(shell("echo first >&2; echo no such key >&2; exit 3"), Duration::from_secs(20), 1000).unwrap();
        assert_eq!(outcome.describe(Duration::from_secs(20)), "exit status: 3: no such key");
    }
}
