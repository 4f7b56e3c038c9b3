//! Running a child for a limited time and keeping a limited part of what it prints.

use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a running child is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// What a child did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How it ended; `None` when it was killed at its limit.
    pub(crate) status: Option<ExitStatus>,
    /// The part of its standard output that is kept.
    pub(crate) stdout: Vec<u8>,
    /// The part of its standard error that is kept.
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

/// Which part of an output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// So many bytes from its beginning.
    First(u64),
    /// So many bytes before its end.
    Last(usize),
}

/// What else happens when a child ends, or is to end.
pub(crate) struct Ending<'a> {
    /// Whether it is to end before its limit.
    pub(crate) early: &'a dyn Fn() -> bool,
    /// What is done to the child, by its process id, before it is killed.
    pub(crate) at_limit: &'a dyn Fn(u32),
    /// What is done when it has ended, one way or the other, before the rest of its outputs is waited for.
    pub(crate) after: &'a dyn Fn(),
}

/// Runs `command` for at most `limit` and keeps a part of each of its outputs.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(command: Command, limit: Duration, part: Keep) -> io::Result<Outcome> {
    run_to_its_end(command, limit, part, &Ending { early: &|| false, at_limit: &|_| {}, after: &|| {} })
}

/// [`run`], with more to be done at the end.
pub(crate) fn run_to_its_end(
    mut command: Command,
    limit: Duration,
    part: Keep,
    ending: &Ending<'_>,
) -> io::Result<Outcome> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().map(|pipe| thread::spawn(move || keep(pipe, part)));
    let stderr = child.stderr.take().map(|pipe| thread::spawn(move || keep(pipe, part)));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() >= limit || (ending.early)() {
            (ending.at_limit)(child.id());
            // Where the right to kill another user's process is missing, it ends with the updater's unit.
            if child.kill().is_ok() {
                child.wait()?;
            }
            break None;
        }
        thread::sleep(LOOK);
    };
    (ending.after)();
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

/// Keeps a part and reads the rest away, so that the child is not stopped by a full pipe.
fn keep(mut pipe: impl Read, part: Keep) -> Vec<u8> {
    let mut bytes = Vec::new();
    match part {
        Keep::First(most) => {
            let _ = pipe.by_ref().take(most).read_to_end(&mut bytes);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        Keep::Last(most) => {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
                bytes.drain(..bytes.len().saturating_sub(most));
            }
        }
    }
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
        let outcome = run(shell("exec sleep 1000"), limit, Keep::First(100)).unwrap();
        assert!(outcome.status.is_none());
        assert!(outcome.describe(limit).starts_with("no end after"));
    }

    #[test]
    fn a_child_that_prints_without_end_costs_no_memory() {
        for part in [Keep::First(1000), Keep::Last(1000)] {
            let outcome = run(shell("yes | head -c 3000000; echo end"), Duration::from_secs(20), part).unwrap();
            assert!(outcome.success());
            assert_eq!(outcome.stdout.len(), 1000);
            assert_eq!(outcome.stdout.ends_with(b"end\n"), part == Keep::Last(1000));
        }
    }

    #[test]
    fn the_last_words_of_a_failure_are_kept() {
        let outcome =
            run(shell("echo first >&2; echo no such key >&2; exit 3"), Duration::from_secs(20), Keep::First(1000))
                .unwrap();
        assert_eq!(outcome.describe(Duration::from_secs(20)), "exit status: 3: no such key");
    }
}
