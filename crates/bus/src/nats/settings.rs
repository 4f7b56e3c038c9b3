//! How to reach NATS, and as whom.

use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

use crate::error::{BusError, Result};

/// The longest credentials file in bytes.
pub(super) const MAX_CREDENTIALS: u64 = 64 << 10;

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, where it is needed.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// As whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NatsAuth {
    /// As nobody, or as the client certificate says.
    #[default]
    None,
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// An `NKey`, by its seed (`SU…`).
    NKey(Secret),
    /// A credentials file (`.creds`: a JWT and a seed). It is read again for every connection, so that it can be renewed.
    Credentials(PathBuf),
}

/// How a connection is kept secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// Whether a server without TLS is refused. Also when any of the others is set, or a server's address begins with
    /// `tls://`.
    pub required: bool,
    /// The authorities that a server's certificate must come from, as PEM; those of the system where there is none.
    pub authorities: Option<PathBuf>,
    /// The certificate and the key to be known by, as PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How to reach NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsSettings {
    /// Addresses of servers of one cluster: `nats://host:4222` or `tls://host:4222`, without users and passwords.
    pub servers: Vec<String>,
    /// As whom.
    pub auth: NatsAuth,
    /// How the connection is kept secret.
    pub tls: NatsTls,
    /// How many servers keep each message of a queue: 1, 3 or 5.
    pub replicas: usize,
    /// The monitoring addresses of the servers (`http://host:8222`): where they tell how they sync. As many as there are
    /// servers in the cluster.
    pub monitoring: Vec<String>,
    /// Use servers that do not sync every write to the disk before they acknowledge it, or do not tell: a power cut may then
    /// lose items that were acknowledged. Senders that keep what they sent until it is answered lose nothing by it.
    pub accept_unknown_sync: bool,
    /// How long a request may take.
    pub timeout: Duration,
    /// The name that the servers show for this connection.
    pub name: String,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            auth: NatsAuth::None,
            tls: NatsTls::default(),
            replicas: 1,
            monitoring: Vec::new(),
            accept_unknown_sync: false,
            timeout: Duration::from_secs(5),
            name: "picket-hub".into(),
        }
    }
}

fn wrong(what: impl Into<String>, help: &str) -> BusError {
    BusError::Settings { what: what.into(), help: help.into() }
}

impl NatsSettings {
    /// Whether they can be used.
    ///
    /// # Errors
    /// What is wrong, and the way out.
    pub fn check(&self) -> Result<()> {
        if self.servers.is_empty() || self.servers.len() > 32 {
            return Err(wrong("no server is named, or more than 32", "name one of the cluster: nats://host:4222"));
        }
        for server in &self.servers {
            let rest = server.strip_prefix("nats://").or_else(|| server.strip_prefix("tls://"));
            // The address may hold a password: it is not shown.
            let Some(rest) = rest.filter(|rest| !rest.is_empty() && !rest.contains(['/', '?', '#', ' '])) else {
                return Err(wrong(
                    "an address of a server cannot be used",
                    "write nats://host:4222 or tls://host:4222",
                ));
            };
            if rest.contains('@') {
                return Err(wrong(
                    "an address of a server has a user or a password in it",
                    "set them by their own keys, where they are kept secret",
                ));
            }
        }
        if ![1, 3, 5].contains(&self.replicas) {
            return Err(wrong(format!("{} replicas cannot be", self.replicas), "use 1, 3 or 5"));
        }
        if let NatsAuth::NKey(seed) = &self.auth {
            nkeys::KeyPair::from_seed(seed.reveal().trim())
                .map_err(|error| wrong(error.to_string(), "see `nk -gen user`"))?;
        }
        Ok(())
    }

    /// Whether a server without TLS is refused.
    pub(super) fn requires_tls(&self) -> bool {
        self.tls.required
            || self.tls.authorities.is_some()
            || self.tls.identity.is_some()
            || self.servers.iter().any(|server| server.starts_with("tls://"))
    }
}

/// The JWT and the seed of a credentials file: what stands between lines of dashes, in this order.
///
/// # Errors
/// It has not both.
pub(super) fn credentials(text: &str) -> Result<(String, Secret)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.starts_with("---") && line.contains("BEGIN") {
            let body = lines.by_ref().find(|line| !line.is_empty()).unwrap_or_default();
            blocks.push(body.to_owned());
        }
    }
    let mut blocks = blocks.into_iter();
    match (blocks.next(), blocks.next()) {
        (Some(jwt), Some(seed)) if jwt.matches('.').count() == 2 && seed.starts_with('S') => {
            Ok((jwt, Secret::new(seed)))
        }
        _ => Err(wrong(
            "the credentials file has no JWT and seed between lines of dashes",
            "make it anew: `nsc generate creds`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(change: impl FnOnce(&mut NatsSettings)) -> NatsSettings {
        let mut settings = NatsSettings { servers: vec!["nats://bus.example:4222".into()], ..NatsSettings::default() };
        change(&mut settings);
        settings
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused_with_a_way_out() {
        assert!(with(|_| ()).check().is_ok());
        let cases: [(NatsSettings, &str); 6] = [
            (with(|s| s.servers.clear()), "name one"),
            (with(|s| s.servers[0] = "http://x".into()), "nats://host:4222"),
            (with(|s| s.servers[0] = "nats://ann:secret@x".into()), "kept secret"),
            (with(|s| s.servers[0] = "nats://x/path".into()), "nats://host:4222"),
            (with(|s| s.replicas = 2), "1, 3 or 5"),
            (with(|s| s.auth = NatsAuth::NKey(Secret::new("SUnothing"))), "nk -gen"),
        ];
        for (settings, word) in cases {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(!error.contains("secret@") && !error.contains("SUnothing"), "{error}");
        }
    }

    #[test]
    fn secrets_are_in_no_debug_output() {
        let auths = [
            NatsAuth::Token(Secret::new("hunter2")),
            NatsAuth::NKey(Secret::new("hunter2")),
            NatsAuth::Password { user: "ann".into(), password: Secret::new("hunter2") },
        ];
        for auth in auths {
            assert!(!format!("{:?}", with(|s| s.auth = auth)).contains("hunter2"));
        }
    }

    #[test]
    fn a_credentials_file_gives_its_jwt_and_its_seed() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.c2ln\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
                    -----BEGIN USER NKEY SEED-----\nSUAB\n------END USER NKEY SEED------\n";
        let (jwt, seed) = credentials(text).unwrap();
        assert_eq!((jwt.as_str(), seed.reveal()), ("eyJ0.eyJq.c2ln", "SUAB"));
        for wrong in ["", "-----BEGIN X-----", &text.replace("eyJ0.eyJq.c2ln", "x"), &text.replace("SUAB", "")] {
            let error = credentials(wrong).unwrap_err().to_string();
            assert!(error.contains("nsc"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_credentials_panic(text in "((---+)(BEGIN)?[a-zA-Z. é\n\r-]{0,10}\n){0,6}") {
            let _ = credentials(&text);
        }
    }
}
