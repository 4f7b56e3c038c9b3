//! Who asks, and what they may do: everywhere, or on agents with certain tags.

use jiff::Timestamp;
use picket_hub_db::Permission;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use uuid::Uuid;

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        /// What somebody may do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action { $($(#[$doc])* $name,)* }

        impl Action {
            /// Every action.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word in permissions: a noun, a dot and a verb.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

actions! {
    /// See agents, their books and certificates.
    AgentsRead = "agents.read";
    /// Register and change agents, renew their certificates.
    AgentsWrite = "agents.write";
    /// Revoke and delete agents.
    AgentsDelete = "agents.delete";
    /// See events.
    EventsRead = "events.read";
    /// Submit events for an agent.
    EventsWrite = "events.write";
    /// See findings.
    FindingsRead = "findings.read";
    /// Acknowledge, assign, resolve, suppress findings; add notes.
    FindingsWrite = "findings.write";
    /// See cases.
    CasesRead = "cases.read";
    /// Make and change cases.
    CasesWrite = "cases.write";
    /// See rules, try them on stored events.
    RulesRead = "rules.read";
    /// Add, change, disable and delete rules.
    RulesWrite = "rules.write";
    /// See enrolment tokens and who waits for approval.
    EnrolmentRead = "enrolment.read";
    /// Make and revoke enrolment tokens, approve and deny machines.
    EnrolmentWrite = "enrolment.write";
    /// See configurations.
    ConfigsRead = "configs.read";
    /// Make configurations and say who gets them.
    ConfigsWrite = "configs.write";
    /// See web hooks and what they told.
    WebhooksRead = "webhooks.read";
    /// Make and change web hooks, tell again.
    WebhooksWrite = "webhooks.write";
    /// See users, API tokens and permissions.
    UsersRead = "users.read";
    /// Add and change users, API tokens and permissions.
    UsersWrite = "users.write";
    /// See the audit log.
    AuditRead = "audit.read";
    /// See how the hub is doing, and who is blocked.
    HubRead = "hub.read";
    /// Lift blocks, rotate keys.
    HubWrite = "hub.write";
}

/// By what somebody said who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A session's cookie. Whatever changes something needs a token against forged requests besides.
    Session {
        /// The SHA-256 of the cookie's value.
        id_hash: [u8; 32],
    },
    /// A token that the hub signed.
    Jwt {
        /// Until when it holds.
        ends_at: Timestamp,
    },
    /// An API token.
    ApiToken {
        /// Which.
        id: Uuid,
    },
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// How permissions and the audit log name them: `user:<id>` or `token:<id>`.
    pub key: String,
    /// How people call them.
    pub name: String,
    /// How they said who they are.
    pub proof: Proof,
    /// What they may.
    pub grants: Vec<Permission>,
}

/// On which agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// On all, and on what belongs to none.
    Everything,
    /// On those that have one of these tags.
    Tags(BTreeSet<String>),
}

impl Scope {
    /// Whether agents with these tags are in it.
    pub fn holds(&self, tags: &BTreeSet<String>) -> bool {
        match self {
            Self::Everything => true,
            Self::Tags(allowed) => !allowed.is_disjoint(tags),
        }
    }
}

impl Principal {
    /// On which agents they may do `action`; `None` for nowhere.
    pub fn scope(&self, action: Action) -> Option<Scope> {
        scope(&self.grants, action)
    }
}

/// Where `grants` allow `action`: a grant of `*`, of the action, of all of its noun (`agents.*`) or of its verb (`*.read`).
pub fn scope(grants: &[Permission], action: Action) -> Option<Scope> {
    let mut tags = BTreeSet::new();
    for grant in grants.iter().filter(|grant| covers(&grant.action, action)) {
        match &grant.tag {
            None => return Some(Scope::Everything),
            Some(tag) => {
                tags.insert(tag.clone());
            }
        }
    }
    if tags.is_empty() { None } else { Some(Scope::Tags(tags)) }
}

/// The first action that `grants` allow somewhere where `own` do not; `None` when `own` are as much or more.
pub fn beyond(grants: &[Permission], own: &[Permission]) -> Option<Action> {
    Action::ALL.iter().copied().find(|action| match (scope(grants, *action), scope(own, *action)) {
        (None, _) | (_, Some(Scope::Everything)) => false,
        (Some(Scope::Tags(theirs)), Some(Scope::Tags(ours))) => !theirs.is_subset(&ours),
        (Some(_), _) => true,
    })
}

/// Whether `grants` allow everything everywhere, in however many words.
pub fn is_everything(grants: &[Permission]) -> bool {
    Action::ALL.iter().all(|action| scope(grants, *action) == Some(Scope::Everything))
}

fn covers(granted: &str, action: Action) -> bool {
    let Some((noun, verb)) = action.as_str().split_once('.') else { return false };
    match granted.split_once('.') {
        None => granted == "*",
        Some((granted_noun, granted_verb)) => {
            (granted_noun == "*" || granted_noun == noun) && (granted_verb == "*" || granted_verb == verb)
        }
    }
}

/// Whether a text can be granted: an action, or a pattern that covers at least one.
pub fn is_grantable(text: &str) -> bool {
    Action::ALL.iter().any(|action| covers(text, *action))
}

/// Everything that can be granted: actions, and patterns that cover some.
pub fn grantable() -> Vec<String> {
    let parts = Action::ALL.iter().filter_map(|action| action.as_str().split_once('.'));
    let all = parts.flat_map(|(noun, verb)| [format!("{noun}.{verb}"), format!("{noun}.*"), format!("*.{verb}")]);
    let all: BTreeSet<String> = all.chain(["*".to_owned(), "*.*".to_owned()]).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(action: &str, tag: Option<&str>) -> Permission {
        Permission { principal: "user:1".into(), action: action.into(), tag: tag.map(str::to_owned) }
    }

    #[test]
    fn nothing_is_allowed_that_is_not_granted() {
        for action in Action::ALL {
            assert_eq!(scope(&[], *action), None);
            assert_eq!(scope(&[grant("*", None)], *action), Some(Scope::Everything));
        }
        let viewer = [grant("*.read", None)];
        assert_eq!(scope(&viewer, Action::AuditRead), Some(Scope::Everything));
        assert_eq!(scope(&viewer, Action::AgentsWrite), None);
        let rules = [grant("rules.*", None)];
        assert_eq!(scope(&rules, Action::RulesWrite), Some(Scope::Everything));
        assert_eq!(scope(&rules, Action::UsersRead), None);
    }

    #[test]
    fn a_grant_for_a_tag_holds_for_agents_with_that_tag() {
        let grants = [grant("agents.read", Some("web")), grant("agents.*", Some("db"))];
        let Some(scope) = scope(&grants, Action::AgentsRead) else { panic!("nothing") };
        let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
        assert!(scope.holds(&tags(&["web", "x"])) && scope.holds(&tags(&["db"])));
        assert!(!scope.holds(&tags(&["mail"])) && !scope.holds(&tags(&[])));
        assert_eq!(super::scope(&grants, Action::AgentsDelete), Some(Scope::Tags(tags(&["db"]))));
    }

    #[test]
    fn what_one_has_beyond_another_is_found_whatever_words_it_was_granted_in() {
        let (all, users) = ([grant("*", None)], [grant("users.*", None), grant("agents.read", Some("web"))]);
        assert_eq!(beyond(&all, &users), Some(Action::AgentsRead), "on agents without that tag, too");
        assert_eq!(beyond(&users, &all), None);
        assert_eq!(beyond(&[], &[]), None);
        assert_eq!(beyond(&users, &users), None);
        assert_eq!(beyond(&[grant("agents.read", Some("db"))], &users), Some(Action::AgentsRead));
        let nouns = Action::ALL.iter().map(|action| grant(action.as_str(), None)).collect::<Vec<_>>();
        assert!(is_everything(&all) && is_everything(&nouns) && !is_everything(&nouns[1..]));
        assert_eq!(beyond(&all, &nouns), None);
    }

    #[test]
    fn only_what_covers_an_action_can_be_granted() {
        for good in ["*", "agents.read", "agents.*", "*.read", "*.*"] {
            assert!(is_grantable(good), "{good}");
            assert!(grantable().iter().any(|text| text == good), "{good}");
        }
        assert!(grantable().iter().all(|text| is_grantable(text)));
        for wrong in ["", "agents", "agents.fly", "*.fly", "read", "agents.read.more"] {
            assert!(!is_grantable(wrong), "{wrong}");
        }
    }

    #[test]
    fn every_action_is_a_noun_and_a_verb_of_its_own() {
        let words: BTreeSet<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        assert_eq!(words.len(), Action::ALL.len());
        assert!(words.iter().all(|word| word.split('.').count() == 2));
    }
}
