//! Taking a configuration of the hub's: believed, sifted, tried, kept, in force.

use super::pushed::{self, Effective, Layer};
use super::record::HubRecord;
use crate::reload::{Asker, CheckLayer};
use jiff::Timestamp;
use picket_protocol::hub::{ConfigState, ConfigStatus, Signed, SignedError};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What it takes to put a configuration in force.
#[derive(Clone)]
pub(crate) struct Taker {
    /// Where the layer is kept.
    pub(crate) path: PathBuf,
    /// Where the sensor sees it.
    pub(crate) published: PathBuf,
    /// Says what would be wrong with a layer.
    pub(crate) check: CheckLayer,
    /// Has the configuration read anew.
    pub(crate) reload: Asker,
    /// The configuration in force.
    pub(crate) effective: Arc<Mutex<Effective>>,
}

impl Taker {
    /// Takes a signed configuration, or says what is wrong with it; blocks while it is put in force.
    ///
    /// # Errors
    /// When it is not to be believed, and so says nothing that could be reported on.
    pub(crate) fn take(&self, record: &HubRecord, signed: &Signed) -> Result<ConfigStatus, SignedError> {
        let layer = self.layer(record);
        let seen = layer.as_ref().map_or(0, |layer| layer.sequence);
        let document = pushed::open(signed, record, seen)?;
        let (settings, refused) = pushed::sift(&document.settings);
        let before = layer.clone().map(|layer| layer.settings).unwrap_or_default();
        let keep = |settings, status: ConfigStatus| {
            let layer = Layer {
                agent_id: record.agent_id,
                sequence: document.sequence,
                settings,
                status: Some(status.clone()),
            };
            match layer.write(&self.path, &self.published) {
                Ok(()) => Ok(status),
                Err(error) => Err(error.to_string()),
            }
        };
        let no = |errors: Vec<String>| {
            pushed::status(&document, ConfigState::Refused, errors, &self.effective(), Timestamp::now())
        };
        if let Err(errors) = (self.check)(&settings) {
            let status = no([errors, refused].concat());
            return Ok(keep(before, status.clone()).unwrap_or(status));
        }
        let yes = |effective: &Effective| {
            pushed::status(&document, ConfigState::Applied, refused.clone(), effective, Timestamp::now())
        };
        // On disk first: whatever happens then, the next start has it.
        if let Err(error) = keep(settings.clone(), yes(&self.effective())) {
            return Ok(no(vec![format!("it cannot be kept: {error}")]));
        }
        match self.reload.ask() {
            Ok(effective) => {
                *self.effective.lock().unwrap_or_else(PoisonError::into_inner) = effective.clone();
                let status = yes(&effective);
                Ok(keep(settings, status.clone()).unwrap_or(status))
            }
            Err(errors) => {
                let status = no(errors);
                Ok(keep(before, status.clone()).unwrap_or(status))
            }
        }
    }

    /// The layer of this hub's. That of another one is taken away.
    pub(crate) fn layer(&self, record: &HubRecord) -> Option<Layer> {
        let layer = Layer::read(&self.path).ok().flatten()?;
        if layer.agent_id == record.agent_id {
            return Some(layer);
        }
        tracing::info!("the configuration of another hub, or of an earlier enrolment, is not in force any more");
        let none = Layer { agent_id: record.agent_id, sequence: 0, settings: BTreeMap::new(), status: None };
        if let Err(error) = none.write(&self.path, &self.published) {
            tracing::warn!(%error, "it may be in force again after the next start");
        }
        let _ = self.reload.ask();
        None
    }

    /// What became of the last document, with the configuration in force at present.
    pub(crate) fn status(&self, record: &HubRecord) -> Option<ConfigStatus> {
        let status = self.layer(record)?.status?;
        let mut effective = self.effective();
        effective.needs_restart.truncate(pushed::MAX_ERRORS);
        Some(ConfigStatus { effective_sha256: effective.sha256, needs_restart: effective.needs_restart, ..status })
    }

    fn effective(&self) -> Effective {
        self.effective.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ed25519_dalek::{Signer as _, SigningKey};
    use picket_protocol::hub::ConfigDocument;
    use serde_json::{Value, json};
    use uuid::Uuid;

    struct Bench {
        dir: tempfile::TempDir,
        key: SigningKey,
        record: HubRecord,
    }

    impl Bench {
        fn new() -> Self {
            let key = SigningKey::from_bytes(&[9; 32]);
            let record = HubRecord {
                hub: "https://hub.example".into(),
                agent_id: Uuid::now_v7(),
                tenant_id: 1,
                name: "web-1".into(),
                pins: Vec::new(),
                command_key: STANDARD.encode(key.verifying_key().as_bytes()),
                enrolled_at: Timestamp::UNIX_EPOCH,
                obtained_at: Timestamp::UNIX_EPOCH,
            };
            Self { dir: tempfile::tempdir().unwrap(), key, record }
        }

        fn taker(&self) -> Taker {
            let check: CheckLayer = Arc::new(|settings| match settings.get("log_level") {
                Some(value) if value == "loud" => Err(vec!["log_level: expected one of …".to_owned()]),
                _ => Ok(()),
            });
            let in_force = Effective { sha256: "ab".into(), needs_restart: vec!["collect.x".into()] };
            Taker {
                path: self.dir.path().join("layer.json"),
                published: self.dir.path().join("shown.json"),
                check,
                reload: Asker::answering(move || Ok(in_force.clone())),
                effective: Arc::default(),
            }
        }

        fn signed(&self, sequence: u64, settings: &[(&str, Value)]) -> Signed {
            let settings: BTreeMap<String, Value> =
                settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            let agent_id = self.record.agent_id;
            let document = ConfigDocument {
                agent_id,
                sequence,
                version: sequence + 100,
                issued_at: Timestamp::UNIX_EPOCH,
                settings,
            };
            let payload = serde_json::to_string(&document).unwrap();
            let signature = STANDARD.encode(self.key.sign(&Signed::message("config", &payload)).to_bytes());
            Signed { purpose: "config".into(), payload, signature }
        }
    }

    #[test]
    fn a_configuration_is_in_force_kept_and_told_and_what_a_hub_may_not_set_is_named() {
        let bench = Bench::new();
        let taker = bench.taker();
        let signed = bench.signed(1, &[("log_level", json!("debug")), ("update.auto", json!("all"))]);
        let status = taker.take(&bench.record, &signed).unwrap();
        assert_eq!((status.state, status.version, status.effective_sha256.as_str()), (ConfigState::Applied, 101, "ab"));
        assert_eq!(status.errors, ["update.auto: a hub may not set this"]);
        assert_eq!(status.needs_restart, ["collect.x"]);
        let layer = Layer::read(&taker.path).unwrap().unwrap();
        assert_eq!((layer.sequence, layer.settings.len()), (1, 1));
        // The next process knows it.
        assert_eq!(bench.taker().status(&bench.record).unwrap().version, 101);
        assert_eq!(taker.take(&bench.record, &signed), Err(SignedError::Older { in_force: 1 }));
    }

    #[test]
    fn one_that_cannot_be_used_is_refused_as_a_whole_and_the_one_before_stays() {
        let bench = Bench::new();
        let taker = bench.taker();
        taker.take(&bench.record, &bench.signed(1, &[("log_level", json!("debug"))])).unwrap();
        let bad = bench.signed(2, &[("log_level", json!("loud")), ("limits.x", json!(1))]);
        let status = taker.take(&bench.record, &bad).unwrap();
        assert_eq!((status.state, status.version), (ConfigState::Refused, 102));
        let layer = Layer::read(&taker.path).unwrap().unwrap();
        assert_eq!((layer.sequence, &layer.settings["log_level"]), (2, &json!("debug")));
    }

    #[test]
    fn one_that_the_agent_cannot_put_in_force_is_taken_back() {
        let bench = Bench::new();
        let taker = Taker { reload: Asker::answering(|| Err(vec!["config.yaml:1: torn".to_owned()])), ..bench.taker() };
        let status = taker.take(&bench.record, &bench.signed(1, &[("log_level", json!("debug"))])).unwrap();
        assert_eq!((status.state, status.errors.len()), (ConfigState::Refused, 1));
        assert!(Layer::read(&taker.path).unwrap().unwrap().settings.is_empty());
    }

    #[test]
    fn a_configuration_that_the_hub_takes_back_is_not_in_force_any_more() {
        let bench = Bench::new();
        let taker = bench.taker();
        taker.take(&bench.record, &bench.signed(1, &[("log_level", json!("debug"))])).unwrap();
        let status = taker.take(&bench.record, &bench.signed(2, &[])).unwrap();
        assert_eq!(status.state, ConfigState::Applied);
        for path in [&taker.path, &taker.published] {
            assert!(Layer::read(path).unwrap().unwrap().settings.is_empty());
        }
    }

    #[test]
    fn the_layer_of_another_enrolment_is_left_behind() {
        let bench = Bench::new();
        let taker = bench.taker();
        taker.take(&bench.record, &bench.signed(1, &[("log_level", json!("debug"))])).unwrap();
        let moved = HubRecord { agent_id: Uuid::now_v7(), ..bench.record.clone() };
        assert!(taker.status(&moved).is_none());
        for path in [&taker.path, &taker.published] {
            assert!(Layer::read(path).unwrap().unwrap().settings.is_empty());
        }
    }
}
