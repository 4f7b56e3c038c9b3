//! What can go wrong on the vendor's side.

use std::path::PathBuf;

/// An error of the vendor's side, with the way out in [`ReleaseError::hint`].
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// There is no repository, or it is not one.
    #[error("{} is not a release repository", _0.display())]
    NoRepository(PathBuf),
    /// There is one already.
    #[error("{} is a release repository already", _0.display())]
    Exists(PathBuf),
    /// A file is not what it should be.
    #[error("{} cannot be used: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The passphrase does not open the key.
    #[error("the passphrase does not open {}", _0.display())]
    WrongPassphrase(PathBuf),
    /// A key file exists and is not replaced.
    #[error("{} exists already; a key is never replaced", _0.display())]
    KeyExists(PathBuf),
    /// A key may not sign what it was asked to sign.
    #[error("the key {key} is no {role} key of this repository")]
    KeyNotAuthorised {
        /// The key's id, shortened.
        key: String,
        /// The role.
        role: &'static str,
    },
    /// The numbers of keys and signatures do not fit.
    #[error("{0}")]
    Threshold(String),
    /// A release cannot be added or published as it is.
    #[error("{0}")]
    Release(String),
    /// A published artifact is neither in the repository nor where it should be served from.
    #[error("{} is not in the repository, and {} is not there either", artifact.display(), place.display())]
    Elsewhere {
        /// Where the repository would have it.
        artifact: PathBuf,
        /// Where it should be.
        place: PathBuf,
    },
    /// Randomness could not be had.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] picket_durable::Error),
}

impl ReleaseError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoRepository(_) => Some("make one with `picket release init`, or name it with --repo DIR".to_owned()),
            Self::Exists(_) => {
                Some("to change its keys or renew its root, use `picket release init --next-root`".to_owned())
            }
            Self::WrongPassphrase(_) => {
                Some("the file is unchanged; a lost passphrase cannot be recovered, a new key can be made".to_owned())
            }
            Self::KeyExists(_) => Some("choose another file name with --out".to_owned()),
            Self::KeyNotAuthorised { .. } => {
                Some("see which keys the root names with `picket release verify`".to_owned())
            }
            Self::Elsewhere { .. } => Some(
                "give the --out folder that machines follow now, or bring the file and its .minisig back".to_owned(),
            ),
            _ => None,
        }
    }

    pub(crate) fn bad_file(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self::BadFile { path: path.into(), reason: reason.to_string() }
    }
}
