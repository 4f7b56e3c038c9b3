//! The name of an agent in its certificate.

use uuid::Uuid;

/// Who an agent is: a URI in the certificate's subject alternative name (RFC 5280 §4.2.1.6),
/// `urn:picket:agent:<tenant>:<agent>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AgentIdentity {
    /// The number of the tenant it belongs to, from 1.
    pub tenant: i32,
    /// The agent.
    pub agent: Uuid,
}

impl std::fmt::Display for AgentIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "urn:picket:agent:{}:{}", self.tenant, self.agent)
    }
}

impl std::str::FromStr for AgentIdentity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ids = text.strip_prefix("urn:picket:agent:").and_then(|ids| ids.split_once(':'));
        let parsed = ids.and_then(|(tenant, agent)| {
            // Only the one spelling that is issued: lower case, with hyphens, no leading zeros.
            let identity = Self { tenant: tenant.parse().ok()?, agent: agent.parse().ok()? };
            (identity.to_string() == text && identity.tenant > 0).then_some(identity)
        });
        parsed.ok_or_else(|| "an agent's name looks like urn:picket:agent:<tenant>:<agent>".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        let identity = AgentIdentity { tenant: 1, agent: Uuid::now_v7() };
        let text = identity.to_string();
        assert_eq!(text.parse::<AgentIdentity>().unwrap(), identity);
        for wrong in [text.to_uppercase(), text.replace('-', ""), format!("{text} "), "urn:picket:agent:".to_owned()] {
            assert!(wrong.parse::<AgentIdentity>().is_err(), "{wrong}");
        }
    }
}
