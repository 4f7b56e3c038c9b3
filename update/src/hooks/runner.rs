//! One hook, run by a process of its own: `picket hook`.
//!
//! The process in between is what makes three things possible. It becomes the hook's user with that user's groups, and no
//! other's, before there is a stranger's program to be careful about. It is the hook's own user when the time is over, so
//! it may end the hook where the updater may not (its unit has no `CAP_KILL`). And whatever the hook started becomes its
//! child when the hook ends (`PR_SET_CHILD_SUBREAPER`, `prctl(2)`), however it tried to get away, and is ended with it.

use crate::child::{self, Ending, Keep};
use nix::unistd::{Uid, User};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How much of a hook's output is kept, in bytes: the end of it.
const MAX_OUTPUT: usize = 8 << 10;
/// How long what a hook left running is looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// The largest `/proc/PID/stat`, in bytes.
const MAX_STAT: u64 = 4 << 10;

/// What to run.
#[derive(Debug, Clone)]
pub struct Job {
    /// The hook.
    pub file: PathBuf,
    /// The user it runs as; none is this process' own.
    pub user: Option<String>,
    /// How long it may run.
    pub limit: Duration,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it ended in time and said that all is well.
    pub ok: bool,
    /// How it ended, and its last line if it failed.
    pub detail: String,
    /// The end of what it printed.
    pub output: String,
}

/// Runs the hook and ends whatever it leaves running. To be called once, by a process that has nothing else to do.
pub fn work(job: &Job) -> Answer {
    match attempt(job) {
        Ok(answer) => answer,
        Err(error) => {
            let who = job.user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
            Answer { ok: false, detail: format!("cannot be run{who}: {error}"), output: String::new() }
        }
    }
}

fn attempt(job: &Job) -> io::Result<Answer> {
    let started_by = rustix::process::getppid();
    adopt_orphans()?;
    // Opened as who may open it: the user need not be able to reach the folder of hooks.
    let open = job.user.as_ref().map(|_| rustix::fs::open(&job.file, OFlags::PATH, Mode::empty())).transpose()?;
    let user = match &job.user {
        Some(name) => Some(become_user(name)?),
        None => User::from_uid(Uid::effective())?,
    };
    let program = open.as_ref().map_or_else(|| job.file.clone(), |file| open_file(file.as_raw_fd()));
    let mut command = Command::new(program);
    command.arg0(&job.file).current_dir("/").process_group(0);
    if let Some(user) = &user {
        command.env("HOME", &user.dir).env("SHELL", &user.shell).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    // The updater is gone: nobody waits for the answer, and what comes next must not meet this hook.
    let alone = || rustix::process::getppid() != started_by;
    let ending = Ending { early: &alone, at_limit: &end_group, after: &end_orphans };
    let outcome = child::run_to_its_end(command, job.limit, Keep::Last(MAX_OUTPUT), &ending)?;
    let output = [&outcome.stdout, &outcome.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    Ok(Answer { ok: outcome.success(), detail: outcome.describe(job.limit), output })
}

/// A file that is open here, as a program in the child: the very file that was looked at. Scripts see this name as `$0`.
fn open_file(descriptor: i32) -> PathBuf {
    Path::new("/proc/self/fd").join(descriptor.to_string())
}

/// Becomes a user for good: all ids, and the groups that the group file gives them. The standard library's way
/// (`CommandExt::uid`) would leave no supplementary group.
fn become_user(name: &str) -> io::Result<User> {
    let user = User::from_name(name)?.ok_or_else(|| io::Error::other("there is no such user"))?;
    if rustix::process::geteuid().is_root() {
        nix::unistd::initgroups(&CString::new(name)?, user.gid)?;
        nix::unistd::setgid(user.gid)?;
        nix::unistd::setuid(user.uid)?;
    }
    if Uid::current() != user.uid || Uid::effective() != user.uid {
        return Err(io::Error::other("this process cannot become that user"));
    }
    Ok(user)
}

#[cfg(target_os = "linux")]
fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() -> io::Result<()> {
    Ok(())
}

/// Ends the process group of a hook that has not ended.
fn end_group(hook: u32) {
    if let Some(group) = i32::try_from(hook).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Ends every child that this process has, now that the hook has ended, or gets by ending those.
fn end_orphans() {
    let began = Instant::now();
    while began.elapsed() < SWEEP {
        while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        let orphans = children();
        if orphans.is_empty() {
            return;
        }
        for orphan in orphans {
            let _ = rustix::process::kill_process(orphan, Signal::KILL);
        }
        std::thread::sleep(child::LOOK);
    }
}

/// The children of this process.
fn children() -> Vec<Pid> {
    let own = rustix::process::getpid();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(Pid::from_raw).filter(|pid| parent_of(*pid) == Some(own.as_raw_nonzero().get())).collect()
}

/// The parent in `/proc/PID/stat` (`proc_pid_stat(5)`): the second field after the name, which ends at the last `)`.
fn parent_of(pid: Pid) -> Option<i32> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let stat = picket_durable::read_untrusted(Path::new(&path), MAX_STAT).ok()??;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_of_a_process_is_read_from_the_kernel() {
        let parent = parent_of(rustix::process::getpid());
        assert_eq!(parent, rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()));
    }

    #[test]
    fn nobody_becomes_a_user_that_is_not_there() {
        let error = become_user("no-such-user-here").unwrap_err();
        assert!(error.to_string().contains("no such user"), "{error}");
    }
}
