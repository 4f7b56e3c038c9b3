//! `picket fetcher`: the unprivileged half of the updater. Hidden: it is for the updater.

use super::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use picket_update::fetcher::{Places, work};
use std::io::{stdin, stdout};
use std::path::{Path, PathBuf};

/// Does the one job that comes on standard input.
pub(super) fn run(context: &Context<'_>, dir: PathBuf) -> Result<ExitCode, CommandError> {
    // Authorities that an operator named must be readable behind the border.
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(|name| context.process.variable(name));
    let named: Vec<&Path> = named.map(Path::new).collect();
    let done = work(&Places::new(dir), &named, stdin().lock(), stdout());
    done.map(|()| ExitCode::Success).map_err(|error| CommandError::system("the fetcher cannot work".to_owned(), error))
}
