//! Who hears of alerts: the channels of a configuration, and how they are.

use crate::config::MonitorConfig;
use picket_monitor::channel::{self, ChannelError, Sender};
use picket_monitor::{AlertingSettings, ChannelKind, ChannelStatus, Hear, Notifier, NotifierOptions, SmtpSettings};
use picket_telemetry::Finding;

/// From how many failed attempts in a row on a channel is worth a warning: one may be a hiccup, and the next is seconds away.
const FAILING: u64 = 3;
/// How long it is told that a channel lost something, in seconds.
pub(crate) const LOST_TOLD: u64 = 3_600;

/// What decides who hears of alerts. While it stays the same, so do the channels.
#[derive(Clone, PartialEq)]
pub(crate) struct Heard {
    alerting: AlertingSettings,
    smtp: SmtpSettings,
    sender: Sender,
}

impl Heard {
    /// What a configuration says of it.
    pub(crate) fn of(config: &MonitorConfig) -> Self {
        // How long a metric may be silent is nothing to a channel.
        let no_data = AlertingSettings::default().no_data;
        Self {
            alerting: AlertingSettings { no_data, ..config.alerting.clone() },
            smtp: config.smtp.clone(),
            sender: Sender {
                device_id: config.device_id.clone(),
                hostname: config.hostname.clone(),
                user_agent: config.user_agent.clone(),
                network: config.network.clone(),
            },
        }
    }

    /// Starts the channels; with those that cannot be used, and why.
    pub(crate) fn notifier(&self, hear: &Hear) -> std::io::Result<(Option<Notifier>, Vec<ChannelError>)> {
        let (channels, errors) = channel::plan(&self.alerting, &self.smtp, &self.sender);
        for error in &errors {
            tracing::error!(%error, "a channel for alerts cannot be used");
        }
        let notifier =
            if channels.is_empty() { None } else { Some(Notifier::spawn(channels, NotifierOptions::default(), hear)?) };
        Ok((notifier, errors))
    }

    /// Lets the channels of `now` that were here before count on from `counted`.
    pub(crate) fn count_on(&self, now: &Self, fresh: &Notifier, counted: &[ChannelStatus]) {
        for status in counted {
            if let Some(index) = self.same_in(now, status.index) {
                fresh.count_on(index, status);
            }
        }
    }

    /// Which channels lack a secret at present.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = ChannelError> + use<> {
        let (_, errors) = channel::plan(&self.alerting, &self.smtp, &self.sender);
        errors.into_iter().filter(|error| error.waits)
    }

    /// Where in `other` the channel at `index` stands, if it is there unchanged.
    fn same_in(&self, other: &Self, index: usize) -> Option<usize> {
        let channel = self.alerting.channels.get(index)?;
        let same = self.sender == other.sender && (channel.r#type != ChannelKind::Email || self.smtp == other.smtp);
        other.alerting.channels.iter().position(|other| same && other == channel)
    }
}

/// What the channels' state means for the agent's health.
pub(crate) fn finding(channels: &[ChannelStatus], unusable: &[ChannelError]) -> Finding {
    let mut trouble: Vec<String> = unusable.iter().map(ToString::to_string).collect();
    for channel in channels {
        let place = format!("alerting.channels[{}] ({})", channel.index, channel.kind);
        let last = channel.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        if channel.failing >= FAILING {
            trouble.push(format!("{place} failed {} times in a row{last}", channel.failing));
        } else if channel.lost_ago_seconds.is_some_and(|ago| ago < LOST_TOLD) {
            let (failed, dropped) = (channel.failed, channel.dropped);
            trouble.push(format!(
                "{place} lost alerts within the last hour ({failed} given up, {dropped} dropped in all){last}"
            ));
        }
    }
    let finding = match trouble.as_slice() {
        [] if channels.is_empty() => Finding::pass("no channel is configured; alerts are in `picket alerts list`"),
        [] => Finding::pass("every channel works"),
        trouble => Finding::warn(trouble.join("; ")),
    };
    let lost: u64 = channels.iter().map(|channel| channel.failed + channel.dropped).sum();
    finding.figure("channels", channels.len() as u64).figure("lost", lost)
}
