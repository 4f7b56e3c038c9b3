//! What may run on this machine: The Update Framework first, minisign second.
//!
//! | party | what it can do | what it cannot do |
//! |---|---|---|
//! | the vendor's root keys (offline, m of n) | say which keys count | |
//! | the vendor's targets keys | say which releases exist | replace the root or the minisign keys |
//! | the online key | say what is newest, and that it still is | make a release |
//! | a mirror, a CDN, a hub, GitHub | delay, withhold | make this machine run a byte that was not signed |
//!
//! The checks are the TUF specification's (v1.0.33, §5 "Detailed client workflow"); [`sigstore_tuf`] verifies, [`TrustClient`]
//! drives it over our own transport, and [`store`] keeps what was trusted across power cuts. The minisign keys stand in
//! the root metadata under [`MINISIGN_FIELD`], so they rotate with the root and not with the targets keys they are to
//! be independent of.

mod client;
mod delegations;
mod error;
mod idle;
mod keys;
pub mod minisign;
mod provider;
pub mod source;
pub mod store;
mod target;

pub use client::{TrustClient, Trusted};
pub use error::TrustError;
pub use minisign::MinisignKeys;
pub use provider::provider;
pub use source::MetadataSource;
pub use store::TrustStore;
pub use target::{Hasher, Hashes, VerifiedTarget};

use picket_protocol::Sha256Digest;

/// `text` with every byte percent-encoded that is neither unreserved (RFC 3986 §2.3) nor in `allowed`.
pub(crate) fn percent_encode(text: &str, allowed: &str) -> String {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || allowed.as_bytes().contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

/// Checks the code that checks releases: the third test vector of RFC 8032 §7.1 must verify, and must not with a bit
/// flipped; SHA-256 of `abc` must be the one of FIPS 180-2.
///
/// # Errors
/// In words, what gave another result.
pub fn self_check() -> Result<(), String> {
    use sha2::Digest;
    use sigstore_crypto::{CryptoProvider, SigningScheme};
    const KEY: &str = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025";
    const SIGNATURE: [&str; 2] = [
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac",
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ];
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let bytes = |hex: &str| hex.parse::<Sha256Digest>().map(|digest| digest.as_bytes().to_vec()).unwrap_or_default();
    let (key, mut signature) = (bytes(KEY), SIGNATURE.map(bytes).concat());
    let verify = |signature: &[u8]| {
        provider::PROVIDER.verify_raw(SigningScheme::Ed25519, &key, &[0xaf, 0x82], signature).is_ok()
    };
    if !verify(&signature) {
        return Err("Ed25519 refuses a published signature".to_owned());
    }
    signature[10] ^= 1;
    if verify(&signature) {
        return Err("Ed25519 accepts a forged signature".to_owned());
    }
    if sha2::Sha256::digest(b"abc").as_slice() != bytes(ABC) {
        return Err("SHA-256 gives a wrong result".to_owned());
    }
    Ok(())
}

/// The field of the root metadata that lists minisign public keys (the base64 line of a `.pub` file).
pub const MINISIGN_FIELD: &str = "x-picket-minisign";
