//! When a value is an alert: two triggers, each with a margin and a delay, as one pure state machine.
//!
//! Each of the two levels is a Schmitt trigger with an on-delay and an off-delay. It is beyond its bound when the value
//! reaches it; once on, it is back only when the value has come `clear_margin` behind the bound. Either way it turns only
//! after it has been so, without a break, for `hold`. The level of an alert is the highest trigger that is on. So a value
//! that dances around a bound turns nothing, and one that spikes and returns turns nothing either.

use crate::sample::{Tags, selects};
use crate::settings::{Comparison, ThresholdSettings, Thresholds};
use picket_protocol::event::AlertLevel;
use std::time::Duration;

/// The most thresholds.
pub const MAX_THRESHOLDS: usize = 64;
/// The part of a bound that a value must come back by, where no margin is set.
const MARGIN: f64 = 0.05;

/// A threshold, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// Its own name, unique.
    pub name: String,
    /// The metric it is about, and every metric below it: `response_time` is also `response_time.heartbeat`.
    pub metric: String,
    /// Only samples with these tags.
    pub tags: Tags,
    /// Where a warning begins.
    pub warning: Option<f64>,
    /// Where it is critical.
    pub critical: Option<f64>,
    /// Which side is bad.
    pub comparison: Comparison,
    /// How long a value must stay.
    pub hold: Duration,
    /// How far back a value must come; `None` for a twentieth of the bound.
    pub clear_margin: Option<f64>,
}

/// A threshold that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Neither bound is set.
    #[error("thresholds.{0}: set warning, critical or both")]
    NoBound(String),
    /// The warning would come after the critical alert.
    #[error("thresholds.{0}: critical must lie beyond warning ({1})")]
    Order(String, &'static str),
    /// The margin points the wrong way.
    #[error("thresholds.{0}: clear_margin must not be negative")]
    Margin(String),
    /// There are too many.
    #[error("more than {MAX_THRESHOLDS} thresholds")]
    TooMany,
}

impl Threshold {
    /// The thresholds that are switched on, checked; every one that makes no sense is told.
    ///
    /// # Errors
    /// All [`ThresholdError`]s at once.
    pub fn all(settings: &Thresholds) -> Result<Vec<Self>, Vec<ThresholdError>> {
        let enabled = settings.0.iter().filter(|(_, settings)| settings.enabled);
        let (good, bad): (Vec<_>, Vec<_>) =
            enabled.map(|(name, settings)| Self::new(name, settings)).partition(Result::is_ok);
        let mut errors: Vec<ThresholdError> = bad.into_iter().filter_map(Result::err).collect();
        if good.len() > MAX_THRESHOLDS {
            errors.push(ThresholdError::TooMany);
        }
        if errors.is_empty() { Ok(good.into_iter().flatten().collect()) } else { Err(errors) }
    }

    /// One threshold, checked.
    pub fn new(name: &str, settings: &ThresholdSettings) -> Result<Self, ThresholdError> {
        let name = name.to_owned();
        match (settings.warning, settings.critical, settings.comparison) {
            (None, None, _) => return Err(ThresholdError::NoBound(name)),
            (Some(warning), Some(critical), Comparison::Greater) if critical < warning => {
                return Err(ThresholdError::Order(name, "above it, for comparison: greater"));
            }
            (Some(warning), Some(critical), Comparison::Less) if critical > warning => {
                return Err(ThresholdError::Order(name, "below it, for comparison: less"));
            }
            _ => {}
        }
        if settings.clear_margin.is_some_and(|margin| margin < 0.0) {
            return Err(ThresholdError::Margin(name));
        }
        Ok(Self {
            metric: settings.metric.clone().unwrap_or_else(|| name.clone()),
            name,
            tags: settings.tags.clone(),
            warning: settings.warning,
            critical: settings.critical,
            comparison: settings.comparison,
            hold: settings.r#for.get(),
            clear_margin: settings.clear_margin,
        })
    }

    /// Whether a series with this name and these tags is watched.
    pub fn watches(&self, name: &str, tags: &Tags) -> bool {
        let below = name.strip_prefix(self.metric.as_str());
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && selects(&self.tags, tags)
    }

    /// The bound of a level.
    pub fn bound(&self, level: AlertLevel) -> Option<f64> {
        match level {
            AlertLevel::Warning => self.warning,
            AlertLevel::Critical => self.critical,
        }
    }

    /// Whether `value` is beyond the bound of `level`; one that is on counts as beyond until it is the margin behind.
    fn beyond(&self, level: AlertLevel, value: f64, on: bool) -> bool {
        let Some(bound) = self.bound(level) else { return false };
        let margin = if on { self.clear_margin.unwrap_or(bound.abs() * MARGIN) } else { 0.0 };
        match self.comparison {
            Comparison::Greater => value >= bound - margin,
            Comparison::Less => value <= bound + margin,
        }
    }
}

/// The levels, least first, in the order of [`State::triggers`].
const LEVELS: [AlertLevel; 2] = [AlertLevel::Warning, AlertLevel::Critical];

/// One trigger: whether it is on, and since when the values disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Trigger {
    on: bool,
    /// By the steady clock.
    since: Option<Duration>,
}

/// Where one threshold stands for one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    triggers: [Trigger; 2],
}

/// A change of level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The level before; `None` for none.
    pub from: Option<AlertLevel>,
    /// The level now.
    pub to: Option<AlertLevel>,
}

impl State {
    /// Where it stands while an alert of `level` is open.
    pub fn at(level: AlertLevel) -> Self {
        Self { triggers: LEVELS.map(|trigger| Trigger { on: trigger <= level, since: None }) }
    }

    /// The level in force.
    pub fn level(&self) -> Option<AlertLevel> {
        LEVELS.iter().zip(self.triggers).rev().find(|(_, trigger)| trigger.on).map(|(level, _)| *level)
    }

    /// Takes one finite value, of the time `at` by a clock that only goes on ([`crate::Moment::steady`]); tells when the level
    /// changes.
    pub fn step(&mut self, threshold: &Threshold, value: f64, at: Duration) -> Option<Change> {
        let from = self.level();
        for (trigger, level) in self.triggers.iter_mut().zip(LEVELS) {
            if threshold.beyond(level, value, trigger.on) == trigger.on {
                trigger.since = None;
                continue;
            }
            let since = trigger.since.unwrap_or(at);
            *trigger = if at.saturating_sub(since) >= threshold.hold {
                Trigger { on: !trigger.on, since: None }
            } else {
                Trigger { since: Some(since), ..*trigger }
            };
        }
        let to = self.level();
        (from != to).then_some(Change { from, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_config::Interval;
    use proptest::prelude::*;

    fn at(second: i64) -> Duration {
        Duration::from_secs(second.unsigned_abs())
    }

    fn threshold(warning: f64, critical: f64, hold: u64) -> Threshold {
        let settings = ThresholdSettings {
            warning: Some(warning),
            critical: Some(critical),
            r#for: Interval::seconds(hold),
            comparison: if critical >= warning { Comparison::Greater } else { Comparison::Less },
            clear_margin: Some(5.0),
            ..ThresholdSettings::default()
        };
        Threshold::new("cpu_usage", &settings).unwrap()
    }

    /// The changes of level that `values`, one a second, bring about.
    fn changes(threshold: &Threshold, values: &[f64]) -> Vec<(usize, Option<AlertLevel>)> {
        let mut state = State::default();
        let step = |(index, value): (usize, &f64)| {
            let change = state.step(threshold, *value, at(i64::try_from(index).unwrap()))?;
            Some((index, change.to))
        };
        values.iter().enumerate().filter_map(step).collect()
    }

    const WARNING: Option<AlertLevel> = Some(AlertLevel::Warning);
    const CRITICAL: Option<AlertLevel> = Some(AlertLevel::Critical);

    #[test]
    fn a_level_begins_at_its_bound_and_ends_behind_its_margin() {
        let greater = threshold(70.0, 85.0, 0);
        assert_eq!(
            changes(&greater, &[69.9, 70.0, 65.0, 64.9, 85.0, 80.0, 79.9, 64.0]),
            [(1, WARNING), (3, None), (4, CRITICAL), (6, WARNING), (7, None)]
        );
        let less = threshold(20.0, 10.0, 0);
        assert_eq!(
            changes(&less, &[20.1, 20.0, 25.0, 25.1, 10.0, 15.1]),
            [(1, WARNING), (3, None), (4, CRITICAL), (5, WARNING)]
        );
    }

    #[test]
    fn a_spike_shorter_than_asked_is_no_alert_and_a_dip_is_no_end() {
        let held = threshold(70.0, 85.0, 3);
        assert_eq!(changes(&held, &[90.0, 90.0, 90.0, 10.0, 10.0, 10.0]), []);
        assert_eq!(changes(&held, &[75.0, 75.0, 75.0, 75.0, 10.0, 10.0, 10.0, 75.0, 75.0]), [(3, WARNING)]);
        // Beyond the warning all the time, though partly critical: a warning after three seconds.
        assert_eq!(changes(&held, &[75.0, 90.0, 75.0, 90.0, 75.0]), [(3, WARNING)]);
    }

    #[test]
    fn a_value_that_dances_around_the_bound_raises_once() {
        let values: Vec<f64> = (0..1_000).map(|i| if i % 2 == 0 { 70.5 } else { 69.5 }).collect();
        assert_eq!(changes(&threshold(70.0, 85.0, 0), &values), [(0, WARNING)]);
    }

    #[test]
    fn thresholds_that_make_no_sense_are_told_all_at_once() {
        let mut settings = Thresholds::default();
        let wrong = |warning, critical, comparison| ThresholdSettings {
            warning,
            critical,
            comparison,
            ..ThresholdSettings::default()
        };
        settings.0.insert("a".into(), wrong(None, None, Comparison::Greater));
        settings.0.insert("b".into(), wrong(Some(9.0), Some(8.0), Comparison::Greater));
        settings.0.insert("c".into(), wrong(Some(8.0), Some(9.0), Comparison::Less));
        settings.0.insert("d".into(), ThresholdSettings { enabled: false, ..wrong(None, None, Comparison::Less) });
        let errors: Vec<String> = Threshold::all(&settings).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors[1].contains("thresholds.b: critical must lie beyond warning"));
        assert_eq!(Threshold::all(&Thresholds::default()).unwrap().len(), 5);
    }

    #[test]
    fn a_threshold_watches_its_metric_those_below_it_and_only_with_its_tags() {
        let mut watching = threshold(1.0, 2.0, 0);
        watching.metric = "response_time".into();
        watching.tags = Tags::from([("success".into(), "true".into())]);
        let yes = Tags::from([("success".into(), "true".into()), ("type".into(), "exec".into())]);
        assert!(watching.watches("response_time", &yes) && watching.watches("response_time.heartbeat", &yes));
        assert!(!watching.watches("response_times", &yes) && !watching.watches("response_time", &Tags::new()));
    }

    /// The naive model: it keeps every value since the trigger last turned, and looks at all of them at each step.
    struct Model {
        on: bool,
        history: Vec<(i64, f64)>,
    }

    impl Model {
        fn step(&mut self, bound: f64, greater: bool, margin: f64, hold: i64, at: i64, value: f64) {
            self.history.push((at, value));
            let beyond = |value: f64| match (greater, self.on) {
                (true, false) => value >= bound,
                (true, true) => value >= bound - margin,
                (false, false) => value <= bound,
                (false, true) => value <= bound + margin,
            };
            let disagreeing = self.history.iter().rev().take_while(|(_, value)| beyond(*value) != self.on);
            if disagreeing.last().is_some_and(|(since, _)| at - since >= hold) {
                self.on = !self.on;
                self.history.clear();
            }
        }
    }

    proptest! {
        #[test]
        fn the_state_machine_does_what_looking_at_everything_would(
            steps in prop::collection::vec((1_i64..40, 0.0_f64..100.0), 1..200),
            bounds in (10.0_f64..90.0, 0.0_f64..30.0),
            margin in 0.0_f64..20.0,
            hold in 0_i64..120,
            greater in any::<bool>(),
        ) {
            let (warning, distance) = bounds;
            let critical = if greater { warning + distance } else { warning - distance };
            let settings = ThresholdSettings {
                warning: Some(warning),
                critical: Some(critical),
                comparison: if greater { Comparison::Greater } else { Comparison::Less },
                clear_margin: Some(margin),
                r#for: Interval::seconds(hold.unsigned_abs()),
                ..ThresholdSettings::default()
            };
            let threshold = Threshold::new("m", &settings).unwrap();
            let mut models = [warning, critical].map(|bound| (bound, Model { on: false, history: Vec::new() }));
            let (mut state, mut now, mut level) = (State::default(), 0, None);
            for (step, value) in steps {
                now += step;
                let change = state.step(&threshold, value, at(now));
                for (bound, model) in &mut models {
                    model.step(*bound, greater, margin, hold, now, value);
                }
                let expected = if models[1].1.on { CRITICAL } else if models[0].1.on { WARNING } else { None };
                prop_assert_eq!(state.level(), expected);
                prop_assert_eq!(change, (level != expected).then_some(Change { from: level, to: expected }));
                prop_assert!(models[0].1.on || !models[1].1.on, "critical without a warning");
                level = expected;
            }
        }
    }
}
