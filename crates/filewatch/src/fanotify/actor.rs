//! Who a process is: its executable and its user, asked while it is still there.
//!
//! A process that ended before we asked is told by its id alone. An answer is kept for a moment, so that the last
//! things a short-lived process did are told with it too; an id is not given to another process that soon.

use picket_protocol::event::Actor;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an answer holds: a process may become another program (`execve`) or another user.
const HOLDS: Duration = Duration::from_secs(1);
/// How long a user's name holds.
const NAME_HOLDS: Duration = Duration::from_secs(300);
/// How many answers are kept.
const KEPT: usize = 1024;
/// The longest `/proc/PID/status` that is read.
const STATUS_MAX: u64 = 16 << 10;

#[derive(Default)]
pub(super) struct Actors {
    processes: HashMap<u32, (Instant, Arc<Actor>)>,
    names: HashMap<u32, (Instant, Option<String>)>,
}

impl Actors {
    /// The process with that id.
    pub(super) fn of(&mut self, pid: u32) -> Option<Arc<Actor>> {
        let now = Instant::now();
        if let Some((asked, actor)) = self.processes.get(&pid)
            && now.duration_since(*asked) < HOLDS
        {
            return Some(Arc::clone(actor));
        }
        let process = format!("/proc/{pid}");
        let process = Path::new(&process);
        let exe = std::fs::read_link(process.join("exe")).ok().map(|exe| exe.to_string_lossy().into_owned());
        let status = picket_durable::read_bounded(&process.join("status"), STATUS_MAX).ok();
        let uid = status.as_deref().and_then(effective_uid);
        let user = uid.and_then(|uid| self.name(uid, now));
        let actor = Arc::new(Actor { pid, exe, uid, user });
        if self.processes.len() >= KEPT {
            self.processes.clear();
        }
        self.processes.insert(pid, (now, Arc::clone(&actor)));
        Some(actor)
    }

    fn name(&mut self, uid: u32, now: Instant) -> Option<String> {
        if let Some((asked, name)) = self.names.get(&uid)
            && now.duration_since(*asked) < NAME_HOLDS
        {
            return name.clone();
        }
        let name = nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
        if self.names.len() >= KEPT {
            self.names.clear();
        }
        self.names.insert(uid, (now, name.clone()));
        name
    }
}

/// The second number of the line `Uid:` of `/proc/PID/status`, `proc_pid_status(5)`.
fn effective_uid(status: &[u8]) -> Option<u32> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known_by_its_program_and_its_user() {
        let actor = Actors::default().of(std::process::id()).unwrap();
        assert!(actor.exe.as_ref().unwrap().contains("filewatch"));
        assert_eq!(actor.uid, Some(rustix::process::geteuid().as_raw()));
    }

    #[test]
    fn the_user_in_force_is_the_second_number() {
        assert_eq!(effective_uid(b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\n"), Some(2));
        assert_eq!(effective_uid(b"Name:\tx\n"), None);
        assert_eq!(effective_uid(b"Uid:\t\xff"), None);
    }
}
