//! TUF signing keys: Ed25519, encrypted at rest under a passphrase.
//!
//! The secret file is PKCS#8 "ENCRYPTED PRIVATE KEY" PEM (RFC 5958, RFC 8018): PBES2 with scrypt (N = 2¹⁷, r = 8, p = 1,
//! OWASP's first choice for scrypt) and AES-256-GCM, so that a wrong passphrase is told from a damaged file. The public
//! file is a "PUBLIC KEY" PEM (RFC 8410).

use crate::error::ReleaseError;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePublicKey, EncodePublicKey, KeypairBytes};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use pkcs8::pkcs5::pbes2;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use zeroize::Zeroizing;

/// The largest key file, in bytes.
const MAX_BYTES: u64 = 16 << 10;
const LABEL: &str = "ENCRYPTED PRIVATE KEY";

/// A key that can sign.
pub struct SecretKey {
    key: SigningKey,
}

/// A key that can verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, ReleaseError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut()).map_err(|e| ReleaseError::Random(e.to_string()))?;
    Ok(bytes)
}

impl SecretKey {
    /// A new key.
    pub fn generate() -> Result<Self, ReleaseError> {
        Ok(Self { key: SigningKey::from_bytes(&*random::<32>()?) })
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey { key: self.key.verifying_key() }
    }

    /// Signs `bytes`; the signature in hex.
    pub fn sign(&self, bytes: &[u8]) -> String {
        hex(&self.key.sign(bytes).to_bytes())
    }

    /// Writes the key to the new file `path` (0600) under `passphrase`, and the public half beside it as `path.pub`.
    ///
    /// # Errors
    /// When either file exists: a key is never replaced.
    pub fn save(&self, path: &Path, passphrase: &[u8]) -> Result<(), ReleaseError> {
        let public = public_path(path);
        for file in [path, &public] {
            if std::fs::symlink_metadata(file).is_ok() {
                return Err(ReleaseError::KeyExists(file.to_owned()));
            }
        }
        let pem = self.encrypt(passphrase).map_err(|e| ReleaseError::bad_file(path, e))?;
        picket_durable::write_atomic(path, pem.as_bytes(), 0o600)?;
        picket_durable::write_atomic(&public, self.public().to_pem().as_bytes(), 0o644)?;
        Ok(())
    }

    fn encrypt(&self, passphrase: &[u8]) -> Result<Zeroizing<String>, Box<dyn std::error::Error>> {
        let (salt, nonce) = (random::<16>()?, random::<12>()?);
        let cost = scrypt::Params::new(17, 8, 1)?;
        let parameters = pbes2::Parameters::scrypt_aes256gcm(cost, salt.as_ref(), *nonce)?;
        let keypair = KeypairBytes { secret_key: self.key.to_bytes(), public_key: None };
        let plain = ed25519_dalek::pkcs8::EncodePrivateKey::to_pkcs8_der(&keypair)?;
        let info = PrivateKeyInfoRef::try_from(plain.as_bytes())?;
        Ok(info.encrypt_with_params(parameters, passphrase)?.to_pem(LABEL, LineEnding::LF)?)
    }

    /// Opens the key file at `path`.
    ///
    /// # Errors
    /// [`ReleaseError::WrongPassphrase`] when the passphrase does not fit.
    pub fn load(path: &Path, passphrase: &[u8]) -> Result<Self, ReleaseError> {
        let pem = Zeroizing::new(picket_durable::read_text(path, MAX_BYTES)?);
        let bad = |reason: String| ReleaseError::bad_file(path, reason);
        let (label, document) = SecretDocument::from_pem(&pem).map_err(|e| bad(format!("it is no PEM file ({e})")))?;
        if label != LABEL {
            return Err(bad(format!("it holds a {label}, not an encrypted private key")));
        }
        let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let plain = encrypted.decrypt(passphrase).map_err(|_| ReleaseError::WrongPassphrase(path.to_owned()))?;
        let info = PrivateKeyInfoRef::try_from(plain.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let keypair = KeypairBytes::try_from(info).map_err(|_| bad("it is no Ed25519 key".to_owned()))?;
        Ok(Self { key: SigningKey::from_bytes(&keypair.secret_key) })
    }

    /// Whether the file at `path` looks like a key of this kind (and not, say, a minisign key).
    pub fn is_key_file(path: &Path) -> bool {
        picket_durable::read_text(path, MAX_BYTES).is_ok_and(|text| text.contains(LABEL))
    }
}

impl PublicKey {
    /// Reads a public key file.
    pub fn load(path: &Path) -> Result<Self, ReleaseError> {
        let pem = picket_durable::read_text(path, MAX_BYTES)?;
        let key = VerifyingKey::from_public_key_pem(&pem)
            .map_err(|e| ReleaseError::bad_file(path, format!("it is no Ed25519 public key ({e})")))?;
        Ok(Self { key })
    }

    /// The key as a PEM file.
    pub fn to_pem(&self) -> String {
        self.key.to_public_key_pem(LineEnding::LF).unwrap_or_default()
    }

    /// The key as TUF metadata names it (specification §4.2).
    pub fn to_tuf(&self) -> Value {
        json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": hex(self.key.as_bytes()) } })
    }

    /// A key as TUF metadata names it; `None` for any but Ed25519.
    pub(crate) fn from_tuf(key: &Value) -> Option<Self> {
        let bytes: [u8; 32] = unhex(key["keyval"]["public"].as_str()?)?.try_into().ok()?;
        let ed25519 = key["keytype"] == "ed25519" && key["scheme"] == "ed25519";
        Some(Self { key: VerifyingKey::from_bytes(&bytes).ok().filter(|_| ed25519)? })
    }

    /// Whether `signature`, in hex, is this key's over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let signature = unhex(signature).and_then(|bytes| ed25519_dalek::Signature::from_slice(&bytes).ok());
        signature.is_some_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }

    /// Its id: the SHA-256 of its canonical JSON, as securesystemslib computes it.
    pub fn id(&self) -> String {
        let canonical = sigstore_tuf::canonical_json::to_canonical_bytes(&self.to_tuf()).unwrap_or_default();
        hex(&Sha256::digest(canonical))
    }
}

/// Where the public half of the key at `path` is.
pub fn public_path(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".pub");
    path.with_file_name(name)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    if text.len().is_multiple_of(2) && text.is_ascii() {
        (0..text.len()).step_by(2).map(digits).collect()
    } else {
        None
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_opened_by_its_passphrase_and_by_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.pem");
        let key = SecretKey::generate().unwrap();
        key.save(&path, b"correct horse").unwrap();
        let text = picket_durable::read_text(&path, MAX_BYTES).unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
        let loaded = SecretKey::load(&path, b"correct horse").unwrap();
        assert_eq!(loaded.public(), key.public());
        assert_eq!(PublicKey::load(&public_path(&path)).unwrap(), key.public());
        assert!(matches!(SecretKey::load(&path, b"wrong"), Err(ReleaseError::WrongPassphrase(_))));
    }

    #[test]
    fn a_key_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.pem");
        picket_durable::write_atomic(&public_path(&path), b"mine", 0o600).unwrap();
        let result = SecretKey::generate().unwrap().save(&path, b"p");
        assert!(matches!(result, Err(ReleaseError::KeyExists(_))));
        assert!(!path.exists());
    }

    #[test]
    fn the_key_id_is_the_one_other_tuf_tools_compute() {
        // securesystemslib: SSlibKey.from_crypto(...).keyid of the all-zero seed's public key.
        let key = SecretKey { key: SigningKey::from_bytes(&[0; 32]) };
        let canonical = r#"{"keytype":"ed25519","keyval":{"public":"3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"},"scheme":"ed25519"}"#;
        assert_eq!(key.public().id(), hex(&Sha256::digest(canonical)));
    }
}
