//! From settings to a connection.

use async_nats::{Auth, AuthError, ConnectOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

use super::settings::{MAX_CREDENTIALS, NatsAuth, NatsSettings, NatsTls, Secret, credentials};
use crate::error::{BusError, Result};

/// The most that a certificate, a key or a list of authorities may have.
const MAX_PEM: u64 = 1 << 20;
/// Messages on their way out that wait for the connection, and messages that wait for the task of a subscription.
const OUT: usize = 1024;
const IN: usize = 8192;

/// What a connection is made with.
pub(super) async fn options(settings: &NatsSettings) -> Result<ConnectOptions> {
    let mut options = as_whom(settings).await?;
    options = options
        .name(&settings.name)
        .connection_timeout(settings.timeout)
        .request_timeout(Some(settings.timeout))
        .ping_interval(Duration::from_secs(15))
        .client_capacity(OUT)
        .subscription_capacity(IN)
        .reconnect_delay_callback(delay);
    if settings.requires_tls() {
        options = options.tls_client_config(tls(&settings.tls).await?).require_tls(true);
    }
    Ok(options)
}

/// How long to wait before the next try: 100 ms doubled up to 10 s, and up to a quarter more or less by chance, so that
/// replicas do not come back in step.
fn delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1).min(7)).unwrap_or(7);
    let base = (100u64 << doublings).min(10_000);
    let chance = uuid::Uuid::now_v7().as_u128() % 512;
    Duration::from_millis(base * (768 + u64::try_from(chance).unwrap_or(0)) / 1024)
}

async fn as_whom(settings: &NatsSettings) -> Result<ConnectOptions> {
    Ok(match &settings.auth {
        NatsAuth::None => ConnectOptions::new(),
        NatsAuth::Password { user, password } => {
            ConnectOptions::with_user_and_password(user.clone(), password.reveal().to_owned())
        }
        NatsAuth::Token(token) => ConnectOptions::with_token(token.reveal().to_owned()),
        NatsAuth::NKey(seed) => {
            let seed = seed.clone();
            ConnectOptions::with_auth_callback(move |nonce| {
                let signed = sign(&seed, &nonce);
                async move {
                    let (nkey, signature) = signed?;
                    let mut auth = Auth::new();
                    auth.nkey = Some(nkey);
                    auth.signature = Some(signature);
                    Ok(auth)
                }
            })
        }
        NatsAuth::Credentials(path) => {
            // Once now, so that a mistake is said in words at the start.
            let (_, seed) = read_credentials(path).await?;
            sign(&seed, b"")
                .map_err(|error| wrong(format!("the seed in {}: {error}", path.display()), "make the file anew"))?;
            let path = path.clone();
            ConnectOptions::with_auth_callback(move |nonce| {
                let path = path.clone();
                async move {
                    let (jwt, seed) = read_credentials(&path).await.map_err(AuthError::new)?;
                    let mut auth = Auth::new();
                    auth.jwt = Some(jwt);
                    auth.signature = Some(sign(&seed, &nonce)?.1);
                    Ok(auth)
                }
            })
        }
    })
}

/// The public key and the signature of a challenge.
fn sign(seed: &Secret, nonce: &[u8]) -> Result<(String, Vec<u8>), AuthError> {
    let pair = nkeys::KeyPair::from_seed(seed.reveal().trim()).map_err(AuthError::new)?;
    Ok((pair.public_key(), pair.sign(nonce).map_err(AuthError::new)?))
}

async fn read_credentials(path: &Path) -> Result<(String, Secret)> {
    let bytes = read(path, MAX_CREDENTIALS, "credentials file").await?;
    let text = zeroize::Zeroizing::new(String::from_utf8(bytes).unwrap_or_default());
    credentials(&text)
}

/// TLS with ring, 1.2 at least.
async fn tls(settings: &NatsTls) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(format!("TLS cannot be set up: {error}"), "report this"))?
        .with_root_certificates(roots(settings.authorities.as_ref()).await?);
    let Some((certificate, key)) = &settings.identity else { return Ok(builder.with_no_client_auth()) };
    let chain: Vec<CertificateDer> = CertificateDer::pem_slice_iter(&read(certificate, MAX_PEM, "certificate").await?)
        .collect::<Result<_, _>>()
        .map_err(|_| {
            wrong(format!("{} is not a certificate in PEM", certificate.display()), "name one that is, in PEM")
        })?;
    let bytes = zeroize::Zeroizing::new(read(key, MAX_PEM, "key").await?);
    let private = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| wrong(format!("{} is not a private key in PEM", key.display()), "name one that is, in PEM"))?;
    builder.with_client_auth_cert(chain, private).map_err(|error| {
        wrong(
            format!("{} and {} do not go together: {error}", certificate.display(), key.display()),
            "name one that is, in PEM",
        )
    })
}

async fn roots(authorities: Option<&PathBuf>) -> Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    match authorities {
        Some(path) => {
            let bytes = read(path, MAX_PEM, "list of authorities").await?;
            let certificates = CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok);
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(wrong(format!("{} has no certificate in PEM", path.display()), "name one that is, in PEM"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

/// A file, bounded. What it is, is said in the error; what is in it, never.
async fn read(path: &Path, limit: u64, what: &str) -> Result<Vec<u8>> {
    let work = async {
        let mut bytes = Vec::new();
        tokio::fs::File::open(path).await?.take(limit + 1).read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = work
        .await
        .map_err(|error| wrong(format!("cannot read the {what} {}: {error}", path.display()), "correct it"))?;
    if bytes.len() as u64 > limit {
        return Err(wrong(format!("the {what} {} is longer than {limit} bytes", path.display()), "correct it"));
    }
    Ok(bytes)
}

fn wrong(what: String, help: &str) -> BusError {
    BusError::Settings { what, help: help.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_further_apart_up_to_ten_seconds_and_not_in_step() {
        for (attempt, base) in [(0, 100), (1, 100), (2, 200), (5, 1600), (8, 10_000), (1_000_000, 10_000)] {
            for _ in 0..50 {
                let millis = delay(attempt).as_millis();
                assert!(millis >= base * 3 / 4 && millis <= base * 5 / 4, "attempt {attempt}: {millis} ms");
            }
        }
        assert!((0..50).map(|_| delay(8)).collect::<std::collections::BTreeSet<_>>().len() > 10);
    }
}
