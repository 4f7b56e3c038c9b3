//! What `picket` says to scripts: a promise, one line a number.

use serde::Serialize;

/// The exit codes. A number never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[repr(u8)]
pub enum ExitCode {
    /// It is done, or there was nothing to do.
    Success = 0,
    /// It failed for a reason that has no number of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no installation here.
    NotInstalled = 3,
    /// It needs rights that the caller does not have.
    NotPermitted = 4,
    /// Another process of Picket is at it.
    Busy = 5,
    /// A check found something wrong: `doctor`, `config check`, `self-test`, `service status` of an agent that is down.
    Unhealthy = 6,
    /// A document needs more signatures before it can be published.
    NeedsSignatures = 7,
    /// What is kept on the machine is damaged, or was and could not be saved as a whole.
    Damaged = 8,
    /// The key file is missing, or does not open what is sealed.
    Keys = 9,
    /// The update was tried and rolled back; the old version runs.
    RolledBack = 20,
    /// The update was not tried.
    NotTried = 21,
    /// The update was interrupted; the old version runs.
    Interrupted = 22,
    /// A signature, a hash, a pin or an expiry date speaks against a release or a hub.
    Untrusted = 30,
    /// The network or a server did not answer.
    Network = 31,
    /// The hub was reached and refuses.
    Refused = 32,
    /// A person has to say yes on the hub first.
    AwaitsApproval = 33,
    /// The configuration cannot be used (`EX_CONFIG`).
    Config = 78,
}

impl ExitCode {
    /// Every code with its meaning, for the manual.
    pub(crate) const ALL: [(Self, &'static str); 18] = [
        (Self::Success, "it is done, or there was nothing to do"),
        (Self::Failure, "it failed for a reason that has no number of its own"),
        (Self::Usage, "the command line is wrong"),
        (Self::NotInstalled, "there is no installation here"),
        (Self::NotPermitted, "it needs rights that the caller does not have"),
        (Self::Busy, "another process of Picket is at it"),
        (Self::Unhealthy, "a check found something wrong"),
        (Self::NeedsSignatures, "a document needs more signatures before it can be published"),
        (
            Self::Damaged,
            "what is kept on the machine, or a backup of it, is damaged; after `data recover`: not all rows could be saved",
        ),
        (Self::Keys, "the key file is missing, or does not open what is sealed"),
        (Self::RolledBack, "the update was tried and rolled back; the old version runs"),
        (Self::NotTried, "the update was not tried"),
        (Self::Interrupted, "the update was interrupted; the old version runs"),
        (Self::Untrusted, "a signature, a hash, a pin or an expiry date speaks against a release or a hub"),
        (Self::Network, "the network or a server did not answer"),
        (Self::Refused, "the hub was reached and refuses"),
        (Self::AwaitsApproval, "a person has to approve this machine on the hub first"),
        (Self::Config, "the configuration cannot be used"),
    ];
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_and_the_exit_codes_agree_on_what_is_not_tried_again() {
        assert_eq!(ExitCode::Config as u8, picket_service::units::EXIT_CONFIG);
        assert_eq!(ExitCode::Damaged as u8, picket_service::units::EXIT_DAMAGED);
        assert_eq!(ExitCode::Keys as u8, picket_service::units::EXIT_KEYS);
    }
}
