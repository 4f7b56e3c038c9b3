//! NATS keys: a seed in base32, its public key, and signatures with it.
//!
//! `async-nats` signs a server's challenge only with its feature `nkeys`, whose package brings a second generation of
//! Ed25519, SHA-2 and their traits. This one has the same name and what of its interface is used, over the generation that
//! is here already; the workspace's manifest puts it in the other's place.
//!
//! The format is NATS' own (<https://github.com/nats-io/nkeys>, `strkey.go`): base32 (RFC 4648 §6, without padding) over
//! prefix, key and CRC-16/XMODEM of both, low byte first. A seed has two prefix bytes: five bits `S`, then the five bits of
//! the kind of key.

use ed25519_dalek::{Signer, SigningKey};
use zeroize::Zeroizing;

/// A seed: 2 bytes of prefix, 32 of the key, 2 of the checksum, in base32.
const SEED_CHARACTERS: usize = 58;
const SEED_BYTES: usize = 36;
/// `S`, in the upper five bits.
const PREFIX_SEED: u8 = 18 << 3;
/// The kinds of keys that sign, by the upper five bits of their prefix: N, C, O, A, U.
const KINDS: [u8; 5] = [13 << 3, 2 << 3, 14 << 3, 0, 20 << 3];
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Why a seed cannot be used. The seed is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not have the length of one.
    #[error("an NKey seed has {SEED_CHARACTERS} characters and begins with S")]
    Length,
    /// It has a character that base32 does not.
    #[error("an NKey seed has only the characters A to Z and 2 to 7")]
    Character,
    /// Its checksum is wrong: a character is.
    #[error("the checksum of the NKey seed is wrong: a character of it is")]
    Checksum,
    /// It is no seed, or not of a key that signs.
    #[error("this is not the seed of an NKey that signs (it should begin with SU for a user)")]
    Kind,
}

/// A key that signs.
#[derive(Clone)]
pub struct KeyPair {
    kind: u8,
    key: SigningKey,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyPair({})", self.public_key())
    }
}

impl KeyPair {
    /// Reads a seed.
    ///
    /// # Errors
    /// It is not one.
    pub fn from_seed(seed: &str) -> Result<Self, Error> {
        let seed = seed.as_bytes();
        if seed.len() != SEED_CHARACTERS {
            return Err(Error::Length);
        }
        let bytes = decode(seed)?;
        let (body, sum) = bytes.split_at(SEED_BYTES - 2);
        if crc16(body).to_le_bytes() != sum {
            return Err(Error::Checksum);
        }
        let kind = (body[0] & 0b111) << 5 | body[1] >> 3;
        if body[0] & 0b1111_1000 != PREFIX_SEED || body[1] & 0b111 != 0 || !KINDS.contains(&kind) {
            return Err(Error::Kind);
        }
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&body[2..]);
        Ok(Self { kind, key: SigningKey::from_bytes(&key) })
    }

    /// The public key, as NATS writes it: 56 characters, `U…` for a user.
    pub fn public_key(&self) -> String {
        let mut bytes = vec![self.kind];
        bytes.extend_from_slice(self.key.verifying_key().as_bytes());
        bytes.extend_from_slice(&crc16(&bytes).to_le_bytes());
        encode(&bytes)
    }

    /// Signs (Ed25519, RFC 8032): 64 bytes.
    ///
    /// # Errors
    /// None; the interface that stands here asks for it.
    pub fn sign(&self, input: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.key.sign(input).to_bytes().to_vec())
    }
}

/// CRC-16/XMODEM: polynomial 0x1021, from zero, not reflected.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |mut crc, byte| {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
        crc
    })
}

/// The bytes of a text of [`SEED_CHARACTERS`] in base32. Two bits are over; they are not looked at.
fn decode(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(SEED_BYTES));
    let (mut buffer, mut bits) = (0u32, 0);
    for character in text {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'2'..=b'7' => character - b'2' + 26,
            _ => return Err(Error::Character),
        };
        buffer = (buffer << 5 | u32::from(value)) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(buffer >> bits & 0xff).unwrap_or(0));
        }
    }
    Ok(bytes)
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut buffer, mut bits) = (0u32, 0);
    let mut put = |value: u32| text.push(char::from(ALPHABET[usize::try_from(value & 31).unwrap_or(0)]));
    for byte in bytes {
        buffer = (buffer << 8 | u32::from(*byte)) & 0xfff;
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            put(buffer >> bits);
        }
    }
    if bits > 0 {
        put(buffer << (5 - bits));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signature, Verifier};
    use proptest::prelude::*;

    fn seed(kind: u8, key: [u8; 32]) -> String {
        let mut bytes = vec![PREFIX_SEED | kind >> 5, kind << 3];
        bytes.extend_from_slice(&key);
        bytes.extend_from_slice(&crc16(&bytes).to_le_bytes());
        encode(&bytes)
    }

    #[test]
    fn the_checksum_is_the_one_of_the_catalogue() {
        // CRC-16/XMODEM's check value (reveng's catalogue of CRCs).
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }

    #[test]
    fn a_users_seed_gives_the_public_key_that_begins_with_u() {
        let text = seed(20 << 3, [7; 32]);
        assert!(text.starts_with("SU"), "{text}");
        let pair = KeyPair::from_seed(&text).unwrap();
        assert!(pair.public_key().starts_with('U') && pair.public_key().len() == 56, "{pair:?}");
        let signature = Signature::from_slice(&pair.sign(b"nonce").unwrap()).unwrap();
        assert!(SigningKey::from_bytes(&[7; 32]).verifying_key().verify(b"nonce", &signature).is_ok());
    }

    /// From NATS' own documentation (nats-server, `authorization` by nkeys): not ours to choose.
    #[test]
    fn the_example_of_the_documentation_is_read() {
        let pair = KeyPair::from_seed("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY").unwrap();
        assert_eq!(pair.public_key(), "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4");
    }

    #[test]
    fn what_is_not_a_seed_is_refused_and_not_repeated() {
        let good = seed(20 << 3, [7; 32]);
        let mut wrong = good.clone();
        wrong.replace_range(10..11, if &good[10..11] == "A" { "B" } else { "A" });
        let cases = [
            (String::new(), Error::Length),
            (good[1..].to_owned(), Error::Length),
            (good.to_lowercase(), Error::Character),
            (wrong.clone(), Error::Checksum),
            (seed(23 << 3, [7; 32]), Error::Kind),
        ];
        for (text, error) in cases {
            assert_eq!(KeyPair::from_seed(&text).unwrap_err(), error);
        }
        assert!(!Error::Checksum.to_string().contains(&wrong));
        assert!(!format!("{:?}", KeyPair::from_seed(&good)).contains(&good));
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key: [u8; 32], kind in prop::sample::select(KINDS.to_vec())) {
            let pair = KeyPair::from_seed(&seed(kind, key)).unwrap();
            prop_assert_eq!(pair.key.to_bytes(), key);
            prop_assert_eq!(pair.kind, kind);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[A-Z2-7é]{0,60}") {
            let _ = KeyPair::from_seed(&text);
        }
    }
}
