//! Pins: a public key known by its hash.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The SHA-256 of a `SubjectPublicKeyInfo` in DER (RFC 7469 §2.4). Text form: `sha256/` and base64, as curl's `--pinnedpubkey`
/// has it but with a slash, as Chromium writes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpkiPin([u8; 32]);

impl SpkiPin {
    /// The pin of a `SubjectPublicKeyInfo` in DER.
    pub fn of_spki(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// The pin with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash in hexadecimal digits, as databases and lists show it.
    pub fn to_hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            use std::fmt::Write as _;
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl std::fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sha256/{}", STANDARD.encode(self.0))
    }
}

impl std::fmt::Debug for SpkiPin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for SpkiPin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hash = text.strip_prefix("sha256/").filter(|hash| hash.len() == 44);
        let bytes = hash.and_then(|hash| STANDARD.decode(hash).ok()).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| "a pin looks like sha256/ and 44 characters of base64".to_owned())
    }
}

impl Serialize for SpkiPin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpkiPin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_reads_back_what_it_writes_and_nothing_else() {
        let pin = SpkiPin::of_spki(b"some key");
        assert_eq!(pin.to_string().parse::<SpkiPin>().unwrap(), pin);
        assert_eq!(serde_json::from_str::<SpkiPin>(&serde_json::to_string(&pin).unwrap()).unwrap(), pin);
        let short = &pin.to_string()[..50];
        for wrong in ["", "sha256/", "sha1/AAAA", short, &format!("{pin}A"), &pin.to_hex()] {
            assert!(wrong.parse::<SpkiPin>().is_err(), "{wrong}");
        }
    }
}
