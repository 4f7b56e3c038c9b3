//! The way to other machines: through a proxy, believing an operator's authorities beside the machine's own.

use picket_monitor::channel::{Hear, Sender, plan};
use picket_monitor::{AlertingSettings, ChannelKind, ChannelSettings, Notifier, NotifierOptions, SmtpSettings};
use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
use picket_testkit::{ConnectProxy, Fault, Identity, Prefix, Ran, ReleaseServer, Vendor, build, wait_until};
use picket_transport::NetworkSettings;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The name that the release server has behind the proxy.
const HOST: &str = "releases.example.com";

/// A vendor with two releases on a server that is reached through a proxy alone, and 1.0.0 installed.
struct Behind {
    _vendor: Vendor,
    server: ReleaseServer,
    proxy: ConnectProxy,
    prefix: Prefix,
}

impl Behind {
    /// With the configuration that `config` makes of the proxy, and the authority in a file of this name.
    fn new(config: impl Fn(&ConnectProxy) -> String) -> Self {
        let vendor = Vendor::new();
        let (first, second) = (build("1.0.0", Fault::None), build("2.0.0", Fault::None));
        vendor.release(&first);
        vendor.release(&second);
        let server = ReleaseServer::start_tls_as(&vendor.tree(), Identity::OfAnotherHost);
        let proxy = ConnectProxy::start();
        proxy.lead(HOST, &server.url());
        let config = config(&proxy);
        let prefix = Prefix::with_config(&format!("log_level: trace\n{config}update:\n  releases: https://{HOST}/\n"));
        fs::write(prefix.path("etc/picket/authority.pem"), server.authority.as_ref().unwrap()).unwrap();
        prefix.install(&first, &vendor.root_file());
        Self { _vendor: vendor, server, proxy, prefix }
    }

    /// Configured with the proxy, a login for it, and the authority.
    fn configured() -> Self {
        Self::new(|proxy| format!("network:\n  proxy: {}\n  no_proxy: [other.example]\n", proxy.url_with_login()))
    }

    fn believe(&self, pem: &Path) {
        self.set(&format!("  authorities: {}\n", pem.display()));
    }

    /// Adds a line to the group `network`.
    fn set(&self, line: &str) {
        let file = self.prefix.path("etc/picket/config.yaml");
        let text = fs::read_to_string(&file).unwrap().replace("network:\n", &format!("network:\n{line}"));
        fs::write(&file, text).unwrap();
    }

    fn check(&self) -> Ran {
        self.proxy.forget();
        self.prefix.picket(&["update", "check"])
    }

    /// Whether the last check took the proxy.
    fn assert_tunnelled(&self, how: &str) {
        let tunnels = self.proxy.tunnels();
        assert!(!tunnels.is_empty() && tunnels.iter().all(|to| to == &format!("{HOST}:443")), "{how}: {tunnels:?}");
    }
}

#[test]
fn check_download_and_trial_go_through_the_configured_proxy_and_its_password_is_shown_nowhere() {
    let behind = Behind::configured();
    behind.proxy.ask_for_login();
    behind.believe(&behind.prefix.path("etc/picket/authority.pem"));
    let checked = behind.check().expect(0);
    behind.assert_tunnelled("check");
    // The new version itself has to reach the server in its trial.
    let applied = behind.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(0);
    assert_eq!(behind.prefix.current(), "2.0.0");
    behind.assert_tunnelled("apply");
    let asked = behind.server.requests();
    assert!(asked.iter().any(|request| request.contains(".tar.xz")), "{asked:?}");
    let shown = behind.prefix.picket(&["config", "show"]).expect(0);
    assert!(shown.stdout.contains("http://…@127.0.0.1"), "{}", shown.stdout);
    let json = behind.prefix.picket(&["config", "show", "--json"]).expect(0);
    for text in [checked.stderr, applied.stdout, applied.stderr, shown.stdout, json.stdout, behind.prefix.log()] {
        assert!(!text.contains("s3cret") && !text.contains("YW5uOnMzY3JldA"), "{text}");
    }
}

#[test]
fn a_proxy_that_refuses_is_named_without_its_password_and_with_advice() {
    let behind = Behind::new(|proxy| format!("network:\n  proxy: {}\n", proxy.url()));
    behind.proxy.ask_for_login();
    let refused = behind.check().expect(31);
    for word in ["the proxy cannot be used", "407", "user:password@", "check network.proxy"] {
        assert!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
    }
    let gone = Behind::new(|_| "network:\n  proxy: http://ann:s3cret@127.0.0.1:9\n".to_owned());
    let stderr = gone.check().expect(31).stderr;
    assert!(stderr.contains("no connection to 127.0.0.1:9") && !stderr.contains("s3cret"), "{stderr}");
    let wrong = gone.prefix.picket(&["config", "check", "--set", "network.proxy=ftp://ann:s3cret@proxy"]).expect(78);
    let told = format!("{}{}", wrong.stdout, wrong.stderr);
    assert!(told.contains("network.proxy") && told.contains("http://host:port") && !told.contains("s3cret"), "{told}");
}

#[test]
fn the_environments_proxy_is_taken_unless_no_proxy_names_the_host_or_the_configuration_says_otherwise() {
    let mut behind = Behind::new(|_| "network:\n".to_owned());
    behind.believe(&behind.prefix.path("etc/picket/authority.pem"));
    behind.prefix.set("HTTPS_PROXY", &behind.proxy.url());
    behind.check().expect(0);
    behind.assert_tunnelled("HTTPS_PROXY");
    // Without the proxy nobody knows the host.
    behind.prefix.set("NO_PROXY", HOST);
    behind.check().expect(31);
    assert_eq!(behind.proxy.tunnels(), [""; 0], "NO_PROXY");
    behind.prefix.unset("NO_PROXY");
    behind.set("  no_proxy: [.example.com]\n");
    behind.check().expect(31);
    assert_eq!(behind.proxy.tunnels(), [""; 0], "network.no_proxy");
    behind.prefix.set("PICKET_NETWORK_NO_PROXY", "other.example");
    behind.check().expect(0);
    behind.prefix.set("PICKET_NETWORK_PROXY", "off");
    behind.check().expect(31);
    assert_eq!(behind.proxy.tunnels(), [""; 0], "network.proxy is off");
}

#[test]
fn this_machine_is_never_asked_of_a_proxy() {
    let vendor = Vendor::new();
    let first = build("1.0.0", Fault::None);
    vendor.release(&first);
    let (server, proxy) = (ReleaseServer::start(&vendor.tree()), ConnectProxy::start());
    let config = format!("network: {{proxy: \"{}\"}}\nupdate:\n  releases: {}\n", proxy.url(), server.url());
    let prefix = Prefix::with_config(&config);
    prefix.install(&first, &vendor.root_file());
    prefix.picket(&["update", "check"]).expect(0);
    assert_eq!(proxy.tunnels(), [""; 0]);
}

#[test]
fn an_authority_of_the_operators_is_believed_beside_the_machines_own_and_a_wrong_file_is_told() {
    let behind = Behind::configured();
    let unknown = behind.check().expect(31);
    for word in ["no trusted TLS connection", "network.authorities"] {
        assert!(unknown.stderr.contains(word), "{word}: {}", unknown.stderr);
    }
    let authority = behind.prefix.path("etc/picket/authority.pem");
    let pem = fs::read(&authority).unwrap();
    behind.believe(&authority);
    fs::write(&authority, "a letter").unwrap();
    let asked = behind.server.requests();
    let wrong = behind.check().expect(78);
    for word in ["network.authorities", "authority.pem", "BEGIN CERTIFICATE", "config check"] {
        assert!(wrong.stderr.contains(word), "{word}: {}", wrong.stderr);
    }
    assert_eq!(behind.server.requests(), asked);
    // It is no reason for anything else not to work.
    behind.prefix.picket(&["config", "check"]).expect(6);
    let found = behind.prefix.picket(&["doctor", "--json"]).json()["findings"].to_string();
    assert!(found.contains("network.authorities"), "{found}");
    behind.prefix.picket(&["update", "recover"]).expect(0);
    fs::write(&authority, pem).unwrap();
    behind.check().expect(0);
}

#[test]
fn a_machine_without_authorities_is_told_so_and_believes_those_built_in_and_the_operators() {
    let mut behind = Behind::configured();
    let nothing = behind.prefix.path("nothing.pem");
    fs::write(&nothing, "").unwrap();
    behind.prefix.set("SSL_CERT_FILE", nothing.to_str().unwrap());
    behind.prefix.set("SSL_CERT_DIR", behind.prefix.path("nowhere").to_str().unwrap());
    let finding = |behind: &Behind| {
        let report = behind.prefix.picket(&["doctor", "--json"]).json();
        let all = report["findings"].as_array().unwrap().clone();
        all.into_iter().find(|finding| finding["code"] == "authorities").unwrap()
    };
    let told = finding(&behind);
    assert_eq!(told["severity"], "warn");
    assert!(told["fix"].as_str().unwrap().contains("ca-certificates"), "{told}");
    // Those built in do not vouch for a stranger.
    behind.check().expect(31);
    behind.believe(&behind.prefix.path("etc/picket/authority.pem"));
    behind.check().expect(0);
    let ran = behind.prefix.picket(&["update", "run"]).expect(0);
    let log = format!("{}{}", ran.stderr, behind.prefix.log());
    assert!(log.contains("no certificate authorities of its own"), "{log}");
    // One authority alone is one, too.
    behind.prefix.set("SSL_CERT_FILE", behind.prefix.path("etc/picket/authority.pem").to_str().unwrap());
    assert_eq!(finding(&behind)["severity"], "ok");
}

#[test]
fn a_web_hook_takes_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("hook"), "thanks").unwrap();
    let server = ReleaseServer::start_tls_as(dir.path(), Identity::OfAnotherHost);
    let proxy = ConnectProxy::start();
    proxy.lead(HOST, &server.url());
    let authorities = dir.path().join("authority.pem");
    fs::write(&authorities, server.authority.as_ref().unwrap()).unwrap();
    let settings = NetworkSettings {
        proxy: proxy.url().into(),
        authorities: authorities.to_str().unwrap().to_owned(),
        ..NetworkSettings::default()
    };
    let text = |text: &str| text.to_owned();
    let (device_id, hostname, user_agent) = (text("d"), text("h"), text("picket/test"));
    let sender = Sender { device_id, hostname, user_agent, network: settings.resolve().unwrap() };
    let url = Some(format!("https://{HOST}/hook"));
    let hook = ChannelSettings { r#type: ChannelKind::Webhook, url, ..ChannelSettings::default() };
    let alerting = AlertingSettings { channels: vec![hook], ..AlertingSettings::default() };
    let (channels, errors) = plan(&alerting, &SmtpSettings::default(), &sender);
    assert_eq!(errors, []);
    let nobody: Hear = Arc::new(|_| {});
    let notifier = Notifier::spawn(channels, NotifierOptions::default(), &nobody).unwrap();
    notifier.notify(&AlertEvent {
        timestamp: jiff::Timestamp::now(),
        alert_id: uuid::Uuid::now_v7(),
        action: AlertAction::Raised,
        level: AlertLevel::Critical,
        metric: text("disk_usage"),
        tags: [].into(),
        value: 97.0,
        threshold: 95.0,
        message: text("full"),
        by: None,
        note: None,
    });
    wait_until("the web hook to be delivered", || notifier.status()[0].sent == 1);
    assert_eq!(proxy.tunnels(), [format!("{HOST}:443")]);
}
