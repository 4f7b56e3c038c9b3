//! What an installation is for: an agent, a hub, or both on one machine.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One thing that an installation can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Watches its machine.
    Agent,
    /// Manages a fleet.
    Hub,
}

impl Role {
    /// The word for it on the command line and in the receipt.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Hub => "hub",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything that an installation is. A set that names nothing is read as [`Roles::AGENT`]: every installation made before
/// there were roles is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Role>", into = "Vec<Role>")]
pub struct Roles {
    agent: bool,
    hub: bool,
}

impl Roles {
    /// An agent alone.
    pub const AGENT: Self = Self { agent: true, hub: false };
    /// A hub alone.
    pub const HUB: Self = Self { agent: false, hub: true };
    /// Both.
    pub const ALL: Self = Self { agent: true, hub: true };

    /// Whether `role` is among them.
    pub fn has(self, role: Role) -> bool {
        match role {
            Role::Agent => self.agent,
            Role::Hub => self.hub,
        }
    }

    /// These and `role`.
    #[must_use]
    pub fn with(self, role: Role) -> Self {
        Self { agent: self.agent || role == Role::Agent, hub: self.hub || role == Role::Hub }
    }

    /// These without `role`; `None` when nothing would be left.
    pub fn without(self, role: Role) -> Option<Self> {
        let left = Self { agent: self.agent && role != Role::Agent, hub: self.hub && role != Role::Hub };
        (left.agent || left.hub).then_some(left)
    }

    /// Each of them, the agent first.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        [Role::Agent, Role::Hub].into_iter().filter(move |role| self.has(*role))
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self::AGENT
    }
}

impl From<Role> for Roles {
    fn from(role: Role) -> Self {
        match role {
            Role::Agent => Self::AGENT,
            Role::Hub => Self::HUB,
        }
    }
}

impl From<Vec<Role>> for Roles {
    fn from(roles: Vec<Role>) -> Self {
        let mut named = roles.into_iter();
        named.next().map_or_else(Self::default, |first| named.fold(Self::from(first), Self::with))
    }
}

impl From<Roles> for Vec<Role> {
    fn from(roles: Roles) -> Self {
        roles.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_always_has_a_role_and_one_of_before_is_an_agent() {
        assert_eq!(Roles::from(Vec::new()), Roles::AGENT);
        assert_eq!(Roles::from(vec![Role::Hub]), Roles::HUB);
        assert_eq!(Roles::HUB.with(Role::Agent), Roles::ALL);
        assert_eq!(Roles::ALL.without(Role::Agent), Some(Roles::HUB));
        assert_eq!(Roles::HUB.without(Role::Hub), None);
        assert_eq!(Vec::from(Roles::ALL), [Role::Agent, Role::Hub]);
    }
}
