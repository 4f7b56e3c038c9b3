//! The configuration of monitoring: rings, thresholds, channels, mail.

use picket_config::{Interval, Node, Origin, Problems, Setting, private::Value};
use std::collections::BTreeMap;

picket_config::settings! {
    /// How samples are kept.
    pub struct PerformanceSettings {
        /// How many minutes samples are kept in memory for summaries (at most 43200, 30 days).
        pub retention_minutes: u32 = 60,
        /// How often the machine is measured; absent, as often as `collection_interval` says.
        pub collection_interval: Option<Interval> = None,
        /// How many samples of one metric are kept at most.
        pub max_samples: u32 = 1_000,
    }
}

picket_config::choice! {
    /// Which side of a bound is bad.
    pub enum Comparison {
        /// Values at or above the bound.
        Greater = "greater",
        /// Values at or below the bound.
        Less = "less",
    }
}

picket_config::settings! {
    /// When a metric is an alert.
    pub struct ThresholdSettings {
        /// Whether this threshold is watched.
        pub enabled: bool = true,
        /// The metric; absent, it is the threshold's own name. `response_time` also stands for every `response_time.*`.
        pub metric: Option<String> = None,
        /// Only samples with these tags, for example `mount: /var`.
        pub tags: BTreeMap<String, String> = BTreeMap::new(),
        /// The bound, in the metric's unit, at which somebody should look.
        pub warning: Option<f64> = None,
        /// The bound at which somebody should look now.
        pub critical: Option<f64> = None,
        /// Which side of the bounds is bad.
        pub comparison: Comparison = Comparison::Greater,
        /// How long a value must stay beyond a bound before it counts, and back before it counts no more.
        pub r#for: Interval = Interval::seconds(60),
        /// How far back behind a bound, in the metric's unit, a value must come; absent, a twentieth of the bound.
        pub clear_margin: Option<f64> = None,
    }
}

/// The thresholds by name. What a file writes is laid over the defaults, name by name: a file that sets one keeps the
/// others, and one is switched off with `enabled: false`.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds(pub BTreeMap<String, ThresholdSettings>);

impl Default for Thresholds {
    /// Processor and memory in percent of all, disks in percent of each, operations in seconds and in percent failed.
    fn default() -> Self {
        let bounds = [
            ("cpu_usage", 70.0, 85.0),
            ("memory_usage", 80.0, 90.0),
            ("disk_usage", 90.0, 95.0),
            ("response_time", 2.0, 5.0),
            ("error_rate", 5.0, 10.0),
        ];
        let threshold = |warning, critical| ThresholdSettings {
            warning: Some(warning),
            critical: Some(critical),
            ..ThresholdSettings::default()
        };
        Self(bounds.map(|(name, warning, critical)| (name.to_owned(), threshold(warning, critical))).into())
    }
}

type ByName = BTreeMap<String, ThresholdSettings>;

impl Setting for Thresholds {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let mut whole = Node::from_json(&Self::default().show(), &Origin::Default);
        whole.merge(node.clone());
        ByName::read(&whole, key, problems).map(Self)
    }

    fn show(&self) -> Value {
        self.0.show()
    }

    fn schema() -> Value {
        ByName::schema()
    }

    fn type_name() -> String {
        ByName::type_name()
    }

    fn document(key: &str, text: &str, default: &Value, out: &mut Vec<picket_config::KeyDoc>) {
        ByName::document(key, text, default, out);
    }
}

picket_config::choice! {
    /// How an alert reaches people.
    pub enum ChannelKind {
        /// The log.
        Log = "log",
        /// A mail to each recipient.
        Email = "email",
        /// An HTTP POST of the alert's event in JSON.
        Webhook = "webhook",
    }
}

picket_config::choice! {
    /// From which level on a channel is used.
    pub enum ChannelLevel {
        /// All alerts.
        Warning = "warning" | "warn",
        /// Only those at which somebody should look now.
        Critical = "critical",
    }
}

picket_config::settings! {
    /// One way for alerts to reach people.
    pub struct ChannelSettings {
        /// Which way.
        pub r#type: ChannelKind = ChannelKind::Log,
        /// From which level on.
        pub level: ChannelLevel = ChannelLevel::Warning,
        /// Whom to mail, for `email`.
        pub recipients: Vec<String> = Vec::new(),
        /// Where to post, for `webhook`: https, or http to this machine.
        pub url: Option<String> = None,
        /// A file whose first line is sent to the webhook as `Authorization: Bearer`.
        pub token_file: Option<String> = None,
        /// A file of PEM certificates that alone are trusted for the webhook; absent, those the machine trusts.
        pub ca_file: Option<String> = None,
    }
}

picket_config::settings! {
    /// Who hears of alerts.
    pub struct AlertingSettings {
        /// Whether thresholds raise alerts.
        pub enabled: bool = true,
        /// The ways alerts reach people, at most 16.
        pub channels: Vec<ChannelSettings> = vec![ChannelSettings::default()],
        /// How long a metric may be silent before its alerts are closed with the words "no data"; at least three times
        /// the metric's own interval.
        pub no_data: Interval = Interval::seconds(900),
    }
}

picket_config::choice! {
    /// How the connection to the mail server is protected.
    pub enum SmtpTls {
        /// STARTTLS, required; nothing to this machine itself.
        Auto = "auto",
        /// STARTTLS (RFC 3207), required.
        Starttls = "starttls",
        /// TLS from the first byte (RFC 8314).
        Tls = "tls",
        /// None; only to this machine itself.
        None = "none",
    }
}

picket_config::settings! {
    /// The mail server for alerts.
    pub struct SmtpSettings {
        /// Its name or address.
        pub host: String = "localhost".to_owned(),
        /// Its port; absent, 587 with STARTTLS, 465 with TLS, 25 without.
        pub port: Option<u32> = None,
        /// How the connection is protected.
        pub tls: SmtpTls = SmtpTls::Auto,
        /// Who logs in; absent, nobody does.
        pub username: Option<String> = None,
        /// A file whose first line is the password.
        pub password_file: Option<String> = None,
        /// The sender; absent, `picket@` and the machine's name.
        pub from: Option<String> = None,
        /// A file of PEM certificates that are trusted for the server beside those the machine trusts.
        pub ca_file: Option<String> = None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_config::{Layers, Resolved};

    picket_config::settings! {
        /// The groups as the agent holds them.
        pub struct Whole {
            /// Rings.
            pub performance_monitoring: PerformanceSettings = PerformanceSettings::default(),
            /// Thresholds.
            pub thresholds: Thresholds = Thresholds::default(),
            /// Channels.
            pub alerting: AlertingSettings = AlertingSettings::default(),
            /// Mail.
            pub smtp: SmtpSettings = SmtpSettings::default(),
        }
    }

    fn resolve(text: &str) -> Resolved<Whole> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
        Layers::new::<Whole>().file(&path).resolve()
    }

    const ASKED_FOR: &str = r#"
performance_monitoring:
  retention_minutes: 60
  collection_interval: 30

thresholds:
  response_time:
    warning: 2.0
    critical: 5.0

  memory_usage:
    warning: 80.0
    critical: 90.0

  cpu_usage:
    warning: 70.0
    critical: 85.0

  error_rate:
    warning: 5.0
    critical: 10.0

alerting:
  enabled: true
  channels:
    - type: "log"
      level: "warning"
    - type: "email"
      level: "critical"
      recipients: ["admin@example.com"]
"#;

    #[test]
    fn the_file_that_was_asked_for_is_read_as_it_stands() {
        let resolved = resolve(ASKED_FOR);
        assert_eq!(resolved.problems, Problems::default());
        let settings = resolved.settings;
        assert_eq!(settings.performance_monitoring.collection_interval, Some(Interval::seconds(30)));
        assert_eq!(settings.thresholds, Thresholds::default(), "its bounds are our defaults");
        assert_eq!(settings.alerting.channels[1].r#type, ChannelKind::Email);
        assert_eq!(settings.alerting.channels[1].level, ChannelLevel::Critical);
        assert_eq!(settings.alerting.channels[1].recipients, ["admin@example.com"]);
    }

    #[test]
    fn setting_one_bound_keeps_every_other() {
        let settings = resolve("thresholds:\n  cpu_usage: {warning: 60, for: 5m}\n  own: {critical: 1}\n").settings;
        let thresholds = settings.thresholds.0;
        assert_eq!((thresholds["cpu_usage"].warning, thresholds["cpu_usage"].critical), (Some(60.0), Some(85.0)));
        assert_eq!(thresholds["cpu_usage"].r#for, Interval::seconds(300));
        assert_eq!(thresholds["disk_usage"].warning, Some(90.0));
        assert_eq!((thresholds["own"].warning, thresholds["own"].critical), (None, Some(1.0)));
    }
}
