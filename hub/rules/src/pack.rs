//! The starter pack: rules of our own for what Picket's sensors see. They are files, so that they can be read and copied.

use crate::rule::{Origin, RuleKey, RuleSource};

/// A rule of the starter pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRule {
    /// The file's name.
    pub name: &'static str,
    /// Its source.
    pub yaml: &'static str,
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(PackRule { name: $name, yaml: include_str!(concat!("../pack/", $name)) }),*]
    };
}

const PACK: &[PackRule] = files![
    "accounts.yml",
    "agent-config.yml",
    "authentication-abuse.yml",
    "authorized-keys.yml",
    "cloned-identity.yml",
    "cron.yml",
    "events-lost.yml",
    "foothold.yml",
    "inbound-watched-port.yml",
    "interpreter-connects-out.yml",
    "kernel-module.yml",
    "ld-preload.yml",
    "log-removed.yml",
    "many-inbound.yml",
    "metric-critical.yml",
    "name-resolution.yml",
    "pam.yml",
    "port-scan.yml",
    "program-in-temporary.yml",
    "program-runs-from-temporary.yml",
    "rule-suspended.yml",
    "sensor-blind.yml",
    "set-uid.yml",
    "shell-profile.yml",
    "sshd-config.yml",
    "sudoers.yml",
    "suspicious-input.yml",
    "systemd-unit.yml",
    "web-shell.yml",
];

/// The rules of the starter pack, by name.
pub fn pack() -> &'static [PackRule] {
    PACK
}

impl PackRule {
    /// The rule as a source of a set, in the version that the caller gives it. Its id is that of its first document.
    pub fn source(&self, version: u32) -> RuleSource {
        let id = crate::validate(self.yaml).ids.first().copied().unwrap_or_default();
        RuleSource {
            key: RuleKey { id, version },
            yaml: self.yaml.to_owned(),
            origin: Origin::Pack(self.name.to_owned()),
        }
    }
}
