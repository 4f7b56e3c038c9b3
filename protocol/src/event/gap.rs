//! Events that are missing, and why.

use serde::{Deserialize, Serialize};

/// Events are missing here, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GapEvent {
    /// When it was noticed (RFC 3339, UTC).
    pub timestamp: jiff::Timestamp,
    /// Why they are missing.
    pub reason: GapReason,
    /// Where: `files`, `network`, `outbox`, `sensor`.
    pub source: String,
    /// How many are missing; absent where nobody can know (the kernel dropped them unseen).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The time that is affected, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<jiff::Timestamp>,
    /// The whole in words, and what was done about it.
    pub detail: String,
}

/// Why events are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The kernel's queue ran over.
    KernelOverflow,
    /// A queue between two parts of the agent was full.
    QueueFull,
    /// More came than the class' budget allows.
    RateLimit,
    /// The outbox was over its bytes.
    QuotaBytes,
    /// It was older than the outbox keeps.
    QuotaAge,
    /// The disk took no more.
    DiskFull,
    /// Stored bytes were damaged.
    Corruption,
    /// It could not be written in the wire's form.
    Format,
    /// It was given up to keep the agent within its own budget.
    Shed,
    /// The process that held it ended without handing it on: it was killed, or the machine lost its power.
    ProcessLost,
    /// Nobody watched, or nobody could: what came and went meanwhile is not known.
    Unwatched,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

impl GapReason {
    /// All reasons that this version gives.
    pub const ALL: [Self; 11] = [
        Self::KernelOverflow,
        Self::QueueFull,
        Self::RateLimit,
        Self::QuotaBytes,
        Self::QuotaAge,
        Self::DiskFull,
        Self::Corruption,
        Self::Format,
        Self::Shed,
        Self::ProcessLost,
        Self::Unwatched,
    ];

    /// The word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KernelOverflow => "kernel_overflow",
            Self::QueueFull => "queue_full",
            Self::RateLimit => "rate_limit",
            Self::QuotaBytes => "quota_bytes",
            Self::QuotaAge => "quota_age",
            Self::DiskFull => "disk_full",
            Self::Corruption => "corruption",
            Self::Format => "format",
            Self::Shed => "shed",
            Self::ProcessLost => "process_lost",
            Self::Unwatched => "unwatched",
            Self::Unknown => "unknown",
        }
    }
}
