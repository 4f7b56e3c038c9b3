//! People and their programs: who they are, what they may do, and what happens when somebody pretends.

pub mod abuse;
pub mod admin;
pub mod blocks;
pub mod csrf;
pub mod jwt;
pub mod password;
pub mod principal;
pub mod sign_in;

use sha2::{Digest as _, Sha256};

/// What is kept of a secret of 256 random bits: its SHA-256, which needs no salt.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// A new secret: `prefix` and 256 random bits in base64url.
///
/// # Errors
/// When the kernel gives no random numbers.
pub(crate) fn secret(prefix: &str) -> Result<zeroize::Zeroizing<String>, getrandom::Error> {
    use base64::Engine as _;
    let mut bytes = zeroize::Zeroizing::new([0u8; 32]);
    getrandom::fill(bytes.as_mut())?;
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes.as_ref());
    Ok(zeroize::Zeroizing::new(format!("{prefix}{encoded}")))
}
