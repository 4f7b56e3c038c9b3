//! The enrolment token: what a new machine must know of its hub, in one line of text.

use crate::SpkiPin;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

/// What every token begins with. Secret scanners find it by this.
pub const TOKEN_PREFIX: &str = "picket-enroll-1.";
/// The longest token, in characters.
const MAX_CHARS: usize = 4096;
/// The bytes of a checksum at the end: enough to tell a slip of the hand from a token.
const CHECK_BYTES: usize = 4;
/// The bytes of a secret: 256 bits.
const SECRET_BYTES: usize = 32;

/// A token. It is a secret: it has no `Debug` or `Display` that shows it, only [`EnrolmentToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// Where the hub hears agents: an `https` address.
    pub hub: String,
    /// Which token this is, for lists and refusals.
    pub id: Uuid,
    /// By which keys the hub is known: its root's, and the next root's while it is replaced.
    pub pins: Vec<SpkiPin>,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

/// Why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error(
        "this is no enrolment token: one begins with {TOKEN_PREFIX}; make one on the hub with picket hub token create"
    )]
    NotAToken,
    /// Something of it is missing or changed.
    #[error("the token is damaged: a character is missing or changed; copy it again, whole, or make a new one")]
    Damaged,
    /// It says something that cannot be.
    #[error("the token cannot be used: {0}; make a new one on the hub")]
    Unusable(String),
}

/// What stands in a token.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(rename = "h")]
    hub: String,
    #[serde(rename = "i")]
    id: Uuid,
    #[serde(rename = "p")]
    pins: Vec<SpkiPin>,
    #[serde(rename = "s")]
    secret: String,
}

impl EnrolmentToken {
    /// A new one with a secret of the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn generate(hub: &str, id: Uuid, pins: &[SpkiPin]) -> Result<Self, crate::PkiError> {
        let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
        getrandom::fill(secret.as_mut()).map_err(|error| crate::PkiError::unmakable("a token", error))?;
        Ok(Self { hub: hub.to_owned(), id, pins: pins.to_vec(), secret })
    }

    /// The whole token as text, to be handed to a machine.
    pub fn reveal(&self) -> Zeroizing<String> {
        let secret = URL_SAFE_NO_PAD.encode(self.secret.as_ref());
        let written = Written { hub: self.hub.clone(), id: self.id, pins: self.pins.clone(), secret };
        // Strings, an id and a list of strings: nothing that could fail.
        let mut bytes = Zeroizing::new(serde_json::to_vec(&written).unwrap_or_default());
        let check = Sha256::digest(bytes.as_slice());
        bytes.extend_from_slice(&check[..CHECK_BYTES]);
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()));
        Zeroizing::new(format!("{TOKEN_PREFIX}{}", encoded.as_str()))
    }

    /// Reads a token; blanks and line ends around it are forgiven.
    ///
    /// # Errors
    /// What is wrong with it, without repeating any of it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(TOKEN_PREFIX).ok_or(TokenError::NotAToken)?;
        if body.len() > MAX_CHARS {
            return Err(TokenError::Damaged);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?);
        let at = bytes.len().checked_sub(CHECK_BYTES).ok_or(TokenError::Damaged)?;
        let (document, check) = bytes.split_at(at);
        if &Sha256::digest(document)[..CHECK_BYTES] != check {
            return Err(TokenError::Damaged);
        }
        let written: Written =
            serde_json::from_slice(document).map_err(|_| TokenError::Unusable("it is of another form".to_owned()))?;
        let decoded = Zeroizing::new(URL_SAFE_NO_PAD.decode(&written.secret).unwrap_or_default());
        let Ok(secret) = <[u8; SECRET_BYTES]>::try_from(decoded.as_slice()) else {
            return Err(TokenError::Unusable("its secret is of another length".to_owned()));
        };
        if written.pins.is_empty() || written.pins.len() > 4 {
            return Err(TokenError::Unusable("it does not say by which key the hub is known".to_owned()));
        }
        if !written.hub.starts_with("https://") {
            return Err(TokenError::Unusable("the hub's address in it is not https".to_owned()));
        }
        Ok(Self { hub: written.hub, id: written.id, pins: written.pins, secret: Zeroizing::new(secret) })
    }

    /// The secret as it is sent to the hub, over TLS with the pinned hub and nobody else.
    pub fn secret(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.as_ref()))
    }
}

impl std::fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrolmentToken({} for {})", self.id, self.hub)
    }
}

/// What a hub keeps of a secret: its SHA-256. 256 random bits need no slow hash.
pub fn secret_hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> EnrolmentToken {
        let pins = [SpkiPin::of_spki(b"one"), SpkiPin::of_spki(b"two")];
        EnrolmentToken::generate("https://hub.example:8444", Uuid::now_v7(), &pins).unwrap()
    }

    #[test]
    fn a_token_reads_back_what_it_writes() {
        let token = token();
        let text = token.reveal();
        let again = EnrolmentToken::parse(&format!("  {}\n", text.as_str())).unwrap();
        assert_eq!(again, token);
        assert_eq!(again.secret(), token.secret());
        assert_eq!(secret_hash(&again.secret()), secret_hash(&token.secret()));
    }

    #[test]
    fn any_character_that_is_lost_or_changed_is_noticed() {
        let text = token().reveal();
        for at in 0..text.len() {
            let mut less = text.to_string();
            less.remove(at);
            assert!(EnrolmentToken::parse(&less).is_err(), "without {at}");
            let mut other = text.to_string();
            let swap = if &other[at..=at] == "A" { "B" } else { "A" };
            other.replace_range(at..=at, swap);
            assert!(EnrolmentToken::parse(&other).is_err(), "changed {at}");
        }
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_secret() {
        let token = token();
        let secret = token.secret();
        assert!(!format!("{token:?}").contains(secret.as_str()));
        let text = token.reveal().replacen("picket-enroll-1.", "picket-enroll-1.x", 1);
        let error = EnrolmentToken::parse(&text).unwrap_err();
        assert!(!error.to_string().contains(&text[20..40]));
    }

    #[test]
    fn a_token_without_pin_or_with_a_hub_in_clear_is_refused() {
        let none = EnrolmentToken { pins: Vec::new(), ..token() };
        assert!(matches!(EnrolmentToken::parse(&none.reveal()), Err(TokenError::Unusable(_))));
        let clear = EnrolmentToken { hub: "http://hub.example".to_owned(), ..token() };
        assert!(matches!(EnrolmentToken::parse(&clear.reveal()), Err(TokenError::Unusable(_))));
        assert_eq!(EnrolmentToken::parse("hello"), Err(TokenError::NotAToken));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            let _ = EnrolmentToken::parse(&text);
            let _ = EnrolmentToken::parse(&format!("{TOKEN_PREFIX}{text}"));
        }
    }
}
