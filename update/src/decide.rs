//! Which version this machine should run: a pure decision from the signed channel, the machine and the wish.

use crate::config::AutoUpdate;
use crate::held::Hold;
use picket_protocol::{Channel, Release, TargetTriple};
use semver::Version;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The daily check.
    BySchedule,
    /// The agent, on a hub's behalf: it may choose among what the vendor offers, not more.
    ByWish(Option<Version>),
    /// A person, who may name a version.
    ByPerson(Option<Version>),
}

/// What is known.
pub struct Facts<'a> {
    /// The proven version.
    pub current: &'a Version,
    /// The signed channel.
    pub channel: &'a Channel,
    /// This machine's kind.
    pub target: &'a TargetTriple,
    /// The version it is pinned to.
    pub pinned: Option<&'a Version>,
    /// Which releases it takes by itself.
    pub auto: AutoUpdate,
    /// The hold on a version's artifact, if one is in force.
    pub held: &'a dyn Fn(&Version, &Release) -> Option<Hold>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: in words, why not.
    Stay {
        /// Why.
        reason: String,
    },
    /// A release could be taken, but not by itself.
    Offer {
        /// The release.
        version: Version,
        /// Why it waits.
        waiting: String,
    },
    /// Take this release.
    Take {
        /// The release.
        version: Version,
    },
    /// What was asked for by name is not possible.
    Refuse {
        /// Why.
        reason: String,
    },
}

/// Decides.
pub fn decide(facts: &Facts<'_>, asked: &Asked) -> Decision {
    let named = match asked {
        Asked::ByPerson(version) | Asked::ByWish(version) => version.as_ref(),
        Asked::BySchedule => None,
    };
    let candidate = match named {
        Some(version) => named_candidate(facts, version),
        None => own_candidate(facts),
    };
    let (version, release) = match candidate {
        Ok(candidate) => candidate,
        Err(decision) => return decision,
    };
    if !release.artifacts.contains_key(facts.target) {
        let reason = format!("release {version} has no build for {}", facts.target);
        return if named.is_some() { Decision::Refuse { reason } } else { Decision::Stay { reason } };
    }
    match waiting(facts, asked, version, release) {
        // The agent may be somebody else's by now: it must not bring an old hole back.
        _ if matches!(asked, Asked::ByWish(Some(_)))
            && version < facts.current
            && !facts.channel.yanked.contains_key(facts.current) =>
        {
            let current = facts.current;
            Decision::Refuse {
                reason: format!("release {version} is older than {current}: only a person may ask for it"),
            }
        }
        Some(waiting) if matches!(asked, Asked::ByWish(_)) => Decision::Refuse { reason: waiting },
        Some(waiting) => Decision::Offer { version: version.clone(), waiting },
        None => Decision::Take { version: version.clone() },
    }
}

type Candidate<'a> = Result<(&'a Version, &'a Release), Decision>;

/// A version that was asked for by name.
fn named_candidate<'a>(facts: &Facts<'a>, version: &Version) -> Candidate<'a> {
    let refuse = |reason: String| Err(Decision::Refuse { reason });
    if version == facts.current {
        return Err(Decision::Stay { reason: format!("version {version} is the one that runs") });
    }
    if let Some(yank) = facts.channel.yanked.get(version) {
        return refuse(format!("the vendor took release {version} back: {}", yank.reason));
    }
    match facts.channel.releases.get_key_value(version) {
        Some(candidate) => Ok(candidate),
        None => {
            let newest: Vec<String> = facts.channel.releases.keys().rev().take(5).map(ToString::to_string).collect();
            refuse(format!("channel {} has no release {version}; it has {}", facts.channel.channel, newest.join(", ")))
        }
    }
}

/// The version this machine should run if nobody names one: its pin, or the channel's head.
fn own_candidate<'a>(facts: &Facts<'a>) -> Candidate<'a> {
    let stay = |reason: String| Err(Decision::Stay { reason });
    let Facts { current, channel, .. } = facts;
    let yanked = channel.yanked.get(*current);
    let wanted = facts.pinned.unwrap_or(&channel.head);
    if wanted == *current {
        let pinned = if facts.pinned.is_some() { ", pinned" } else { "" };
        return stay(format!("version {current} is up to date (channel {}{pinned})", channel.channel));
    }
    if facts.pinned.is_none() && wanted < *current && yanked.is_none() {
        return stay(format!("version {current} is newer than the head {wanted} of channel {}", channel.channel));
    }
    if channel.yanked.contains_key(wanted) {
        return stay(format!("the vendor took release {wanted}, to which this machine is pinned, back"));
    }
    // Too old for the head: the oldest release that may update directly is the stepping stone.
    let step = channel.minimum.as_ref().filter(|minimum| *current < minimum).unwrap_or(wanted);
    match channel.releases.get_key_value(step) {
        Some(candidate) => Ok(candidate),
        None => stay(format!("channel {} has no release {step}", channel.channel)),
    }
}

/// Why a release that could be taken is not taken by itself.
fn waiting(facts: &Facts<'_>, asked: &Asked, version: &Version, release: &Release) -> Option<String> {
    let named_by_person = matches!(asked, Asked::ByPerson(Some(_)));
    if named_by_person {
        return None;
    }
    if let Some(pinned) = facts.pinned.filter(|pinned| *pinned != version) {
        return Some(format!("this machine is pinned to {pinned}; `picket update unpin` ends that"));
    }
    if let Some(hold) = (facts.held)(version, release) {
        let until = hold.until.map_or_else(
            || format!("it is tried again only by name: `picket update apply {version}`"),
            |until| format!("it is tried again after {until}, or now with `picket update apply {version}`"),
        );
        return Some(format!("release {version} is held: {}; {until}", hold.reason));
    }
    if matches!(asked, Asked::ByPerson(None)) {
        return None;
    }
    // The version that runs was taken back: leaving it is as urgent as a critical release.
    let urgent = release.critical || facts.channel.yanked.contains_key(facts.current);
    match (facts.auto, asked) {
        (AutoUpdate::Off, _) => Some("update.auto is off; apply it with `picket update apply`".to_owned()),
        (_, Asked::ByWish(_)) | (AutoUpdate::All, _) => None,
        (AutoUpdate::Critical, _) if urgent => None,
        (AutoUpdate::Critical, _) => {
            Some("update.auto is critical and this release is not; apply it with `picket update apply`".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::{Artifact, Yank};
    use std::collections::BTreeMap;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn target() -> TargetTriple {
        "x86_64-unknown-linux-musl".parse().unwrap()
    }

    fn channel(versions: &[&str]) -> Channel {
        let release = |critical| Release {
            notes: String::new(),
            critical,
            published: jiff::Timestamp::UNIX_EPOCH,
            state_format: 1,
            artifacts: BTreeMap::from([(target(), Artifact { path: "p".into(), unpacked: 1, files: BTreeMap::new() })]),
        };
        let releases: BTreeMap<Version, Release> =
            versions.iter().map(|text| (v(text.trim_end_matches('!')), release(text.ends_with('!')))).collect();
        Channel {
            schema: 1,
            product: "picket".into(),
            channel: "stable".into(),
            head: releases.keys().next_back().unwrap().clone(),
            minimum: None,
            releases,
            yanked: BTreeMap::new(),
        }
    }

    struct Case {
        channel: Channel,
        current: Version,
        pinned: Option<Version>,
        auto: AutoUpdate,
        held: Option<&'static str>,
    }

    impl Case {
        fn new(versions: &[&str], current: &str) -> Self {
            Self { channel: channel(versions), current: v(current), pinned: None, auto: AutoUpdate::All, held: None }
        }

        fn decide(&self, asked: &Asked) -> Decision {
            let hold = |version: &Version, _: &Release| {
                self.held.filter(|held| v(held) == *version).map(|_| Hold {
                    version: version.clone(),
                    reason: "it crashed".into(),
                    attempts: 1,
                    update: String::new(),
                    last: jiff::Timestamp::UNIX_EPOCH,
                    until: None,
                })
            };
            let target = target();
            let facts = Facts {
                current: &self.current,
                channel: &self.channel,
                target: &target,
                pinned: self.pinned.as_ref(),
                auto: self.auto,
                held: &hold,
            };
            decide(&facts, asked)
        }

        fn yank(mut self, version: &str, head: &str) -> Self {
            let yank = Yank { reason: "it loses events".into(), at: jiff::Timestamp::UNIX_EPOCH };
            self.channel.yanked.insert(v(version), yank);
            self.channel.head = v(head);
            self
        }
    }

    fn take(version: &str) -> Decision {
        Decision::Take { version: v(version) }
    }

    fn assert_waits(decision: Decision, text: &str) {
        match decision {
            Decision::Offer { waiting, .. } => assert!(waiting.contains(text), "{waiting}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_daily_check_follows_the_operators_word() {
        let mut case = Case::new(&["1.0.0", "1.1.0"], "1.0.0");
        assert_eq!(case.decide(&Asked::BySchedule), take("1.1.0"));
        case.auto = AutoUpdate::Critical;
        assert_waits(case.decide(&Asked::BySchedule), "update.auto is critical");
        case.auto = AutoUpdate::Off;
        assert_waits(case.decide(&Asked::BySchedule), "update.auto is off");

        let mut critical = Case::new(&["1.0.0", "1.1.0!"], "1.0.0");
        critical.auto = AutoUpdate::Critical;
        assert_eq!(critical.decide(&Asked::BySchedule), take("1.1.0"));
        critical.auto = AutoUpdate::Off;
        assert_waits(critical.decide(&Asked::BySchedule), "update.auto is off");
    }

    #[test]
    fn a_person_gets_the_head_and_by_name_also_what_is_held_or_older() {
        let mut case = Case::new(&["1.0.0", "1.1.0", "1.2.0"], "1.1.0");
        case.auto = AutoUpdate::Off;
        assert_eq!(case.decide(&Asked::ByPerson(None)), take("1.2.0"));
        case.held = Some("1.2.0");
        assert_waits(case.decide(&Asked::ByPerson(None)), "it crashed");
        assert_eq!(case.decide(&Asked::ByPerson(Some(v("1.2.0")))), take("1.2.0"));
        assert_eq!(case.decide(&Asked::ByPerson(Some(v("1.0.0")))), take("1.0.0"));
        let refused = case.decide(&Asked::ByPerson(Some(v("9.0.0"))));
        assert!(matches!(refused, Decision::Refuse { reason } if reason.contains("it has 1.2.0, 1.1.0, 1.0.0")));
    }

    #[test]
    fn a_held_version_is_not_tried_by_the_next_timer_run() {
        let mut case = Case::new(&["1.0.0", "1.1.0!"], "1.0.0");
        case.held = Some("1.1.0");
        assert_waits(case.decide(&Asked::BySchedule), "held");
        assert!(matches!(case.decide(&Asked::ByWish(None)), Decision::Refuse { .. }));
    }

    #[test]
    fn a_pinned_machine_stays_where_it_is_and_goes_where_it_is_pinned_to() {
        let mut case = Case::new(&["1.0.0", "1.1.0", "1.2.0"], "1.1.0");
        case.pinned = Some(v("1.1.0"));
        assert!(matches!(case.decide(&Asked::BySchedule), Decision::Stay { reason } if reason.contains("pinned")));
        assert!(matches!(case.decide(&Asked::ByWish(Some(v("1.2.0")))), Decision::Refuse { .. }));
        case.pinned = Some(v("1.0.0"));
        assert_eq!(case.decide(&Asked::BySchedule), take("1.0.0"));
    }

    #[test]
    fn an_older_head_moves_a_machine_back_only_from_a_yanked_version() {
        let case = Case::new(&["1.0.0", "1.1.0"], "1.2.0");
        assert!(matches!(case.decide(&Asked::BySchedule), Decision::Stay { reason } if reason.contains("newer")));
        let mut yanked = Case::new(&["1.0.0", "1.1.0"], "1.1.0").yank("1.1.0", "1.0.0");
        yanked.auto = AutoUpdate::Critical;
        assert_eq!(yanked.decide(&Asked::BySchedule), take("1.0.0"));
        let staying = Case::new(&["1.0.0", "1.1.0"], "1.0.0").yank("1.1.0", "1.0.0");
        let refused = staying.decide(&Asked::ByPerson(Some(v("1.1.0"))));
        assert!(matches!(refused, Decision::Refuse { reason } if reason.contains("it loses events")));
    }

    #[test]
    fn a_machine_too_old_for_the_head_goes_by_the_stepping_stone() {
        let mut case = Case::new(&["1.0.0", "1.5.0", "2.0.0"], "1.0.0");
        case.channel.minimum = Some(v("1.5.0"));
        assert_eq!(case.decide(&Asked::BySchedule), take("1.5.0"));
        case.current = v("1.5.0");
        assert_eq!(case.decide(&Asked::BySchedule), take("2.0.0"));
    }

    #[test]
    fn a_release_without_a_build_for_this_machine_is_no_update() {
        let mut case = Case::new(&["1.0.0", "1.1.0"], "1.0.0");
        case.channel.releases.get_mut(&v("1.1.0")).unwrap().artifacts.clear();
        assert!(
            matches!(case.decide(&Asked::BySchedule), Decision::Stay { reason } if reason.contains("no build for"))
        );
        assert!(matches!(case.decide(&Asked::ByPerson(Some(v("1.1.0")))), Decision::Refuse { .. }));
    }

    #[test]
    fn a_wish_never_goes_back_unless_the_vendor_took_the_running_release_back() {
        let wish = |text: &str| Asked::ByWish(Some(v(text)));
        let case = Case::new(&["1.0.0", "2.0.0", "3.0.0"], "2.0.0");
        assert!(matches!(case.decide(&wish("1.0.0")), Decision::Refuse { .. }));
        assert_eq!(case.decide(&wish("3.0.0")), take("3.0.0"));
        assert_eq!(case.decide(&Asked::ByPerson(Some(v("1.0.0")))), take("1.0.0"));
        let case = Case::new(&["1.0.0", "2.0.0"], "2.0.0").yank("2.0.0", "1.0.0");
        assert_eq!(case.decide(&wish("1.0.0")), take("1.0.0"));
    }
}
