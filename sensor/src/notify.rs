//! What the sensor tells its service manager: readiness, status, and that it still lives (`sd_notify(3)`).

use sd_notify::NotifyState;
use std::time::Duration;

/// Tells the service manager that the sensor listens.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells the service manager that the sensor drains.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("handing on what the agent has not taken yet")]);
}

/// Tells the service manager what is going on.
pub(crate) fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Tells the service manager that the main loop turns, if it watches.
pub(crate) fn alive() {
    if sd_notify::watchdog_enabled().is_some() {
        send(&[NotifyState::Watchdog]);
    }
}

/// How often [`alive`] must be sent: three times in the time the service manager allows.
pub(crate) fn alive_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3)
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
