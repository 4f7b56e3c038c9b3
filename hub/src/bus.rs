//! The bus that a configuration asks for.

use crate::app::replicas::{Replicas, Telling};
use crate::config::{BusSettings, ConfigError};
use picket_bus::{Bus, BusError, NatsAuth, NatsBus, NatsSettings, NatsTls, Secret};
use picket_durable::read_text;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// The longest file with a password or a token, in bytes.
const MAX_SECRET: u64 = 4096;

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
pub enum NoBus {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// NATS cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl NoBus {
    /// Whether it is for the configuration to be mended, and not for time.
    pub fn is_setting(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Bus(BusError::Settings { .. }))
    }
}

/// Makes this replica's way to the others. Servers that cannot be reached now are no reason to keep a fleet waiting: they
/// are tried again ([`crate::app::replicas::listen`]), and until then the database tells everything, later by seconds.
///
/// # Errors
/// A setting that cannot be used, or servers that are too weak.
pub async fn open(settings: &BusSettings) -> Result<(Replicas, mpsc::Receiver<Telling>), NoBus> {
    if settings.nats.is_empty() {
        if settings.events {
            return Err(wrong("bus.events", "there is no NATS to take batches from; set bus.nats, too").into());
        }
        return Ok(Replicas::alone());
    }
    let nats = nats(settings)?;
    let bus = match NatsBus::connect(nats.clone()).await {
        Ok(bus) => Some(Arc::new(bus) as Arc<dyn Bus>),
        Err(error) if error.is_transient() => {
            tracing::error!(%error, "replicas are not heard until NATS is");
            None
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Replicas::shared(nats, bus))
}

fn nats(settings: &BusSettings) -> Result<NatsSettings, ConfigError> {
    let file = |path: &str| Some(PathBuf::from(path)).filter(|_| !path.is_empty());
    let identity = match (file(&settings.certificate_file), file(&settings.key_file)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(wrong("bus.certificate_file", "bus.certificate_file and bus.key_file belong together")),
    };
    Ok(NatsSettings {
        servers: settings.nats.clone(),
        auth: auth(settings)?,
        tls: NatsTls { required: false, authorities: file(&settings.ca_file), identity },
        replicas: usize::try_from(settings.copies).unwrap_or(usize::MAX),
        monitoring: settings.monitoring.clone(),
        accept_unknown_sync: settings.accept_unknown_sync,
        ..NatsSettings::default()
    })
}

fn auth(settings: &BusSettings) -> Result<NatsAuth, ConfigError> {
    let ways = [&settings.credentials_file, &settings.password_file, &settings.token_file];
    if ways.iter().filter(|way| !way.is_empty()).count() > 1 {
        let words = "set one of bus.credentials_file, bus.password_file (with bus.user) and bus.token_file";
        return Err(wrong("bus", words));
    }
    if settings.user.is_empty() != settings.password_file.is_empty() {
        return Err(wrong("bus.user", "bus.user and bus.password_file belong together"));
    }
    Ok(if !settings.credentials_file.is_empty() {
        NatsAuth::Credentials(PathBuf::from(&settings.credentials_file))
    } else if !settings.password_file.is_empty() {
        let password = secret("bus.password_file", &settings.password_file)?;
        NatsAuth::Password { user: settings.user.clone(), password }
    } else if !settings.token_file.is_empty() {
        NatsAuth::Token(secret("bus.token_file", &settings.token_file)?)
    } else {
        NatsAuth::None
    })
}

fn secret(key: &'static str, path: &str) -> Result<Secret, ConfigError> {
    let text = read_text(Path::new(path), MAX_SECRET).map_err(|error| wrong(key, &error.to_string()))?;
    Ok(Secret::new(text.trim()))
}

fn wrong(key: &'static str, message: &str) -> ConfigError {
    ConfigError { key, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_to_say_who_we_are_and_secrets_only_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        picket_durable::write_atomic(&path, b"s3cret\n", 0o600).unwrap();
        let path = path.display().to_string();
        let with = BusSettings { user: "hub".into(), password_file: path.clone(), ..BusSettings::default() };
        let NatsAuth::Password { user, password } = auth(&with).unwrap() else { panic!("no password") };
        assert_eq!((user.as_str(), password.reveal()), ("hub", "s3cret"));
        assert!(!format!("{:?}", auth(&with).unwrap()).contains("s3cret"));
        let two = BusSettings { token_file: path.clone(), ..with.clone() };
        assert_eq!(auth(&two).unwrap_err().key, "bus");
        assert_eq!(auth(&BusSettings { user: String::new(), ..with }).unwrap_err().key, "bus.user");
        let gone = BusSettings { token_file: format!("{path}.gone"), ..BusSettings::default() };
        assert_eq!(auth(&gone).unwrap_err().key, "bus.token_file");
        let half = BusSettings { key_file: path, ..BusSettings::default() };
        assert_eq!(nats(&half).unwrap_err().key, "bus.certificate_file");
    }
}
