//! The vendor's side: keys, signed metadata, and the release tree that machines follow.
//!
//! A vendor keeps one folder, the *release repository* ([`Repository`]): what was published, what waits for signatures,
//! the channels as they will be. Publishing turns it into a *tree* of static files that any web server can hold.
//! Signing needs no network and no repository: a root document can be carried to a machine that has neither, and its
//! signature carried back.
//!
//! | role | signs | kept |
//! |---|---|---|
//! | root | which keys count | offline, m of n |
//! | targets | which releases exist, and the channels | with the release managers |
//! | online | snapshot and timestamp: what is newest, and that it still is | where a schedule can reach it |
//! | minisign | each artifact, for people and as the second lock | with the release managers, apart from targets |
//!
//! Output is deterministic: the same inputs at the same time give the same bytes.

mod bundle;
mod channels;
mod error;
pub mod key;
mod metadata;
pub mod minisign;
mod pack;
mod publish;
mod repository;
mod sign;
mod targets;
mod tree;

pub use bundle::BundleWriter;
pub use error::ReleaseError;
pub use key::{PublicKey, SecretKey};
pub use metadata::Role;
pub use pack::pack_executable;
pub use publish::{PublishOptions, Published, Waiting};
pub use repository::{Addition, Lifetimes, Repository, RootPlan};
pub use sign::{Detached, Document, Signed};
