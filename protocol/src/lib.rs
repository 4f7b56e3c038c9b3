//! The words that different versions and lives of Picket share: release documents, health, self-test reports,
//! wishes, events, and what agents and hub say to each other.
//!
//! Two versions of Picket meet on every machine that updates: the proven one judges the new one. What they say to each
//! other is here and nowhere else, so that it changes only on purpose. Rules for every document in this crate:
//!
//! - unknown fields are ignored, so that an older reader survives a newer writer;
//! - a change that an older reader must not misread raises the document's `schema` number;
//! - every parser is bounded in size before it looks at a byte.

pub mod build_info;
pub mod channel;
pub mod digest;
pub mod event;
pub mod health;
pub mod hub;
pub mod rollout;
pub mod self_test;
pub mod sensor;
pub mod sight;
pub mod target;
pub mod trace;
pub mod update_status;
pub mod versions;
pub mod window;
pub mod wish;

pub use build_info::BuildInfo;
pub use channel::{Artifact, Channel, ChannelError, Release, Yank};
pub use digest::Sha256Digest;
pub use event::{Event, EventBody, EventId, GapReason, Priority};
pub use health::{CheckReport, CheckScope, CheckStatus, HealthReport, LivezReport, OverallStatus, Severity};
pub use rollout::{Rollout, Stop, Wave, WindowTime};
pub use self_test::{SelfTestCheck, SelfTestReport, StateFormat, UnitText};
pub use sight::{Sight, SightLevel};
pub use target::TargetTriple;
pub use trace::{CorrelationId, TraceContext, TraceParent};
pub use update_status::{UpdateOutcome, UpdateStatus};
pub use versions::VersionRange;
pub use window::Window;
pub use wish::{Wish, WishError};

/// The product every release document, trusted comment and path is about.
pub const PRODUCT: &str = "picket";
