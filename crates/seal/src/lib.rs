//! Bytes at rest: one key file a device, records sealed with AES-256-GCM, files sealed in chunks.
//!
//! # Keys
//! The [`Keyring`] is a file of mode 0600 with one or more 256-bit keys, of which one is active. It is made at install and
//! never overwritten. Rotation adds a key and makes it active; records sealed under older keys stay readable until
//! they are sealed again and the old key is retired.
//!
//! # Nonces
//! AES-GCM breaks when a nonce is used twice under one key, and random 96-bit nonces allow only 2^32 records a key (NIST SP
//! 800-38D, §8.3): 25 days at 2,000 records a second. So no record is sealed under the device's key itself. Each
//! [`Sealer`] draws a salt of 128 random bits and derives a key of its own (HKDF-SHA256, RFC 5869, salt, info `picket
//! seal 1`); under that key its nonces count: 64 bits of counter after 32 random bits. A restart, a restored
//! backup or a database put back from yesterday has a new salt, hence a new key. The 32 random bits are for the one
//! case that a counter cannot see: a virtual machine forked while it runs.
//!
//! # Form
//! `0x01 | key id (u32, big endian) | salt (16) | nonce (12) | ciphertext | tag (16)`: [`OVERHEAD`] bytes more than
//! the plaintext. The associated data binds table, row and key id, so that a record moved to another row does not open.

mod file;
mod keyring;
mod record;

pub use file::{FILE_CHUNK_BYTES, FileError, FileHeader, FileOpener, FileSealer, file_header};
pub use keyring::{KeyError, KeyInfo, Keyring};
pub use record::{MAX_RECORD_BYTES, OVERHEAD, Place, SealError, Sealer};
