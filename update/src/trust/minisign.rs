//! The second lock: a minisign signature on every artifact, under keys that the targets keys cannot replace.
//!
//! A person needs nothing but `minisign -Vm FILE -P KEY` to check the same thing. The trusted comment is covered by the
//! signature and must read `product version target sha256`: a signature for one artifact vouches for no other.

use super::TrustError;
use minisign_verify::{PublicKey, Signature};
use picket_protocol::{PRODUCT, Sha256Digest, TargetTriple};
use semver::Version;
use std::io::Read;

/// The largest signature file, in bytes: four short lines.
pub const MAX_SIGNATURE_BYTES: u64 = 4096;
/// More keys than this in a root are a mistake.
const MAX_KEYS: usize = 16;

/// The keys that may sign artifacts.
#[derive(Debug, Clone, Default)]
pub struct MinisignKeys {
    keys: Vec<PublicKey>,
    lines: Vec<String>,
}

/// What a trusted comment must say.
pub fn trusted_comment(version: &Version, target: &TargetTriple, sha256: &Sha256Digest) -> String {
    format!("{PRODUCT} {version} {target} {sha256}")
}

impl MinisignKeys {
    /// Reads the list in the root metadata; what is not a key in it counts for nothing.
    pub fn from_root_field(field: Option<&serde_json::Value>) -> Self {
        let lines = field.and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let lines: Vec<String> = lines.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect();
        Self::from_lines(&lines)
    }

    /// Reads the base64 lines of `.pub` files; what is not a key counts for nothing.
    pub fn from_lines(lines: &[String]) -> Self {
        let read = |line: &String| Some((PublicKey::from_base64(line).ok()?, line.clone()));
        let (keys, lines) = lines.iter().take(MAX_KEYS).filter_map(read).unzip();
        Self { keys, lines }
    }

    /// The keys as [`MinisignKeys::from_lines`] reads them.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Whether there is no key, so that nothing can pass.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks `signature` over the bytes of `artifact`, and that its trusted comment is `expected_comment`.
    ///
    /// # Errors
    /// [`TrustError::Minisign`] with what is wrong: wrong key, altered bytes, altered or other comment, legacy format.
    pub fn verify(
        &self,
        name: &str,
        mut artifact: impl Read,
        signature: &str,
        expected_comment: &str,
    ) -> Result<(), TrustError> {
        let refused = |detail: String| TrustError::Minisign { name: name.to_owned(), detail };
        if self.is_empty() {
            return Err(refused("the release root names no minisign key".to_owned()));
        }
        if signature.len() as u64 > MAX_SIGNATURE_BYTES {
            return Err(refused(format!("the file has {} bytes, more than {MAX_SIGNATURE_BYTES}", signature.len())));
        }
        let signature = Signature::decode(signature).map_err(|e| refused(e.to_string()))?;
        // The key id in the signature picks the key; a key of another id refuses at once.
        let mut verifiers: Vec<_> = self.keys.iter().filter_map(|key| key.verify_stream(&signature).ok()).collect();
        if verifiers.is_empty() {
            return Err(refused(
                "made by a key that the release root does not name, or in the legacy format".to_owned(),
            ));
        }
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = artifact.read(&mut buffer).map_err(|e| refused(format!("cannot read the file: {e}")))?;
            if read == 0 {
                break;
            }
            verifiers.iter_mut().for_each(|verifier| verifier.update(&buffer[..read]));
        }
        let verdicts: Vec<_> = verifiers.into_iter().map(|mut verifier| verifier.finalize()).collect();
        if let Some(Err(error)) = verdicts.iter().find(|_| verdicts.iter().all(Result::is_err)) {
            return Err(refused(error.to_string()));
        }
        // Read only now: before, it is a stranger's word.
        if signature.trusted_comment() != expected_comment {
            let found: String = signature.trusted_comment().chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(refused(format!("it is for {found:?}, not for {expected_comment:?}")));
        }
        Ok(())
    }
}
