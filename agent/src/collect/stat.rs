//! One process' line in `/proc/[pid]/stat` (proc(5)).
//!
//! The second column is the program's own idea of its name: it may hold spaces, brackets and line ends. It ends at the
//! *last* closing bracket, since everything behind it is numbers and one letter.

use super::text::{number, printable, words};

/// What is wanted of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat<'a> {
    /// The program's name as the kernel keeps it, at most 15 bytes.
    pub(super) comm: &'a [u8],
    /// The state's letter.
    pub(super) state: u8,
    /// Ticks in user and kernel mode since it started.
    pub(super) ticks: u64,
    /// Its threads.
    pub(super) threads: u64,
    /// When it started, in ticks since the machine did: tells two processes of one number apart.
    pub(super) started: u64,
    /// Address space in bytes.
    pub(super) virtual_bytes: u64,
    /// Memory in pages.
    pub(super) resident_pages: u64,
}

impl Stat<'_> {
    /// The name for people.
    pub(super) fn name(&self) -> String {
        printable(self.comm, 15)
    }
}

/// Reads one line; `None` if it is none.
pub(super) fn parse(line: &[u8]) -> Option<Stat<'_>> {
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let comm = line.get(open + 1..close)?;
    // Numbered as in proc(5), where the state is column 3.
    let mut columns = words(&line[close + 1..]);
    let state = *columns.next()?.first()?;
    let user = number(columns.nth(10)?)?;
    let system = number(columns.next()?)?;
    let threads = number(columns.nth(4)?)?;
    let started = number(columns.nth(1)?)?;
    let virtual_bytes = number(columns.next()?)?;
    let resident_pages = number(columns.next()?)?;
    Some(Stat { comm, state, ticks: user.saturating_add(system), threads, started, virtual_bytes, resident_pages })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn columns_are_those_of_the_manual_page_whatever_the_name_holds() {
        let line = b"42 (a) S 1) R 1 42 42 0 -1 4194560 100 200 3 4 70 30 5 6 20 0 9 0 1234 5678000 321 18446744073709551615 1\n";
        let stat = parse(line).unwrap();
        assert_eq!((stat.comm, stat.state, stat.ticks), (&b"a) S 1"[..], b'R', 100));
        assert_eq!((stat.threads, stat.started), (9, 1234));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (5_678_000, 321));
    }

    #[test]
    fn the_kernel_says_the_same_of_this_process() {
        let line = picket_durable::read_bounded(std::path::Path::new("/proc/self/stat"), 4096).unwrap();
        let ours = parse(&line).unwrap();
        let theirs = procfs::process::Process::myself().unwrap().stat().unwrap();
        assert_eq!((ours.name(), ours.started), (theirs.comm.clone(), theirs.starttime));
        assert_eq!(ours.threads, u64::try_from(theirs.num_threads).unwrap());
        assert!(ours.resident_pages > 0 && ours.ticks <= theirs.utime + theirs.stime);
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_a_panic(noise in any::<Vec<u8>>(), text in "[0-9]{1,3} \\(.{0,20}\\) [A-Z]( -?[0-9]{1,21}){0,30}") {
            parse(&noise);
            parse(text.as_bytes());
        }
    }
}
