//! What may run on this machine: The Update Framework first, minisign second.
//!
//! | party | what it can do | what it cannot do |
//! |---|---|---|
//! | the vendor's root keys (offline, m of n) | say which keys count | |
//! | the vendor's targets keys | say which releases exist | replace the root or the minisign keys |
//! | the online key | say what is newest, and that it still is | make a release |
//! | a mirror, a CDN, a hub, GitHub | delay, withhold | make this machine run a byte that was not signed |
//!
//! The checks are the TUF specification's (v1.0.33, §5 "Detailed client workflow"); [`sigstore_tuf`] verifies, [`client`]
//! drives it over our own transport, and [`store`] keeps what was trusted across power cuts. The minisign keys stand in
//! the root metadata under [`MINISIGN_FIELD`], so they rotate with the root and not with the targets keys they are to
//! be independent of.

pub mod client;
mod error;
pub mod minisign;
mod provider;
pub mod store;

pub use client::{TrustClient, Trusted, VerifiedTarget};
pub use error::TrustError;
pub use minisign::MinisignKeys;
pub use store::TrustStore;

/// The field of the root metadata that lists minisign public keys (the base64 line of a `.pub` file).
pub const MINISIGN_FIELD: &str = "x-picket-minisign";
