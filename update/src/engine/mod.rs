//! The updater at work: one run takes up what was asked, decides, and carries one update through to its end.
//!
//! A run is a process that the service manager owns. It holds the updater's lock from the first to the last, begins by
//! finishing or undoing what an earlier run left, and ends with the status published.

mod check;
mod error;
mod hooks;
mod prepare;
mod put_off;
mod recover;
mod repair;
mod settle;
mod taken_back;
mod trial;

pub use check::{Checked, Offer, fetch_channel, fetch_release};
pub use error::EngineError;
pub(crate) use error::{Failure, chain};
pub(crate) use prepare::assert_written;
pub use taken_back::rollback_obstacle;

use crate::clock::Clock;
use crate::config::UpdateSettings;
use crate::decide::{Asked, Decision};
use crate::fetcher::Fetcher;
use crate::gate::{Evidence, Probe};
use crate::held::{HeldVersions, HoldPolicy};
use crate::journal::{JOURNAL_SCHEMA, Journal, JournalStore, Kind, Stopwatch};
use crate::machine::Machine;
use crate::progress::{Event, Progress, Trouble};
use crate::request::{Request, Wanted, take_wish};
use crate::self_test::SelfTests;
use crate::state;
use crate::trust::{TrustClient, TrustStore};
use picket_durable::{Lock, LockError};
use picket_layout::Layout;
use picket_protocol::update_status::{UpdateOutcome, UpdateStatus};
use picket_protocol::wish::Wish;
use picket_protocol::{Artifact, BuildInfo, Sha256Digest};
use picket_versions::VersionDirs;
use put_off::MayWait;
use semver::Version;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The updater of one installation, with everything it needs from outside.
#[derive(Clone)]
pub struct Engine<'a> {
    /// Where things are.
    pub layout: &'a Layout,
    /// How it is configured.
    pub settings: &'a UpdateSettings,
    /// Which build judges: the proven one.
    pub build: &'a BuildInfo,
    /// The service manager.
    pub machine: &'a dyn Machine,
    /// The agent's health port.
    pub probe: &'a dyn Probe,
    /// The half that meets the release server.
    pub fetcher: &'a Fetcher,
    /// The release root that was given at install or built in.
    pub pinned_root: Option<Vec<u8>>,
    /// How versions test themselves.
    pub self_tests: SelfTests,
    /// Whether this version can use the configuration in a folder.
    pub config_check: &'a dyn Fn(&Path) -> Result<(), String>,
    /// The clock.
    pub clock: Clock,
    /// The time zone in which windows are meant.
    pub zone: jiff::tz::TimeZone,
    /// The machine's own id, or nothing where it has none: see [`state::machine_id`].
    pub machine_id: String,
    /// Where progress is told.
    pub progress: &'a Progress,
    /// Set when the process is told to stop.
    pub interrupted: &'a AtomicBool,
}

/// How a run of the updater ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How its update ended; `None` when there was nothing to do.
    pub outcome: Option<UpdateOutcome>,
    /// The version that is proven now.
    pub version: Option<Version>,
    /// In words.
    pub reason: String,
    /// What to do about it, where there is something.
    pub hint: Option<String>,
    /// Of which kind the trouble is, where it is the network's or a signature's.
    pub trouble: Option<Trouble>,
}

/// What an update is to do.
struct Plan {
    kind: Kind,
    trigger: String,
    to: Version,
    sha256: Sha256Digest,
    artifact: Option<Artifact>,
    checked: Option<Checked>,
    /// Who may put it off.
    may_wait: MayWait,
}

impl Engine<'_> {
    fn journals(&self) -> JournalStore {
        JournalStore::new(self.layout.update_dir(), &self.clock)
    }

    fn versions(&self) -> VersionDirs<'_> {
        VersionDirs::new(self.layout)
    }

    fn held(&self) -> Result<HeldVersions, EngineError> {
        Ok(HeldVersions::load(self.layout.update_dir())?)
    }

    fn hold_policy(&self) -> HoldPolicy {
        HoldPolicy { hold_for: self.settings.hold_for.get(), retry_budget: self.settings.retry_budget }
    }

    fn trust_store(&self) -> TrustStore {
        TrustStore::new(self.layout.update_dir().join("tuf"))
    }

    fn current(&self) -> Result<Version, EngineError> {
        self.versions().current().ok_or_else(|| EngineError::NotInstalled(self.layout.current_link()))
    }

    /// Takes the updater's lock.
    ///
    /// # Errors
    /// When another updater runs; the caller says so and does not wait.
    pub fn lock(layout: &Layout) -> Result<Lock, EngineError> {
        picket_durable::create_dir(layout.update_dir(), 0o700)?;
        match Lock::acquire(&layout.update_dir().join("lock")) {
            Ok(lock) => Ok(lock),
            Err(error @ LockError::Held { .. }) => Err(EngineError::Busy(error)),
            Err(error) => Err(EngineError::Lock(error)),
        }
    }

    /// One run: finishes what was left, takes up a request or a wish, or does the daily check.
    ///
    /// # Errors
    /// Only what kept it from deciding. An update that was tried and failed is a [`Report`].
    pub fn run(&self) -> Result<Report, EngineError> {
        let _lock = Self::lock(self.layout)?;
        let request = Request::take(self.layout.update_dir())?;
        let id = request.as_ref().map(|request| request.id.clone());
        self.progress.tell(Event::Started { request: id });
        let result = self.run_locked(request);
        state::publish(self.layout, &self.status());
        self.progress.tell(match &result {
            Ok(report) => Event::Finished {
                outcome: report.outcome,
                version: report.version.clone(),
                reason: report.reason.clone(),
                hint: report.hint.clone(),
                trouble: report.trouble,
            },
            Err(error) => Event::Finished {
                outcome: None,
                version: self.versions().current(),
                reason: error.chain(),
                hint: error.hint(),
                trouble: Some(error.trouble()),
            },
        });
        result
    }

    fn run_locked(&self, request: Option<Request>) -> Result<Report, EngineError> {
        let wish = take_wish(&self.layout.wish());
        if let Some(recovered) = self.recover_locked()? {
            self.progress.note(format!("an interrupted update was settled first: {}", recovered.reason));
        }
        // Not before a step back that a person asks for: it needs no network and must not wait for one.
        let is_rollback = matches!(&request, Some(Request { wanted: Wanted::Rollback { .. }, .. }));
        if !is_rollback && let Some(report) = self.mend()? {
            return Ok(report);
        }
        match request {
            Some(Request { wanted: Wanted::Rollback { force }, by, .. }) => self.rollback(&by, force),
            Some(Request { wanted: Wanted::Installed { version }, by, .. }) => self.installed(&version, &by),
            Some(Request { wanted: Wanted::Apply { version, now, bundle }, by, .. }) => {
                let may_wait = if now { MayWait::No } else { MayWait::ForHooks };
                let asked = Asked::ByPerson { version, now };
                if !bundle {
                    return self.follow(&asked, by, may_wait);
                }
                let result = self.with_bundle(|engine| engine.follow(&asked, by, may_wait));
                // It has served. One that cannot be removed takes space until the next takes its place.
                let _ = picket_durable::remove_if_present(&self.fetcher.places.bundle());
                result
            }
            None => match wish {
                Some(Wish::Latest) => self.follow(&Asked::ByWish(None), "wish".to_owned(), MayWait::ForWindowsAndHooks),
                Some(Wish::Version(version)) => {
                    self.follow(&Asked::ByWish(Some(version)), "wish".to_owned(), MayWait::ForWindowsAndHooks)
                }
                None => self.follow(&Asked::BySchedule, "schedule".to_owned(), MayWait::ForWindowsAndHooks),
            },
        }
    }

    /// Lets `act` use this updater with the bundle in the fetcher's place instead of the release server.
    pub fn with_bundle<T>(&self, act: impl FnOnce(&Engine<'_>) -> T) -> T {
        let fetcher = self.fetcher.of_bundle();
        act(&Engine { fetcher: &fetcher, ..self.clone() })
    }

    /// Follows the channel: checks, decides, and updates if that is the decision.
    fn follow(&self, asked: &Asked, trigger: String, may_wait: MayWait) -> Result<Report, EngineError> {
        let checked = self.check_locked(asked)?;
        let stay = |reason: String| Report {
            outcome: None,
            version: self.versions().current(),
            reason,
            hint: None,
            trouble: None,
        };
        let version = match &checked.decision {
            Decision::Take { version } => version.clone(),
            Decision::Stay { reason } => return Ok(stay(reason.clone())),
            // A person who asks is told no, and why; to a schedule it is no news.
            Decision::Offer { version, waiting, .. } if matches!(asked, Asked::ByPerson { .. }) => {
                return Err(EngineError::Refused(format!("release {version} is available; {waiting}")));
            }
            Decision::Offer { version, waiting, .. } => {
                return Ok(stay(format!("release {version} is available; {waiting}")));
            }
            Decision::Refuse { reason } => return Err(EngineError::Refused(reason.clone())),
        };
        if *asked == Asked::BySchedule && !self.machine.view()?.state.is_wanted() {
            // Nothing to be woken for: the daily check looks whether it was started.
            state::due(self.layout.update_dir()).clear()?;
            return Ok(stay(format!(
                "release {version} waits: the agent is stopped, so it could not be watched; start it, or apply the \
                 release with `picket update apply`"
            )));
        }
        let (artifact, target) = checked.artifact(&version, &self.build.target)?;
        let plan = Plan {
            kind: Kind::Release,
            trigger,
            to: version,
            sha256: target.sha256()?,
            artifact: Some(artifact),
            checked: Some(checked),
            may_wait,
        };
        self.transact(plan)
    }

    /// Goes back to the previous version, under the same trial and gate.
    fn rollback(&self, by: &str, force: bool) -> Result<Report, EngineError> {
        let to = self.versions().previous().ok_or(EngineError::NoPrevious)?;
        if !force && let Some(obstacle) = rollback_obstacle(self.layout, &to) {
            return Err(EngineError::Refused(obstacle));
        }
        let record = self.versions().intact(&to)?;
        self.transact(Plan {
            kind: Kind::Rollback,
            trigger: by.to_owned(),
            to,
            sha256: record.source.sha256(),
            artifact: None,
            checked: None,
            may_wait: MayWait::No,
        })
    }

    /// Tries a version that `picket install` put in place.
    fn installed(&self, version: &Version, by: &str) -> Result<Report, EngineError> {
        let record = self.versions().intact(version)?;
        self.transact(Plan {
            kind: Kind::Installed,
            trigger: by.to_owned(),
            to: version.clone(),
            sha256: record.source.sha256(),
            artifact: None,
            checked: None,
            may_wait: MayWait::No,
        })
    }

    /// Carries one update from its first mark to its last.
    fn transact(&self, plan: Plan) -> Result<Report, EngineError> {
        let from = self.current()?;
        if plan.to == from {
            let reason = format!("version {from} is the one that runs");
            return Ok(Report { outcome: None, version: Some(from), reason, hint: None, trouble: None });
        }
        let mut asked = Vec::new();
        if let Some(reason) = self.put_off(&plan, &from, &mut asked)? {
            return Ok(Report { outcome: None, version: Some(from), reason, hint: None, trouble: None });
        }
        let mut journal = Journal {
            schema: JOURNAL_SCHEMA,
            id: uuid::Uuid::now_v7().to_string(),
            kind: plan.kind,
            trigger: plan.trigger,
            from: from.clone(),
            to: plan.to,
            sha256: plan.sha256,
            artifact: plan.artifact,
            was_wanted: self.machine.view()?.state.is_wanted(),
            started: self.clock.now(),
            entries: Vec::new(),
            units: Vec::new(),
            baseline: None,
            hook_user: self.settings.hook_user.clone(),
            before_began: false,
            tellings: 0,
            evidence: Evidence {
                hooks: asked,
                // It fetched and verified the metadata that this update follows, a moment ago.
                judge_fetch: plan.checked.as_ref().map(|_| "ok".to_owned()),
                ..Evidence::default()
            },
            stopwatch: Stopwatch::default(),
            verdict: None,
            outcome: None,
            reason: String::new(),
        };
        self.progress.tell(Event::Update { id: journal.id.clone(), from, to: journal.to.clone() });
        match self.prepare(&mut journal, plan.checked.as_ref())? {
            Ok(()) => self.try_out(journal),
            Err(failure) => self.settle_refused(journal, failure),
        }
    }

    /// The status as it is now, with the expiry of what is trusted.
    pub fn status(&self) -> UpdateStatus {
        let store = self.trust_store();
        let trust = TrustClient::new(&store, &self.clock).offline(self.pinned_root.as_deref()).ok();
        state::derive(self.layout, &self.clock, trust)
    }
}
