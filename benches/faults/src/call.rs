//! One system call as `strace -y` prints it, and what may go wrong with it.

use std::fmt;
use std::str::FromStr;

/// What is done to a process at one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The process is killed; the call is not made.
    Kill,
    /// The disk is full.
    Full,
    /// The disk is full from this call on.
    FullFromNow,
    /// The device fails.
    Io,
    /// The device fails from this call on.
    IoFromNow,
    /// A signal came in between.
    Interrupted,
    /// A policy refuses it.
    Denied,
    /// The kernel says that it wrote one byte, and wrote none: every later byte of the file is in the wrong place.
    Lie,
    /// The other side closed the connection.
    Closed,
    /// The other side does not want the connection.
    Refused,
}

impl Fault {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 10] = [
        Self::Kill,
        Self::Full,
        Self::FullFromNow,
        Self::Io,
        Self::IoFromNow,
        Self::Interrupted,
        Self::Denied,
        Self::Lie,
        Self::Closed,
        Self::Refused,
    ];

    /// The word on the command line and in the report.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Full => "ENOSPC",
            Self::FullFromNow => "ENOSPC+",
            Self::Io => "EIO",
            Self::IoFromNow => "EIO+",
            Self::Interrupted => "EINTR",
            Self::Denied => "EACCES",
            Self::Lie => "LOST",
            Self::Closed => "CLOSED",
            Self::Refused => "ECONNREFUSED",
        }
    }

    /// strace's word for it (`strace(1)`, "Syscall tampering"), and whether it holds from that call on.
    fn tampering(self) -> (&'static str, bool) {
        match self {
            Self::Kill => ("signal=SIGKILL", false),
            Self::Full => ("error=ENOSPC", false),
            Self::FullFromNow => ("error=ENOSPC", true),
            Self::Io => ("error=EIO", false),
            Self::IoFromNow => ("error=EIO", true),
            Self::Interrupted => ("error=EINTR", false),
            Self::Denied => ("error=EACCES", false),
            Self::Lie => ("retval=1", false),
            Self::Closed => ("retval=0", false),
            Self::Refused => ("error=ECONNREFUSED", false),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.word() == word).ok_or_else(|| format!("{word} is no fault"))
    }
}

/// The calls that are watched, by what they do. strace leaves out what this machine's kernel does not have (`?`).
pub const WATCHED: &str = "?open,openat,?rename,renameat,renameat2,?link,linkat,?symlink,symlinkat,?unlink,unlinkat,?rmdir,\
?mkdir,mkdirat,fsync,fdatasync,write,pwrite64,writev,ftruncate,fchmod,?chmod,fchmodat,?chown,fchown,?lchown,fchownat,flock,\
copy_file_range,sendfile,socket,connect,sendto,recvfrom";

/// One call of a traced process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The call's name.
    pub name: String,
    /// Its place among the calls of that name, from 1.
    pub nth: usize,
    /// The line as strace printed it, without the process.
    pub line: String,
    /// Which of the traced processes made it, in the order of their first calls.
    pub process: usize,
}

/// A fault at a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Point {
    /// The call's name.
    pub call: String,
    /// Its place among the calls of that name, from 1.
    pub nth: usize,
    /// What goes wrong.
    pub fault: Fault,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.call, self.nth, self.fault.word())
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let (Some(call), Some(nth), Some(fault), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!("{text:?} is not CALL:NUMBER:FAULT"));
        };
        let nth = nth.parse().map_err(|e| format!("{nth:?}: {e}"))?;
        Ok(Self { call: call.to_owned(), nth, fault: fault.parse()? })
    }
}

impl Point {
    /// strace's option for it.
    pub fn option(&self) -> String {
        let (tampering, from_now) = self.fault.tampering();
        format!("--inject={}:{tampering}:when={}{}", self.call, self.nth, if from_now { "+" } else { "" })
    }
}

/// Reads a trace; each process' calls are counted by themselves, as strace counts them.
pub fn read_trace(text: &str) -> Vec<Call> {
    let mut counts = std::collections::HashMap::new();
    let mut processes: Vec<&str> = Vec::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        // With --follow-forks each line begins with the process.
        let digits = line.bytes().take_while(u8::is_ascii_digit).count();
        let (pid, line) = (&line[..digits], line[digits..].trim_start());
        let Some((name, _)) = line.split_once('(') else { continue };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let process = processes.iter().position(|known| *known == pid).unwrap_or_else(|| {
            processes.push(pid);
            processes.len() - 1
        });
        let nth = counts.entry((process, name.to_owned())).and_modify(|n| *n += 1).or_insert(1);
        calls.push(Call { name: name.to_owned(), nth: *nth, line: line.to_owned(), process });
    }
    calls
}

/// The calls of processes that the first one started, as far as strace can be told to break them: it counts in each process
/// and breaks the first that comes so far, so that must not be the first process.
pub fn of_children(trace: Vec<Call>) -> Vec<Call> {
    let mut most: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    let mut calls = Vec::new();
    for call in trace {
        let reached = most.entry(call.name.clone()).or_default();
        if call.nth > *reached {
            *reached = call.nth;
            if call.process > 0 {
                calls.push(call);
            }
        }
    }
    calls
}

impl Call {
    /// Whether it is about a place below `root`, or about a connection.
    pub fn is_ours(&self, root: &str) -> bool {
        self.is_of_a_socket() || self.line.contains(root)
    }

    fn is_of_a_socket(&self) -> bool {
        matches!(self.name.as_str(), "socket" | "connect" | "sendto" | "recvfrom")
    }

    /// What it is about, without numbers that change from run to run: calls of one name about one thing are one transfer.
    pub fn subject(&self) -> String {
        let arguments = self.line.split_once('(').map_or("", |(_, rest)| rest);
        if let (Some(start), Some(end)) = (arguments.find('<'), arguments.find('>'))
            && arguments[..start].bytes().all(|b| b.is_ascii_digit())
        {
            return arguments[start + 1..end].to_owned();
        }
        let path = arguments.split('"').nth(1).unwrap_or("");
        path.to_owned()
    }

    /// What may go wrong with it.
    pub fn faults(&self) -> &'static [Fault] {
        use Fault::{Closed, Denied, Full, FullFromNow, Interrupted, Io, IoFromNow, Kill, Lie, Refused};
        match self.name.as_str() {
            "open" | "openat" if self.line.contains("O_CREAT") => {
                &[Kill, Full, FullFromNow, Io, IoFromNow, Interrupted, Denied]
            }
            "open" | "openat" if self.line.contains("O_RDONLY") => &[Io, Denied],
            "open" | "openat" | "unlink" | "unlinkat" | "rmdir" | "fchmod" | "chmod" | "fchmodat" | "chown"
            | "fchown" | "lchown" | "fchownat" => &[Kill, Io, Denied],
            "rename" | "renameat" | "renameat2" | "link" | "linkat" | "symlink" | "symlinkat" | "mkdir" | "mkdirat" => {
                &[Kill, Full, Io, Denied]
            }
            "fsync" | "fdatasync" => &[Kill, Full, Io, IoFromNow, Interrupted],
            "write" | "pwrite64" | "writev" | "copy_file_range" | "sendfile" => {
                &[Kill, Full, FullFromNow, Io, IoFromNow, Interrupted, Lie]
            }
            "ftruncate" => &[Kill, Full, Io, Interrupted],
            "socket" => &[Kill, Denied],
            "connect" => &[Kill, Refused, Interrupted, Denied],
            "flock" | "sendto" => &[Kill, Io, Interrupted],
            "recvfrom" => &[Kill, Io, Interrupted, Closed],
            _ => &[],
        }
    }
}

/// Every point of a trace. Of a transfer (calls of one name about one thing, one after the other) all calls but the first
/// and last `ends` are left out, except `between` of them, evenly spread: what differs between those is only how much of
/// the file is there. Of calls about sockets, four times and eight times as many are taken.
pub fn points(trace: &[Call], root: &str, ends: usize, between: usize) -> Vec<Point> {
    let mut groups: Vec<Vec<&Call>> = Vec::new();
    let mut last: std::collections::HashMap<(&str, String), usize> = std::collections::HashMap::new();
    for call in trace.iter().filter(|call| call.is_ours(root)) {
        let socket = call.is_of_a_socket();
        let key = (call.name.as_str(), if socket { "sockets".to_owned() } else { call.subject() });
        let streams = socket || matches!(call.name.as_str(), "write" | "copy_file_range" | "sendfile" | "pwrite64");
        if let Some(group) = last.get(&key).filter(|_| streams) {
            groups[*group].push(call);
        } else {
            last.insert(key, groups.len());
            groups.push(vec![call]);
        }
    }
    let mut points = Vec::new();
    for group in groups {
        // Connections are many and short: to the supervisor and the health port ten times a second.
        let (ends, between) =
            if group[0].is_of_a_socket() { (ends.saturating_mul(4), between * 8) } else { (ends, between) };
        for (index, call) in group.iter().enumerate() {
            if is_tried(index, group.len(), ends, between) {
                let point = |fault: &Fault| Point { call: call.name.clone(), nth: call.nth, fault: *fault };
                points.extend(call.faults().iter().map(point));
            }
        }
    }
    points
}

/// Whether the call at `index` of `length` is one of the first or last `ends`, or of `between` that are spread evenly.
fn is_tried(index: usize, length: usize, ends: usize, between: usize) -> bool {
    if index < ends || index.saturating_add(ends) >= length {
        return true;
    }
    let inside = length - 2 * ends;
    let step = inside.div_ceil(between.max(1)).max(1);
    between > 0 && (index - ends) % step == step / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "openat(AT_FDCWD</w>, \"/p/var/.a.picket-new\", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 7</p/var/.a.picket-new>\n\
        write(7</p/var/.a.picket-new>, \"{(=\", 3) = 3\n\
        fsync(7</p/var/.a.picket-new>) = 0\n\
        openat(AT_FDCWD</w>, \"/etc/ssl\", O_RDONLY) = -1 ENOENT (No such file or directory)\n\
        openat(AT_FDCWD</w>, \"/p/var\", O_RDONLY|O_CLOEXEC) = 7</p/var>\n\
        +++ exited with 0 +++\n";

    #[test]
    fn calls_are_counted_by_name_and_only_ours_are_points() {
        let trace = read_trace(TRACE);
        assert_eq!(
            trace.iter().map(|call| (call.name.as_str(), call.nth)).collect::<Vec<_>>(),
            [("openat", 1), ("write", 1), ("fsync", 1), ("openat", 2), ("openat", 3)]
        );
        assert_eq!((trace[1].subject().as_str(), trace[4].subject().as_str()), ("/p/var/.a.picket-new", "/p/var"));
        let points = points(&trace, "/p", 2, 4);
        assert!(points.contains(&Point { call: "openat".into(), nth: 3, fault: Fault::Io }));
        assert!(!points.iter().any(|point| point.call == "openat" && point.nth == 2), "a place of the system's");
        assert!(!points.contains(&Point { call: "openat".into(), nth: 3, fault: Fault::Full }), "it creates nothing");
    }

    #[test]
    fn of_children_only_calls_are_broken_that_the_first_process_did_not_come_to() {
        let trace = "10 write(1, \"\", 0) = 0\n11 write(1, \"\", 0) = 0\n11 write(1, \"\", 0 <unfinished ...>\n\
            10 write(1, \"\", 0) = 0\n11 <... write resumed>) = 0\n11 write(1, \"\", 0) = 0\n";
        let calls = of_children(read_trace(trace));
        assert_eq!(calls.iter().map(|call| (call.process, call.nth)).collect::<Vec<_>>(), [(1, 2), (1, 3)]);
    }

    #[test]
    fn a_point_is_what_it_says() {
        let point: Point = "write:12:ENOSPC+".parse().unwrap();
        assert_eq!(point.to_string(), "write:12:ENOSPC+");
        assert_eq!(point.option(), "--inject=write:error=ENOSPC:when=12+");
        assert!("write:x:EIO".parse::<Point>().is_err() && "write:1".parse::<Point>().is_err());
    }

    #[test]
    fn of_a_long_transfer_the_ends_and_some_between_are_tried() {
        let tried: Vec<usize> = (0..100).filter(|index| is_tried(*index, 100, 2, 4)).collect();
        assert_eq!((tried.len(), &tried[..2], &tried[6..]), (8, &[0, 1][..], &[98, 99][..]));
        assert!((0..5).all(|index| is_tried(index, 5, 2, 1)));
    }
}
