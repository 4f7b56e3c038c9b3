//! Making the keys: whatever is missing, and nothing that is there.

use super::{KeysError, KeysFolder};
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use picket_pki::{Authority, HubNames, Renewal, SpkiPin, renewal};
use picket_seal::Keyring;
use serde::Serialize;
use zeroize::Zeroizing;

/// What `picket hub init` made and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitReport {
    /// What was made now, in the order in which it was.
    pub made: Vec<Made>,
    /// By which key machines know this hub.
    pub pin: SpkiPin,
    /// Whether the root's key lies beside the others. It is not needed from day to day.
    pub root_key_present: bool,
}

/// Something that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// The root authority.
    Root,
    /// The authority that signs leaves.
    Intermediate,
    /// The hub's certificate.
    HubCertificate,
    /// The key that signs configurations and commands.
    CommandKey,
    /// The key that seals secrets in the database.
    SealKey,
}

impl KeysFolder {
    /// Makes whatever is missing. Run again, it finishes what was interrupted, and replaces the hub's certificate if that
    /// has expired or is for other names.
    ///
    /// # Errors
    /// When something is missing that cannot be made anew without harm, and what to do about it.
    pub fn init(&self, fleet: &str, names: &[String], now: Timestamp) -> Result<InitReport, KeysError> {
        picket_durable::create_dir(self.dir(), 0o700)?;
        let mut made = Vec::new();
        let hub_names = HubNames::new(names)?;
        let root_certificate = match self.certificate("root.crt")? {
            Some(certificate) => certificate,
            None => {
                // A key whose certificate was not written yet has signed nothing.
                let root = Authority::root(fleet, now)?;
                self.write_key("root.key", root.key())?;
                self.write_certificate("root.crt", root.certificate())?;
                made.push(Made::Root);
                root.certificate().clone()
            }
        };
        let intermediate = match self.authority("intermediate")? {
            Some(authority) => authority,
            None => {
                let root = self.authority("root")?.ok_or_else(|| KeysError::Missing {
                    path: self.path("root.key"),
                    way_out: "it is needed once, to make a new intermediate authority; put it back from its safe",
                })?;
                let authority = root.intermediate(now)?;
                self.write_key("intermediate.key", authority.key())?;
                self.write_certificate("intermediate.crt", authority.certificate())?;
                made.push(Made::Intermediate);
                authority
            }
        };
        if self.hub_certificate_is_due(names, now)? {
            let previous = self.authority("previous-intermediate")?;
            self.renew_hub(previous.as_ref().unwrap_or(&intermediate), &hub_names, now)?;
            made.push(Made::HubCertificate);
        }
        if self.command()?.is_none() {
            let mut seed = Zeroizing::new([0u8; 32]);
            let filled = getrandom::fill(seed.as_mut());
            filled.map_err(|error| picket_pki::PkiError::Unmakable {
                what: "the key for commands",
                detail: error.to_string(),
            })?;
            self.write_command(&SigningKey::from_bytes(&seed))?;
            made.push(Made::CommandKey);
        }
        let seal = self.path("seal.key");
        if picket_durable::read_if_present(&seal, 1 << 16)?.is_none() {
            Keyring::create(&seal)?;
            made.push(Made::SealKey);
        }
        let root_key_present = self.path("root.key").exists();
        Ok(InitReport { made, pin: root_certificate.pin, root_key_present })
    }

    /// Replaces the hub's certificate, if it is due. Says whether it did.
    ///
    /// # Errors
    /// When the intermediate cannot be read or the files cannot be written.
    pub fn renew_hub_if_due(&self, names: &[String], now: Timestamp) -> Result<bool, KeysError> {
        if !self.hub_certificate_is_due(names, now)? {
            return Ok(false);
        }
        let keys = self.load()?;
        self.renew_hub(keys.hub_issuer(), &HubNames::new(names)?, now)?;
        Ok(true)
    }

    fn hub_certificate_is_due(&self, names: &[String], now: Timestamp) -> Result<bool, KeysError> {
        let (certificate, key) = (self.certificate("hub.crt")?, self.key("hub.key")?);
        let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(true) };
        let has_all = names.iter().all(|name| certificate.names.contains(name));
        Ok(certificate.pin != key.pin() || !has_all || !matches!(renewal(&certificate, now), Renewal::NotBefore(_)))
    }

    pub(super) fn renew_hub(
        &self,
        intermediate: &Authority,
        names: &HubNames,
        now: Timestamp,
    ) -> Result<(), KeysError> {
        let (certificate, key) = intermediate.hub(names, now)?;
        // Between the two writes they do not belong together, which the next start sees and mends.
        self.write_key("hub.key", &key)?;
        self.write_certificate("hub.crt", &certificate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use picket_protocol::hub::Signed;
    use std::path::Path;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn names() -> Vec<String> {
        vec!["hub.example".to_owned(), "127.0.0.1".to_owned()]
    }

    fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .flatten()
            .map(|entry| {
                let bytes = picket_durable::read_bounded(&entry.path(), 1 << 20).unwrap();
                (entry.file_name().into_string().unwrap(), bytes)
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn keys_are_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path().join("keys"));
        assert!(matches!(folder.load(), Err(KeysError::None(_))));
        let report = folder.init("test", &names(), now()).unwrap();
        assert_eq!(report.made.len(), 5);
        assert!(report.root_key_present);
        let before = files(folder.dir());
        let again = folder.init("test", &names(), now()).unwrap();
        assert_eq!((again.made, again.pin), (Vec::new(), report.pin));
        assert_eq!(files(folder.dir()), before);
        let keys = folder.load().unwrap();
        assert_eq!(keys.pins(), [report.pin]);
        assert_eq!(keys.hub_chain().len(), 3);
        folder.seal().unwrap();
    }

    #[test]
    fn an_interrupted_beginning_is_finished_whichever_file_was_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let whole = KeysFolder::new(dir.path().join("whole"));
        whole.init("test", &names(), now()).unwrap();
        let order =
            ["root.key", "root.crt", "intermediate.key", "intermediate.crt", "hub.key", "hub.crt", "command.key"];
        for kept in 0..order.len() {
            let folder = KeysFolder::new(dir.path().join(kept.to_string()));
            picket_durable::create_dir(folder.dir(), 0o700).unwrap();
            for name in &order[..kept] {
                picket_durable::copy_file(&whole.path(name), &folder.path(name), 0o600).unwrap();
            }
            folder.init("test", &names(), now()).unwrap();
            let keys = folder.load().unwrap();
            assert!(kept < 2 || keys.pins() == whole.load().unwrap().pins(), "the root of {kept} files was kept");
        }
    }

    #[test]
    fn the_roots_key_is_needed_only_for_a_new_intermediate() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        folder.init("test", &names(), now()).unwrap();
        let safe = dir.path().join("safe");
        picket_durable::rename(&folder.path("root.key"), &safe).unwrap();
        assert!(!folder.init("test", &names(), now()).unwrap().root_key_present);
        folder.load().unwrap();
        picket_durable::remove_if_present(&folder.path("intermediate.key")).unwrap();
        let error = folder.init("test", &names(), now()).unwrap_err();
        assert!(error.to_string().contains("root.key") && error.to_string().contains("put it back"), "{error}");
        picket_durable::rename(&safe, &folder.path("root.key")).unwrap();
        assert_eq!(folder.init("test", &names(), now()).unwrap().made, [Made::Intermediate]);
    }

    #[test]
    fn the_hubs_certificate_is_replaced_when_it_is_due_or_for_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        folder.init("test", &names(), now()).unwrap();
        assert!(!folder.renew_hub_if_due(&names(), now()).unwrap());
        let later = now().checked_add(SignedDuration::from_hours(24 * 61)).unwrap();
        assert!(folder.renew_hub_if_due(&names(), later).unwrap());
        assert!(!folder.renew_hub_if_due(&names(), later).unwrap());
        let more = [names(), vec!["hub2.example".to_owned()]].concat();
        assert!(folder.renew_hub_if_due(&more, later).unwrap());
    }

    #[test]
    fn a_private_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        folder.init("test", &names(), now()).unwrap();
        std::fs::set_permissions(folder.path("intermediate.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = folder.load().unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_the_hub_signs_is_bound_to_its_purpose() {
        use ed25519_dalek::{Signature, VerifyingKey};
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        folder.init("test", &names(), now()).unwrap();
        let keys = folder.load().unwrap();
        let signed = keys.sign("config", "{}".to_owned());
        let key: [u8; 32] = crate::decode(&keys.command_key()).unwrap().try_into().unwrap();
        let signature = Signature::from_slice(&crate::decode(&signed.signature).unwrap()).unwrap();
        let verifies = |purpose: &str| {
            let message = Signed::message(purpose, &signed.payload);
            VerifyingKey::from_bytes(&key).unwrap().verify_strict(&message, &signature).is_ok()
        };
        assert!(verifies("config") && !verifies("command"));
    }
}
