//! Telling systemd how far the hub is (`sd_notify(3)`); nobody else listens, and nothing happens then.

use sd_notify::NotifyState;

/// The hub serves.
pub fn ready(status: &str) {
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The hub is stopping.
pub fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}
