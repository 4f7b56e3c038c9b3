//! What the hub needs to know to run.

use picket_config::{ByteSize, Confidential, Interval, LoopbackAddr};
use picket_hub_db::Network;
use picket_telemetry::{LogFormat, LogLevel};
use picket_transport::NetworkSettings;
use std::net::SocketAddr;

picket_config::settings! {
    /// Where the hub listens.
    pub struct ListenSettings {
        /// For agents, with client certificates.
        pub agents: String = "[::]:8444".to_owned(),
        /// For people and programs: API and WebSockets.
        pub api: String = "[::]:8443".to_owned(),
        /// For probes and Prometheus, in clear: `/livez`, `/readyz`, `/health`, `/metrics`.
        pub health: LoopbackAddr = LoopbackAddr::port(9092),
    }
}

picket_config::settings! {
    /// Letting machines in.
    pub struct EnrolmentSettings {
        /// Whether a person has to approve each machine, whatever its token says.
        pub approval: bool = false,
        /// From which networks machines may enrol, whatever their token says, for example `10.0.0.0/8`; none means from everywhere.
        pub networks: Vec<String> = Vec::new(),
        /// How many machines may enrol in a second.
        pub per_second: u32 = 100,
        /// How many of them from one address, over time; five times as many at once, for a rack that comes up.
        pub per_second_each: u32 = 20,
    }
}

picket_config::settings! {
    /// Agents' certificates.
    pub struct CertificateSettings {
        /// How long after its end a certificate may still be renewed with its own key.
        pub grace: Interval = Interval::seconds(30 * 24 * 3600),
    }
}

picket_config::settings! {
    /// What the hub may use, and when it sends agents away.
    pub struct HubLimits {
        /// Connections of agents at a time: of each, one for its WebSocket, and one while it sends events.
        pub agents: u32 = 40_000,
        /// Connections of people and programs at a time, live views among them.
        pub api: u32 = 1_000,
        /// Connections of agents' port at a time that come from one address and have shown no agent's certificate yet; 0 is no limit,
        /// for a load balancer that hides addresses.
        pub strangers_each: u32 = 1_000,
        /// Connections of people and programs at a time from one address, but for proxies that are trusted
        /// (`ip_blocking.trusted_proxies`); 0 is no limit.
        pub api_each: u32 = 100,
        /// Bytes of events that wait to be stored, unpacked.
        pub intake: ByteSize = ByteSize(256 << 20),
        /// How many agents may connect in a second; the rest is told when to come back.
        pub connects_per_second: u32 = 500,
    }
}

picket_config::settings! {
    /// How replicas of one hub tell each other: through NATS. A hub that is alone needs none.
    pub struct BusSettings {
        /// Addresses of NATS servers of one cluster: `nats://host:4222` or `tls://host:4222`. None means that there are no replicas.
        pub nats: Vec<String> = Vec::new(),
        /// Whether agents may send their batches of events through NATS, too (`uplink.via: nats` of an agent).
        pub events: bool = false,
        /// A credentials file (`.creds`); it is read anew for each connection.
        pub credentials_file: String = String::new(),
        /// The user, with `bus.password_file`.
        pub user: String = String::new(),
        /// A file with the user's password.
        pub password_file: String = String::new(),
        /// A file with a token.
        pub token_file: String = String::new(),
        /// The authorities that the servers' certificates must come from, as PEM; the system's where there is none.
        pub ca_file: String = String::new(),
        /// The certificate to be known by, as PEM.
        pub certificate_file: String = String::new(),
        /// Its key, as PEM.
        pub key_file: String = String::new(),
        /// How many servers keep each message of a queue: 1, 3 or 5.
        pub copies: u32 = 1,
        /// Monitoring addresses of the servers (`http://host:8222`), where they tell how they sync.
        pub monitoring: Vec<String> = Vec::new(),
        /// Whether servers are taken that do not sync each write, or do not tell.
        pub accept_unknown_sync: bool = false,
    }
}

picket_config::settings! {
    /// For how many days things are kept.
    pub struct RetentionSettings {
        /// Events.
        pub events_days: u32 = 90,
        /// Resolved findings.
        pub findings_days: u32 = 365,
        /// Web hooks that were delivered or given up.
        pub deliveries_days: u32 = 30,
        /// Enrolment tokens that ended.
        pub enrolment_days: u32 = 90,
    }
}

picket_config::settings! {
    /// The hub's configuration: `hub.yaml`, `hub.json` or `hub.toml`.
    pub struct HubSettings {
        /// How much is logged.
        pub log_level: LogLevel = LogLevel::Info,
        /// The form of the log: `auto` is the journal under systemd and text elsewhere.
        pub log_format: LogFormat = LogFormat::Auto,
        /// What the fleet is called: it stands in the root certificate.
        pub fleet: String = "fleet".to_owned(),
        /// The DNS names and addresses by which machines and people reach the hub. The first one stands in enrolment tokens.
        pub names: Vec<String> = Vec::new(),
        /// The address in enrolment tokens, where it is not `https://` with the first name and the port of `listen.agents`.
        pub url: String = String::new(),
        /// Where the hub listens.
        pub listen: ListenSettings = ListenSettings::default(),
        /// Where everything is kept: `sqlite:` and a file, or `postgres://…`; empty is a file in the hub's own folder.
        pub database: Confidential = Confidential::default(),
        /// A file that holds the database's address, for one with a password in it.
        pub database_file: String = String::new(),
        /// How replicas tell each other.
        pub bus: BusSettings = BusSettings::default(),
        /// How often agents send a heartbeat.
        pub heartbeat: Interval = Interval::seconds(30),
        /// Letting machines in.
        pub enrolment: EnrolmentSettings = EnrolmentSettings::default(),
        /// Agents' certificates.
        pub certificates: CertificateSettings = CertificateSettings::default(),
        /// For how many days things are kept.
        pub retention: RetentionSettings = RetentionSettings::default(),
        /// What the hub may use.
        pub limits: HubLimits = HubLimits::default(),
        /// How web hooks are reached.
        pub network: NetworkSettings = NetworkSettings::default(),
        /// How long open requests may take once the hub was told to stop.
        pub drain_limit: Interval = Interval::seconds(10),
    }
}

/// A setting that cannot be used, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ConfigError {
    /// Which key.
    pub key: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl HubSettings {
    /// The address that machines are told in tokens.
    ///
    /// # Errors
    /// When no name is configured.
    pub fn public_url(&self) -> Result<String, ConfigError> {
        if !self.url.is_empty() {
            let url = self.url.trim_end_matches('/');
            let is_https = url.starts_with("https://") && url.len() > "https://".len();
            let wrong = || ConfigError { key: "url", message: format!("{url:?} is not an https address") };
            return if is_https { Ok(url.to_owned()) } else { Err(wrong()) };
        }
        let name = self.names.first().ok_or_else(|| ConfigError {
            key: "names",
            message:
                "name at least one DNS name or address by which machines reach this hub; `picket hub init` writes it"
                    .to_owned(),
        })?;
        let host = if name.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{name}]") } else { name.clone() };
        Ok(format!("https://{host}:{}", self.agents_address()?.port()))
    }

    /// From where machines may enrol; empty means from everywhere.
    ///
    /// # Errors
    /// The one that is no network.
    pub fn enrolment_networks(&self) -> Result<Vec<Network>, ConfigError> {
        let network = |text: &String| {
            text.parse().map_err(|_| ConfigError {
                key: "enrolment.networks",
                message: format!("{text:?} is neither an address nor a network such as 10.0.0.0/8"),
            })
        };
        self.enrolment.networks.iter().map(network).collect()
    }

    /// Where agents are heard.
    ///
    /// # Errors
    /// When it is no address.
    pub fn agents_address(&self) -> Result<SocketAddr, ConfigError> {
        address("listen.agents", &self.listen.agents)
    }

    /// Where people and programs are answered.
    ///
    /// # Errors
    /// When it is no address.
    pub fn api_address(&self) -> Result<SocketAddr, ConfigError> {
        address("listen.api", &self.listen.api)
    }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    let message = || format!("{text:?} is not an address with a port, for example 0.0.0.0:8444 or [::]:8444");
    text.parse().map_err(|_| ConfigError { key, message: message() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_databases_password_is_not_shown_to_who_looks_for_faults() {
        let settings = HubSettings { database: "postgres://ada:hunter2@db/hub".into(), ..HubSettings::default() };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn the_address_in_tokens_is_the_first_name_unless_another_is_given() {
        let mut settings = HubSettings { names: vec!["hub.example".into()], ..HubSettings::default() };
        assert_eq!(settings.public_url().as_deref(), Ok("https://hub.example:8444"));
        settings.names = vec!["2001:db8::1".into()];
        assert_eq!(settings.public_url().as_deref(), Ok("https://[2001:db8::1]:8444"));
        settings.url = "https://front.example/".into();
        assert_eq!(settings.public_url().as_deref(), Ok("https://front.example"));
        settings.url = "http://front.example".into();
        assert!(settings.public_url().is_err());
        assert!(HubSettings::default().public_url().unwrap_err().to_string().starts_with("names:"));
    }
}
