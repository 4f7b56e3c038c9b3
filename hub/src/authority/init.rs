//! Making the keys: whatever is missing, and nothing that is there.

use super::folder::{COMMAND_WAY_OUT, SEAL_WAY_OUT};
use super::{KeysError, KeysFolder};
use ed25519_dalek::SigningKey;
use jiff::{SignedDuration, Timestamp};
use picket_pki::{Authority, HubNames, LEAF_DAYS, Renewal, SpkiPin, renewal};
use picket_seal::Keyring;
use serde::Serialize;
use std::net::IpAddr;
use zeroize::Zeroizing;

/// How much of an intermediate is left when it is replaced: the life of a certificate that it signs, and a month in which
/// to notice that the root's key is needed.
const INTERMEDIATE_LEFT: SignedDuration = SignedDuration::from_hours(24 * (LEAF_DAYS + 30));

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
    /// Makes whatever is missing. Run again, it finishes what was interrupted, and replaces what is due or is for other
    /// names.
    ///
    /// # Errors
    /// When something is missing that cannot be made anew without harm, and what to do about it.
    pub fn init(&self, fleet: &str, names: &[String], now: Timestamp) -> Result<InitReport, KeysError> {
        picket_durable::create_dir(self.dir(), 0o700)?;
        let hub_names = HubNames::new(names)?;
        let _lock = self.lock()?;
        for name in ["root", "intermediate", "hub"] {
            self.settle(name)?;
        }
        let mut made = Vec::new();
        self.make_root(fleet, now, &mut made)?;
        self.renew_intermediate(now, &mut made)?;
        self.renew_hub_certificate(&hub_names, names, now, &mut made)?;
        if self.command()?.is_none() {
            self.is_new("command.key", COMMAND_WAY_OUT)?;
            self.make_command(&mut made)?;
        }
        if !self.path("seal.key").exists() {
            self.is_new("seal.key", SEAL_WAY_OUT)?;
            self.make_seal(&mut made)?;
        }
        let root_key_present = self.path("root.key").exists();
        let root = self.certificate("root.crt")?.ok_or_else(|| KeysError::None(self.dir().to_owned()))?;
        Ok(InitReport { made, pin: root.pin, root_key_present })
    }

    /// Finishes what a crash interrupted, and replaces the hub's certificate and the intermediate that are due: the second
    /// one where the root's key lies beside it. Without keys nothing is done. Returns what was made.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn renew_if_due(&self, names: &[String], now: Timestamp) -> Result<Vec<Made>, KeysError> {
        if self.certificate("root.crt")?.is_none() {
            return Ok(Vec::new());
        }
        let unsettled = ["intermediate", "hub"].into_iter().any(|name| self.is_unsettled(name));
        // Replicas may have the folder for reading only: nothing is written, and no lock taken, while nothing is to do.
        if !unsettled && !self.intermediate_can_be_renewed(now)? && !self.hub_certificate_is_due(names, now)? {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.settle("intermediate")?;
        self.settle("hub")?;
        let mut made = Vec::new();
        self.renew_intermediate(now, &mut made)?;
        self.renew_hub_certificate(&HubNames::new(names)?, names, now, &mut made)?;
        Ok(made)
    }

    /// Makes the keys for commands and for sealing anew where they are missing, though machines were enrolled with others:
    /// these are lost for good, and what was sealed with them is.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn replace_lost(&self) -> Result<Vec<Made>, KeysError> {
        if self.certificate("root.crt")?.is_none() {
            return Err(KeysError::None(self.dir().to_owned()));
        }
        let _lock = self.lock()?;
        let mut made = Vec::new();
        if self.command()?.is_none() {
            self.make_command(&mut made)?;
        }
        if !self.path("seal.key").exists() {
            self.make_seal(&mut made)?;
        }
        Ok(made)
    }

    fn make_command(&self, made: &mut Vec<Made>) -> Result<(), KeysError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        let filled = getrandom::fill(seed.as_mut());
        filled.map_err(|error| picket_pki::PkiError::Unmakable {
            what: "the key for commands",
            detail: error.to_string(),
        })?;
        self.write_command(&SigningKey::from_bytes(&seed))?;
        made.push(Made::CommandKey);
        Ok(())
    }

    fn make_seal(&self, made: &mut Vec<Made>) -> Result<(), KeysError> {
        Keyring::create(&self.path("seal.key"))?;
        made.push(Made::SealKey);
        Ok(())
    }

    fn make_root(&self, fleet: &str, now: Timestamp, made: &mut Vec<Made>) -> Result<(), KeysError> {
        if self.certificate("root.crt")?.is_some() {
            return Ok(());
        }
        // Another root in its place would be another hub: no machine would know it.
        let later = ["root.key", "intermediate.crt", "intermediate.key", "hub.crt", "hub.key", "command.key"];
        if later.iter().any(|name| self.path(name).exists()) {
            return Err(KeysError::Missing {
                path: self.path("root.crt"),
                way_out: "other keys of this hub are there. Put it back from a backup (it is no secret, and every agent has it \
                          in its ca-bundle.crt), or move the folder away to begin a new hub",
            });
        }
        let root = Authority::root(fleet, now)?;
        self.write_pair("root", root.key(), root.certificate())?;
        made.push(Made::Root);
        Ok(())
    }

    /// Refuses to make what machines that were enrolled before cannot do without.
    fn is_new(&self, name: &str, way_out: &'static str) -> Result<(), KeysError> {
        if self.path(crate::app::belonging::ENROLLED).exists() {
            return Err(KeysError::Missing { path: self.path(name), way_out });
        }
        Ok(())
    }

    /// Makes the intermediate that is missing, or that would end before the certificates it signs.
    fn renew_intermediate(&self, now: Timestamp, made: &mut Vec<Made>) -> Result<(), KeysError> {
        let present = self.authority("intermediate")?;
        if present.is_some() && !self.intermediate_can_be_renewed(now)? {
            return Ok(());
        }
        let root = self.authority("root")?.ok_or_else(|| KeysError::Missing {
            path: self.path("root.key"),
            way_out: "it is needed once, to make a new intermediate authority; put it back from its safe",
        })?;
        let authority = root.intermediate(now)?;
        self.write_pair("intermediate", authority.key(), authority.certificate())?;
        made.push(Made::Intermediate);
        Ok(())
    }

    /// Whether the intermediate is due, and the root's key is there to sign another one.
    fn intermediate_can_be_renewed(&self, now: Timestamp) -> Result<bool, KeysError> {
        let Some(present) = self.certificate("intermediate.crt")? else { return Ok(false) };
        let is_due = present.not_after.duration_since(now) < INTERMEDIATE_LEFT;
        Ok(is_due && self.path("root.key").exists())
    }

    fn renew_hub_certificate(
        &self,
        hub_names: &HubNames,
        names: &[String],
        now: Timestamp,
        made: &mut Vec<Made>,
    ) -> Result<(), KeysError> {
        if !self.hub_certificate_is_due(names, now)? {
            return Ok(());
        }
        let issuer = self.hub_issuer()?;
        let (certificate, key) = issuer.hub(hub_names, now)?;
        self.write_pair("hub", &key, &certificate)?;
        made.push(Made::HubCertificate);
        Ok(())
    }

    /// What signs the hub's own certificate: while one root replaces another, the intermediate of the old one.
    fn hub_issuer(&self) -> Result<Authority, KeysError> {
        let issuer = match self.authority("previous-intermediate")? {
            Some(previous) => Some(previous),
            None => self.authority("intermediate")?,
        };
        issuer.ok_or_else(|| KeysError::Missing {
            path: self.path("intermediate.crt"),
            way_out: "put the root's key back as root.key and run: picket hub init",
        })
    }

    fn hub_certificate_is_due(&self, names: &[String], now: Timestamp) -> Result<bool, KeysError> {
        let (certificate, key) = (self.certificate("hub.crt")?, self.key("hub.key")?);
        let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(true) };
        let has_all = names.iter().all(|name| certificate.names.contains(&canonical(name)));
        if certificate.pin != key.pin() || !has_all {
            return Ok(true);
        }
        let issuer = self.hub_issuer()?;
        if !issuer.signed(&certificate) {
            return Ok(true);
        }
        // One that would end as early is none the better.
        let would_last = issuer.certificate().not_after > certificate.not_after;
        Ok(would_last && !matches!(renewal(&certificate, now), Renewal::NotBefore(_)))
    }

    pub(super) fn renew_hub(
        &self,
        intermediate: &Authority,
        names: &HubNames,
        now: Timestamp,
    ) -> Result<(), KeysError> {
        let (certificate, key) = intermediate.hub(names, now)?;
        self.write_pair("hub", &key, &certificate)
    }
}

/// A name as certificates have it: addresses have many spellings, and one form (RFC 5952).
fn canonical(name: &str) -> String {
    name.parse::<IpAddr>().map_or_else(|_| name.to_owned(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
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
        // Each pair is made under other names, its certificate last, and then takes its place, the key first.
        let steps = ["root", "intermediate", "hub"].map(|name| {
            let [key, crt] = [format!("{name}.key"), format!("{name}.crt")];
            let (new_key, new_crt) = (format!("new-{key}"), format!("new-{crt}"));
            let all = [
                vec![],
                vec![(key.clone(), new_key.clone())],
                vec![(key.clone(), new_key), (crt.clone(), new_crt.clone())],
                vec![(key.clone(), key.clone()), (crt.clone(), new_crt)],
            ];
            (vec![(key.clone(), key), (crt.clone(), crt)], all)
        });
        for (at, (_, states)) in steps.iter().enumerate() {
            for (state, files) in states.iter().enumerate() {
                let folder = KeysFolder::new(dir.path().join(format!("{at}-{state}")));
                picket_durable::create_dir(folder.dir(), 0o700).unwrap();
                let before = steps[..at].iter().flat_map(|(done, _)| done);
                for (from, to) in before.chain(files) {
                    picket_durable::copy_file(&whole.path(from), &folder.path(to), 0o600).unwrap();
                }
                folder.init("test", &names(), now()).unwrap();
                let keys = folder.load().unwrap();
                let is_kept = at > 0 || state > 1;
                assert!(!is_kept || keys.pins() == whole.load().unwrap().pins(), "the root of {at}-{state} was kept");
                let left = files_of(folder.dir());
                assert!(!left.iter().any(|name| name.starts_with("new-")), "{left:?}");
            }
        }
    }

    fn files_of(dir: &Path) -> Vec<String> {
        files(dir).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_hub_whose_renewal_was_cut_starts_again_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path().join("keys"));
        folder.init("test", &names(), now()).unwrap();
        let other = KeysFolder::new(dir.path().join("other"));
        picket_durable::create_dir(other.dir(), 0o700).unwrap();
        let (certificate, key) =
            folder.load().unwrap().intermediate.hub(&HubNames::new(names()).unwrap(), now()).unwrap();
        // Key and certificate are made, and only the key has taken its place.
        folder.write_key("hub.key", &key).unwrap();
        folder.write_certificate("new-hub.crt", &certificate).unwrap();
        folder.load().unwrap_err();
        assert!(folder.renew_if_due(&names(), now()).unwrap().is_empty(), "what was made is taken");
        assert_eq!(folder.load().unwrap().hub.0.pin, key.pin());
        // A key without its certificate, as from a version that wrote one after the other.
        picket_durable::remove_if_present(&folder.path("hub.crt")).unwrap();
        assert_eq!(folder.renew_if_due(&names(), now()).unwrap(), [Made::HubCertificate]);
        folder.load().unwrap();
        assert!(other.renew_if_due(&names(), now()).unwrap().is_empty(), "without keys nothing is made");
    }

    #[test]
    fn an_intermediate_is_replaced_before_what_it_signs_would_end_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path().join("keys"));
        folder.init("test", &names(), now()).unwrap();
        let end = folder.load().unwrap().intermediate.certificate().not_after;
        let before = |days: i64| end.checked_sub(SignedDuration::from_hours(24 * days)).unwrap();
        folder.renew_if_due(&names(), before(121)).unwrap();
        assert_eq!(folder.load().unwrap().intermediate.certificate().not_after, end);
        // The root's key is in its safe: everything goes on as long as it can, and is not made anew at every look.
        let safe = dir.path().join("safe");
        picket_durable::rename(&folder.path("root.key"), &safe).unwrap();
        folder.renew_if_due(&names(), before(20)).unwrap();
        assert!(folder.renew_if_due(&names(), before(20)).unwrap().is_empty());
        picket_durable::rename(&safe, &folder.path("root.key")).unwrap();
        let made = folder.renew_if_due(&names(), before(20)).unwrap();
        assert_eq!(made, [Made::Intermediate, Made::HubCertificate]);
        let keys = folder.load().unwrap();
        assert!(keys.intermediate.certificate().not_after > end && keys.intermediate.signed(&keys.hub.0));
    }

    #[test]
    fn keys_that_are_lost_are_made_anew_when_somebody_says_so_and_none_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        assert!(matches!(folder.replace_lost(), Err(KeysError::None(_))), "there is no hub");
        folder.init("test", &names(), now()).unwrap();
        picket_durable::write_atomic(&folder.path(crate::app::belonging::ENROLLED), b"", 0o600).unwrap();
        let before = files(dir.path());
        assert_eq!(folder.replace_lost().unwrap(), []);
        assert_eq!(files(dir.path()), before);
        for name in ["command.key", "seal.key"] {
            picket_durable::remove_if_present(&folder.path(name)).unwrap();
        }
        assert!(folder.load().unwrap_err().to_string().contains("--replace-lost-keys"));
        assert!(folder.seal().unwrap_err().to_string().contains("--replace-lost-keys"));
        assert_eq!(folder.replace_lost().unwrap(), [Made::CommandKey, Made::SealKey]);
        folder.load().unwrap();
        folder.seal().unwrap();
    }

    #[test]
    fn no_key_is_replaced_that_machines_know() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        folder.init("test", &names(), now()).unwrap();
        picket_durable::write_atomic(&folder.path(crate::app::belonging::ENROLLED), b"", 0o600).unwrap();
        let before = files(dir.path());
        for name in ["root.crt", "command.key", "seal.key"] {
            picket_durable::rename(&folder.path(name), &dir.path().join("away")).unwrap();
            let error = folder.init("test", &names(), now()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("ut it back from "), "{error}");
            picket_durable::rename(&dir.path().join("away"), &folder.path(name)).unwrap();
            assert_eq!(files(dir.path()), before, "{name}");
        }
        // The root's key alone may be elsewhere; a root made over it would be another hub.
        picket_durable::rename(&folder.path("root.crt"), &dir.path().join("away")).unwrap();
        picket_durable::rename(&folder.path("root.key"), &dir.path().join("away.key")).unwrap();
        folder.init("test", &names(), now()).unwrap_err();
        assert!(!folder.path("root.key").exists());
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
        // What the one before signed, nobody could check any more.
        let made = folder.init("test", &names(), now()).unwrap().made;
        assert_eq!(made, [Made::Intermediate, Made::HubCertificate]);
    }

    #[test]
    fn the_hubs_certificate_is_replaced_when_it_is_due_or_for_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let folder = KeysFolder::new(dir.path());
        folder.init("test", &names(), now()).unwrap();
        assert!(folder.renew_if_due(&names(), now()).unwrap().is_empty());
        let later = now().checked_add(SignedDuration::from_hours(24 * 61)).unwrap();
        assert_eq!(folder.renew_if_due(&names(), later).unwrap(), [Made::HubCertificate]);
        assert!(folder.renew_if_due(&names(), later).unwrap().is_empty());
        let more = [names(), vec!["hub2.example".to_owned()]].concat();
        assert_eq!(folder.renew_if_due(&more, later).unwrap(), [Made::HubCertificate]);
        // An address has many spellings.
        let long = [names(), vec!["2001:0db8:0:0:0:0:0:1".to_owned()]].concat();
        assert_eq!(folder.renew_if_due(&long, later).unwrap(), [Made::HubCertificate]);
        assert!(folder.renew_if_due(&long, later).unwrap().is_empty());
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
