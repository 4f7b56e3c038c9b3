//! Where an export or a backup is written: a file that is complete or not there, or standard output.

use crate::error::CommandError;
use crate::output::Output;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is written is in clear, or worth keeping to oneself.
const MODE: u32 = 0o600;

/// Where something is written.
pub(super) enum Target {
    /// Standard output.
    Stream(Box<dyn Write>),
    /// A file under a temporary name.
    File(Draft),
}

/// A file that does not have its name yet; gone if it never gets it.
pub(super) struct Draft {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    replace: bool,
    named: bool,
}

impl Target {
    /// Opens the target for the caller: before the caller becomes somebody else.
    pub(super) fn open(output: Output, path: Option<&Path>, replace: bool) -> Result<Self, CommandError> {
        match path.filter(|path| *path != Path::new("-")) {
            None => Ok(Self::Stream(Box::new(output.stream()))),
            Some(path) => Draft::create(path, replace).map(Self::File),
        }
    }

    /// Whether results go to standard output, so that nothing else may.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// All is written: the file is synced and gets its name.
    pub(super) fn finish(self) -> Result<(), CommandError> {
        match self {
            Self::Stream(mut stream) => {
                stream.flush().map_err(|source| CommandError::system("cannot write to standard output", source))
            }
            Self::File(draft) => draft.finish(),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.write(bytes),
            Self::File(draft) => draft.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.flush(),
            Self::File(draft) => draft.file.flush(),
        }
    }
}

impl Draft {
    fn create(path: &Path, replace: bool) -> Result<Self, CommandError> {
        match path.symlink_metadata() {
            // A device or a link is somebody's, and not what was meant.
            Ok(meta) if !meta.is_file() => {
                return Err(CommandError::Usage(format!("{} is there and is not a regular file", path.display())));
            }
            Ok(_) if !replace => return Err(CommandError::Exists(path.to_owned())),
            _ => {}
        }
        if path.file_name().is_none() {
            return Err(CommandError::Usage(format!("{} is not a file's name", path.display())));
        }
        let temporary = picket_durable::temporary_name(path);
        let file = picket_durable::create_new(&temporary, MODE)?;
        Ok(Self { file, path: path.to_owned(), temporary, replace, named: false })
    }

    fn finish(mut self) -> Result<(), CommandError> {
        let failed = |operation, path: &Path, source| picket_durable::Error::new(operation, path, source);
        self.file.sync_all().map_err(|source| failed("sync", &self.temporary, source))?;
        if !self.replace {
            // A second name is given only where there is none: whoever came meanwhile is not overwritten.
            match std::fs::hard_link(&self.temporary, &self.path) {
                Ok(()) => return self.name_is_given(),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(CommandError::Exists(self.path.clone()));
                }
                // A file system without links; it was looked for the name when we began.
                Err(_) => {}
            }
        }
        picket_durable::rename(&self.temporary, &self.path)?;
        self.named = true;
        Ok(())
    }

    fn name_is_given(mut self) -> Result<(), CommandError> {
        picket_durable::remove_if_present(&self.temporary)?;
        self.named = true;
        let folder = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(picket_durable::sync_dir(folder)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.named {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
