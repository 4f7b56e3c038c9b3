//! The cryptography behind the TUF checks: Ed25519 by ed25519-dalek, SHA-2 by sha2, and nothing else.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::Digest;
use sigstore_crypto::{CryptoProvider, Error, HashContext, Result, SigningScheme};
use sigstore_types::HashAlgorithm;

#[derive(Debug)]
pub(super) struct Ed25519Only;

pub(super) static PROVIDER: Ed25519Only = Ed25519Only;

/// The provider that release signatures are checked with.
pub fn provider() -> &'static dyn CryptoProvider {
    &PROVIDER
}

/// Makes this provider the one sigstore-tuf uses. Calling it again changes nothing.
pub(crate) fn install() {
    // The only error is "already installed"; in the product nobody else installs one.
    let _ = sigstore_crypto::install_default_provider(&PROVIDER);
}

struct Context<D>(D);

impl<D: Digest + Send> HashContext for Context<D> {
    fn update(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }

    fn finalize(self: Box<Self>) -> Vec<u8> {
        self.0.finalize().to_vec()
    }
}

impl CryptoProvider for Ed25519Only {
    fn hash(&self, algorithm: HashAlgorithm) -> Result<Box<dyn HashContext>> {
        match algorithm {
            HashAlgorithm::Sha2256 => Ok(Box::new(Context(sha2::Sha256::new()))),
            HashAlgorithm::Sha2512 => Ok(Box::new(Context(sha2::Sha512::new()))),
            other => Err(Error::UnsupportedAlgorithm(format!("{other:?}"))),
        }
    }

    fn verify_raw(&self, scheme: SigningScheme, key: &[u8], data: &[u8], signature: &[u8]) -> Result<()> {
        if scheme != SigningScheme::Ed25519 {
            return Err(Error::UnsupportedAlgorithm(format!("{scheme:?}; release keys are Ed25519")));
        }
        let key: &[u8; 32] =
            key.try_into().map_err(|_| Error::InvalidKey("an Ed25519 public key has 32 bytes".to_owned()))?;
        let key = VerifyingKey::from_bytes(key).map_err(|e| Error::InvalidKey(e.to_string()))?;
        let signature = Signature::from_slice(signature).map_err(|e| Error::Verification(e.to_string()))?;
        // Strict: refuses weak keys and signatures that others could alter without breaking them.
        key.verify_strict(data, &signature).map_err(|e| Error::Verification(e.to_string()))
    }

    fn verify_prehashed(&self, scheme: SigningScheme, _: &[u8], _: &[u8], _: &[u8]) -> Result<()> {
        Err(Error::UnsupportedAlgorithm(format!("{scheme:?} prehashed")))
    }
}
