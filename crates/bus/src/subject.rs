//! What is said on the bus, by name: one place for every subject.
//!
//! `picket.v1.<tenant>.<what>[.<agent>]`. Ids in subjects are UUIDs in their simple form (32 hexadecimal digits), so that no
//! name of a tenant or an agent can be anything but one token.
//!
//! An agent with `uplink.via: nats` sends a batch with two headers: `Nats-Msg-Id`, the batch's id, so that it is taken once,
//! and `Picket-Reply`, the inbox where it hears that the batch is stored. It needs these permissions and no more: publish
//! `picket.v1.<tenant>.events.<agent>`, subscribe `picket.v1.<tenant>.inbox.<agent>.*`.

use std::fmt;
use uuid::Uuid;

/// The first tokens of every subject: the product and the version of what is said.
const ROOT: &str = "picket.v1";
/// The longest token that is not ours.
const MAX_TOKEN: usize = 64;

/// How subjects name the tenant with this number.
pub fn tenant_name(number: i32) -> Uuid {
    Uuid::from_u128(u128::from(number.unsigned_abs()))
}

/// A subject that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the subject {shown} cannot be used: {reason}")]
pub struct SubjectError {
    /// The subject, cut at 100 bytes, control characters escaped.
    shown: String,
    reason: &'static str,
}

fn refused(text: &str, reason: &'static str) -> SubjectError {
    let shown = text[..text.floor_char_boundary(100)].escape_debug().to_string();
    SubjectError { shown, reason }
}

/// Where something is said: one subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(String);

/// Which subjects are listened to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(String);

impl Subject {
    fn of(tenant: Uuid, rest: fmt::Arguments) -> Self {
        Self(format!("{ROOT}.{}.{rest}", tenant.simple()))
    }

    /// Batches of an agent's events.
    pub fn events(tenant: Uuid, agent: Uuid) -> Self {
        Self::of(tenant, format_args!("events.{}", agent.simple()))
    }

    /// Events were stored: the judge may go on.
    pub fn stored(tenant: Uuid) -> Self {
        Self::of(tenant, format_args!("stored"))
    }

    /// Findings were made or changed.
    pub fn findings(tenant: Uuid) -> Self {
        Self::of(tenant, format_args!("findings"))
    }

    /// Agents came, went, or changed.
    pub fn agents(tenant: Uuid) -> Self {
        Self::of(tenant, format_args!("agents"))
    }

    /// What is for one agent, whichever replica it is connected to.
    pub fn control(tenant: Uuid, agent: Uuid) -> Self {
        Self::of(tenant, format_args!("control.{}", agent.simple()))
    }

    /// Identities were revoked: connections that use them must end.
    pub fn revoked(tenant: Uuid) -> Self {
        Self::of(tenant, format_args!("revoked"))
    }

    /// The set of rules changed.
    pub fn rules(tenant: Uuid) -> Self {
        Self::of(tenant, format_args!("rules"))
    }

    /// Where an agent hears that its batch is stored; `token` is of its own choosing.
    ///
    /// # Errors
    /// The token is empty, longer than 64 bytes, or not of letters, digits, `-` and `_`.
    pub fn inbox(tenant: Uuid, agent: Uuid, token: &str) -> Result<Self, SubjectError> {
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(refused(token, "its last token must have 1 to 64 bytes"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return Err(refused(token, "its last token may have letters, digits, `-` and `_`"));
        }
        Ok(Self::of(tenant, format_args!("inbox.{}.{token}", agent.simple())))
    }

    /// The subject that an agent asked to be answered at: its own inbox and nothing else, or it could have the hub speak
    /// wherever it likes.
    ///
    /// # Errors
    /// It is not an inbox of this agent.
    pub fn parse_inbox(text: &str, tenant: Uuid, agent: Uuid) -> Result<Self, SubjectError> {
        let own = format!("{ROOT}.{}.inbox.{}.", tenant.simple(), agent.simple());
        let token = text.strip_prefix(&own).ok_or_else(|| refused(text, "it is not an inbox of this agent"))?;
        Self::inbox(tenant, agent, token)
    }

    /// Tenant and agent of a subject of events.
    ///
    /// # Errors
    /// It is not a subject of events.
    pub fn parse_events(text: &str) -> Result<(Uuid, Uuid), SubjectError> {
        let tokens: Vec<&str> = text.split('.').collect();
        let [product, version, tenant, "events", agent] = tokens[..] else {
            return Err(refused(text, "it is not a subject of events"));
        };
        let id = |token: &str| {
            // Only the simple form: a subject has one spelling.
            let simple = token.len() == 32 && !token.bytes().any(|byte| byte.is_ascii_uppercase());
            Uuid::try_parse(token).ok().filter(|_| simple)
        };
        match (format!("{product}.{version}") == ROOT, id(tenant), id(agent)) {
            (true, Some(tenant), Some(agent)) => Ok((tenant, agent)),
            _ => Err(refused(text, "it is not a subject of events")),
        }
    }

    /// The subject as it is on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A subject as it came over the wire.
    pub(crate) fn received(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Subject> for Pattern {
    fn from(subject: Subject) -> Self {
        Self(subject.0)
    }
}

impl Pattern {
    /// The events of every agent of every tenant.
    pub fn all_events() -> Self {
        Self(format!("{ROOT}.*.events.*"))
    }

    /// What is for any agent of a tenant.
    pub fn control(tenant: Uuid) -> Self {
        Self(format!("{ROOT}.{}.control.*", tenant.simple()))
    }

    /// Everything that one agent is answered.
    pub fn inbox(tenant: Uuid, agent: Uuid) -> Self {
        Self(format!("{ROOT}.{}.inbox.{}.*", tenant.simple(), agent.simple()))
    }

    /// Everything of a tenant.
    pub fn tenant(tenant: Uuid) -> Self {
        Self(format!("{ROOT}.{}.>", tenant.simple()))
    }

    /// The pattern as it is on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a subject is meant: `*` stands for one token, a last `>` for one or more.
    pub fn matches(&self, subject: &Subject) -> bool {
        let mut asked = self.0.split('.');
        let mut given = subject.0.split('.');
        loop {
            match (asked.next(), given.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) => return asked.next().is_none(),
                (Some(asked), Some(given)) if asked == "*" || asked == given => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: Uuid = Uuid::from_u128(1);
    const A: Uuid = Uuid::from_u128(0xa);
    const B: Uuid = Uuid::from_u128(0xb);

    #[test]
    fn a_subject_names_the_tenant_and_the_agent_in_one_spelling() {
        let subject = Subject::events(T, A);
        assert_eq!(
            subject.as_str(),
            "picket.v1.00000000000000000000000000000001.events.0000000000000000000000000000000a"
        );
        assert_eq!(Subject::parse_events(subject.as_str()), Ok((T, A)));
        for other in [
            Subject::stored(T).as_str(),
            "picket.v1.1.events.a",
            "picket.v2.00000000000000000000000000000001.events.0000000000000000000000000000000a",
            "picket.v1.00000000000000000000000000000001.events.0000000000000000000000000000000A",
            "picket.v1.00000000000000000000000000000001.events.0000000000000000000000000000000a.x",
        ] {
            assert!(Subject::parse_events(other).is_err(), "{other}");
        }
    }

    #[test]
    fn an_agent_is_answered_at_its_own_inbox_and_nowhere_else() {
        let own = Subject::inbox(T, A, "x-1").unwrap();
        assert_eq!(Subject::parse_inbox(own.as_str(), T, A), Ok(own.clone()));
        let others = [
            own.as_str().to_owned() + ".y",
            own.as_str().replace("x-1", "*"),
            own.as_str().replace("x-1", ""),
            Subject::inbox(T, B, "x-1").unwrap().as_str().to_owned(),
            Subject::control(T, A).as_str().to_owned(),
            "_INBOX.x".to_owned(),
            own.as_str().replace("x-1", "x\r\nPUB y 1"),
        ];
        for other in others {
            assert!(Subject::parse_inbox(&other, T, A).is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_subject_that_it_is_not(text in "(picket|\\.|v1|[0-9a-f]{32}|events|inbox|[*>é\n ]|[a-zA-Z0-9_-]{1,9}){0,12}") {
            if let Ok((tenant, agent)) = Subject::parse_events(&text) {
                prop_assert_eq!(Subject::events(tenant, agent).to_string(), text.clone());
            }
            if let Ok(inbox) = Subject::parse_inbox(&text, T, A) {
                prop_assert!(Pattern::inbox(T, A).matches(&inbox));
            }
        }
    }

    #[test]
    fn patterns_mean_what_nats_means_by_them() {
        assert!(Pattern::all_events().matches(&Subject::events(T, A)));
        assert!(!Pattern::all_events().matches(&Subject::control(T, A)));
        assert!(Pattern::tenant(T).matches(&Subject::stored(T)));
        assert!(!Pattern::tenant(B).matches(&Subject::stored(T)));
        assert!(!Pattern::tenant(T).matches(&Subject::received("picket.v1.00000000000000000000000000000001")));
        assert!(Pattern::from(Subject::rules(T)).matches(&Subject::rules(T)));
        assert!(Pattern::inbox(T, A).matches(&Subject::inbox(T, A, "q").unwrap()));
    }
}
