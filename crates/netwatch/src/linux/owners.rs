//! Whose socket it is: the process that holds a descriptor of it, by way of `/proc/<pid>/fd`.
//!
//! There is no index from a socket to its process in the kernel; all descriptors of all processes have to be looked
//! through. So it is done only for sockets that are new, first among the processes that had new sockets lately, and each
//! time no longer than a budget of processor time: what is not found in it is sought on from there the next time. What a whole round did
//! not find is given up.

use picket_protocol::event::Actor;
use rustix::thread::CapabilitySet;
use rustix::time::{ClockId, clock_gettime};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many processes that had new sockets are looked at first.
const RECENT: usize = 16;
/// How many users' names are remembered, and how many processes.
const CACHED: usize = 1_024;
/// How many descriptors are looked at between two looks at the clock.
const STRIDE: usize = 64;
/// How many sockets are sought at a time.
const SOUGHT_MAX: usize = 65_536;

/// How many times its processor time a search may take by the clock, on a machine that is busy with other things.
const PATIENCE: u32 = 10;

/// What a search may cost.
#[derive(Clone, Copy)]
struct Budget {
    processor: Duration,
    clock: Instant,
}

impl Budget {
    fn new(processor: Duration) -> Self {
        Self { processor: processor_time() + processor, clock: Instant::now() + processor * PATIENCE }
    }

    fn is_spent(self) -> bool {
        processor_time() >= self.processor || Instant::now() >= self.clock
    }
}

/// The processor time of this thread so far.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// Looks for the owners of sockets.
pub struct Owners {
    proc: PathBuf,
    /// Inode to cookie, and the round from whose end on it is given up.
    sought: HashMap<u32, (u64, u64)>,
    recent: VecDeque<u32>,
    /// Where the round goes on: a process, and how many of its descriptors were looked at.
    cursor: (u32, usize),
    round: u64,
    users: HashMap<u32, Option<String>>,
    actors: HashMap<u32, Arc<Actor>>,
}

impl Owners {
    /// Looks below `proc`, which is `/proc`.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            sought: HashMap::new(),
            recent: VecDeque::new(),
            cursor: (0, 0),
            round: 0,
            users: HashMap::new(),
            actors: HashMap::new(),
        }
    }

    /// Whether this thread may look through the descriptors of other users' processes: `/proc/<pid>/fd` is its owner's
    /// alone, and its links are read under the rules of `ptrace(2)` (`PTRACE_MODE_READ_FSCREDS`).
    pub fn sees_all() -> bool {
        let read_any = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE;
        rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE) && sets.effective.intersects(read_any))
    }

    /// Asks for the owner of a socket, which is known by `cookie` from then on.
    pub fn seek(&mut self, cookie: u64, inode: u32) {
        if self.sought.len() < SOUGHT_MAX {
            let last = if self.cursor == (0, 0) { self.round } else { self.round + 1 };
            self.sought.insert(inode, (cookie, last));
        }
    }

    /// Whether anything is sought.
    pub fn is_seeking(&self) -> bool {
        !self.sought.is_empty()
    }

    /// Looks for about `budget` of processor time, but at a few descriptors at least; returns the cookies whose owner was found.
    pub fn search(&mut self, budget: Duration) -> Vec<(u64, Arc<Actor>)> {
        let mut found = Vec::new();
        // Half is for the round, or it would never end.
        let (half, whole) = (Budget::new(budget / 2), Budget::new(budget));
        for pid in self.recent.clone() {
            if self.sought.is_empty() || self.look_at(pid, 0, half, &mut found).is_some() {
                break;
            }
        }
        let mut pids = self.processes();
        pids.retain(|pid| *pid >= self.cursor.0);
        for pid in pids {
            if self.sought.is_empty() {
                return found;
            }
            let skip = if pid == self.cursor.0 { self.cursor.1 } else { 0 };
            if let Some(looked_at) = self.look_at(pid, skip, whole, &mut found) {
                self.cursor = (pid, looked_at);
                return found;
            }
            self.cursor = (pid + 1, 0);
            if whole.is_spent() {
                return found;
            }
        }
        let ended = self.round;
        self.sought.retain(|_, (_, last)| *last > ended);
        self.round += 1;
        self.cursor = (0, 0);
        found
    }

    fn processes(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        pids
    }

    /// Looks through the descriptors of one process but the first `skip`; when the time is over before their end, says how
    /// many were looked at.
    fn look_at(&mut self, pid: u32, skip: usize, budget: Budget, found: &mut Vec<(u64, Arc<Actor>)>) -> Option<usize> {
        let descriptors = fs::read_dir(self.proc.join(pid.to_string()).join("fd")).ok()?;
        let mut actor = None;
        let mut unfinished = None;
        for (at, descriptor) in descriptors.flatten().enumerate().skip(skip) {
            if (at - skip) % STRIDE == STRIDE - 1 && budget.is_spent() {
                unfinished = Some(at);
                break;
            }
            let inode = fs::read_link(descriptor.path()).ok().and_then(|target| socket_inode(target.to_str()?));
            let Some((cookie, _)) = inode.and_then(|inode| self.sought.remove(&inode)) else { continue };
            let actor = actor.get_or_insert_with(|| self.actor(pid));
            found.push((cookie, Arc::clone(actor)));
            if self.sought.is_empty() {
                break;
            }
        }
        if actor.is_some() && !self.recent.contains(&pid) {
            self.recent.truncate(RECENT - 1);
            self.recent.push_front(pid);
        }
        unfinished
    }

    /// Who the process is. One value is shared by all its sockets.
    fn actor(&mut self, pid: u32) -> Arc<Actor> {
        let folder = self.proc.join(pid.to_string());
        let exe = fs::read_link(folder.join("exe")).ok().map(|exe| exe.to_string_lossy().into_owned());
        let uid = fs::metadata(&folder).ok().map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
        let user = uid.and_then(|uid| self.user(uid));
        let actor = Actor { pid, exe, uid, user };
        if let Some(known) = self.actors.get(&pid).filter(|known| ***known == actor) {
            return Arc::clone(known);
        }
        if self.actors.len() >= CACHED {
            self.actors.clear();
        }
        let actor = Arc::new(actor);
        self.actors.insert(pid, Arc::clone(&actor));
        actor
    }

    fn user(&mut self, uid: u32) -> Option<String> {
        if self.users.len() >= CACHED {
            self.users.clear();
        }
        let name = || nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name);
        self.users.entry(uid).or_insert_with(name).clone()
    }
}

/// The inode in `socket:[4711]`.
fn socket_inode(target: &str) -> Option<u32> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    const LONG: Duration = Duration::from_secs(10);

    fn inode_of(socket: &TcpListener) -> u32 {
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        socket_inode(link.to_str().unwrap()).unwrap()
    }

    #[test]
    fn the_owner_of_a_socket_is_the_process_that_holds_it() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut owners = Owners::new(Path::new("/proc"));
        owners.seek(7, inode_of(&socket));
        let found = owners.search(LONG);
        let (cookie, actor) = &found[0];
        assert_eq!((*cookie, actor.pid), (7, std::process::id()));
        assert_eq!(actor.exe.as_deref(), fs::read_link("/proc/self/exe").unwrap().to_str());
        assert!(!owners.is_seeking());
    }

    #[test]
    fn what_nobody_holds_is_given_up_after_one_round() {
        let mut owners = Owners::new(Path::new("/proc"));
        owners.seek(7, u32::MAX);
        assert!(owners.search(LONG).is_empty());
        assert!(!owners.is_seeking());
    }

    #[test]
    fn a_search_that_has_no_time_goes_on_the_next_time() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut owners = Owners::new(Path::new("/proc"));
        owners.seek(7, inode_of(&socket));
        let mut found = Vec::new();
        let mut searches = 0;
        while found.is_empty() && owners.is_seeking() {
            found = owners.search(Duration::ZERO);
            searches += 1;
            assert!(searches < 10_000);
        }
        assert_eq!(found.len(), 1, "given up after {searches} searches");
    }

    #[test]
    fn a_link_that_is_no_socket_has_no_inode() {
        for target in ["/dev/null", "socket:[]", "socket:[12", "pipe:[12]", "socket:[99999999999]"] {
            assert_eq!(socket_inode(target), None, "{target}");
        }
    }
}
