//! `picket sandbox`: how the proven version starts a new one's self-test. Hidden: it is for the updater.

use crate::error::CommandError;
use picket_update::sandbox::{Confinement, become_confined};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Confines this process and becomes the program. Returns only when that failed.
pub(super) fn run(scratch: PathBuf, network: bool, program: &[OsString]) -> CommandError {
    let Some((exe, arguments)) = program.split_first() else {
        return CommandError::Usage("no program is given".to_owned());
    };
    let error = become_confined(&Confinement { scratch, network }, Path::new(exe), arguments);
    CommandError::system(format!("{} cannot be executed", Path::new(exe).display()), error)
}
