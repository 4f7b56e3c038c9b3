//! Passwords: argon2id, a few at a time.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

/// The shortest password, in characters (NIST SP 800-63B §3.1.1.2 asks for 15 where it stands alone; 12 with a limit on
/// attempts is OWASP's lower bound).
pub const MIN_CHARS: usize = 12;
/// The longest, in bytes: hashing a megabyte for everybody who asks would be a gift to an attacker.
const MAX_BYTES: usize = 1024;
/// Memory of one hash in KiB, passes and lanes: OWASP's first choice for argon2id (Password Storage Cheat Sheet, 2025).
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// Hashes at a time: 19 MiB and 30 ms of a core each.
const AT_A_TIME: usize = 2;

/// Hashes and compares passwords, off the threads that serve.
#[derive(Debug, Clone)]
pub struct Passwords {
    permits: Arc<Semaphore>,
    /// What a name that nobody has is compared with, so that it takes as long as one that somebody has.
    decoy: Arc<str>,
}

/// Why a password is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Too short.
    #[error("a password has at least {MIN_CHARS} characters")]
    TooShort,
    /// Too long.
    #[error("a password has at most {MAX_BYTES} bytes")]
    TooLong,
    /// The name or the product in it, and little else.
    #[error("the password is easily guessed; take several words that do not belong together")]
    Guessable,
    /// It could not be hashed.
    #[error("the password could not be hashed")]
    Failed,
}

impl Passwords {
    /// Ready to hash.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub fn new() -> Result<Self, PasswordError> {
        let decoy = hash_now("a password that nobody has")?;
        Ok(Self { permits: Arc::new(Semaphore::new(AT_A_TIME)), decoy: decoy.into() })
    }

    /// Hashes a new password of the user `name`.
    ///
    /// # Errors
    /// When it is too short, too long or easily guessed.
    pub async fn hash(&self, name: &str, password: &str) -> Result<String, PasswordError> {
        check(name, password)?;
        let password = Zeroizing::new(password.to_owned());
        let permit = self.permit().await.ok_or(PasswordError::Failed)?;
        let hashing = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            hash_now(&password)
        });
        hashing.await.map_err(|_| PasswordError::Failed)?
    }

    /// Whether `password` is the one behind `kept`; takes as long when there is none.
    pub async fn matches(&self, kept: Option<&str>, password: &str) -> bool {
        if password.len() > MAX_BYTES {
            return false;
        }
        let is_known = kept.is_some();
        let kept = kept.map_or_else(|| self.decoy.to_string(), str::to_owned);
        let password = Zeroizing::new(password.to_owned());
        let Some(permit) = self.permit().await else { return false };
        let verified = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let parsed = PasswordHash::new(&kept).ok();
            parsed.is_some_and(|hash| argon2().is_ok_and(|a| a.verify_password(password.as_bytes(), &hash).is_ok()))
        });
        verified.await.unwrap_or(false) && is_known
    }

    /// A turn to hash, held by the work itself: whoever hangs up meanwhile has not ended it.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).map_err(|_| PasswordError::Failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt).map_err(|_| PasswordError::Failed)?;
    let hash = argon2()?.hash_password_with_salt(password.as_bytes(), &salt).map_err(|_| PasswordError::Failed)?;
    Ok(hash.to_string())
}

fn check(name: &str, password: &str) -> Result<(), PasswordError> {
    if password.chars().count() < MIN_CHARS {
        return Err(PasswordError::TooShort);
    }
    if password.len() > MAX_BYTES {
        return Err(PasswordError::TooLong);
    }
    // What is left without the words that everybody tries, and without repetition.
    let mut rest = password.to_lowercase();
    for word in [name.to_lowercase().as_str(), "password", "picket", "admin", "123456", "qwerty"] {
        if !word.is_empty() {
            rest = rest.replace(word, "");
        }
    }
    let mut different: Vec<char> = rest.chars().collect();
    different.sort_unstable();
    different.dedup();
    if different.len() < 5 { Err(PasswordError::Guessable) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_matched_by_itself_alone() {
        let passwords = Passwords::new().unwrap();
        let kept = passwords.hash("ada", "correct horse battery").await.unwrap();
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(passwords.matches(Some(&kept), "correct horse battery").await);
        assert!(!passwords.matches(Some(&kept), "correct horse batterz").await);
        assert!(!passwords.matches(None, "a password that nobody has").await, "the decoy lets nobody in");
        assert!(!passwords.matches(Some("no hash"), "correct horse battery").await);
        let again = passwords.hash("ada", "correct horse battery").await.unwrap();
        assert_ne!(kept, again, "each has its own salt");
    }

    #[test]
    fn who_hangs_up_while_a_password_is_looked_at_makes_no_room_for_the_next() {
        // One thread for such work, which is busy: what is begun waits there.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let passwords = Passwords::new().unwrap();
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || wait.recv());
            for begun in 1..=AT_A_TIME {
                let mut asking = Box::pin(passwords.matches(None, "correct horse battery"));
                assert!(futures_util::poll!(asking.as_mut()).is_pending());
                drop(asking);
                assert_eq!(passwords.permits.available_permits(), AT_A_TIME - begun);
            }
            go.send(()).unwrap();
            busy.await.unwrap().unwrap();
            assert!(!passwords.matches(None, "correct horse battery").await, "the others are done then");
        });
    }

    #[test]
    fn what_everybody_tries_first_is_not_taken() {
        assert_eq!(check("ada", "short"), Err(PasswordError::TooShort));
        assert_eq!(check("ada", &"x".repeat(2000)), Err(PasswordError::TooLong));
        for guessed in ["adaadaadaada", "picketpicket1", "aaaaaaaaaaaa", "Password123456"] {
            assert_eq!(check("ada", guessed), Err(PasswordError::Guessable), "{guessed}");
        }
        assert_eq!(check("ada", "correct horse battery"), Ok(()));
    }
}
