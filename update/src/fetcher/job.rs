//! What the two halves say to each other: one line of JSON each way at a time, bounded.

use crate::engine::Failure;
use crate::gate::Fault;
use crate::listing::{Listed, Token};
use crate::progress::Trouble;
use crate::trust::{MinisignKeys, TrustError, VerifiedTarget};
use picket_protocol::{Artifact, TargetTriple};
use picket_transport::Network;
use semver::Version;
use serde::{Deserialize, Serialize};
use sigstore_tuf::Error as TufError;

/// The longest line of the fetcher, in bytes.
pub(super) const MAX_LINE: u64 = 64 << 10;
/// The longest job, in bytes: authorities are at most 1 MiB of PEM, and the rest stays far below as much again.
pub(super) const MAX_JOB: u64 = 2 << 20;

/// What the fetcher is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// `update.releases`, or the bundle that stands in for it: see [`crate::fetch::Releases`].
    pub releases: String,
    /// How it introduces itself to servers.
    pub user_agent: String,
    /// How long a line may be silent, in milliseconds.
    pub stall_ms: u64,
    /// Through which proxy it goes, and whom it believes. It comes with the job and is no file that the fetcher would have to
    /// be let to read, and a proxy's password is on no command line and in no environment.
    pub network: Network,
    /// The task.
    pub task: Task,
}

/// A task of the fetcher's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "task")]
pub enum Task {
    /// Bring the metadata and the channel document up to date.
    Look {
        /// The channel.
        channel: String,
        /// For which machines' builds delegated roles are followed.
        target: TargetTriple,
    },
    /// List the releases of a repository.
    List {
        /// `update.releases_api`.
        api: String,
        /// What the API is to know the asker by.
        token: Option<Token>,
        /// How many at most.
        limit: usize,
        /// For which machines' builds it is looked.
        target: TargetTriple,
    },
    /// Download, verify and unpack one artifact.
    Fetch {
        /// What the vendor signed about it.
        artifact: VerifiedTarget,
        /// Its version.
        version: Version,
        /// What it is built for.
        target: TargetTriple,
        /// The minisign keys that may have signed it.
        minisign: Vec<String>,
        /// The most bytes it may unpack to.
        unpacked: u64,
    },
}

impl Task {
    /// To fetch `artifact`, of which the vendor signed `signed` and one of `keys` signs the bytes.
    pub(crate) fn fetch(
        artifact: &Artifact,
        signed: &VerifiedTarget,
        version: &Version,
        target: &TargetTriple,
        keys: &MinisignKeys,
    ) -> Self {
        Self::Fetch {
            artifact: signed.clone(),
            version: version.clone(),
            target: target.clone(),
            minisign: keys.lines().to_vec(),
            unpacked: artifact.unpacked,
        }
    }
}

/// What the fetcher says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "said")]
pub enum Said {
    /// How it is confined.
    Confined {
        /// In words.
        how: String,
        /// How many certificate authorities it finds on the machine.
        authorities: usize,
    },
    /// Bytes of the artifact have arrived.
    Download {
        /// How many are there.
        done: u64,
        /// How many it will be.
        total: u64,
    },
    /// A release was listed.
    Listed(Listed),
    /// The task is done, and everything was as it should be.
    Accepted,
    /// It is not.
    Refused(Refusal),
}

/// Why a task was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// In words.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whose fault it is.
    pub fault: Fault,
    /// Of which kind it is.
    pub trouble: Option<Trouble>,
    /// Whether metadata had expired.
    #[serde(default)]
    pub expired: bool,
}

impl Refusal {
    /// What a release server offers, or does not have.
    pub(super) fn of(error: &TrustError) -> Self {
        let expired = matches!(error, TrustError::Refused { source: TufError::Expired { .. }, .. })
            || matches!(error, TrustError::ClockBack { .. });
        Self { expired, ..Self::from(Failure::of_trust(error)) }
    }

    /// The same of a bundle: there is no server to be checked, and no trying again later.
    pub(super) fn of_bundle(error: &TrustError) -> Self {
        let refusal = Self::of(error);
        let anew =
            "make a new one where the release server can be reached: `picket release bundle`. Nothing was changed";
        match error {
            TrustError::Missing(what) => Self {
                reason: format!("the bundle has no {what}"),
                hint: Some(format!("it was made for another channel or for other machines; {anew}")),
                trouble: Some(Trouble::Refused),
                ..refusal
            },
            TrustError::Refused { source: TufError::Expired { .. }, .. } => Self {
                reason: format!("the bundle is too old: {}", refusal.reason),
                hint: Some(format!("check this machine's clock; if it is right, {anew}")),
                ..refusal
            },
            _ => refusal,
        }
    }

    /// The words of a stranger are cut and stripped before they are shown or kept.
    pub(super) fn cleaned(self) -> Self {
        let clean = |text: String| text.chars().filter(|c| !c.is_control()).take(2_000).collect::<String>();
        Self { reason: clean(self.reason), hint: self.hint.map(clean), ..self }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let Failure { reason, hint, fault, trouble } = failure;
        Self { reason, hint, fault, trouble, expired: false }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let Refusal { reason, hint, fault, trouble, .. } = refusal;
        Self { reason, hint, fault, trouble }
    }
}
