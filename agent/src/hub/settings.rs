//! What an operator can set about the way to the hub. Nothing of it may be set by the hub itself.

use super::record::{CHAIN_FILE, KEY_FILE};
use super::store::CertStore;
use crate::config::HubConfig;
use picket_bus::{NatsAuth, NatsSettings, NatsTls};
use picket_config::{Confidential, Interval};
use picket_transport::hub::HubOptions;
use picket_transport::{ProxyChoice, Timeouts};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

picket_config::choice! {
    /// Where events go.
    pub enum Via {
        /// To the hub once the machine is enrolled, else into its own store.
        Auto = "auto",
        /// To the hub; until the machine is enrolled they wait.
        Hub = "hub",
        /// To the hub through NATS (`uplink.nats`), signed and answered; all else is said to the hub itself.
        Nats = "nats",
        /// Into the machine's own store; no hub is spoken to.
        None = "none",
    }
}

picket_config::settings! {
    /// The way of events through NATS, with `uplink.via: nats`.
    pub struct NatsUplinkSettings {
        /// Addresses of NATS servers of one cluster: `tls://host:4222`, or `nats://` on this machine alone.
        pub servers: Vec<String> = Vec::new(),
        /// A credentials file (`.creds`); it is read anew for each connection.
        pub credentials_file: String = String::new(),
        /// The authorities that the servers' certificates must come from, as PEM; the system's where there is none.
        pub ca_file: String = String::new(),
        /// The certificate to be known by, as PEM; the one that the machine has from its hub where there is none.
        pub certificate_file: String = String::new(),
        /// Its key, as PEM.
        pub key_file: String = String::new(),
    }
}

picket_config::settings! {
    /// The way to the hub.
    pub struct UplinkSettings {
        /// Where events go: `auto` to the hub once the machine is enrolled and else into its own store, `hub` to the hub or nowhere, `nats` as `hub` but through NATS, `none` into its own store without speaking to any hub.
        pub via: Via = Via::Auto,
        /// The way through NATS.
        pub nats: NatsUplinkSettings = NatsUplinkSettings::default(),
        /// Whether what goes to the hub is kept in the machine's own store, too.
        pub keep_local: bool = true,
        /// The proxy on the way: `auto` is what `network.proxy` and `network.no_proxy` say, `none` is none, else `http://host:port`.
        pub proxy: Confidential = "auto".into(),
        /// How long a connection with TLS may take.
        pub connect_timeout: Interval = Interval::seconds(15),
        /// How long an answer may take to begin.
        pub response_timeout: Interval = Interval::seconds(30),
        /// How long a request may take altogether.
        pub request_timeout: Interval = Interval::seconds(60),
    }
}

impl UplinkSettings {
    /// What keeps events from going where these settings send them: a key, and what is wrong with it.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if self.via != Via::Nats {
            return None;
        }
        let nats = &self.nats;
        if nats.certificate_file.is_empty() != nats.key_file.is_empty() {
            let words = "uplink.nats.certificate_file and uplink.nats.key_file belong together";
            return Some(("uplink.nats.certificate_file", words.to_owned()));
        }
        let open = nats.servers.iter().filter_map(|server| server.strip_prefix("nats://"));
        if nats.ca_file.is_empty() && open.clone().any(|server| !is_this_machine(server)) {
            let words = "events go over a network in the open; write tls://, or set uplink.nats.ca_file";
            return Some(("uplink.nats.servers", words.to_owned()));
        }
        let settings = NatsSettings { servers: nats.servers.clone(), ..NatsSettings::default() };
        settings.check().err().map(|error| ("uplink.nats.servers", error.to_string()))
    }

    /// How NATS is reached, by a machine whose identity is in `store`.
    pub(super) fn nats(&self, store: &CertStore) -> NatsSettings {
        let file = |path: &str| Some(PathBuf::from(path)).filter(|_| !path.is_empty());
        let nats = &self.nats;
        let own = || (store.dir().join(CHAIN_FILE), store.dir().join(KEY_FILE));
        let is_open = nats.ca_file.is_empty()
            && nats.servers.iter().all(|server| server.strip_prefix("nats://").is_some_and(is_this_machine));
        let tls = NatsTls {
            required: !is_open,
            authorities: file(&nats.ca_file),
            identity: (!is_open).then(|| file(&nats.certificate_file).zip(file(&nats.key_file)).unwrap_or_else(own)),
        };
        let auth = file(&nats.credentials_file).map_or(NatsAuth::None, NatsAuth::Credentials);
        let timeout = self.connect_timeout.get().max(Duration::from_millis(100));
        NatsSettings {
            servers: nats.servers.clone(),
            auth,
            tls,
            timeout,
            name: "picket-agent".into(),
            ..NatsSettings::default()
        }
    }

    /// The proxy on the way: the one of all requests where these settings name none.
    fn proxy(&self, usual: &ProxyChoice) -> ProxyChoice {
        match self.proxy.reveal() {
            "auto" | "" => usual.clone(),
            "none" => ProxyChoice::none(),
            address => ProxyChoice::named(address),
        }
    }

    /// How the hub is called, where `usual` is the proxy of all requests.
    pub fn options(&self, user_agent: &str, usual: &ProxyChoice) -> HubOptions {
        let least = |interval: Interval| interval.get().max(Duration::from_millis(100));
        let (connect, response) = (least(self.connect_timeout), least(self.response_timeout));
        HubOptions {
            user_agent: user_agent.to_owned(),
            timeouts: Timeouts { connect, response, stall: response },
            limit: least(self.request_timeout),
            proxy: self.proxy(usual),
        }
    }
}

/// The way to the hub, and the proxy of all requests, which it takes where it has none of its own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Way {
    pub(crate) uplink: UplinkSettings,
    pub(crate) proxy: ProxyChoice,
}

impl Way {
    /// As it is configured.
    pub(crate) fn of(config: &HubConfig) -> Self {
        Self { uplink: config.uplink.clone(), proxy: config.proxy.clone() }
    }

    /// How the hub is called.
    pub(crate) fn options(&self, user_agent: &str) -> HubOptions {
        self.uplink.options(user_agent, &self.proxy)
    }
}

/// Whether `host:port` never leaves this machine.
fn is_this_machine(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_go_through_nats_in_the_open_on_this_machine_alone() {
        let through = |servers: &[&str], ca: &str| {
            let servers = servers.iter().map(|server| (*server).to_owned()).collect();
            let nats = NatsUplinkSettings { servers, ca_file: ca.to_owned(), ..NatsUplinkSettings::default() };
            UplinkSettings { via: Via::Nats, nats, ..UplinkSettings::default() }
        };
        let store = CertStore::new("/certs");
        for server in ["nats://127.0.0.1:4222", "nats://localhost:4222", "nats://[::1]:4222"] {
            let settings = through(&[server], "");
            assert_eq!(settings.problem(), None);
            assert!(!settings.nats(&store).tls.required);
        }
        let settings = through(&["tls://bus.example:4222"], "");
        assert_eq!(settings.problem(), None);
        let tls = settings.nats(&store).tls;
        assert!(tls.required && tls.identity.unwrap().1.starts_with("/certs"));
        assert_eq!(through(&["nats://bus.example:4222"], "/ca.pem").problem(), None);
        for wrong in
            [&[][..], &["nats://bus.example:4222"], &["nats://127.0.0.1:4222", "nats://10.0.0.1"], &["http://x"]]
        {
            assert_eq!(through(wrong, "").problem().unwrap().0, "uplink.nats.servers", "{wrong:?}");
        }
        let unused = UplinkSettings { via: Via::Auto, ..through(&[], "") };
        assert_eq!(unused.problem(), None);
    }

    #[test]
    fn the_proxys_password_is_not_shown_to_who_looks_for_faults() {
        let settings = UplinkSettings { proxy: "http://ada:hunter2@proxy:3128".into(), ..UplinkSettings::default() };
        let options = settings.options("test", &ProxyChoice::none());
        assert_eq!(options.proxy, ProxyChoice::named("http://ada:hunter2@proxy:3128"));
        assert!(!format!("{settings:?} {options:?}").contains("hunter2"));
    }

    #[test]
    fn without_a_proxy_of_its_own_the_way_to_the_hub_takes_the_one_of_all_requests() {
        let usual = ProxyChoice::named("http://proxy:3128");
        let of = |proxy: &str| UplinkSettings { proxy: proxy.into(), ..UplinkSettings::default() }.options("t", &usual);
        assert_eq!(of("auto").proxy, usual);
        assert_eq!(of("none").proxy, ProxyChoice::none());
        assert_eq!(of("http://other:1").proxy, ProxyChoice::named("http://other:1"));
    }
}
