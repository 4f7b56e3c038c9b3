//! Tokens that the hub signs for people and programs: JWT (RFC 7519) with `EdDSA` (RFC 8037), for one hour.
//!
//! Keys rotate: the newest signs, and one that was replaced is believed for as long as the tokens that it signed. Their
//! private halves lie in the database sealed with the hub's own key, so that replicas share them.

use crate::refusal::{Outcome, Refusal};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey, Header, Validation};
use picket_hub_db::{Database, Hidden, SigningKey as KeptKey, TenantId};
use picket_protocol::hub::ProblemCode;
use picket_seal::{Place, Sealer};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

/// For how long a token holds.
pub const LIFE: SignedDuration = SignedDuration::from_hours(1);
/// How old the key that signs may become.
const KEY_LIFE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long a key that was replaced is believed: as long as its last token, and a little.
const OVERLAP: SignedDuration = SignedDuration::from_hours(2);
/// How long after the keys were read they are not read again for a token of an unknown key.
const READ_AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(3);
/// What a token is for.
const AUDIENCE: &str = "picket-api";
/// What the keys are kept as.
const PURPOSE: &str = "jwt";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Which hub.
    pub iss: String,
    /// What for.
    pub aud: String,
    /// For whom: `user:<id>` or `token:<id>`.
    pub sub: String,
    /// Since when, in seconds since 1970.
    pub iat: i64,
    /// Until when, in seconds since 1970.
    pub exp: i64,
    /// Which token.
    pub jti: String,
}

impl Claims {
    /// Whether they hold at `now`; replicas' clocks may differ by a minute.
    pub fn holds(&self, now: Timestamp) -> bool {
        now.as_second() < self.exp && self.iat <= now.as_second() + 60
    }
}

/// What came of reading a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// What it says: this hub signed it, whether it still holds or not.
    Signed(Claims),
    /// Its key is not known, as is one that was replaced a while ago; or it was signed for another name of this hub. Honest
    /// programs come with such a token.
    UnknownKey,
    /// It is no token, or its signature is not its key's.
    Forged,
}

/// Why the keys for tokens could not be loaded.
#[derive(Debug)]
pub enum KeysRefused {
    /// The one that signs was sealed with another `seal.key`.
    OtherSeal,
    /// Anything else.
    Refused(Refusal),
}

impl From<Refusal> for KeysRefused {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<picket_hub_db::DbError> for KeysRefused {
    fn from(error: picket_hub_db::DbError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<KeysRefused> for Refusal {
    fn from(refused: KeysRefused) -> Self {
        match refused {
            KeysRefused::OtherSeal => Self::new(
                ProblemCode::Internal,
                "the keys for tokens do not open with this replica's seal.key; give all replicas the same keys and restart them",
            ),
            KeysRefused::Refused(refusal) => refusal,
        }
    }
}

/// Signs and believes tokens.
pub struct Tokens {
    issuer: String,
    keys: RwLock<Vec<Loaded>>,
    /// When the keys were read for a token of an unknown key.
    read_again: tokio::sync::Mutex<Option<Timestamp>>,
}

struct Loaded {
    kid: String,
    signing: SigningKey,
    created_at: Timestamp,
    retires_at: Option<Timestamp>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Tokens {
    /// For the hub at `issuer`. Without keys until [`Tokens::load`].
    pub fn new(issuer: &str) -> Self {
        // Once in a process; by whom does not matter.
        let _ = PROVIDER.install_default();
        Self { issuer: issuer.to_owned(), keys: RwLock::default(), read_again: tokio::sync::Mutex::default() }
    }

    /// Reads the keys, and makes a new one if there is none that may sign. Called at the start, and now and then.
    ///
    /// # Errors
    /// When the database does not answer or the key that signs cannot be opened.
    pub async fn load(
        &self,
        db: &Arc<dyn Database>,
        tenant: TenantId,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Result<(), KeysRefused> {
        let mut loaded = open(&db.signing_keys(tenant, PURPOSE).await?, sealer)?;
        if !loaded.iter().any(|key| signs_at(key, now)) {
            add(&**db, tenant, sealer, now).await?;
            loaded = open(&db.signing_keys(tenant, PURPOSE).await?, sealer)?;
        }
        loaded.retain(|key| key.retires_at.is_none_or(|end| end > now));
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// A token for `subject`, and until when it holds.
    ///
    /// # Errors
    /// When there is no key.
    pub fn issue(&self, subject: &str, now: Timestamp) -> Outcome<(String, Timestamp)> {
        let failed = || Refusal::new(ProblemCode::Internal, "no token could be signed; the hub's log says why");
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key =
            keys.iter().filter(|key| key.retires_at.is_none()).max_by_key(|key| key.created_at).ok_or_else(failed)?;
        let until = now.checked_add(LIFE).unwrap_or(now);
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: AUDIENCE.to_owned(),
            sub: subject.to_owned(),
            iat: now.as_second(),
            exp: until.as_second(),
            jti: uuid::Uuid::now_v7().to_string(),
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(key.kid.clone());
        let encoding = EncodingKey::from_ed_der(key.signing.as_bytes());
        let token = jsonwebtoken::encode(&header, &claims, &encoding).map_err(|error| {
            tracing::error!(%error, "a token could not be signed");
            failed()
        })?;
        Ok((token, until))
    }

    /// What a token says. A key that is not known may be one that a replica made since: then the keys are read again first,
    /// every few seconds at most.
    ///
    /// # Errors
    /// As [`Tokens::load`].
    pub async fn read_current(
        &self,
        token: &str,
        db: &Arc<dyn Database>,
        tenant: TenantId,
        sealer: &Sealer,
        now: Timestamp,
    ) -> Outcome<Told> {
        let told = self.read(token);
        if told != Told::UnknownKey {
            return Ok(told);
        }
        // One reads; who came meanwhile finds what it read.
        let mut read_again = self.read_again.lock().await;
        let told = self.read(token);
        let is_recent = read_again.is_some_and(|last| now.duration_since(last).abs() < READ_AGAIN_AFTER);
        if told != Told::UnknownKey || is_recent {
            return Ok(told);
        }
        self.load(db, tenant, sealer, now).await?;
        *read_again = Some(now);
        Ok(self.read(token))
    }

    /// What a token says, by the keys that are known.
    pub fn read(&self, token: &str) -> Told {
        let Some(kid) = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid) else {
            return Told::Forged;
        };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = keys.iter().find(|key| key.kid == kid) else { return Told::UnknownKey };
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&self.issuer]);
        // The time is ours, which tests may set.
        validation.validate_exp = false;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let decoding = DecodingKey::from_ed_der(key.signing.verifying_key().as_bytes());
        match jsonwebtoken::decode::<Claims>(token, &decoding, &validation) {
            Ok(decoded) => {
                let mut claims = decoded.claims;
                // It ends with its key at the latest.
                claims.exp = claims.exp.min(key.retires_at.map_or(i64::MAX, Timestamp::as_second));
                Told::Signed(claims)
            }
            // These are looked at behind the signature.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience) => {
                Told::UnknownKey
            }
            Err(_) => Told::Forged,
        }
    }

    /// The public keys as a JSON Web Key Set (RFC 7517 §5, RFC 8037 §2): whoever shall check tokens elsewhere needs no secret.
    pub fn key_set(&self) -> serde_json::Value {
        use base64::Engine as _;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<_> = keys
            .iter()
            .map(|key| {
                let x = encode(key.signing.verifying_key().as_bytes());
                serde_json::json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key.kid, "x": x})
            })
            .collect();
        serde_json::json!({ "keys": keys })
    }
}

fn signs_at(key: &Loaded, now: Timestamp) -> bool {
    key.retires_at.is_none() && now.duration_since(key.created_at) < KEY_LIFE
}

/// Adds a key that signs from now on; those of before are believed for a while.
async fn add(db: &dyn Database, tenant: TenantId, sealer: &Sealer, now: Timestamp) -> Outcome<()> {
    let fresh = make(sealer, now)?;
    let retire = now.checked_add(OVERLAP).unwrap_or(now);
    match db.add_signing_key(tenant, &fresh, Some(retire)).await {
        Ok(()) => tracing::info!(kid = fresh.kid, "a new key signs tokens"),
        // A replica was faster: its key will do.
        Err(error) if error.is_conflict() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Puts a new key in the place of those that do not open: what they are sealed with is lost, and the tokens that they signed
/// hold no more. Says whether there was one.
///
/// # Errors
/// When the database does not answer.
pub async fn give_up_lost(db: &dyn Database, tenant: TenantId, sealer: &Sealer, now: Timestamp) -> Outcome<bool> {
    let kept = db.signing_keys(tenant, PURPOSE).await?;
    if open(&kept, sealer).is_ok() {
        return Ok(false);
    }
    add(db, tenant, sealer, now).await?;
    Ok(true)
}

fn make(sealer: &Sealer, now: Timestamp) -> Outcome<KeptKey> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a key for tokens could not be made");
        Refusal::new(ProblemCode::Internal, "a key for tokens could not be made; the hub's log says why")
    };
    let mut seed = Zeroizing::new([0u8; 32]);
    getrandom::fill(seed.as_mut()).map_err(|error| failed(&error))?;
    let signing = SigningKey::from_bytes(&seed);
    let kid = uuid::Uuid::now_v7().to_string();
    let sealed = sealer.seal(place(&kid), seed.as_ref()).map_err(|error| failed(&error))?;
    Ok(KeptKey {
        kid,
        purpose: PURPOSE.to_owned(),
        public: signing.verifying_key().as_bytes().to_vec(),
        sealed: Hidden(sealed),
        created_at: now,
        retires_at: None,
    })
}

fn place(kid: &str) -> Place<'_> {
    Place { table: "signing_keys", row: 0, context: kid.as_bytes() }
}

fn open(kept: &[KeptKey], sealer: &Sealer) -> Result<Vec<Loaded>, KeysRefused> {
    let mut loaded = Vec::with_capacity(kept.len());
    for key in kept {
        let seed = sealer.open(place(&key.kid), &key.sealed.0).map(Zeroizing::new);
        let Some(seed) = seed.ok().and_then(|seed| <[u8; 32]>::try_from(seed.as_slice()).ok()) else {
            // One that signs no more costs the tokens that it signed, and those end within hours.
            if key.retires_at.is_some() {
                tracing::warn!(kid = key.kid, "a key for tokens does not open with seal.key; its tokens hold no more");
                continue;
            }
            tracing::error!(kid = key.kid, "the key for tokens does not open with seal.key");
            return Err(KeysRefused::OtherSeal);
        };
        loaded.push(Loaded {
            kid: key.kid.clone(),
            signing: SigningKey::from_bytes(&seed),
            created_at: key.created_at,
            retires_at: key.retires_at,
        });
    }
    Ok(loaded)
}

struct Ed25519Signer(SigningKey);

impl Signer<Vec<u8>> for Ed25519Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

impl JwtSigner for Ed25519Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct Ed25519Verifier(VerifyingKey);

impl Verifier<Vec<u8>> for Ed25519Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let failed = |_| signature::Error::new();
        let signature = Signature::from_slice(signature).map_err(failed)?;
        self.0.verify_strict(message, &signature).map_err(failed)
    }
}

impl JwtVerifier for Ed25519Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

/// The one algorithm, by the one library: nothing else is accepted as a signature.
static PROVIDER: CryptoProvider =
    CryptoProvider { signer_factory: signer, verifier_factory: verifier, key_utils: KeyUtils::new_unimplemented() };

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that the library wants")]
fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    let seed = <[u8; 32]>::try_from(key.as_bytes()).ok().filter(|_| *algorithm == Algorithm::EdDSA);
    let seed = seed.ok_or(ErrorKind::InvalidAlgorithm)?;
    Ok(Box::new(Ed25519Signer(SigningKey::from_bytes(&seed))))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that the library wants")]
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let DecodingKeyKind::SecretOrDer(bytes) = key.kind() else { return Err(ErrorKind::InvalidKeyFormat.into()) };
    let bytes = <[u8; 32]>::try_from(bytes.as_slice()).ok().filter(|_| *algorithm == Algorithm::EdDSA);
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).ok_or(ErrorKind::InvalidAlgorithm)?;
    Ok(Box::new(Ed25519Verifier(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use picket_seal::Keyring;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn tokens() -> (Tokens, Sealer, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Arc::new(Keyring::create(&dir.path().join("seal.key")).unwrap());
        let sealer = Sealer::new(keyring).unwrap();
        let tokens = Tokens::new("https://hub.example");
        extend(&tokens, &sealer, now());
        (tokens, sealer, dir)
    }

    /// For whom a token is, if it holds at `now`.
    fn subject(tokens: &Tokens, token: &str, now: Timestamp) -> Option<String> {
        let Told::Signed(claims) = tokens.read(token) else { return None };
        claims.holds(now).then_some(claims.sub)
    }

    fn extend(tokens: &Tokens, sealer: &Sealer, at: Timestamp) {
        let kept = make(sealer, at).unwrap();
        tokens.keys.write().unwrap().extend(open(&[kept], sealer).unwrap());
    }

    #[test]
    fn a_token_is_believed_for_an_hour_and_by_this_hub() {
        let (tokens, sealer, _dir) = tokens();
        let (token, until) = tokens.issue("user:1", now()).unwrap();
        assert_eq!(until.duration_since(now()), LIFE);
        assert_eq!(subject(&tokens, &token, now()).as_deref(), Some("user:1"));
        let later = |minutes| now().checked_add(SignedDuration::from_mins(minutes)).unwrap();
        assert!(subject(&tokens, &token, later(59)).is_some());
        assert_eq!(subject(&tokens, &token, later(60)), None);
        assert_eq!(subject(&tokens, &token, later(-5)), None, "from the future");
        let (other, _, _other_dir) = self::tokens();
        assert_eq!(subject(&other, &token, now()), None);
        let elsewhere = Tokens::new("https://elsewhere.example");
        extend(&elsewhere, &sealer, now());
        assert_eq!(subject(&elsewhere, &token, now()), None);
        // Neither is somebody who tries: a key that is gone, and a hub that was called otherwise.
        assert_eq!([other.read(&token), elsewhere.read(&token)], [Told::UnknownKey, Told::UnknownKey]);
    }

    #[test]
    fn a_key_that_was_replaced_is_believed_until_its_last_token_has_ended() {
        let (tokens, sealer, _dir) = tokens();
        let (old, _) = tokens.issue("user:1", now()).unwrap();
        let later = |hours| now().checked_add(SignedDuration::from_hours(hours)).unwrap();
        tokens.keys.write().unwrap()[0].retires_at = Some(later(0).checked_add(SignedDuration::from_mins(30)).unwrap());
        extend(&tokens, &sealer, later(0));
        let (new, _) = tokens.issue("user:1", now()).unwrap();
        assert_ne!(jsonwebtoken::decode_header(&old).unwrap().kid, jsonwebtoken::decode_header(&new).unwrap().kid);
        assert!(subject(&tokens, &old, now()).is_some());
        assert!(subject(&tokens, &old, now().checked_add(SignedDuration::from_mins(31)).unwrap()).is_none());
        assert!(subject(&tokens, &new, now()).is_some());
    }

    #[test]
    fn a_key_that_does_not_open_is_refused_as_long_as_it_signs() {
        let (_, sealer, _dir) = tokens();
        let (_, lost, _lost_dir) = self::tokens();
        let mut kept = make(&lost, now()).unwrap();
        assert!(matches!(open(&[kept.clone()], &sealer), Err(KeysRefused::OtherSeal)));
        kept.retires_at = Some(now());
        let loaded = open(&[kept, make(&sealer, now()).unwrap()], &sealer).unwrap();
        assert_eq!(loaded.len(), 1);
    }

    #[test]
    fn a_token_that_names_no_algorithm_or_another_one_is_nothing() {
        let (tokens, _sealer, _dir) = tokens();
        let (token, _) = tokens.issue("user:1", now()).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
        for header in [r#"{"alg":"none","kid":"KID"}"#, r#"{"alg":"HS256","kid":"KID"}"#, r#"{"alg":"EdDSA"}"#] {
            let header = encode(&header.replace("KID", &kid));
            for signature in ["", parts[2]] {
                let forged = format!("{header}.{}.{signature}", parts[1]);
                assert_eq!(tokens.read(&forged), Told::Forged, "{forged}");
            }
        }
        let claims = encode(
            r#"{"iss":"https://hub.example","aud":"picket-api","sub":"user:2","iat":0,"exp":99999999999,"jti":""}"#,
        );
        assert_eq!(tokens.read(&format!("{}.{claims}.{}", parts[0], parts[2])), Told::Forged);
        for nothing in ["", "..", "a.b.c", "not a token"] {
            assert_eq!(tokens.read(nothing), Told::Forged, "{nothing}");
        }
    }

    #[test]
    fn the_key_set_tells_public_halves_only() {
        let (tokens, _sealer, _dir) = tokens();
        let set = tokens.key_set();
        assert_eq!(set["keys"][0]["crv"], "Ed25519");
        assert!(set["keys"][0].get("d").is_none());
    }
}
