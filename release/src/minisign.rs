//! minisign keys and signatures, readable by every minisign tool.
//!
//! The format is minisign's own (<https://jedisct1.github.io/minisign/>, "Signature format", "Secret key format"):
//! a signature is Ed25519 over the BLAKE2b-512 of the file (`ED`, prehashed), and a second one over the first and the
//! trusted comment. The secret key is masked with a scrypt stream; the cost is stored as libsodium's `opslimit` and
//! `memlimit`, from which [`cost`] computes N, r and p as libsodium does (`pickparams`).

use crate::error::ReleaseError;
use crate::key::random;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b256, Blake2b512, Digest};
use ed25519_dalek::{Signer, SigningKey};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use zeroize::Zeroizing;

/// The largest key file, in bytes.
const MAX_BYTES: u64 = 4 << 10;
/// What new keys are masked with: scrypt with N = 2¹⁷, r = 8, p = 1, 128 MiB. minisign's own default takes a gigabyte,
/// which build machines do not have.
const OPS_LIMIT: u64 = 4_194_304;
const MEM_LIMIT: u64 = 134_217_728;
/// The most memory that opening a foreign key may take: minisign's own default.
const MAX_MEM_LIMIT: u64 = 1 << 30;

/// A minisign secret key.
pub struct SecretKey {
    id: [u8; 8],
    key: SigningKey,
}

impl SecretKey {
    /// A new key with a random id.
    pub fn generate() -> Result<Self, ReleaseError> {
        Ok(Self { id: *random::<8>()?, key: SigningKey::from_bytes(&*random::<32>()?) })
    }

    /// The base64 line of the public key: what `minisign -P` takes and what the root metadata lists.
    pub fn public_line(&self) -> String {
        let bytes = [b"Ed", &self.id[..], self.key.verifying_key().as_bytes()].concat();
        STANDARD.encode(bytes)
    }

    /// The key's id as minisign prints it.
    pub fn id_text(&self) -> String {
        format!("{:016X}", u64::from_le_bytes(self.id))
    }

    /// Writes the key to the new file `path` (0600) under `passphrase`, and the public half beside it as `path.pub`.
    ///
    /// # Errors
    /// When either file exists: a key is never replaced.
    pub fn save(&self, path: &Path, passphrase: &[u8]) -> Result<(), ReleaseError> {
        let public = crate::key::public_path(path);
        for file in [path, &public] {
            if std::fs::symlink_metadata(file).is_ok() {
                return Err(ReleaseError::KeyExists(file.to_owned()));
            }
        }
        let salt = random::<32>()?;
        let mut body = Zeroizing::new([&self.id[..], &self.secret_bytes()[..], &self.checksum()].concat());
        mask(&mut body, passphrase, salt.as_ref(), OPS_LIMIT, MEM_LIMIT)
            .map_err(|e| ReleaseError::bad_file(path, e))?;
        let bytes =
            [b"EdScB2", &salt[..], &OPS_LIMIT.to_le_bytes(), &MEM_LIMIT.to_le_bytes(), body.as_slice()].concat();
        let text = format!("untrusted comment: minisign encrypted secret key\n{}\n", STANDARD.encode(bytes));
        picket_durable::write_atomic(path, text.as_bytes(), 0o600)?;
        let text = format!("untrusted comment: minisign public key {}\n{}\n", self.id_text(), self.public_line());
        picket_durable::write_atomic(&public, text.as_bytes(), 0o644)?;
        Ok(())
    }

    fn secret_bytes(&self) -> Zeroizing<[u8; 64]> {
        Zeroizing::new(self.key.to_keypair_bytes())
    }

    fn checksum(&self) -> [u8; 32] {
        let digest = Blake2b256::new().chain_update(b"Ed").chain_update(self.id);
        digest.chain_update(&self.secret_bytes()[..]).finalize().into()
    }

    /// Opens the key file at `path`, made here or by minisign.
    ///
    /// # Errors
    /// [`ReleaseError::WrongPassphrase`] when the passphrase does not fit.
    pub fn load(path: &Path, passphrase: &[u8]) -> Result<Self, ReleaseError> {
        let text = Zeroizing::new(picket_durable::read_text(path, MAX_BYTES)?);
        let bad = |reason: &str| ReleaseError::bad_file(path, reason);
        let line = text.lines().nth(1).unwrap_or_default();
        let bytes = Zeroizing::new(STANDARD.decode(line.trim()).map_err(|_| bad("it is no minisign secret key"))?);
        let (Some(head), Some(body)) = (bytes.get(..54), bytes.get(54..158)) else {
            return Err(bad("it is no minisign secret key"));
        };
        if &head[..2] != b"Ed" || &head[4..6] != b"B2" || bytes.len() != 158 {
            return Err(bad("it is no minisign secret key"));
        }
        let mut body = Zeroizing::new(body.to_vec());
        let masked = &head[2..4] == b"Sc";
        match &head[2..4] {
            b"Sc" => {
                let number = |at: usize| head[at..at + 8].try_into().map_or(u64::MAX, u64::from_le_bytes);
                mask(&mut body, passphrase, &head[6..38], number(38), number(46))
                    .map_err(|e| ReleaseError::bad_file(path, e))?;
            }
            [0, 0] => {}
            _ => return Err(bad("it is masked in an unknown way")),
        }
        let mut id = [0; 8];
        id.copy_from_slice(&body[..8]);
        let mut seed = Zeroizing::new([0; 32]);
        seed.copy_from_slice(&body[8..40]);
        let key = Self { id, key: SigningKey::from_bytes(&seed) };
        match (masked, key.checksum()[..] == body[72..104]) {
            (true, true) => Ok(key),
            (true, false) => Err(ReleaseError::WrongPassphrase(path.to_owned())),
            // minisign leaves the checksum of a key without a passphrase empty; its public half tells damage as well.
            (false, _) if key.key.verifying_key().as_bytes()[..] == body[40..72] => Ok(key),
            (false, _) => Err(bad("its two halves do not belong together")),
        }
    }

    /// Whether the file at `path` looks like a minisign secret key.
    pub fn is_key_file(path: &Path) -> bool {
        let text = picket_durable::read_text(path, MAX_BYTES).unwrap_or_default();
        text.lines().nth(1).is_some_and(|line| STANDARD.decode(line.trim()).is_ok_and(|bytes| bytes.len() == 158))
    }

    /// Signs the file at `path`; returns the text of its `.minisig`.
    pub fn sign(&self, path: &Path, trusted_comment: &str) -> Result<String, ReleaseError> {
        let mut file = File::open(path).map_err(|e| picket_durable::Error::new("read", path, e))?;
        let mut hasher = Blake2b512::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = file.read(&mut buffer).map_err(|e| picket_durable::Error::new("read", path, e))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        let signature = self.key.sign(&hasher.finalize()).to_bytes();
        let global = self.key.sign(&[&signature[..], trusted_comment.as_bytes()].concat()).to_bytes();
        Ok(format!(
            "untrusted comment: signature from minisign secret key {}\n{}\ntrusted comment: {trusted_comment}\n{}\n",
            self.id_text(),
            STANDARD.encode([b"ED", &self.id[..], &signature].concat()),
            STANDARD.encode(global)
        ))
    }
}

/// Reads the base64 line of a minisign public key file.
pub fn public_line(path: &Path) -> Result<String, ReleaseError> {
    let text = picket_durable::read_text(path, MAX_BYTES)?;
    let line = text.lines().find(|line| !line.starts_with("untrusted comment:")).unwrap_or_default().trim();
    let is_key = STANDARD.decode(line).is_ok_and(|bytes| bytes.len() == 42 && bytes.starts_with(b"Ed"));
    if is_key { Ok(line.to_owned()) } else { Err(ReleaseError::bad_file(path, "it is no minisign public key")) }
}

/// XORs `body` with the scrypt stream of `passphrase`: masks and unmasks.
fn mask(body: &mut [u8], passphrase: &[u8], salt: &[u8], ops: u64, mem: u64) -> Result<(), String> {
    if mem > MAX_MEM_LIMIT {
        return Err(format!("opening it would take {} MiB of memory", mem >> 20));
    }
    let (log_n, r, p) = cost(ops, mem);
    let parameters = scrypt::Params::new(log_n, r, p).map_err(|e| e.to_string())?;
    let mut stream = Zeroizing::new(vec![0; body.len()]);
    scrypt::scrypt(passphrase, salt, &parameters, &mut stream).map_err(|e| e.to_string())?;
    body.iter_mut().zip(stream.iter()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(())
}

/// libsodium's `pickparams` of `crypto_pwhash_scryptsalsa208sha256`: log₂ N, r and p from its two limits.
fn cost(ops: u64, mem: u64) -> (u8, u32, u32) {
    let ops = ops.max(32_768);
    let r = 8_u64;
    let log_of = |max_n: u64| (1_u8..63).find(|log| 1_u64 << log > max_n / 2).unwrap_or(63);
    if ops < mem / 32 {
        return (log_of(ops / (r * 4)), 8, 1);
    }
    let log_n = log_of(mem / (r * 128));
    let max_rp = ((ops / 4) >> log_n).min(0x3fff_ffff);
    (log_n, 8, u32::try_from(max_rp / r).unwrap_or(1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_the_one_libsodium_computes() {
        assert_eq!(cost(OPS_LIMIT, MEM_LIMIT), (17, 8, 1));
        // OPSLIMIT_SENSITIVE and MEMLIMIT_SENSITIVE, minisign's default.
        assert_eq!(cost(33_554_432, 1 << 30), (20, 8, 1));
        // OPSLIMIT_INTERACTIVE and MEMLIMIT_INTERACTIVE.
        assert_eq!(cost(524_288, 16 << 20), (14, 8, 1));
    }

    #[test]
    fn what_we_sign_is_verified_by_an_independent_implementation() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("artifact");
        picket_durable::write_atomic(&file, b"artifact", 0o600).unwrap();
        let path = dir.path().join("minisign.key");
        SecretKey::generate().unwrap().save(&path, b"p").unwrap();
        let key = SecretKey::load(&path, b"p").unwrap();
        let signature = key.sign(&file, "picket 1.0.0 x y").unwrap();

        let public = minisign_verify::PublicKey::from_base64(&key.public_line()).unwrap();
        let decoded = minisign_verify::Signature::decode(&signature).unwrap();
        public.verify(b"artifact", &decoded, false).unwrap();
        assert_eq!(decoded.trusted_comment(), "picket 1.0.0 x y");
        let altered = minisign_verify::Signature::decode(&signature.replace("1.0.0", "9.9.9")).unwrap();
        assert!(public.verify(b"artifact", &altered, false).is_err());
        assert!(matches!(SecretKey::load(&path, b"q"), Err(ReleaseError::WrongPassphrase(_))));
    }
}
