//! Reading the kernel's text files: kept open, read again from the start, bounded in size.
//!
//! Opening a file in `/proc` costs more than reading it. A file that is read every second is therefore opened once and
//! read at offset 0 each time; the kernel makes its text anew for every such read (`seq_file`). The buffer is kept, too.

use picket_durable::{Context as _, Error};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A file of the kernel's that is read again and again.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    file: Option<File>,
    buffer: Vec<u8>,
    limit: usize,
}

/// What the buffer begins with; one page holds most of these files.
const FIRST_BUFFER: usize = 4 << 10;

impl KeptFile {
    /// The file at `path`, of which at most `limit` bytes are read. It is opened when it is first read.
    pub(super) fn new(path: impl Into<PathBuf>, limit: usize) -> Self {
        Self { path: path.into(), file: None, buffer: Vec::new(), limit }
    }

    /// The text of this moment. A text longer than the limit ends with its last whole line within it.
    ///
    /// # Errors
    /// What the system said; the file is opened anew the next time.
    pub(super) fn read(&mut self) -> Result<&[u8], Error> {
        match self.read_whole() {
            Ok(length) => Ok(&self.buffer[..length]),
            Err(error) => {
                self.file = None;
                Err(error)
            }
        }
    }

    fn read_whole(&mut self) -> Result<usize, Error> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(&self.path).doing("open", &self.path)?),
        };
        if self.buffer.is_empty() {
            self.buffer.resize(FIRST_BUFFER.min(self.limit), 0);
        }
        let mut length = 0;
        loop {
            if length == self.buffer.len() {
                if length >= self.limit {
                    return Ok(whole_lines(&self.buffer));
                }
                self.buffer.resize((length * 2).min(self.limit), 0);
            }
            match file.read_at(&mut self.buffer[length..], length as u64) {
                Ok(0) => return Ok(length),
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::new("read", &self.path, error)),
            }
        }
    }
}

/// How much of `text` is whole lines.
fn whole_lines(text: &[u8]) -> usize {
    text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1)
}

/// The lines of a text, without the empty one after the last.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// The words of a line.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// A word that is a decimal number; anything else, and what does not fit, is `None`.
pub(super) fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// The numbers of a line up to the first word that is none.
pub(super) fn numbers(line: &[u8]) -> impl Iterator<Item = u64> {
    words(line).map_while(number)
}

/// Text for people and labels: what is not UTF-8 is replaced, control characters are, too, and `limit` characters are
/// the most.
pub(super) fn printable(bytes: &[u8], limit: usize) -> String {
    String::from_utf8_lossy(bytes).chars().take(limit).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// How fast a counter grew over `seconds`; one that went back (a device that came anew) counts as standing.
pub(super) fn per_second(before: u64, now: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

/// A share in percent, 0 of nothing.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    // Beyond 2^53 both are rounded, and the whole of something must not be more than all of it.
    if whole == 0 { 0.0 } else { (part as f64 * 100.0 / whole as f64).min(100.0) }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the kept file must be written in place")]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_read_anew_each_time_and_only_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        std::fs::write(&path, "first 1\nsecond 2\n").unwrap();
        let mut whole = KeptFile::new(&path, 1 << 20);
        let mut bounded = KeptFile::new(&path, 12);
        assert_eq!(whole.read().unwrap(), b"first 1\nsecond 2\n");
        assert_eq!(bounded.read().unwrap(), b"first 1\n");
        std::fs::write(&path, "third 3\n").unwrap();
        assert_eq!(whole.read().unwrap(), b"third 3\n");
    }

    #[test]
    fn a_long_file_needs_more_than_the_first_buffer_and_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        let text = "0123456789abcde\n".repeat(2_000);
        std::fs::write(&path, &text).unwrap();
        assert_eq!(KeptFile::new(&path, 1 << 20).read().unwrap(), text.as_bytes());
    }

    #[test]
    fn a_file_that_is_gone_is_an_error_with_its_path_and_is_found_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        let mut file = KeptFile::new(&path, 100);
        assert!(file.read().unwrap_err().to_string().ends_with("text"));
        std::fs::write(&path, "x\n").unwrap();
        assert_eq!(file.read().unwrap(), b"x\n");
    }

    #[test]
    fn numbers_end_at_the_first_word_that_is_none() {
        assert_eq!(numbers(b" 1  22 x 3").collect::<Vec<_>>(), [1, 22]);
        assert_eq!(numbers(b"99999999999999999999999 1").count(), 0);
        assert_eq!(printable(b"a\x1b[31m\xff", 16), "a\u{fffd}[31m\u{fffd}");
    }
}
