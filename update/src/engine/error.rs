//! What keeps the updater from deciding or from going on.

use crate::fetcher::{FetcherError, Refusal};
use crate::gate::Fault;
use crate::hooks::HookError;
use crate::journal::JournalError;
use crate::machine::MachineError;
use crate::progress::Trouble;
use crate::trust::TrustError;
use picket_durable::LockError;
use picket_versions::RecordError;
use std::path::PathBuf;

/// An error of the updater itself. A version that fails is not one.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another updater runs.
    #[error("another updater is at work")]
    Busy(#[source] LockError),
    /// The lock could not be taken.
    #[error("the updater's lock cannot be taken")]
    Lock(#[source] LockError),
    /// There is no proven version.
    #[error("there is no installation here: {} is missing", _0.display())]
    NotInstalled(PathBuf),
    /// There is no version to go back to.
    #[error("there is no previous version to go back to")]
    NoPrevious,
    /// What was asked for is not possible.
    #[error("{0}")]
    Refused(String),
    /// The releases cannot be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The fetcher brought nothing to go by.
    #[error(transparent)]
    Fetcher(FetcherError),
    /// A version's folder is not what it should be.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The journal cannot be kept, so nothing may be done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The service manager cannot be asked.
    #[error("the service manager cannot be asked")]
    Machine(#[source] MachineError),
    /// A hook is not to be trusted.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A file could not be read or written.
    #[error("the updater's state cannot be read or written")]
    File(#[from] picket_durable::Error),
}

impl From<FetcherError> for EngineError {
    fn from(error: FetcherError) -> Self {
        match error {
            FetcherError::Trust(error) => Self::Trust(error),
            FetcherError::Start(error) => Self::File(error),
            error => Self::Fetcher(error),
        }
    }
}

impl From<MachineError> for EngineError {
    fn from(error: MachineError) -> Self {
        Self::Machine(error)
    }
}

impl EngineError {
    /// What to do about it, for the person who reads it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Busy(_) => Some("watch it with `picket update status`".to_owned()),
            Self::NotInstalled(_) => Some("install first with `picket install`".to_owned()),
            Self::NoPrevious => Some("install a version by name: `picket update apply VERSION`".to_owned()),
            Self::Trust(error) => Some(error.hint().to_owned()),
            Self::Fetcher(error) => error.hint(),
            Self::Record(_) => Some("`picket doctor` shows what is damaged".to_owned()),
            Self::File(error) if error.is_disk_full() => Some("free some space and try again".to_owned()),
            Self::Hook(error) => Some(error.hint()),
            _ => None,
        }
    }

    /// Of which kind it is, for scripts.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Trust(error) if error.is_network_trouble() => Trouble::Network,
            Self::Trust(_) => Trouble::Untrusted,
            Self::Fetcher(FetcherError::Refused(refusal)) => refusal.trouble.unwrap_or(Trouble::Machine),
            Self::Refused(_) | Self::NoPrevious => Trouble::Refused,
            _ => Trouble::Machine,
        }
    }

    /// The error with all its causes, in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Why an update did not get to its trial.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Why.
    pub(crate) reason: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// Whose fault it is: a version's own is remembered.
    pub(crate) fault: Fault,
    /// Of which kind it is, for scripts, where it is not simply the refusal.
    pub(crate) trouble: Option<Trouble>,
}

impl Failure {
    /// The version's own fault: it will be no better the next time.
    pub(crate) fn of_version(reason: String) -> Self {
        Self { reason, hint: None, fault: Fault::Version, trouble: None }
    }

    /// The machine's, the server's or the network's.
    pub(crate) fn of_environment(reason: String, hint: Option<&str>) -> Self {
        Self { reason, hint: hint.map(str::to_owned), fault: Fault::Environment, trouble: None }
    }

    /// What came is not what was signed: the server's or the line's.
    pub(crate) fn of_signature(reason: String, hint: &str) -> Self {
        Self { trouble: Some(Trouble::Untrusted), ..Self::of_environment(reason, Some(hint)) }
    }
}

impl Failure {
    /// Something is not to be trusted, or could not be had.
    pub(crate) fn of_trust(error: &TrustError) -> Self {
        // A forged or damaged file convicts the server or the line, not the release.
        let trouble = if error.is_network_trouble() { Trouble::Network } else { Trouble::Untrusted };
        Self { trouble: Some(trouble), ..Self::of_environment(chain(error), Some(error.hint())) }
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::of_trust(&error)
    }
}

impl From<FetcherError> for Failure {
    fn from(error: FetcherError) -> Self {
        match error {
            FetcherError::Refused(refusal) => Refusal::into(refusal),
            FetcherError::Trust(error) => error.into(),
            FetcherError::Start(error) => error.into(),
            FetcherError::Broken(_) | FetcherError::Network(_) => {
                Self::of_environment(error.chain(), error.hint().as_deref())
            }
        }
    }
}

impl From<picket_durable::Error> for Failure {
    fn from(error: picket_durable::Error) -> Self {
        let hint = if error.is_disk_full() { Some("free some space and try again") } else { None };
        Self::of_environment(chain(&error), hint)
    }
}
