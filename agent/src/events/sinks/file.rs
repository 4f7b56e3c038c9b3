//! Events in a file, one JSON object a line, turned over by size.

use super::{EventSink, Outgoing, SinkError};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How many files are kept, the one in use included.
const KEPT: u32 = 4;

/// Appends to `path`; at `max_bytes` it becomes `path.1`, `path.1` becomes `path.2`, and so on.
pub(crate) struct FileSink {
    path: PathBuf,
    max_bytes: u64,
    open: Option<(BufWriter<File>, u64)>,
}

impl FileSink {
    /// A sink that opens its file when the first event comes.
    pub(crate) fn new(path: &Path, max_bytes: u64) -> Self {
        Self { path: path.to_owned(), max_bytes, open: None }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        if number == 0 { self.path.clone() } else { PathBuf::from(format!("{}.{number}", self.path.display())) }
    }

    fn failed(&self, operation: &'static str, source: std::io::Error) -> SinkError {
        picket_durable::Error::new(operation, &self.path, source).into()
    }

    /// Gives up what is in the buffer, which is counted as lost and must not come later. The file is opened anew for the
    /// next event: it may have been moved away, or the disk have room again.
    fn give_up(&mut self, error: std::io::Error) -> SinkError {
        drop(self.open.take().map(|(writer, _)| writer.into_parts()));
        self.failed("write", error)
    }

    fn turn_over(&mut self) -> Result<(), SinkError> {
        self.flush()?;
        self.open = None;
        for number in (0..KEPT - 1).rev() {
            let from = self.numbered(number);
            if from.symlink_metadata().is_ok() {
                picket_durable::rename(&from, &self.numbered(number + 1))?;
            }
        }
        Ok(())
    }

    fn file(&mut self) -> Result<&mut (BufWriter<File>, u64), SinkError> {
        if self.open.as_ref().is_some_and(|(_, length)| *length >= self.max_bytes) {
            self.turn_over()?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                // Not through a link: the folder may be another's to write.
                let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
                let options = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).clone();
                let file = options.open(&self.path).map_err(|e| self.failed("open", e))?;
                let length = file.metadata().map_err(|e| self.failed("look at", e))?.len();
                (BufWriter::new(file), length)
            }
        };
        Ok(self.open.insert(open))
    }
}

impl EventSink for FileSink {
    fn name(&self) -> &'static str {
        "file"
    }

    fn is_buffered(&self) -> bool {
        true
    }

    fn put(&mut self, outgoing: &Outgoing<'_>) -> Result<(), SinkError> {
        let (writer, length) = self.file()?;
        *length += outgoing.line.len() as u64 + 1;
        let written = writer.write_all(outgoing.line.as_bytes()).and_then(|()| writer.write_all(b"\n"));
        written.map_err(|e| self.give_up(e))
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        let Some((writer, _)) = &mut self.open else { return Ok(()) };
        let flushed = writer.flush();
        if let Err(error) = flushed {
            return Err(self.give_up(error));
        }
        // Whoever turned the file over by other means gets a new one.
        if !self.path.exists() {
            self.open = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::Priority;

    #[test]
    fn the_file_is_turned_over_by_size_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.ndjson");
        let mut sink = FileSink::new(&path, 1000);
        for seq in 0..40 {
            let line = format!("{{\"number\":{seq},\"filling\":\"{}\"}}", "x".repeat(100));
            sink.put(&Outgoing { class: Priority::Normal, line: &line }).unwrap();
        }
        sink.flush().unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["events.ndjson", "events.ndjson.1", "events.ndjson.2", "events.ndjson.3"]);
        let last = picket_durable::read_text(&path, 10_000).unwrap();
        assert!(last.lines().last().unwrap().contains("\"number\":39"), "{last}");
        for line in last.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn a_link_in_the_files_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.ndjson");
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        let outgoing = Outgoing { class: Priority::Normal, line: "{}" };
        assert!(FileSink::new(&path, 1000).put(&outgoing).is_err());
    }
}
