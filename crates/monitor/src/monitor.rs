//! The core: samples in, summaries and events of alerts out.

use crate::alert::{Alert, length};
use crate::book::{AcknowledgeError, Book, Crossing};
use crate::ring::{MAX_RETENTION, Point};
use crate::sample::{Moment, Refusal, Sample, Tags, selects};
use crate::series::{Series, SeriesInfo, Watch};
use crate::settings::PerformanceSettings;
use crate::summary::Summary;
use crate::threshold::{State, Threshold};
use jiff::Timestamp;
use picket_protocol::event::{AlertEvent, AlertLevel};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Samples of one series.
    pub samples: usize,
    /// Their age; at most 30 days.
    pub retention: Duration,
    /// Series.
    pub series: usize,
    /// How long a series may be silent before its alerts are closed; see [`Monitor::sweep`].
    pub no_data: Duration,
}

impl Default for Limits {
    /// 1000 samples, one hour, 512 series, fifteen minutes.
    fn default() -> Self {
        Self { samples: 1_000, retention: Duration::from_secs(3_600), series: 512, no_data: Duration::from_secs(900) }
    }
}

impl Limits {
    /// The limits of a configuration: at least one minute and one sample, at most 30 days and 10,000 samples.
    pub fn of(settings: &PerformanceSettings, no_data: Duration) -> Self {
        let retention = Duration::from_secs(u64::from(settings.retention_minutes.max(1)) * 60).min(MAX_RETENTION);
        let samples = usize::try_from(settings.max_samples).unwrap_or(usize::MAX).clamp(1, 10_000);
        Self { samples, retention, no_data, ..Self::default() }
    }
}

/// What the monitor has done since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Samples recorded.
    pub recorded: u64,
    /// Samples refused because they were infinite or no numbers.
    pub refused_not_finite: u64,
    /// Samples refused because of their names or tags.
    pub refused_too_long: u64,
    /// Samples refused because there were too many series.
    pub refused_series: u64,
    /// Samples that would have opened an alert while there were too many.
    pub refused_alerts: u64,
}

/// Rings, thresholds and alerts of one process. It has no clock: whoever calls says what time it is.
#[derive(Debug)]
pub struct Monitor {
    limits: Limits,
    thresholds: Vec<Threshold>,
    series: BTreeMap<String, Vec<Series>>,
    series_count: usize,
    book: Book,
    counts: Counts,
}

impl Monitor {
    /// A monitor without samples.
    pub fn new(limits: Limits, thresholds: Vec<Threshold>) -> Self {
        Self {
            limits,
            thresholds,
            series: BTreeMap::new(),
            series_count: 0,
            book: Book::default(),
            counts: Counts::default(),
        }
    }

    /// Takes a sample; tells what it did to alerts.
    ///
    /// # Errors
    /// [`Refusal`], which is counted, and for the first surplus series logged.
    pub fn record(&mut self, sample: &Sample) -> Result<Vec<AlertEvent>, Refusal> {
        self.admit(sample).inspect_err(|refusal| self.count(*refusal, sample))?;
        let Self { limits, thresholds, series, book, counts, .. } = self;
        let family = series.get_mut(&sample.name);
        let Some(series) = family.and_then(|family| place(family, sample).ok().and_then(|at| family.get_mut(at)))
        else {
            return Ok(Vec::new());
        };
        let mut events = Vec::new();
        if let Some(silence) = series.silent(sample.at, limits.no_data) {
            end_silent(series, silence, sample.at, book, &mut events);
        }
        series.push(sample, limits.samples, limits.retention);
        counts.recorded += 1;
        for watch in &mut series.watches {
            let Some(threshold) = thresholds.get(watch.threshold) else { continue };
            events.extend(judge(watch, threshold, sample, book, counts));
        }
        Ok(events)
    }

    /// Makes sure that the sample's series is there.
    fn admit(&mut self, sample: &Sample) -> Result<(), Refusal> {
        if let Some(refusal) = sample.refusal() {
            return Err(refusal);
        }
        let place = self.series.get(&sample.name).map_or(Err(0), |family| place(family, sample));
        let Err(place) = place else { return Ok(()) };
        if self.series_count >= self.limits.series {
            return Err(Refusal::TooManySeries);
        }
        self.series_count += 1;
        let series = Series::new(sample, &self.thresholds);
        self.series.entry(sample.name.clone()).or_default().insert(place, series);
        Ok(())
    }

    fn count(&mut self, refusal: Refusal, sample: &Sample) {
        match refusal {
            Refusal::NotFinite => self.counts.refused_not_finite += 1,
            Refusal::TooLong => self.counts.refused_too_long += 1,
            Refusal::TooManySeries => {
                self.counts.refused_series += 1;
                if self.counts.refused_series == 1 {
                    let limit = self.limits.series;
                    tracing::warn!(metric = sample.name, limit, "more series than are kept; new ones are only counted");
                }
            }
        }
    }

    /// What only time does: forgets samples that are too old and series that have none, and closes the alerts of series
    /// that fell silent.
    ///
    /// An alert whose metric is not measured any more can neither be confirmed nor cleared by a value. It is closed once
    /// the series was silent for longer than [`Limits::no_data`] and three of its own intervals, with the words "no data"
    /// in the event, so that nobody takes it for a recovery.
    pub fn sweep(&mut self, now: Moment) -> Vec<AlertEvent> {
        let Self { limits, series, book, .. } = self;
        let mut events = Vec::new();
        for series in series.values_mut().flatten() {
            series.ring.forget_before(now.wall, limits.retention);
            if let Some(silence) = series.silent(now, limits.no_data) {
                end_silent(series, silence, now, book, &mut events);
            }
        }
        series.retain(|_, family| {
            // By the steady clock, too: a clock that is set forward ages every sample, and ends no wait for an alert.
            let fresh = |series: &Series| now.since(&series.newest) <= limits.retention;
            family.retain(|series| series.ring.len() > 0 || series.has_alert() || fresh(series));
            !family.is_empty()
        });
        self.series_count = series.values().map(Vec::len).sum();
        events
    }

    /// Puts other thresholds and limits in force. A threshold of the same name goes on where it stood; the alerts of one
    /// that is gone, or no longer watches the series, are closed.
    pub fn configure(&mut self, limits: Limits, thresholds: Vec<Threshold>, now: Moment) -> Vec<AlertEvent> {
        let before = std::mem::replace(&mut self.thresholds, thresholds);
        self.limits = limits;
        let Self { thresholds, series, book, .. } = self;
        let mut events = Vec::new();
        for (name, series) in series.iter_mut().flat_map(|(name, family)| family.iter_mut().map(move |s| (name, s))) {
            let mut old = std::mem::take(&mut series.watches);
            for (index, threshold) in thresholds.iter().enumerate() {
                if !threshold.watches(name, &series.tags) {
                    continue;
                }
                let same = |watch: &Watch| before.get(watch.threshold).is_some_and(|t| t.name == threshold.name);
                let kept = old.iter().position(same).map(|place| old.swap_remove(place));
                let (state, alert) = kept.map_or((State::default(), None), |watch| (watch.state, watch.alert));
                series.watches.push(Watch { threshold: index, state, alert });
            }
            let gone = old.into_iter().filter_map(|watch| watch.alert);
            events.extend(gone.filter_map(|id| book.end(id, "its threshold was removed", now.wall)));
        }
        events
    }

    /// Takes back the alerts that were open before the process began: the same condition goes on under the same id and is
    /// not told again, one that is gone is told as cleared as soon as a value or the silence says so, and at once if
    /// nothing watches the metric any more.
    pub fn restore(&mut self, alerts: Vec<Alert>, now: Moment) -> Vec<AlertEvent> {
        let mut events = Vec::new();
        for alert in alerts.into_iter().filter(Alert::is_sound) {
            let (id, level) = (alert.id, alert.level);
            let sample = Sample {
                name: alert.metric.clone(),
                value: alert.value,
                // The next sample brings it.
                unit: "",
                tags: alert.tags.clone(),
                at: now,
            };
            let threshold = self.thresholds.iter().position(|threshold| threshold.name == alert.threshold);
            if !self.book.take_back(alert) {
                continue;
            }
            let why = match threshold.and_then(|threshold| self.watch(&sample, threshold)) {
                None => "its threshold was removed",
                Some(watch) if watch.alert.is_some() => "another alert is open for the same",
                Some(watch) => {
                    (watch.state, watch.alert) = (State::at(level), Some(id));
                    continue;
                }
            };
            events.extend(self.book.end(id, why, now.wall));
        }
        events
    }

    /// Where one threshold stands for the series of `sample`, which is made if it is not there; `None` if it does not
    /// watch it.
    fn watch(&mut self, sample: &Sample, threshold: usize) -> Option<&mut Watch> {
        if !self.thresholds.get(threshold)?.watches(&sample.name, &sample.tags) || self.admit(sample).is_err() {
            return None;
        }
        let family = self.series.get_mut(&sample.name)?;
        let place = place(family, sample).ok()?;
        family.get_mut(place)?.watches.iter_mut().find(|watch| watch.threshold == threshold)
    }

    /// Notes that somebody has seen an open alert.
    ///
    /// # Errors
    /// When there is no such alert, or somebody has seen it already.
    pub fn acknowledge(
        &mut self,
        id: Uuid,
        by: &str,
        note: Option<&str>,
        now: Moment,
    ) -> Result<AlertEvent, AcknowledgeError> {
        self.book.acknowledge(id, by, note, now.wall)
    }

    /// The summary of every series called `name` whose tags hold all of `tags`, from `since` on.
    pub fn summary(&self, name: &str, tags: &Tags, since: Option<Timestamp>) -> Summary {
        Summary::of(self.matching(name, tags).flat_map(|series| series.ring.points(since)))
    }

    /// The samples of every series called `name` whose tags hold all of `tags`, from `since` on, oldest first.
    pub fn samples(&self, name: &str, tags: &Tags, since: Option<Timestamp>) -> Vec<Point> {
        let mut points: Vec<Point> = self.matching(name, tags).flat_map(|series| series.ring.points(since)).collect();
        points.sort_by_key(|point| point.at);
        points
    }

    fn matching<'a>(&'a self, name: &str, tags: &'a Tags) -> impl Iterator<Item = &'a Series> {
        self.series.get(name).into_iter().flatten().filter(|series| selects(tags, &series.tags))
    }

    /// Every series.
    pub fn series(&self) -> impl Iterator<Item = SeriesInfo> {
        self.series.iter().flat_map(|(name, family)| {
            family.iter().map(|series| SeriesInfo {
                name: name.clone(),
                unit: series.unit,
                tags: series.tags.clone(),
                count: series.ring.len(),
                newest: series.newest.wall,
            })
        })
    }

    /// The open alerts, in the order they began.
    pub fn active(&self) -> &[Alert] {
        self.book.active()
    }

    /// The alerts that were closed last, the oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Alert> {
        self.book.recent()
    }

    /// What it has done since it began.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many series there are.
    pub fn series_count(&self) -> usize {
        self.series_count
    }

    /// The bytes that the rings take.
    pub fn ring_bytes(&self) -> usize {
        self.series.values().flatten().map(|series| series.ring.heap_bytes()).sum()
    }
}

/// Where the sample's series is in its family, which is sorted by tags, or where it would be.
fn place(family: &[Series], sample: &Sample) -> Result<usize, usize> {
    family.binary_search_by(|series| series.tags.cmp(&sample.tags))
}

/// Closes the alerts of a series that was silent, and forgets how long its values had been beyond a bound: the silence
/// broke that time.
fn end_silent(series: &mut Series, silence: Duration, now: Moment, book: &mut Book, events: &mut Vec<AlertEvent>) {
    for watch in &mut series.watches {
        watch.state = State::default();
        let why = || format!("no data for {}", length(silence));
        events.extend(watch.alert.take().and_then(|id| book.end(id, &why(), now.wall)));
    }
}

/// Lets one threshold look at one sample.
fn judge(
    watch: &mut Watch,
    threshold: &Threshold,
    sample: &Sample,
    book: &mut Book,
    counts: &mut Counts,
) -> Option<AlertEvent> {
    let before = watch.state;
    let Some(change) = watch.state.step(threshold, sample.value, sample.at.steady) else {
        watch.alert.into_iter().for_each(|id| book.note(id, sample.value));
        return None;
    };
    let crossing = |level: AlertLevel| Crossing {
        threshold,
        metric: &sample.name,
        tags: &sample.tags,
        unit: sample.unit,
        level,
        value: sample.value,
        at: sample.at.wall,
    };
    match (watch.alert, change.to) {
        (None, Some(level)) => {
            let Some((id, event)) = book.raise(&crossing(level)) else {
                // No room: as if the step had not been, so that the next sample tries again.
                watch.state = before;
                counts.refused_alerts += 1;
                if counts.refused_alerts == 1 {
                    tracing::warn!(metric = sample.name, "more open alerts than are kept; further ones wait");
                }
                return None;
            };
            watch.alert = Some(id);
            Some(event)
        }
        (Some(id), Some(level)) => book.change(id, &crossing(level)),
        (Some(id), None) => {
            watch.alert = None;
            book.recover(id, sample.value, sample.at.wall)
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::{MAX_ACTIVE, MAX_RECENT};
    use crate::settings::Thresholds;
    use picket_protocol::event::AlertAction;
    use proptest::prelude::*;

    fn at(second: i64) -> Moment {
        let wall = Timestamp::from_second(1_700_000_000 + second).unwrap();
        Moment { wall, steady: Duration::from_secs(second.unsigned_abs()) }
    }

    fn monitor() -> Monitor {
        Monitor::new(Limits::default(), Threshold::all(&Thresholds::default()).unwrap())
    }

    fn cpu(value: f64, second: i64) -> Sample {
        Sample::new("cpu_usage", value, "percent", at(second))
    }

    /// Records one value a minute and returns what happened.
    fn minutes(monitor: &mut Monitor, values: &[f64], from: i64) -> Vec<AlertEvent> {
        let record = |(minute, value): (i64, &f64)| monitor.record(&cpu(*value, from + minute * 60)).unwrap();
        (0..).zip(values).flat_map(record).collect()
    }

    fn told(events: &[AlertEvent]) -> Vec<(AlertAction, AlertLevel)> {
        events.iter().map(|event| (event.action, event.level)).collect()
    }

    use AlertAction::{Acknowledged, Cleared, Lowered, Raised};
    use AlertLevel::{Critical, Warning};

    #[test]
    fn an_alert_is_raised_raised_further_lowered_and_cleared_under_one_id() {
        let mut monitor = monitor();
        let events = minutes(&mut monitor, &[75.0, 75.0, 90.0, 90.0, 75.0, 75.0, 20.0, 20.0], 0);
        assert_eq!(told(&events), [(Raised, Warning), (Raised, Critical), (Lowered, Warning), (Cleared, Warning)]);
        assert!(events.iter().all(|event| event.alert_id == events[0].alert_id));
        assert_eq!((events[1].value, events[1].threshold), (90.0, 85.0));
        assert_eq!(events[1].message, "cpu_usage is 90 percent, at or above its critical bound of 85 percent");
        assert_eq!(events[3].message, "cpu_usage is back at 20 percent after 6m");
        assert!(monitor.active().is_empty());
        assert_eq!(monitor.recent().next().unwrap().cleared_at, Some(at(420).wall));
    }

    #[test]
    fn a_flapping_input_raises_exactly_one_alert() {
        let mut monitor = monitor();
        // Around the bound for a day, in every rhythm from one second to one minute.
        let mut second = 0;
        let mut events = Vec::new();
        for index in 0..20_000_i64 {
            second += 1 + index % 60;
            let value = if index % 2 == 0 { 70.4 } else { 69.6 };
            events.extend(monitor.record(&cpu(value, second)).unwrap());
            events.extend(monitor.sweep(at(second)));
        }
        // 69.6 is below the bound, so a wait for the warning begins again each time; nothing is raised at all.
        assert_eq!(told(&events), []);
        // Once above for long enough, the same dance neither clears nor raises again.
        for index in 0..20_000_i64 {
            second += 1 + index % 60;
            let value = if index < 60 || index % 7 < 4 { 70.4 } else { 66.6 };
            events.extend(monitor.record(&cpu(value, second)).unwrap());
        }
        assert_eq!(told(&events), [(Raised, Warning)]);
    }

    #[test]
    fn who_has_seen_a_warning_has_not_seen_that_it_became_critical() {
        let mut monitor = monitor();
        let id = minutes(&mut monitor, &[75.0, 75.0], 0)[0].alert_id;
        let event = monitor.acknowledge(id, "ada", Some("on my way"), at(90)).unwrap();
        assert_eq!((event.action, event.by.as_deref()), (Acknowledged, Some("ada")));
        assert_eq!(event.note.as_deref(), Some("on my way"));
        let again = monitor.acknowledge(id, "bob", None, at(91)).unwrap_err();
        assert_eq!(again, AcknowledgeError::Already { by: "ada".into() });
        minutes(&mut monitor, &[90.0, 90.0], 120);
        assert_eq!(monitor.active()[0].acknowledged, None);
        assert_eq!(monitor.acknowledge(id, "bob", None, at(200)).map(|event| event.note), Ok(None));
        assert_eq!(monitor.acknowledge(id, "bob\n", None, at(200)), Err(AcknowledgeError::Name));
        let long = "x".repeat(crate::MAX_NOTE + 1);
        assert_eq!(monitor.acknowledge(id, "bob", Some(&long), at(200)), Err(AcknowledgeError::Note));
        assert_eq!(monitor.acknowledge(Uuid::nil(), "x", None, at(1)), Err(AcknowledgeError::Unknown(Uuid::nil())));
    }

    #[test]
    fn an_alert_without_data_is_closed_and_says_so() {
        let mut monitor = monitor();
        minutes(&mut monitor, &[75.0, 75.0], 0);
        assert_eq!(told(&monitor.sweep(at(60 + 900))), []);
        let events = monitor.sweep(at(60 + 901));
        assert_eq!(told(&events), [(Cleared, Warning)]);
        assert_eq!(
            events[0].message,
            "cpu_usage: no data for 15m; it was 75 percent at last, the alert is closed after 15m"
        );
        // Values that come after the silence must stay beyond the bound for the whole time again.
        assert_eq!(told(&minutes(&mut monitor, &[75.0], 2_000)), []);
    }

    #[test]
    fn a_clock_that_is_set_neither_raises_an_alert_nor_delays_or_closes_one() {
        let set = |second, by: i64| Moment { wall: at(second + by).wall, ..at(second) };
        for day in [86_400, -86_400] {
            let mut monitor = monitor();
            let mut record = |value, second, by| {
                let sample = Sample::new("cpu_usage", value, "percent", set(second, by));
                let mut events = monitor.sweep(set(second, by));
                events.extend(monitor.record(&sample).unwrap());
                told(&events)
            };
            assert_eq!(record(75.0, 0, 0), []);
            assert_eq!(record(75.0, 30, day), [], "half a minute is no minute, whatever the clock says");
            assert_eq!(record(75.0, 60, 0), [(Raised, Warning)]);
            assert_eq!(record(75.0, 90, day), [], "nothing was silent");
            assert_eq!(record(20.0, 120, 0), []);
            assert_eq!(record(20.0, 150, day), []);
            assert_eq!(record(20.0, 180, day), [(Cleared, Warning)]);
        }
    }

    /// What a new process knows of the alerts of `monitor`: what was written down.
    fn restarted(monitor: &Monitor, thresholds: &Thresholds, second: i64) -> (Monitor, Vec<AlertEvent>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alerts.json");
        crate::Memory::save(&path, monitor.active(), &[]).unwrap();
        let mut new = Monitor::new(Limits::default(), Threshold::all(thresholds).unwrap());
        let events = new.restore(crate::Memory::load(&path).unwrap().open, at(second));
        (new, events)
    }

    #[test]
    fn an_alert_goes_on_after_a_restart_under_its_id_and_with_who_has_seen_it() {
        let mut monitor = monitor();
        let id = minutes(&mut monitor, &[75.0, 75.0, 90.0, 90.0], 0)[0].alert_id;
        monitor.acknowledge(id, "ada", Some("on my way"), at(200)).unwrap();
        let (mut monitor, events) = restarted(&monitor, &Thresholds::default(), 300);
        assert_eq!(told(&events), []);
        assert_eq!(told(&minutes(&mut monitor, &[91.0, 92.0, 93.0], 301)), [], "it was told before");
        let [alert] = monitor.active() else { panic!() };
        assert_eq!((alert.id, alert.value, alert.worst), (id, 93.0, Critical));
        assert_eq!(alert.acknowledged.as_ref().unwrap().by, "ada");
        let events = minutes(&mut monitor, &[75.0, 75.0, 20.0, 20.0], 600);
        assert_eq!(told(&events), [(Lowered, Warning), (Cleared, Warning)]);
        assert!(events.iter().all(|event| event.alert_id == id));
    }

    #[test]
    fn an_alert_whose_condition_is_gone_after_a_restart_is_told_as_cleared() {
        let mut monitor = monitor();
        let id = minutes(&mut monitor, &[75.0, 75.0], 0)[0].alert_id;
        let (mut back, _) = restarted(&monitor, &Thresholds::default(), 300);
        let events = minutes(&mut back, &[20.0, 20.0], 301);
        assert_eq!((told(&events), events[0].alert_id), (vec![(Cleared, Warning)], id));

        let (mut silent, _) = restarted(&monitor, &Thresholds::default(), 300);
        assert_eq!(told(&silent.sweep(at(300 + 900))), []);
        let events = silent.sweep(at(300 + 901));
        assert_eq!((told(&events), events[0].alert_id), (vec![(Cleared, Warning)], id));

        let mut settings = Thresholds::default();
        settings.0.remove("cpu_usage");
        let (unwatched, events) = restarted(&monitor, &settings, 300);
        assert_eq!((told(&events), events[0].alert_id), (vec![(Cleared, Warning)], id));
        assert!(events[0].message.contains("threshold was removed"));
        assert_eq!(unwatched.active().len(), 0);
    }

    #[test]
    fn what_was_written_down_twice_is_taken_back_once() {
        let mut monitor = monitor();
        minutes(&mut monitor, &[75.0, 75.0], 0);
        let mut alerts = vec![monitor.active()[0].clone(); 2];
        alerts.push(Alert { id: Uuid::now_v7(), ..alerts[0].clone() });
        alerts.push(Alert { id: Uuid::now_v7(), metric: String::new(), ..alerts[0].clone() });
        let mut new = Monitor::new(Limits::default(), Threshold::all(&Thresholds::default()).unwrap());
        let events = new.restore(alerts, at(0));
        assert_eq!((told(&events), new.active().len()), (vec![(Cleared, Warning)], 1));
        assert!(events[0].message.contains("another alert is open"), "{}", events[0].message);
    }

    #[test]
    fn a_metric_that_is_measured_rarely_is_not_silent_between_two_samples() {
        let mut monitor = monitor();
        for hour in 0..4 {
            monitor.record(&cpu(75.0, hour * 3_600)).unwrap();
        }
        assert_eq!(monitor.active().len(), 1);
        assert_eq!(told(&monitor.sweep(at(3 * 3_600 + 3_500))), []);
    }

    #[test]
    fn series_are_bounded_counted_and_given_back_when_they_are_old() {
        let mut monitor = Monitor::new(Limits { series: 3, ..Limits::default() }, Vec::new());
        let disk = |n: i64, second| Sample::new("disk_usage", 1.0, "percent", at(second)).tag("mount", format!("/{n}"));
        for n in 0..10 {
            let recorded = monitor.record(&disk(n, 0));
            assert_eq!(recorded.is_ok(), n < 3);
        }
        assert_eq!((monitor.series_count(), monitor.counts().refused_series), (3, 7));
        monitor.sweep(at(4_000));
        assert_eq!(monitor.series_count(), 0);
        assert!(monitor.record(&disk(9, 4_000)).is_ok());
    }

    #[test]
    fn what_is_no_number_is_refused_and_counted() {
        let mut monitor = monitor();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(monitor.record(&cpu(value, 0)), Err(Refusal::NotFinite));
        }
        assert_eq!(monitor.record(&Sample::new("x".repeat(129), 1.0, "", at(0))), Err(Refusal::TooLong));
        assert_eq!(monitor.series_count(), 0);
        let counts = Counts { refused_not_finite: 3, refused_too_long: 1, ..Counts::default() };
        assert_eq!(monitor.counts(), counts);
    }

    #[test]
    fn open_and_closed_alerts_are_bounded_and_one_that_waited_is_raised_when_there_is_room() {
        let mut monitor = monitor();
        let disk = |n: usize, value, second| {
            Sample::new("disk_usage", value, "percent", at(second)).tag("mount", format!("/{n}"))
        };
        for second in [0, 60] {
            (0..300).for_each(|n| drop(monitor.record(&disk(n, 99.0, second)).unwrap()));
        }
        assert_eq!(monitor.active().len(), MAX_ACTIVE);
        for second in [120, 180] {
            (0..MAX_ACTIVE).for_each(|n| drop(monitor.record(&disk(n, 1.0, second)).unwrap()));
        }
        assert_eq!((monitor.active().len(), monitor.recent().count()), (0, MAX_RECENT));
        let events = monitor.record(&disk(299, 99.0, 180)).unwrap();
        assert_eq!(told(&events), [(Raised, Critical)]);
    }

    #[test]
    fn other_thresholds_go_on_where_the_old_ones_stood_and_close_what_they_no_longer_watch() {
        let mut monitor = monitor();
        minutes(&mut monitor, &[75.0, 75.0], 0);
        let mut settings = Thresholds::default();
        settings.0.get_mut("cpu_usage").unwrap().warning = Some(60.0);
        let events = monitor.configure(Limits::default(), Threshold::all(&settings).unwrap(), at(100));
        assert_eq!(told(&events), []);
        assert_eq!(told(&minutes(&mut monitor, &[75.0], 120)), [], "the alert is open already");
        settings.0.get_mut("cpu_usage").unwrap().enabled = false;
        let events = monitor.configure(Limits::default(), Threshold::all(&settings).unwrap(), at(200));
        assert_eq!(told(&events), [(Cleared, Warning)]);
        assert!(events[0].message.contains("threshold was removed"));
    }

    #[test]
    fn a_summary_is_of_all_series_that_the_tags_select() {
        let mut monitor = monitor();
        for (n, success) in [(1.0, "true"), (2.0, "true"), (9.0, "false")] {
            let sample = Sample::new("response_time.heartbeat", n, "seconds", at(0)).tag("success", success);
            monitor.record(&sample).unwrap();
        }
        let all = monitor.summary("response_time.heartbeat", &Tags::new(), None);
        assert_eq!((all.count, all.stats.unwrap().max), (3, 9.0));
        let good = monitor.summary("response_time.heartbeat", &Tags::from([("success".into(), "true".into())]), None);
        assert_eq!((good.count, good.stats.unwrap().max), (2, 2.0));
        assert_eq!(monitor.summary("response_time.heartbeat", &Tags::new(), Some(at(1).wall)).count, 0);
        assert_eq!(monitor.series().count(), 2);
    }

    #[test]
    fn a_machine_at_the_defaults_takes_half_a_mebibyte_at_most() {
        let mut monitor = Monitor::new(Limits::default(), Vec::new());
        for minute in 0..90 {
            for n in 0..512 {
                let sample = Sample::new("m", 1.0, "", at(minute * 60)).tag("n", n.to_string());
                monitor.record(&sample).unwrap();
            }
        }
        let bytes = monitor.ring_bytes();
        assert!(bytes <= 512 << 10, "{bytes} bytes");
    }

    proptest! {
        #[test]
        fn events_tell_the_whole_life_of_every_alert(
            steps in prop::collection::vec((1_i64..1_200, 0.0_f64..100.0, 0_u8..3), 1..300),
        ) {
            let mut monitor = monitor();
            let mut open: BTreeMap<Uuid, AlertLevel> = BTreeMap::new();
            let mut now = 0;
            for (step, value, n) in steps {
                now += step;
                let sample = cpu(value, now).tag("core", n.to_string());
                let mut events = monitor.sweep(at(now));
                events.extend(monitor.record(&sample).unwrap());
                for event in events {
                    let before = open.remove(&event.alert_id);
                    match event.action {
                        Raised => prop_assert!(before.is_none_or(|level| level < event.level)),
                        Lowered => prop_assert_eq!((before, event.level), (Some(Critical), Warning)),
                        Cleared => prop_assert_eq!(before, Some(event.level)),
                        Acknowledged => prop_assert!(false),
                    }
                    if event.action != Cleared {
                        open.insert(event.alert_id, event.level);
                    }
                }
                let active: BTreeMap<Uuid, AlertLevel> = monitor.active().iter().map(|a| (a.id, a.level)).collect();
                prop_assert_eq!(&active, &open);
            }
        }
    }
}
