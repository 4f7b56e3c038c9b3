//! A hub of the test's own, and machines that speak to it.

use jiff::Timestamp;
use picket_config::LoopbackAddr;
use picket_hub::authority::KeysFolder;
use picket_hub::clock::Clock;
use picket_hub::config::HubSettings;
use picket_hub::life::{self, Options, Running};
use picket_hub::security::{Security, SecurityPolicies};
use picket_hub_db::{Hidden, NewEnrolToken, TenantId};
use picket_pki::{Certificate, EnrolmentToken, PrivateKey, certificates_from_pem, secret_hash};
use picket_protocol::hub::{self as wire, EnrolAnswer, Enrolled, Problem};
use picket_protocol::{BuildInfo, StateFormat};
use picket_testkit::{NatsServer, stores};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use ureq::tls::{Certificate as Root, ClientCert, PrivateKey as Key, RootCerts, TlsConfig, TlsProvider};
use uuid::Uuid;

/// A hub on loopback with a database of its own, or one that replicas share.
pub struct Fleet {
    pub running: Running,
    pub dir: Arc<tempfile::TempDir>,
    database: String,
    /// The bus, where tests use servers and this one brings none of its own.
    nats: Option<Arc<NatsServer>>,
    /// Seconds that the hub's clock is ahead of the real one.
    ahead: Arc<AtomicI64>,
}

/// An agent, as far as the wire is concerned.
pub struct Machine {
    pub id: Uuid,
    pub key: PrivateKey,
    pub chain: Vec<Certificate>,
    pub boot: Uuid,
}

/// What came back: status and body.
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn ok<T: DeserializeOwned>(&self) -> T {
        assert!(self.status < 300, "{}: {}", self.status, String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn problem(&self) -> Problem {
        assert!(self.status >= 400, "{}: {}", self.status, String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn database(dir: &tempfile::TempDir) -> String {
    if stores::are_servers() {
        return stores::database();
    }
    format!("sqlite:{}", dir.path().join("hub.db").display())
}

pub fn build() -> BuildInfo {
    static BUILD: OnceLock<BuildInfo> = OnceLock::new();
    let make = || BuildInfo {
        version: "1.0.0".parse().unwrap(),
        commit: "test".into(),
        target: "x86_64-unknown-linux-gnu".parse().unwrap(),
        built: "2026-11-21".into(),
        state_format: StateFormat { reads_from: 1, writes: 1 },
    };
    BUILD.get_or_init(make).clone()
}

impl Fleet {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With other security policies.
    pub async fn start_secured(change: impl FnOnce(&mut SecurityPolicies)) -> Self {
        let mut policies = SecurityPolicies::default();
        change(&mut policies);
        let dir = tempfile::tempdir().unwrap();
        let database = database(&dir);
        Self::start_in(Arc::new(dir), database, None, Self::settings(), policies, Arc::default()).await
    }

    /// On this database, with this bus.
    pub async fn start_shared(database: String, nats: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Self::settings();
        settings.bus.nats = vec![nats];
        // What Debian's server can tell of itself is too little; nothing here rests on it.
        settings.bus.accept_unknown_sync = true;
        Self::start_in(Arc::new(dir), database, None, settings, SecurityPolicies::default(), Arc::default()).await
    }

    /// Another hub with the same keys, on the same database and bus.
    pub async fn replica(&self) -> Self {
        let mut settings = self.running.hub().settings.clone();
        settings.listen.agents = "127.0.0.1:0".into();
        settings.listen.api = "127.0.0.1:0".into();
        let policies = self.running.hub().security.policies.clone();
        let (dir, ahead) = (Arc::clone(&self.dir), Arc::clone(&self.ahead));
        Self::start_in(dir, self.database.clone(), self.nats.clone(), settings, policies, ahead).await
    }

    fn settings() -> HubSettings {
        let mut settings = HubSettings { names: vec!["127.0.0.1".into()], ..HubSettings::default() };
        settings.listen.agents = "127.0.0.1:0".into();
        settings.listen.api = "127.0.0.1:0".into();
        settings.listen.health = LoopbackAddr::port(0);
        settings
    }

    pub async fn start_with(configure: impl FnOnce(&mut HubSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Self::settings();
        configure(&mut settings);
        let database = database(&dir);
        Self::start_in(Arc::new(dir), database, None, settings, SecurityPolicies::default(), Arc::default()).await
    }

    async fn start_in(
        dir: Arc<tempfile::TempDir>,
        database: String,
        mut nats: Option<Arc<NatsServer>>,
        mut settings: HubSettings,
        policies: SecurityPolicies,
        ahead: Arc<AtomicI64>,
    ) -> Self {
        if stores::are_servers() && settings.bus.nats.is_empty() {
            let server = nats.get_or_insert_with(|| Arc::new(NatsServer::start()));
            settings.bus.nats = vec![server.url()];
            settings.bus.accept_unknown_sync = true;
        }
        // While a hub was away, its port may have become the near end of somebody's connection.
        let places = [settings.listen.api.clone(), settings.listen.agents.clone()];
        let free = move || places.iter().all(|place| TcpListener::bind(place).is_ok());
        tokio::task::spawn_blocking(|| picket_testkit::wait_until("the hub's ports to be free", free)).await.unwrap();
        let keys = KeysFolder::new(dir.path().join("keys"));
        keys.init("test", &settings.names, Timestamp::now()).unwrap();
        let clock = {
            let ahead = Arc::clone(&ahead);
            Clock::new(move || {
                let by = jiff::SignedDuration::from_secs(ahead.load(Ordering::Relaxed));
                Timestamp::now().checked_add(by).unwrap()
            })
        };
        let options = Options {
            build: build(),
            settings,
            security: Security::new(policies).unwrap(),
            keys,
            rules_dir: Some(dir.path().join("rules.d")),
            database: database.clone(),
            clock,
        };
        Self { running: Box::pin(life::start(options)).await.unwrap(), dir, database, nats, ahead }
    }

    /// Stops the hub and starts it again on what it kept.
    pub async fn restart(self) -> Self {
        self.stopped().await.start().await
    }

    /// Stops the hub.
    pub async fn stopped(self) -> Stopped {
        let Self { running, dir, database, nats, ahead } = self;
        let mut settings = running.hub().settings.clone();
        // The same ports, or the machines would not find it.
        settings.listen.agents = running.agents_address().to_string();
        settings.listen.api = running.api_address().to_string();
        let policies = running.hub().security.policies.clone();
        running.stop().await;
        Stopped { dir, database, nats, settings, policies, ahead }
    }

    /// Puts the hub's clock forward.
    pub fn forward(&self, by: Duration) {
        self.ahead.fetch_add(i64::try_from(by.as_secs()).unwrap(), Ordering::Relaxed);
    }

    pub fn now(&self) -> Timestamp {
        self.running.hub().clock.now()
    }

    pub async fn token(&self, change: impl FnOnce(&mut NewEnrolToken)) -> EnrolmentToken {
        let hub = self.running.hub();
        let token = EnrolmentToken::generate(&hub.public_url, Uuid::now_v7(), &hub.keys().pins()).unwrap();
        let mut new = NewEnrolToken {
            id: token.id,
            secret_hash: Hidden(secret_hash(&token.secret())),
            label: "test".into(),
            tags: ["test".to_owned()].into(),
            max_uses: 1,
            needs_approval: false,
            allowed: Vec::new(),
            created_by: "test".into(),
            expires_at: self.now().checked_add(jiff::SignedDuration::from_mins(30)).unwrap(),
        };
        change(&mut new);
        hub.db.create_enrol_token(TenantId::DEFAULT, &new, self.now()).await.unwrap();
        token
    }

    pub fn request(&self, token: &EnrolmentToken, key: &PrivateKey) -> Value {
        json!({
            "token_id": token.id,
            "secret": token.secret().as_str(),
            "csr": base64(&key.request("x").unwrap()),
            "name": "web-1",
            "agent_type": "server",
            "version": "1.0.0",
            "machine": {"hostname": "web-1", "os": "linux", "arch": "x86_64", "machine_hint": "abc"},
            "clock": {"now": self.now()},
        })
    }

    /// Asks the hub without a certificate.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, None, &[("content-type", "application/json")], body.to_string().into_bytes()).await
    }

    /// Makes a machine an agent.
    pub async fn machine(&self) -> Machine {
        self.machine_tagged("test").await
    }

    /// Makes a machine an agent with this tag.
    pub async fn machine_tagged(&self, tag: &str) -> Machine {
        let token = self.token(|new| new.tags = [tag.to_owned()].into()).await;
        let key = PrivateKey::generate().unwrap();
        let answer = self.post(wire::ENROL_PATH, &self.request(&token, &key)).await;
        let EnrolAnswer::Enrolled(enrolled) = answer.ok() else { panic!("waits") };
        Machine::of(key, &enrolled)
    }

    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        machine: Option<&Machine>,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let url = format!("https://{}{path}", self.running.agents_address());
        // A hub whose clock is ahead may renew its own certificate at any moment, for a time that is not here yet.
        let is_ahead = self.ahead.load(Ordering::Relaxed) > 0;
        let roots = if is_ahead { Vec::new() } else { self.running.hub().keys().roots.clone() };
        let client = machine.map(Machine::client_certificate);
        ask(method, &url, &roots, client, headers, body).await
    }
}

/// Asks over HTTPS, with a client certificate where one is given.
pub async fn ask(
    method: &str,
    url: &str,
    roots: &[Certificate],
    client: Option<ClientCert>,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    try_ask(method, url, roots, client, headers, body).await.unwrap()
}

/// As [`ask`], where the connection may break off. Without roots, whoever answers is believed.
pub async fn try_ask(
    method: &str,
    url: &str,
    roots: &[Certificate],
    client: Option<ClientCert>,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<Answer, ureq::Error> {
    let roots: Vec<Root<'static>> = roots.iter().map(|root| Root::from_der(root.der()).to_owned()).collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .disable_verification(roots.is_empty())
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(client)
        .unversioned_rustls_crypto_provider(picket_transport::provider())
        .build();
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(30)))
        .tls_config(tls)
        .build()
        .new_agent();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).unwrap();
    let asking = move || {
        let mut response = agent.run(request)?;
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body_mut().read_to_vec()?,
        })
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

/// A hub that was stopped, and everything that it kept.
pub struct Stopped {
    dir: Arc<tempfile::TempDir>,
    database: String,
    nats: Option<Arc<NatsServer>>,
    settings: HubSettings,
    policies: SecurityPolicies,
    ahead: Arc<AtomicI64>,
}

impl Stopped {
    /// Starts it again.
    pub async fn start(self) -> Fleet {
        Fleet::start_in(self.dir, self.database, self.nats, self.settings, self.policies, self.ahead).await
    }
}

impl Machine {
    pub fn of(key: PrivateKey, enrolled: &Enrolled) -> Self {
        Self {
            id: enrolled.agent_id,
            key,
            chain: certificates_from_pem(&enrolled.certificate.certificate).unwrap(),
            boot: Uuid::now_v7(),
        }
    }

    pub fn client_certificate(&self) -> ClientCert {
        let chain: Vec<Root<'static>> = self.chain.iter().map(|each| Root::from_der(each.der()).to_owned()).collect();
        let key = Key::from_pem(self.key.to_pem().as_bytes()).unwrap().to_owned();
        ClientCert::new_with_certs(&chain, key)
    }

    /// A batch of file events with these numbers.
    pub fn lines(&self, numbers: std::ops::RangeInclusive<u64>) -> String {
        let line = |seq: u64| {
            json!({
                "schema": 1, "device_id": "x", "boot_id": self.boot, "seq": seq, "class": "normal", "type": "file",
                "details": {
                    "timestamp": "2026-11-21T12:00:00Z", "action": "modified", "path": format!("/etc/file-{seq}"),
                    "kind": "file", "method": "fanotify", "confidence": "observed",
                },
            })
            .to_string()
        };
        numbers.map(line).collect::<Vec<_>>().join("\n")
    }

    pub async fn send(&self, fleet: &Fleet, lines: &str) -> Answer {
        let packed = zstd::bulk::compress(lines.as_bytes(), 3).unwrap();
        let size = lines.len().to_string();
        let headers = [("content-type", wire::EVENTS_MEDIA_TYPE), (wire::RAW_BYTES_HEADER, size.as_str())];
        fleet.ask("POST", wire::EVENTS_PATH, Some(self), &headers, packed).await
    }

    pub async fn get(&self, fleet: &Fleet, path: &str) -> Answer {
        fleet.ask("GET", path, Some(self), &[], Vec::new()).await
    }

    pub async fn renew(&self, fleet: &Fleet, key: &PrivateKey) -> Answer {
        let body = json!({"csr": base64(&key.request("x").unwrap()), "reason": "due", "clock": {"now": fleet.now()}});
        let headers = [("content-type", "application/json")];
        fleet.ask("POST", wire::CERTIFICATE_PATH, Some(self), &headers, body.to_string().into_bytes()).await
    }
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Waits until `look` finds something; a bounded time, in small steps.
pub async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    found.await.expect("it did not come about")
}
