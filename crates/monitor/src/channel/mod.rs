//! How alerts reach people: the log, e-mail, webhooks.
//!
//! [`plan`] turns the configuration into [`Channel`]s and says what is wrong with it; [`Notifier`] runs them. Secrets come
//! from files only, are read anew for each delivery, so that one that was changed holds at once, and are in no error and no
//! `Debug` output.

mod backoff;
mod email;
mod notifier;
mod route;
mod webhook;

pub use notifier::{Attempt, Hear, Notifier, NotifierOptions};

use crate::settings::{AlertingSettings, ChannelKind, ChannelLevel, ChannelSettings, SmtpSettings};
use email::Email;
use picket_protocol::event::{AlertEvent, AlertLevel};
use picket_transport::Network;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use webhook::Webhook;

/// The most channels: each takes a thread.
pub const MAX_CHANNELS: usize = 16;
/// The largest file of a secret, in bytes.
const MAX_SECRET_BYTES: u64 = 4 << 10;
/// The largest file of certificates, in bytes: the authorities of a whole distribution take 220 KiB.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// Who speaks, in mails and to webhooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The device's id, as in events.
    pub device_id: String,
    /// The machine's name.
    pub hostname: String,
    /// How HTTP requests introduce themselves: product and version.
    pub user_agent: String,
    /// How web hooks are reached.
    pub network: Network,
}

/// A channel that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ChannelError {
    /// The key in the configuration.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
    /// Whether the channel is there all the same and works as soon as it is mended: a secret that cannot be read now.
    pub waits: bool,
}

/// What a channel has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelStatus {
    /// `log`, `email` or `webhook`.
    pub kind: &'static str,
    /// Its place in the configuration, from 0.
    pub index: usize,
    /// Events that were delivered.
    pub sent: u64,
    /// Events that were given up after the last attempt.
    pub failed: u64,
    /// Events that found the queue full, or were left when the agent stopped.
    pub dropped: u64,
    /// How many attempts failed since one succeeded.
    pub failing: u64,
    /// How long ago, in seconds, an event was given up or dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_ago_seconds: Option<u64>,
    /// Why the last attempt failed; absent once one succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl ChannelStatus {
    /// What the channel did since `start`.
    #[must_use]
    pub fn since(&self, start: &Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(start.sent),
            failed: self.failed.saturating_sub(start.failed),
            dropped: self.dropped.saturating_sub(start.dropped),
            failing: self.failing.saturating_sub(start.failing),
            ..self.clone()
        }
    }
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// In words, without secrets.
    pub reason: String,
    /// Whether the same could succeed later.
    pub retry: bool,
    /// How long the other side asks to wait.
    pub wait: Option<Duration>,
}

/// Something that can deliver events, and may block for as long as its own time limits allow.
pub(crate) trait Deliver: Send {
    /// How many events it takes at once.
    fn batch(&self) -> usize;
    /// What keeps it from delivering now and may not later: a secret that cannot be read.
    fn obstacle(&self) -> Option<Wrong> {
        None
    }
    /// Delivers all of `events`, or none.
    fn deliver(&mut self, events: &[AlertEvent]) -> Result<(), Failure>;
}

/// One channel, ready to run.
pub struct Channel {
    pub(crate) index: usize,
    pub(crate) kind: ChannelKind,
    pub(crate) level: AlertLevel,
    /// `None` for the log, which needs nobody to carry it.
    pub(crate) deliver: Option<Box<dyn Deliver>>,
}

/// The channels of a configuration, and what is wrong with those that cannot be used. The others work all the same: a
/// mistyped webhook is no reason to mail nobody. One whose secret cannot be read is told and there all the same: it is
/// looked for at each delivery.
pub fn plan(alerting: &AlertingSettings, smtp: &SmtpSettings, sender: &Sender) -> (Vec<Channel>, Vec<ChannelError>) {
    let (mut channels, mut errors) = (Vec::new(), Vec::new());
    if !alerting.enabled {
        return (channels, errors);
    }
    if alerting.channels.len() > MAX_CHANNELS {
        let reason = format!("only the first {MAX_CHANNELS} are used");
        errors.push(ChannelError { key: "alerting.channels".to_owned(), reason, waits: false });
    }
    for (index, settings) in alerting.channels.iter().enumerate().take(MAX_CHANNELS) {
        match channel(index, settings, smtp, sender) {
            Ok(channel) => {
                let obstacle = channel.deliver.as_ref().and_then(|deliver| deliver.obstacle());
                errors.extend(obstacle.map(|wrong| wrong.error(index, true)));
                channels.push(channel);
            }
            Err(wrong) => errors.push(wrong.error(index, false)),
        }
    }
    (channels, errors)
}

/// What is wrong, with the key it is about below the channel, or below `smtp`.
pub(crate) enum Wrong {
    Channel(&'static str, String),
    Smtp(&'static str, String),
}

impl Wrong {
    fn error(self, index: usize, waits: bool) -> ChannelError {
        let (key, reason) = match self {
            Self::Channel(key, reason) => (format!("alerting.channels[{index}].{key}"), reason),
            Self::Smtp(key, reason) => (format!("smtp.{key}"), reason),
        };
        ChannelError { key, reason, waits }
    }
}

fn channel(index: usize, settings: &ChannelSettings, smtp: &SmtpSettings, sender: &Sender) -> Result<Channel, Wrong> {
    let level = match settings.level {
        ChannelLevel::Warning => AlertLevel::Warning,
        ChannelLevel::Critical => AlertLevel::Critical,
    };
    let deliver: Option<Box<dyn Deliver>> = match settings.r#type {
        ChannelKind::Log => None,
        ChannelKind::Email => Some(Box::new(Email::new(settings, smtp, sender)?)),
        ChannelKind::Webhook => Some(Box::new(Webhook::new(settings, sender)?)),
    };
    Ok(Channel { index, kind: settings.r#type, level, deliver })
}

/// The first line of the file of a secret.
fn secret(path: &str) -> Result<String, String> {
    let text = picket_durable::read_text(Path::new(path), MAX_SECRET_BYTES).map_err(|e| chain(&e))?;
    let line = text.lines().next().unwrap_or_default().trim_end();
    if line.is_empty() { Err(format!("{path} has no secret in its first line")) } else { Ok(line.to_owned()) }
}

/// The certificates of a PEM file.
fn certificates(path: &str) -> Result<Vec<u8>, String> {
    let pem = picket_durable::read_bounded(Path::new(path), MAX_PEM_BYTES).map_err(|e| chain(&e))?;
    let begins = b"-----BEGIN CERTIFICATE-----";
    let found = pem.windows(begins.len()).any(|window| window == begins);
    if found { Ok(pem) } else { Err(format!("{path} has no PEM certificate")) }
}

/// An error with everything that caused it, in one line of bounded length.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    plain(&text, 300)
}

/// `text` without control characters, which could forge lines of logs and headers, and no longer than `limit` characters.
fn plain(text: &str, limit: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit).collect()
}
