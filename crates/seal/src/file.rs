//! One sealed file: chunks of AES-256-GCM in an order that cannot be changed, cut or added to.
//!
//! The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance", CRYPTO 2015, §7): the nonce of each chunk holds its number and whether it is the
//! last, so that chunks which are missing, exchanged or added do not open, and a reader needs one chunk of memory.
//!
//! # Form
//! ```text
//! "PICKETEN"  8 bytes
//! 0x01        form
//! device      16 bytes, the id of the key file
//! key id      u32, big endian
//! salt        16 random bytes; the file's key is HKDF-SHA256(device key, salt, "picket file 1")
//! prefix      7 random bytes
//! chunks      of 65,536 plain bytes each, the last 0 to 65,536; each with its tag of 16
//! ```
//! nonce = prefix ‖ number (u32, big endian) ‖ 1 for the last chunk, else 0. The header is the associated data of every
//! chunk. A file has at most 2^32 chunks: 256 TiB.

use crate::keyring::{Key, KeyError, Keyring};
use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use std::io::{self, Read, Write};
use uuid::Uuid;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"PICKETEN";
const FORM: u8 = 1;
const SALT: usize = 16;
const PREFIX: usize = 7;
const HEADER: usize = MAGIC.len() + 1 + 16 + 4 + SALT + PREFIX;
const TAG: usize = 16;

/// How many plain bytes a chunk has, the last one excepted.
pub const FILE_CHUNK_BYTES: usize = 64 << 10;

/// Why a sealed file was not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The bytes below could not be written or read.
    #[error("cannot read or write the sealed file")]
    Io(#[from] io::Error),
    /// It does not begin as a sealed file does.
    #[error("it is not a sealed file of this version")]
    Form,
    /// Another device sealed it.
    #[error("it was sealed on another device ({0}); give that device's key file to open it here")]
    OtherDevice(Uuid),
    /// The key it names is not among the keys.
    #[error("it is sealed under key {0}, which the key file does not have; give the key file of that time")]
    UnknownKey(u32),
    /// A chunk does not open.
    #[error("it does not open at chunk {0}: it was changed, cut short, or has something added")]
    Damaged(u64),
    /// It has more chunks than the counter counts.
    #[error("it is longer than a sealed file can be")]
    TooLong,
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io(source) => source,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

impl From<KeyError> for FileError {
    fn from(_: KeyError) -> Self {
        Self::Random
    }
}

/// What a sealed file says of itself in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// The id of the key file it was sealed with.
    pub device: Uuid,
    /// The number of the key.
    pub key_id: u32,
}

struct Stream {
    cipher: Aes256Gcm,
    header: [u8; HEADER],
    number: u64,
}

impl Stream {
    fn new(key: &Key, header: [u8; HEADER]) -> Self {
        let salt = &header[HEADER - PREFIX - SALT..HEADER - PREFIX];
        let mut derived = Zeroizing::new([0; 32]);
        // Only lengths over 255 hashes are refused (RFC 5869 §2.3).
        let _ = Hkdf::<Sha256>::new(Some(salt), key.as_slice()).expand(b"picket file 1", derived.as_mut_slice());
        Self { cipher: Aes256Gcm::new(&(*derived).into()), header, number: 0 }
    }

    fn nonce(&mut self, last: bool) -> Result<Nonce<aes_gcm::aead::consts::U12>, FileError> {
        let number = u32::try_from(self.number).map_err(|_| FileError::TooLong)?;
        self.number += 1;
        let mut nonce = [0; 12];
        nonce[..PREFIX].copy_from_slice(&self.header[HEADER - PREFIX..]);
        nonce[PREFIX..11].copy_from_slice(&number.to_be_bytes());
        nonce[11] = u8::from(last);
        Ok(nonce.into())
    }

    fn seal(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<(), FileError> {
        let nonce = self.nonce(last)?;
        self.cipher.encrypt_in_place(&nonce, &self.header, chunk).map_err(|_| FileError::TooLong)
    }

    fn open(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<(), FileError> {
        let number = self.number;
        let nonce = self.nonce(last)?;
        self.cipher.decrypt_in_place(&nonce, &self.header, chunk).map_err(|_| FileError::Damaged(number))
    }
}

/// Seals what is written to it. [`FileSealer::finish`] must be called: a file without its last chunk does not open.
pub struct FileSealer<W: Write> {
    inner: W,
    stream: Stream,
    chunk: Vec<u8>,
}

impl<W: Write> FileSealer<W> {
    /// Writes the header for the active key of `keyring`.
    ///
    /// # Errors
    /// [`FileError::Random`] and [`FileError::Io`].
    pub fn new(keyring: &Keyring, mut inner: W) -> Result<Self, FileError> {
        let (key_id, key) = keyring.active_key();
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8] = FORM;
        header[9..25].copy_from_slice(keyring.device().as_bytes());
        header[25..29].copy_from_slice(&key_id.to_be_bytes());
        getrandom::fill(&mut header[29..]).map_err(|_| FileError::Random)?;
        inner.write_all(&header)?;
        Ok(Self { inner, stream: Stream::new(&key, header), chunk: Vec::with_capacity(FILE_CHUNK_BYTES + TAG) })
    }

    /// Seals the last chunk and gives back what lies below, for the caller to sync.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn finish(mut self) -> Result<W, FileError> {
        self.put(true)?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn put(&mut self, last: bool) -> Result<(), FileError> {
        self.stream.seal(&mut self.chunk, last)?;
        let written = self.inner.write_all(&self.chunk);
        self.chunk.clear();
        Ok(written?)
    }
}

impl<W: Write> Write for FileSealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits until it is known not to be the last.
        if self.chunk.len() == FILE_CHUNK_BYTES && !bytes.is_empty() {
            self.put(false)?;
        }
        let taken = bytes.len().min(FILE_CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens a sealed file. What it gives is genuine chunk by chunk; that the file is *whole* is known when it says end of
/// file. A caller that must not act on a part reads to the end first.
pub struct FileOpener<R: Read> {
    inner: R,
    stream: Stream,
    chunk: Vec<u8>,
    given: usize,
    /// The first byte of the next chunk, read to know whether there is one.
    ahead: Option<u8>,
    last: bool,
}

impl<R: Read> FileOpener<R> {
    /// Reads the header and finds the key.
    ///
    /// # Errors
    /// [`FileError::Form`], [`FileError::OtherDevice`], [`FileError::UnknownKey`], [`FileError::Io`].
    pub fn new(keyring: &Keyring, mut inner: R) -> Result<Self, FileError> {
        let (header, clear) = read_header(&mut inner)?;
        if clear.device != keyring.device() {
            return Err(FileError::OtherDevice(clear.device));
        }
        let key = keyring.key(clear.key_id).ok_or(FileError::UnknownKey(clear.key_id))?;
        let mut opener = Self {
            inner,
            stream: Stream::new(&key, header),
            chunk: Vec::with_capacity(FILE_CHUNK_BYTES + TAG),
            given: 0,
            ahead: None,
            last: false,
        };
        opener.ahead = opener.read_ahead()?;
        Ok(opener)
    }

    fn read_ahead(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        loop {
            match self.inner.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(byte[0])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn next_chunk(&mut self) -> Result<(), FileError> {
        self.chunk.clear();
        self.given = 0;
        let Some(first) = self.ahead.take() else { return Err(FileError::Damaged(self.stream.number)) };
        self.chunk.push(first);
        let rest = (FILE_CHUNK_BYTES + TAG - 1) as u64;
        (&mut self.inner).take(rest).read_to_end(&mut self.chunk)?;
        self.ahead = self.read_ahead()?;
        self.last = self.ahead.is_none();
        if self.chunk.len() < TAG {
            return Err(FileError::Damaged(self.stream.number));
        }
        self.stream.open(&mut self.chunk, self.last)
    }
}

impl<R: Read> Read for FileOpener<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.given == self.chunk.len()
            && !self.last
            && let Err(error) = self.next_chunk()
        {
            // Whoever goes on reading after an error gets the error again, never a quiet end of file.
            self.chunk.clear();
            self.ahead = None;
            self.last = false;
            return Err(error.into());
        }
        let taken = bytes.len().min(self.chunk.len() - self.given);
        bytes[..taken].copy_from_slice(&self.chunk[self.given..self.given + taken]);
        self.given += taken;
        Ok(taken)
    }
}

/// What the sealed file that `inner` begins with says of itself, without any key.
///
/// # Errors
/// [`FileError::Form`] and [`FileError::Io`].
pub fn file_header(inner: &mut impl Read) -> Result<FileHeader, FileError> {
    read_header(inner).map(|(_, clear)| clear)
}

fn read_header(inner: &mut impl Read) -> Result<([u8; HEADER], FileHeader), FileError> {
    let mut header = [0; HEADER];
    inner.read_exact(&mut header).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FileError::Form,
        _ => FileError::Io(error),
    })?;
    if &header[..8] != MAGIC || header[8] != FORM {
        return Err(FileError::Form);
    }
    let device = Uuid::from_slice(&header[9..25]).map_err(|_| FileError::Form)?;
    let key_id = u32::from_be_bytes(header[25..29].try_into().map_err(|_| FileError::Form)?);
    Ok((header, FileHeader { device, key_id }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keyring() -> (tempfile::TempDir, Keyring) {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::create(&dir.path().join("key")).unwrap();
        (dir, keyring)
    }

    fn seal(keyring: &Keyring, plain: &[u8]) -> Vec<u8> {
        let mut sealer = FileSealer::new(keyring, Vec::new()).unwrap();
        sealer.write_all(plain).unwrap();
        sealer.finish().unwrap()
    }

    fn open(keyring: &Keyring, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        FileOpener::new(keyring, sealed)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn a_file_of_any_length_around_a_chunk_comes_back() {
        let (_dir, keyring) = keyring();
        for length in [0, 1, FILE_CHUNK_BYTES - 1, FILE_CHUNK_BYTES, FILE_CHUNK_BYTES + 1, 3 * FILE_CHUNK_BYTES] {
            let plain: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let sealed = seal(&keyring, &plain);
            assert_eq!(sealed.len(), HEADER + length + TAG * length.div_ceil(FILE_CHUNK_BYTES).max(1));
            assert_eq!(open(&keyring, &sealed).unwrap(), plain, "{length}");
        }
    }

    #[test]
    fn a_file_cut_at_a_chunk_reordered_or_added_to_does_not_open() {
        let (_dir, keyring) = keyring();
        let sealed = seal(&keyring, &vec![7; 3 * FILE_CHUNK_BYTES]);
        let whole = FILE_CHUNK_BYTES + TAG;
        assert!(open(&keyring, &sealed[..HEADER + whole]).is_err());
        assert!(open(&keyring, &sealed[..HEADER + 2 * whole]).is_err());
        assert!(open(&keyring, &sealed[..HEADER]).is_err());
        let mut swapped = sealed.clone();
        let (one, two) = swapped[HEADER..HEADER + 2 * whole].split_at_mut(whole);
        one.swap_with_slice(two);
        assert!(open(&keyring, &swapped).is_err());
        for added in [&b"x"[..], &sealed[HEADER..HEADER + whole]] {
            assert!(open(&keyring, &[&sealed, added].concat()).is_err());
        }
        assert_eq!(open(&keyring, &sealed).unwrap().len(), 3 * FILE_CHUNK_BYTES);
    }

    #[test]
    fn a_sealer_that_never_finished_leaves_a_file_that_does_not_open() {
        let (_dir, keyring) = keyring();
        let mut below = Vec::new();
        let mut sealer = FileSealer::new(&keyring, &mut below).unwrap();
        sealer.write_all(&vec![1; 2 * FILE_CHUNK_BYTES + 5]).unwrap();
        drop(sealer);
        assert!(open(&keyring, &below).is_err());
    }

    #[test]
    fn another_devices_file_is_told_from_a_damaged_one_and_from_one_under_a_forgotten_key() {
        let (_a, ours) = keyring();
        let (_b, theirs) = keyring();
        let sealed = seal(&theirs, b"x");
        let error = FileOpener::new(&ours, &*sealed).map(drop).unwrap_err();
        assert!(matches!(error, FileError::OtherDevice(device) if device == theirs.device()));
        let old = seal(&ours, b"x");
        ours.rotate().unwrap();
        assert_eq!(open(&ours, &old).unwrap(), b"x");
        ours.retire(1).unwrap();
        assert!(matches!(FileOpener::new(&ours, &*old).map(drop), Err(FileError::UnknownKey(1))));
        assert_eq!(file_header(&mut &*old).unwrap().key_id, 1);
        assert!(matches!(FileOpener::new(&ours, &b"SQLite format 3"[..]).map(drop), Err(FileError::Form)));
    }

    #[test]
    fn an_error_stays_an_error_however_often_one_reads_on() {
        let (_dir, keyring) = keyring();
        let mut sealed = seal(&keyring, &vec![7; 3 * FILE_CHUNK_BYTES]);
        sealed[HEADER + FILE_CHUNK_BYTES + TAG + 9] ^= 1;
        let mut opener = FileOpener::new(&keyring, &*sealed).unwrap();
        let mut buffer = vec![0; FILE_CHUNK_BYTES];
        opener.read_exact(&mut buffer).unwrap();
        for _ in 0..3 {
            assert!(opener.read(&mut buffer).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_flipped_bit_is_found(length in 0..200_000usize, at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let (_dir, keyring) = keyring();
            let mut sealed = seal(&keyring, &vec![3; length]);
            let index = at.index(sealed.len());
            sealed[index] ^= 1 << bit;
            prop_assert!(open(&keyring, &sealed).is_err());
        }

        #[test]
        fn any_cut_is_found(length in 0..200_000usize, at in any::<prop::sample::Index>()) {
            let (_dir, keyring) = keyring();
            let sealed = seal(&keyring, &vec![3; length]);
            prop_assert!(open(&keyring, &sealed[..at.index(sealed.len())]).is_err());
        }

        #[test]
        fn outside_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (_dir, keyring) = keyring();
            let _ = open(&keyring, &bytes);
            let mut headed = seal(&keyring, b"")[..HEADER].to_vec();
            headed.extend_from_slice(&bytes);
            prop_assert!(open(&keyring, &headed).is_err());
        }
    }
}
