//! One root in the place of another, without any agent being left behind.
//!
//! Beside the root and intermediate in force, new ones are made. From then on agents' certificates are signed under the new
//! root and come with both; the hub goes on showing a certificate that the old root vouches for. When all agents have
//! renewed, all know the new root, and the old one goes.
//!
//! Each step may be broken off: done again, it goes on where it was.

use super::{KeysError, KeysFolder};
use jiff::Timestamp;
use picket_pki::{Authority, HubNames, SpkiPin};
use std::path::Path;

/// The files of the authorities, and what is called so while it is made, in the order in which they are put in place.
const NAMES: [&str; 4] = ["intermediate.key", "intermediate.crt", "root.key", "root.crt"];

/// How a roll-over was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolled {
    /// The new root.
    pub pin: SpkiPin,
    /// It was begun before; nothing, or only the end, was done now.
    pub was_begun: bool,
}

impl KeysFolder {
    /// Whether one root replaces another at present.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn is_rolling(&self) -> Result<bool, KeysError> {
        Ok(self.certificate("previous-root.crt")?.is_some())
    }

    /// Makes a new root and intermediate, and puts them in force beside the old ones.
    ///
    /// # Errors
    /// When something is missing, or cannot be written: done again, it goes on.
    pub fn begin_roll(&self, fleet: &str, now: Timestamp) -> Result<Rolled, KeysError> {
        let was_begun = self.is_rolling()?;
        let next = |name: &str| format!("next-{name}");
        let is_made = self.path(&next("root.crt")).exists();
        if was_begun && !is_made {
            // All are in their places: those of `next` go one by one, the root's certificate last.
            let root = self.certificate("root.crt")?.ok_or_else(|| KeysError::None(self.dir().to_owned()))?;
            return Ok(Rolled { pin: root.pin, was_begun });
        }
        if !is_made {
            // What is old must be whole before anything is made beside it.
            self.load()?;
            let root = Authority::root(fleet, now)?;
            let intermediate = root.intermediate(now)?;
            self.write_key(&next("intermediate.key"), intermediate.key())?;
            self.write_certificate(&next("intermediate.crt"), intermediate.certificate())?;
            self.write_key(&next("root.key"), root.key())?;
            self.write_certificate(&next("root.crt"), root.certificate())?;
        }
        for name in NAMES {
            let (present, previous) = (self.path(name), self.path(&format!("previous-{name}")));
            // Once everything old has its copy, and never after the new one took its place.
            if present.exists() && !previous.exists() && self.path(&next(name)).exists() {
                let mode = if is_key(&present) { 0o600 } else { 0o644 };
                picket_durable::copy_file(&present, &previous, mode)?;
            }
        }
        for name in NAMES {
            let made = self.path(&next(name));
            if made.exists() {
                picket_durable::rename(&made, &self.path(name))?;
            }
        }
        let keys = self.load()?;
        let pin = keys.pins().first().copied().ok_or_else(|| KeysError::None(self.dir().to_owned()))?;
        Ok(Rolled { pin, was_begun })
    }

    /// Drops the old root: the hub shows a certificate of the new one from now on. Says whether there was an old one.
    ///
    /// # Errors
    /// When a file cannot be written: done again, it goes on.
    pub fn finish_roll(&self, names: &[String], now: Timestamp) -> Result<bool, KeysError> {
        if !self.is_rolling()? {
            return Ok(false);
        }
        let keys = self.load()?;
        self.renew_hub(&keys.intermediate, &HubNames::new(names)?, now)?;
        // The root's certificate last: it says that this is not over.
        for name in NAMES {
            picket_durable::remove_if_present(&self.path(&format!("previous-{name}")))?;
        }
        Ok(true)
    }
}

fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_pki::{AgentIdentity, ChainPolicy, CsrKey, PrivateKey, check_agent_chain, check_hub_chain};
    use rustls::pki_types::ServerName;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn names() -> Vec<String> {
        vec!["hub.example".to_owned()]
    }

    /// Whether a machine that knows these pins takes the hub.
    fn is_known(folder: &KeysFolder, pins: &[SpkiPin]) -> bool {
        is_known_at(folder, pins, now())
    }

    fn is_known_at(folder: &KeysFolder, pins: &[SpkiPin], now: Timestamp) -> bool {
        let chain: Vec<_> = folder.load().unwrap().hub_chain().iter().map(|each| each.der().clone()).collect();
        check_hub_chain(&chain, pins, &ServerName::try_from("hub.example").unwrap(), now).is_ok()
    }

    #[test]
    fn old_and_new_agents_know_the_hub_until_the_old_root_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        let old = folder.init("test", &names(), now()).unwrap().pin;
        let rolled = folder.begin_roll("test", now()).unwrap();
        assert!(!rolled.was_begun && rolled.pin != old);
        let keys = folder.load().unwrap();
        assert_eq!(keys.pins(), [rolled.pin, old]);
        assert!(is_known(&folder, &[old]) && is_known(&folder, &[old, rolled.pin]));
        // The hub's own renewal in between stays with the old root.
        let later = now() + jiff::SignedDuration::from_hours(24 * 61);
        assert_eq!(folder.renew_if_due(&names(), later).unwrap(), [crate::authority::Made::HubCertificate]);
        assert!(is_known_at(&folder, &[old], later));

        // An agent that knows the old root alone takes what it gets, and knows both then.
        let (key, identity) = (PrivateKey::generate().unwrap(), AgentIdentity { tenant: 1, agent: uuid::Uuid::nil() });
        let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
        let leaf = keys.intermediate.agent(identity, &request, now()).unwrap();
        let chain = keys.agent_chain(leaf);
        let policy = ChainPolicy { roots: &keys.roots, identity: Some(identity), pin: key.pin(), now: now() };
        check_agent_chain(&chain, &policy).unwrap();
        check_agent_chain(&chain, &ChainPolicy { roots: &keys.roots[..1], ..policy }).unwrap();

        assert_eq!(folder.begin_roll("test", now()).unwrap(), Rolled { pin: rolled.pin, was_begun: true });
        assert!(folder.finish_roll(&names(), now()).unwrap());
        assert_eq!(folder.load().unwrap().pins(), [rolled.pin]);
        assert!(is_known(&folder, &[rolled.pin]) && !is_known(&folder, &[old]));
        assert!(!folder.finish_roll(&names(), now()).unwrap());
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains('-')), "{left:?}");
    }

    #[test]
    fn a_roll_that_was_broken_off_anywhere_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        // The files as they are when everything is made and nothing is in its place yet.
        let begun = |folder: &KeysFolder| {
            let old = folder.init("test", &names(), now()).unwrap().pin;
            let other = KeysFolder::new(folder.dir().join("other"));
            let new = other.init("test", &names(), now()).unwrap().pin;
            for name in NAMES {
                picket_durable::copy_file(&other.path(name), &folder.path(&format!("next-{name}")), 0o600).unwrap();
            }
            (old, new)
        };
        for done in 0..=8 {
            let folder = KeysFolder::new(dir.path().join(done.to_string()));
            let (old, new) = begun(&folder);
            for name in NAMES.iter().take(done.min(4)) {
                picket_durable::copy_file(&folder.path(name), &folder.path(&format!("previous-{name}")), 0o600)
                    .unwrap();
            }
            for name in NAMES.iter().take(done.saturating_sub(4)) {
                picket_durable::rename(&folder.path(&format!("next-{name}")), &folder.path(name)).unwrap();
            }
            folder.begin_roll("test", now()).unwrap();
            assert_eq!(folder.load().unwrap().pins(), [new, old], "after {done} steps");
            assert!(is_known(&folder, &[old]), "after {done} steps");
        }
    }

    #[test]
    fn the_old_roots_key_may_stay_in_its_safe() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        folder.init("test", &names(), now()).unwrap();
        picket_durable::remove_if_present(&folder.path("root.key")).unwrap();
        folder.begin_roll("test", now()).unwrap();
        assert!(folder.path("root.key").exists() && !folder.path("previous-root.key").exists());
        folder.finish_roll(&names(), now()).unwrap();
    }
}
