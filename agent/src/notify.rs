//! What the agent tells its service manager: readiness, status, and that it still lives (`sd_notify(3)`).

use sd_notify::NotifyState;
use std::time::Duration;

/// Tells the service manager that the agent serves.
pub(crate) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells the service manager that the agent drains.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Tells the service manager what is going on.
pub(crate) fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Tells the service manager that the main loop turns.
pub(crate) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be sent: three times in the time the service manager allows, so that one lost turn of a busy
/// machine does not kill the agent. `None` when it does not watch.
pub(crate) fn alive_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3)
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
