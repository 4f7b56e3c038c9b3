//! What an agent notes outside its queue, so that the queue's books can be held against something: which event it was about
//! to hand over, which it had handed over, and up to which all were known to be durable.
//!
//! The notes are written to a file's pages, which outlive a killed process (not a power cut, which nobody makes here).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The file.
pub struct Marks {
    file: File,
    handed: AtomicU64,
}

/// Events that a killed process may have lost: those after the first number, up to the second.
pub type Window = (u64, u64);

const MARKS: &str = "marks";
const WINDOWS: &str = "windows";

impl Marks {
    /// The notes in `folder`. What the process before left open becomes a window. Says after which number to go on.
    pub fn open(folder: &Path) -> (Self, u64) {
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(folder.join(MARKS)).unwrap();
        if file.metadata().unwrap().len() < 24 {
            file.write_all_at(&[0; 24], 0).unwrap();
        }
        let (intended, _, durable) = read(&file);
        if intended > durable {
            let mut windows = File::options().create(true).append(true).open(folder.join(WINDOWS)).unwrap();
            windows.write_all(format!("{durable} {intended}\n").as_bytes()).unwrap();
        }
        let marks = Self { file, handed: AtomicU64::new(intended) };
        marks.durable(intended);
        (marks, intended)
    }

    /// The event with this number is about to be handed over.
    pub fn intend(&self, number: u64) {
        self.file.write_all_at(&number.to_le_bytes(), 0).unwrap();
    }

    /// It was.
    pub fn handed(&self, number: u64) {
        self.file.write_all_at(&number.to_le_bytes(), 8).unwrap();
        self.handed.store(number, Ordering::Release);
    }

    /// Which was handed over last.
    pub fn last(&self) -> u64 {
        self.handed.load(Ordering::Acquire)
    }

    /// All up to this one are durable.
    pub fn durable(&self, number: u64) {
        self.file.write_all_at(&number.to_le_bytes(), 16).unwrap();
    }
}

fn read(file: &File) -> (u64, u64, u64) {
    let mut bytes = [0; 24];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (number(0), number(8), number(16))
}

/// Up to which number events were made, and the windows in which a killed process may have lost some.
pub fn told(folder: &Path) -> (u64, Vec<Window>) {
    let file = File::open(folder.join(MARKS)).unwrap();
    let windows = fs::File::open(folder.join(WINDOWS)).map(BufReader::new);
    let lines = windows.map_or_else(|_| Vec::new(), |windows| windows.lines().map(Result::unwrap).collect());
    let window = |line: String| -> Window {
        let (after, to) = line.split_once(' ').unwrap();
        (after.parse().unwrap(), to.parse().unwrap())
    };
    (read(&file).0, lines.into_iter().map(window).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_open_is_a_window() {
        let dir = tempfile::tempdir().unwrap();
        let (marks, last) = Marks::open(dir.path());
        assert_eq!(last, 0);
        for number in 1..=7 {
            marks.intend(number);
            marks.handed(number);
        }
        marks.durable(5);
        marks.intend(8);
        drop(marks);
        let (marks, last) = Marks::open(dir.path());
        assert_eq!((last, marks.last(), told(dir.path())), (8, 8, (8, vec![(5, 8)])));
        marks.intend(9);
        marks.handed(9);
        marks.durable(9);
        drop(marks);
        assert_eq!(Marks::open(dir.path()).1, 9);
        assert_eq!(told(dir.path()).1.len(), 1, "nothing was open");
    }
}
