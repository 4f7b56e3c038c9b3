//! One file that the vendor signed: its path, its length, its hashes.

use super::TrustError;
use picket_protocol::Sha256Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha512};
use sigstore_tuf::TargetFile;

/// A file whose length and hashes the vendor signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedTarget {
    /// Its TUF path.
    pub path: String,
    /// Its length in bytes.
    pub length: u64,
    /// Its hashes.
    pub hashes: Hashes,
    /// Whether servers keep it under a name that begins with its hash (TUF §6.2, consistent snapshots).
    pub hash_in_name: bool,
}

/// The hashes of a file that this version can compute; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    sha256: Option<Sha256Digest>,
    /// In lower-case hex.
    sha512: Option<String>,
}

/// Computes every hash that was signed while the bytes come by.
pub struct Hasher {
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

impl VerifiedTarget {
    /// Reads what the targets metadata says about `path`.
    ///
    /// # Errors
    /// When none of its hashes is one that this version knows, or one is malformed: such a file cannot be verified.
    pub(super) fn read(path: &str, file: &TargetFile, hash_in_name: bool) -> Result<Self, TrustError> {
        let bad = || TrustError::NoHash(path.to_owned());
        let sha256 = file.hashes.get("sha256").map(|hex| hex.parse().map_err(|_| bad())).transpose()?;
        let sha512 =
            file.hashes.get("sha512").map(|hex| is_sha512(hex).then(|| hex.to_ascii_lowercase()).ok_or_else(bad));
        let hashes = Hashes { sha256, sha512: sha512.transpose()? };
        if hashes.sha256.is_none() && hashes.sha512.is_none() {
            return Err(bad());
        }
        Ok(Self { path: path.to_owned(), length: file.length, hashes, hash_in_name })
    }

    /// Its SHA-256, by which Picket knows an artifact.
    ///
    /// # Errors
    /// When the vendor signed another hash only.
    pub fn sha256(&self) -> Result<Sha256Digest, TrustError> {
        self.hashes.sha256.ok_or_else(|| TrustError::NoHash(self.path.clone()))
    }

    /// Checks that `bytes` are this file.
    pub fn check(&self, bytes: &[u8]) -> Result<(), TrustError> {
        if bytes.len() as u64 != self.length {
            return Err(self.mismatch(format!("{} bytes instead of {}", bytes.len(), self.length)));
        }
        let mut hasher = self.hashes.hasher();
        hasher.update(bytes);
        self.check_hashes(hasher)
    }

    /// Checks what `hasher` made of all bytes.
    pub(crate) fn check_hashes(&self, hasher: Hasher) -> Result<(), TrustError> {
        let found = hasher.finish();
        if found == self.hashes {
            return Ok(());
        }
        let name = if self.hashes.sha256 == found.sha256 { "SHA-512" } else { "SHA-256" };
        Err(self.mismatch(format!("{name} {found} instead of {}", self.hashes)))
    }

    fn mismatch(&self, detail: String) -> TrustError {
        TrustError::Mismatch { name: self.path.clone(), detail }
    }
}

impl Hashes {
    /// The hash that names the file on servers and on disk: SHA-256 where there is one.
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// Something that computes these hashes.
    pub fn hasher(&self) -> Hasher {
        Hasher { sha256: self.sha256.map(|_| Sha256::new()), sha512: self.sha512.as_ref().map(|_| Sha512::new()) }
    }
}

impl std::fmt::Display for Hashes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.sha256, &self.sha512) {
            (Some(sha256), _) => sha256.fmt(f),
            (None, sha512) => f.write_str(sha512.as_deref().unwrap_or_default()),
        }
    }
}

impl From<Sha256Digest> for Hashes {
    fn from(sha256: Sha256Digest) -> Self {
        Self { sha256: Some(sha256), sha512: None }
    }
}

impl Hasher {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.sha256 {
            hasher.update(bytes);
        }
        if let Some(hasher) = &mut self.sha512 {
            hasher.update(bytes);
        }
    }

    fn finish(self) -> Hashes {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
        let hex = |digest: &[u8]| digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        Hashes {
            sha256: self.sha256.map(|hasher| Sha256Digest::new(hasher.finalize().into())),
            sha512: self.sha512.map(|hasher| hex(&hasher.finalize())),
        }
    }
}

fn is_sha512(hex: &str) -> bool {
    hex.len() == 128 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// FIPS 180-4, the one-block message of its examples.
    const ABC_256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_512: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd\
                           454d4423643ce80e2a9ac94fa54ca49f";

    fn target(hashes: serde_json::Value) -> Result<VerifiedTarget, TrustError> {
        let mut file = json!({ "length": 3 });
        file["hashes"] = hashes;
        let file: TargetFile = serde_json::from_value(file).unwrap();
        VerifiedTarget::read("a", &file, true)
    }

    #[test]
    fn every_hash_that_was_signed_must_fit() {
        for hashes in
            [json!({"sha256": ABC_256}), json!({"sha512": ABC_512}), json!({"sha256": ABC_256, "sha512": ABC_512})]
        {
            let target = target(hashes).unwrap();
            target.check(b"abc").unwrap();
            assert!(target.check(b"abd").is_err() && target.check(b"abcd").is_err());
        }
        let one_wrong = target(json!({"sha256": ABC_256, "sha512": ABC_512.replace('d', "e")})).unwrap();
        assert!(one_wrong.check(b"abc").unwrap_err().to_string().contains("SHA-512"));
    }

    #[test]
    fn a_file_without_a_hash_that_can_be_computed_cannot_be_verified() {
        for hashes in [json!({}), json!({"md5": "900150983cd24fb0d6963f7d28e17f72"}), json!({"sha256": "ba78"})] {
            assert!(matches!(target(hashes), Err(TrustError::NoHash(_))));
        }
        let other = target(json!({"sha512": ABC_512})).unwrap();
        assert!(other.sha256().is_err());
    }
}
