//! Which version this machine should run: a pure decision from the signed channel, the machine and the wish.

use crate::config::AutoUpdate;
use crate::held::Hold;
use crate::rollout;
use jiff::Timestamp;
use picket_protocol::update_status::Turn;
use picket_protocol::{Channel, Release, TargetTriple};
use semver::Version;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The daily check.
    BySchedule,
    /// The agent, on a hub's behalf: it may choose among what the vendor offers, not more.
    ByWish(Option<Version>),
    /// A person, who may name a version, or insist on having the newest now.
    ByPerson {
        /// The version; by name, nothing is waited for.
        version: Option<Version>,
        /// Whether a turn in a rollout is not waited for.
        now: bool,
    },
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
    /// The machine's id: its place in rollouts is made from it.
    pub machine: &'a str,
    /// The time.
    pub now: Timestamp,
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
        /// Until when, where it waits for nothing but a time.
        due: Option<Timestamp>,
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

/// Why something waits, and until when if it waits for nothing but a time.
struct Waiting {
    text: String,
    due: Option<Timestamp>,
}

impl Waiting {
    fn because(text: impl Into<String>) -> Self {
        Self { text: text.into(), due: None }
    }
}

/// Decides.
pub fn decide(facts: &Facts<'_>, asked: &Asked) -> Decision {
    let named = match asked {
        Asked::ByPerson { version, .. } | Asked::ByWish(version) => version.as_ref(),
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
    let Some(waiting) = waiting(facts, asked, version, release) else {
        return match forbidden_to_a_wish(facts, asked, version) {
            Some(reason) => Decision::Refuse { reason },
            None => Decision::Take { version: version.clone() },
        };
    };
    if matches!(asked, Asked::ByWish(_)) {
        let reason = forbidden_to_a_wish(facts, asked, version).unwrap_or(waiting.text);
        return Decision::Refuse { reason };
    }
    if *asked == Asked::BySchedule
        && let Some(version) = meanwhile(facts, version, waiting.due.is_some())
    {
        return Decision::Take { version: version.clone() };
    }
    Decision::Offer { version: version.clone(), waiting: waiting.text, due: waiting.due }
}

/// The turn of this machine in the rollout of `version`; `None` where it comes in no waves, or is not of the channel.
pub fn turn(facts: &Facts<'_>, version: &Version) -> Option<Turn> {
    let release = facts.channel.releases.get(version)?;
    rollout::turn(release.rollout.as_ref()?, release.published, facts.machine, version)
}

/// Whether nothing of the vendor's holds it up: it is critical, or the version that runs was taken back.
pub fn is_urgent(channel: &Channel, current: &Version, version: &Version) -> bool {
    channel.yanked.contains_key(current) || channel.releases.get(version).is_some_and(|release| release.critical)
}

/// The agent may be somebody else's by now: it must not bring an old hole back.
fn forbidden_to_a_wish(facts: &Facts<'_>, asked: &Asked, version: &Version) -> Option<String> {
    let Facts { current, channel, .. } = facts;
    let back = matches!(asked, Asked::ByWish(Some(_))) && version < *current;
    let may = channel.yanked.contains_key(*current) || (channel.sends_back(current) && *version == channel.head);
    (back && !may).then(|| format!("release {version} is older than {current}: only a person may ask for it"))
}

/// What a machine that must wait for the head takes meanwhile: the newest release before it that is critical, or, where
/// it waits for its turn only, that it may have by now. What is urgent does not wait because something else was released
/// since; and a vendor who releases often must not keep machines of late waves waiting for ever.
fn meanwhile<'a>(facts: &Facts<'a>, head: &Version, only_its_turn: bool) -> Option<&'a Version> {
    let Facts { current, channel, target, .. } = facts;
    let by_steps = channel.minimum.as_ref().is_some_and(|minimum| *current < minimum);
    if facts.pinned.is_some() || by_steps || *head != channel.head {
        return None;
    }
    let newest_first = channel.releases.iter().rev().filter(|(version, _)| *version < head && version > current);
    let mut able = newest_first.filter(|(version, release)| {
        let wanted = release.critical || only_its_turn;
        wanted && release.artifacts.contains_key(target) && !channel.yanked.contains_key(version)
    });
    let found = able.find(|(version, release)| waiting(facts, &Asked::BySchedule, version, release).is_none());
    found.map(|(version, _)| version)
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
        let yanked = yanked.map_or_else(String::new, |yank| format!("; the vendor took it back: {}", yank.reason));
        return stay(format!("version {current} is up to date (channel {}{pinned}){yanked}", channel.channel));
    }
    if facts.pinned.is_none() && wanted < *current && !channel.sends_back(current) {
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
fn waiting(facts: &Facts<'_>, asked: &Asked, version: &Version, release: &Release) -> Option<Waiting> {
    if matches!(asked, Asked::ByPerson { version: Some(_), .. }) {
        return None;
    }
    if let Some(pinned) = facts.pinned.filter(|pinned| *pinned != version) {
        return Some(Waiting::because(format!("this machine is pinned to {pinned}; `picket update unpin` ends that")));
    }
    if let Some(hold) = (facts.held)(version, release) {
        let until = hold.until.map_or_else(
            || format!("it is tried again only by name: `picket update apply {version}`"),
            |until| format!("it is tried again after {until}, or now with `picket update apply {version}`"),
        );
        return Some(Waiting::because(format!("release {version} is held: {}; {until}", hold.reason)));
    }
    if let Some(stop) = facts.channel.stop_of(version) {
        return Some(Waiting::because(format!(
            "the vendor stopped the rollout at {}: {}; only `picket update apply {version}` takes it all the same",
            stop.at, stop.reason
        )));
    }
    let urgent = is_urgent(facts.channel, facts.current, version);
    let its_turn = || if urgent { None } else { not_yet(facts, version) };
    match (asked, facts.auto) {
        (Asked::ByPerson { now: true, .. }, _) | (Asked::ByWish(_), AutoUpdate::All | AutoUpdate::Critical) => None,
        (Asked::ByPerson { .. }, _) => its_turn(),
        (_, AutoUpdate::Off) => Some(Waiting::because("update.auto is off; apply it with `picket update apply`")),
        (_, AutoUpdate::Critical) if !urgent => Some(Waiting::because(
            "update.auto is critical and this release is not; apply it with `picket update apply`",
        )),
        (_, AutoUpdate::All | AutoUpdate::Critical) => its_turn(),
    }
}

/// Why it is not this machine's turn yet, if the release comes in waves. A pin is a person's word: it is not waited for.
fn not_yet(facts: &Facts<'_>, version: &Version) -> Option<Waiting> {
    let turn = turn(facts, version).filter(|turn| turn.at > facts.now && facts.pinned != Some(version))?;
    let text = format!(
        "its turn is at {}, in {}; `picket update apply {version}` does not wait",
        turn.at,
        rollout::describe(&turn)
    );
    Some(Waiting { text, due: Some(turn.at) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::{Artifact, Rollout, Stop, Wave, Yank};
    use std::collections::{BTreeMap, BTreeSet};

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
            rollout: None,
            stop: None,
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
            allow_downgrade_from: BTreeSet::new(),
            stop: None,
        }
    }

    /// With 1.1.0 it is at 71.42 %, as `crate::rollout` reckons.
    const MACHINE: &str = "m";

    struct Case {
        channel: Channel,
        current: Version,
        pinned: Option<Version>,
        auto: AutoUpdate,
        held: Option<&'static str>,
        now: Timestamp,
    }

    impl Case {
        fn new(versions: &[&str], current: &str) -> Self {
            let now = Timestamp::UNIX_EPOCH;
            Self {
                channel: channel(versions),
                current: v(current),
                pinned: None,
                auto: AutoUpdate::All,
                held: None,
                now,
            }
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
                machine: MACHINE,
                now: self.now,
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

    fn by_person(version: Option<&str>) -> Asked {
        Asked::ByPerson { version: version.map(v), now: false }
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
        assert_eq!(case.decide(&by_person(None)), take("1.2.0"));
        case.held = Some("1.2.0");
        assert_waits(case.decide(&by_person(None)), "it crashed");
        assert_eq!(case.decide(&by_person(Some("1.2.0"))), take("1.2.0"));
        assert_eq!(case.decide(&by_person(Some("1.0.0"))), take("1.0.0"));
        let refused = case.decide(&by_person(Some("9.0.0")));
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
        let refused = staying.decide(&by_person(Some("1.1.0")));
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
        assert!(matches!(case.decide(&by_person(Some("1.1.0"))), Decision::Refuse { .. }));
    }

    impl Case {
        /// Lets 1.1.0 come in waves, of which this machine is in the second.
        fn in_waves(mut self) -> Self {
            let waves = vec![Wave { after_seconds: 0, percent: 10 }, Wave { after_seconds: 3600, percent: 100 }];
            let rollout = Rollout { start: Some(START), waves, ..Rollout::default() };
            self.channel.releases.get_mut(&v("1.1.0")).unwrap().rollout = Some(rollout);
            self.now = START;
            self
        }

        fn at(mut self, seconds: i64) -> Self {
            self.now = START + jiff::SignedDuration::from_secs(seconds);
            self
        }

        fn stopped(mut self, version: Option<&str>) -> Self {
            let stop = Some(Stop { reason: "it eats disks".into(), at: START });
            match version {
                Some(version) => self.channel.releases.get_mut(&v(version)).unwrap().stop = stop,
                None => self.channel.stop = stop,
            }
            self
        }
    }

    const START: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn assert_due(decision: &Decision, seconds: i64) {
        let due = Some(START + jiff::SignedDuration::from_secs(seconds));
        assert!(matches!(decision, Decision::Offer { due: found, .. } if *found == due), "{decision:?}");
    }

    #[test]
    fn a_machine_waits_for_its_wave_and_one_that_comes_late_joins_at_once() {
        let case = || Case::new(&["1.0.0", "1.1.0"], "1.0.0").in_waves();
        let waits = case().decide(&Asked::BySchedule);
        assert_due(&waits, 3600);
        assert_waits(waits, "in wave 2 of 2");
        assert_due(&case().at(3599).decide(&Asked::BySchedule), 3600);
        assert_eq!(case().at(3600).decide(&Asked::BySchedule), take("1.1.0"));
        assert_eq!(case().at(90 * 86_400).decide(&Asked::BySchedule), take("1.1.0"));
        assert_due(&case().at(-3600).decide(&Asked::BySchedule), 3600);
    }

    #[test]
    fn nobody_who_asks_by_name_or_insists_waits_for_a_wave_and_neither_does_a_pin_nor_a_hub() {
        let case = || Case::new(&["1.0.0", "1.1.0"], "1.0.0").in_waves();
        assert_due(&case().decide(&by_person(None)), 3600);
        assert_eq!(case().decide(&by_person(Some("1.1.0"))), take("1.1.0"));
        assert_eq!(case().decide(&Asked::ByPerson { version: None, now: true }), take("1.1.0"));
        assert_eq!(case().decide(&Asked::ByWish(None)), take("1.1.0"));
        let pinned = Case { pinned: Some(v("1.1.0")), ..case() };
        assert_eq!(pinned.decide(&Asked::BySchedule), take("1.1.0"));
        let elsewhere = Case { pinned: Some(v("1.0.0")), ..case().at(7200) };
        assert!(matches!(elsewhere.decide(&Asked::BySchedule), Decision::Stay { .. }));
    }

    #[test]
    fn what_is_critical_and_what_leaves_a_yanked_version_waits_for_no_wave() {
        let mut critical = Case::new(&["1.0.0", "1.1.0!"], "1.0.0").in_waves();
        critical.auto = AutoUpdate::Critical;
        assert_eq!(critical.decide(&Asked::BySchedule), take("1.1.0"));
        let leaving = Case::new(&["1.0.0", "1.1.0"], "1.0.0").yank("1.0.0", "1.1.0").in_waves();
        assert_eq!(leaving.decide(&Asked::BySchedule), take("1.1.0"));
    }

    #[test]
    fn a_critical_release_is_taken_though_another_was_released_since() {
        let mut case = Case::new(&["1.0.0", "1.0.5!", "1.0.6", "1.1.0"], "1.0.0").in_waves();
        case.auto = AutoUpdate::Critical;
        assert_eq!(case.decide(&Asked::BySchedule), take("1.0.5"));
        case.auto = AutoUpdate::Off;
        assert_waits(case.decide(&Asked::BySchedule), "update.auto is off");
        let yanked = Case::new(&["1.0.0", "1.0.5!", "1.1.0"], "1.0.0").in_waves().yank("1.0.5", "1.1.0");
        assert_due(&yanked.decide(&Asked::BySchedule), 3600);
        assert_due(&Case::new(&["1.0.0!", "1.1.0"], "1.0.0").in_waves().decide(&Asked::BySchedule), 3600);
    }

    #[test]
    fn a_machine_that_waits_for_the_heads_wave_takes_the_release_before_it_meanwhile() {
        let case = || Case::new(&["1.0.0", "1.0.5", "1.0.6", "1.1.0"], "1.0.0").in_waves();
        assert_eq!(case().decide(&Asked::BySchedule), take("1.0.6"));
        assert_eq!(case().stopped(Some("1.0.6")).decide(&Asked::BySchedule), take("1.0.5"));
        assert_eq!(case().at(3600).decide(&Asked::BySchedule), take("1.1.0"));
        let on_it = Case { current: v("1.0.6"), ..case() };
        assert_due(&on_it.decide(&Asked::BySchedule), 3600);
        // What keeps it from the head for another reason than time keeps it where it is.
        assert_waits(case().stopped(Some("1.1.0")).decide(&Asked::BySchedule), "it eats disks");
        let held = Case { held: Some("1.1.0"), ..case() };
        assert_waits(held.decide(&Asked::BySchedule), "it crashed");
    }

    #[test]
    fn a_stop_holds_everybody_but_a_person_who_names_the_release() {
        for stopped in [Some("1.1.0"), None] {
            let case = || Case::new(&["1.0.0", "1.1.0!"], "1.0.0").stopped(stopped);
            assert_waits(case().decide(&Asked::BySchedule), "it eats disks");
            assert_waits(case().decide(&by_person(None)), "the vendor stopped the rollout");
            assert_waits(case().decide(&Asked::ByPerson { version: None, now: true }), "it eats disks");
            let wish = case().decide(&Asked::ByWish(Some(v("1.1.0"))));
            assert!(matches!(wish, Decision::Refuse { reason } if reason.contains("it eats disks")));
            assert_eq!(case().decide(&by_person(Some("1.1.0"))), take("1.1.0"));
            // Whoever runs it stays on it.
            let on_it = Case::new(&["1.0.0", "1.1.0"], "1.1.0").stopped(stopped);
            assert!(matches!(on_it.decide(&Asked::BySchedule), Decision::Stay { .. }));
        }
        let other = Case::new(&["1.0.0", "1.1.0"], "1.0.0").stopped(Some("1.0.0"));
        assert_eq!(other.decide(&Asked::BySchedule), take("1.1.0"));
    }

    #[test]
    fn an_older_head_moves_a_machine_back_where_the_channel_says_so() {
        let mut case = Case::new(&["1.0.0", "1.1.0"], "1.1.0");
        case.channel.head = v("1.0.0");
        assert!(matches!(case.decide(&Asked::BySchedule), Decision::Stay { reason } if reason.contains("newer")));
        assert!(matches!(case.decide(&Asked::ByWish(Some(v("1.0.0")))), Decision::Refuse { .. }));
        case.channel.allow_downgrade_from.insert(v("1.1.0"));
        assert_eq!(case.decide(&Asked::BySchedule), take("1.0.0"));
        assert_eq!(case.decide(&Asked::ByWish(Some(v("1.0.0")))), take("1.0.0"));
        case.current = v("1.1.1");
        assert!(matches!(case.decide(&Asked::BySchedule), Decision::Stay { .. }));
    }

    #[test]
    fn a_machine_that_stays_on_a_yanked_version_by_its_pin_is_told() {
        let mut case = Case::new(&["1.0.0", "1.1.0"], "1.1.0").yank("1.1.0", "1.0.0");
        case.pinned = Some(v("1.1.0"));
        let stays = case.decide(&Asked::BySchedule);
        assert!(matches!(stays, Decision::Stay { reason } if reason.contains("it loses events")));
    }

    #[test]
    fn a_wish_never_goes_back_unless_the_vendor_took_the_running_release_back() {
        let wish = |text: &str| Asked::ByWish(Some(v(text)));
        let case = Case::new(&["1.0.0", "2.0.0", "3.0.0"], "2.0.0");
        assert!(matches!(case.decide(&wish("1.0.0")), Decision::Refuse { .. }));
        assert_eq!(case.decide(&wish("3.0.0")), take("3.0.0"));
        assert_eq!(case.decide(&by_person(Some("1.0.0"))), take("1.0.0"));
        let case = Case::new(&["1.0.0", "2.0.0"], "2.0.0").yank("2.0.0", "1.0.0");
        assert_eq!(case.decide(&wish("1.0.0")), take("1.0.0"));
    }
}
