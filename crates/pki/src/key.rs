//! Private keys, and requests for a certificate of them.

use crate::{PkiError, SpkiPin};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SigningKey as _,
};
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// The longest private key or request that is read, in bytes: one of P-256 takes some hundred.
const MAX_BYTES: usize = 8 << 10;

/// A private key. What it holds is in no `Debug` output and is overwritten when it is dropped.
pub struct PrivateKey {
    pair: KeyPair,
}

/// A public key out of a request whose signature holds: whoever sent it has the private one.
pub struct CsrKey {
    pub(crate) key: rcgen::PublicKey,
    pin: SpkiPin,
}

impl PrivateKey {
    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn generate() -> Result<Self, PkiError> {
        KeyPair::generate().map(|pair| Self { pair }).map_err(|error| PkiError::unmakable("a key", error))
    }

    /// Reads PKCS #8 (RFC 5958) in PEM.
    ///
    /// # Errors
    /// [`PkiError::WrongKey`] for any other kind of key.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        if pem.len() > MAX_BYTES {
            return Err(PkiError::TooLarge { what: "the private key", limit: MAX_BYTES });
        }
        let pair = KeyPair::from_pem(pem).map_err(|error| PkiError::malformed("the private key", error))?;
        if pair.algorithm() == &PKCS_ECDSA_P256_SHA256 { Ok(Self { pair }) } else { Err(PkiError::WrongKey) }
    }

    /// PKCS #8 in PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.pair.serialize_pem())
    }

    /// PKCS #8 in DER, as TLS takes it.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    /// Whose key this is.
    pub fn pin(&self) -> SpkiPin {
        SpkiPin::of_spki(&self.pair.subject_public_key_info())
    }

    /// A request for a certificate of this key, in DER (RFC 2986). The name in it is for people who look at it; nobody
    /// believes it.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn request(&self, name: &str) -> Result<Vec<u8>, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        let request = params.serialize_request(&self.pair).map_err(|error| PkiError::unmakable("a request", error))?;
        Ok(request.der().to_vec())
    }

    /// Signs a message: ECDSA with P-256 and SHA-256 (FIPS 186-5), in DER. The same key signs in TLS handshakes: begin the
    /// message with a word that no handshake begins with.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        self.pair.sign(message).map_err(|error| PkiError::unmakable("a signature", error))
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({})", self.pin())
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.pair);
    }
}

impl CsrKey {
    /// Reads a request in DER and checks that it is signed with the key that it is about.
    ///
    /// # Errors
    /// [`PkiError::WrongKey`] for any other kind of key than P-256.
    pub fn from_request(der: &[u8]) -> Result<Self, PkiError> {
        const WHAT: &str = "the certificate request";
        if der.len() > MAX_BYTES {
            return Err(PkiError::TooLarge { what: WHAT, limit: MAX_BYTES });
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
        let request = request.map_err(|error| PkiError::malformed(WHAT, error))?;
        let key = request.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(PkiError::WrongKey);
        }
        let pin = SpkiPin::of_spki(&key.subject_public_key_info());
        Ok(Self { key, pin })
    }

    /// Whose key this is.
    pub fn pin(&self) -> SpkiPin {
        self.pin
    }
}

impl std::fmt::Debug for CsrKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CsrKey({})", self.pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_reads_back_what_it_writes_and_never_shows_itself() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.pin(), key.pin());
        let shown = format!("{key:?}");
        assert!(shown.contains("sha256/") && !shown.contains("BEGIN"), "{shown}");
    }

    #[test]
    fn only_a_key_of_the_one_kind_is_taken() {
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(PrivateKey::from_pem(&other.serialize_pem()), Err(PkiError::WrongKey)));
        let request = CertificateParams::default().serialize_request(&other).unwrap();
        assert!(matches!(CsrKey::from_request(request.der()), Err(PkiError::WrongKey)));
    }

    #[test]
    fn a_request_is_taken_only_with_the_signature_of_its_own_key() {
        let key = PrivateKey::generate().unwrap();
        let mut request = key.request("web-1").unwrap();
        assert_eq!(CsrKey::from_request(&request).unwrap().pin(), key.pin());
        // The last bytes are the signature's.
        let last = request.len() - 1;
        request[last] ^= 1;
        assert!(matches!(CsrKey::from_request(&request), Err(PkiError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..400, value: u8) {
            let _ = CsrKey::from_request(&bytes);
            let _ = PrivateKey::from_pem(&String::from_utf8_lossy(&bytes));
            let mut request = PrivateKey::generate().unwrap().request("x").unwrap();
            let at = at % request.len();
            request[at] = value;
            let _ = CsrKey::from_request(&request);
        }
    }
}
