//! The supervisor's log file: what the agent and the updater print, bounded in size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The file's name in the log folder.
pub(super) const NAME: &str = "picket.log";
/// The file is set aside (`picket.log.1`) and begun anew at this size, in bytes: at most twice this is ever kept.
const MAX_BYTES: u64 = 5 << 20;

/// Where printed lines go.
#[derive(Debug)]
pub(super) enum Sink {
    /// To our own stderr, in the foreground: a container's runtime collects it.
    Stderr,
    /// To the log file.
    File {
        /// Its path.
        path: PathBuf,
        /// The open file and its size so far.
        open: Option<(File, u64)>,
    },
}

impl Sink {
    /// Writes one line. A log that cannot be written must not stop what is logged, so errors go nowhere.
    pub(super) fn line(&mut self, line: &[u8]) {
        let _ = self.try_line(line);
    }

    fn try_line(&mut self, line: &[u8]) -> io::Result<()> {
        let (path, open) = match self {
            Self::Stderr => {
                let mut stderr = io::stderr().lock();
                stderr.write_all(line)?;
                return stderr.write_all(b"\n");
            }
            Self::File { path, open } => (path, open),
        };
        if open.as_ref().is_some_and(|(_, size)| *size >= MAX_BYTES) {
            *open = None;
            let _ = picket_durable::rename(path, &path.with_extension("log.1"));
        }
        let (file, size) = if let Some(open) = open {
            open
        } else {
            let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&*path)?;
            let size = file.metadata()?.len();
            open.insert((file, size))
        };
        file.write_all(&[line, b"\n"].concat())?;
        *size += line.len() as u64 + 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_never_grows_past_twice_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let mut sink = Sink::File { path: path.clone(), open: None };
        let line = vec![b'x'; 1 << 20];
        for _ in 0..23 {
            sink.line(&line);
        }
        let size = |path: &std::path::Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) + size(&dir.path().join("picket.log.1")) <= 2 * (MAX_BYTES + line.len() as u64 + 1));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
