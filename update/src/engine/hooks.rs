//! The operator's hooks around an update: who may keep it from its trial, and who is told how it ended.

use super::{Engine, EngineError, Failure};
use crate::gate::Fault;
use crate::hooks::{HookKind, HookResult, Hooks};
use crate::journal::{Journal, Kind, Step};
use picket_layout::Scope;
use picket_protocol::update_status::UpdateOutcome;
use semver::Version;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// How often the hooks that are told of an outcome are run at most: once more after a crash in the middle of them. Not
/// more often: one of them may be what restarts the machine.
const MAX_TELLINGS: u32 = 2;

/// What hooks are told of an update, beside its outcome.
pub(super) struct Told<'a> {
    /// Its id, once it has one.
    pub(super) id: Option<&'a str>,
    /// Why it is made.
    pub(super) kind: Kind,
    /// Who asked.
    pub(super) trigger: &'a str,
    /// From which version.
    pub(super) from: &'a Version,
    /// To which.
    pub(super) to: &'a Version,
}

impl<'a> Told<'a> {
    fn of(journal: &'a Journal) -> Self {
        Self {
            id: Some(&journal.id),
            kind: journal.kind,
            trigger: &journal.trigger,
            from: &journal.from,
            to: &journal.to,
        }
    }

    fn variables(&self) -> Vec<(String, String)> {
        let named = |name: &str, value: String| (format!("PICKET_UPDATE_{name}"), value);
        let mut variables = vec![
            named("FROM", self.from.to_string()),
            named("TO", self.to.to_string()),
            named("KIND", self.kind.as_str().to_owned()),
            named("ASKED_BY", self.trigger.to_owned()),
        ];
        variables.extend(self.id.map(|id| named("ID", id.to_owned())));
        variables
    }
}

impl Engine<'_> {
    /// The hooks of one folder, for an update.
    pub(super) fn hooks(&self, kind: HookKind, told: &Told<'_>, user: Option<String>) -> Hooks {
        let dir = match kind {
            HookKind::Busy => self.layout.busy_hooks(),
            HookKind::Before => self.layout.before_hooks(),
            HookKind::Required => self.layout.required_hooks(),
            HookKind::Wanted => self.layout.wanted_hooks(),
            HookKind::After | HookKind::Other => self.layout.after_hooks(),
        };
        let root = match self.layout.scope() {
            Scope::Prefix(prefix) => prefix.clone(),
            Scope::System | Scope::User => PathBuf::from("/"),
        };
        let runner = self.self_tests.judge.clone();
        let limit = self.settings.hook_limit.get();
        Hooks { kind, dir, root, runner, user, limit, told: told.variables() }
    }

    /// The same, for the update of a journal.
    pub(super) fn hooks_of(&self, kind: HookKind, journal: &Journal) -> Hooks {
        // What the journal says holds: a recovery may have no configuration that can be used, and must not take that for
        // "as root".
        let user = journal.hook_user.clone().or_else(|| self.settings.hook_user.clone());
        self.hooks(kind, &Told::of(journal), user)
    }

    /// Whether the hooks that decide at the end of the trial can be run at all: to be known before the agent is restarted.
    pub(super) fn deciding_hooks_are_sound(&self, journal: &Journal) -> Result<(), Failure> {
        let hooks = self.hooks_of(HookKind::Required, journal);
        hooks.files().map(drop).map_err(|error| Failure::of_environment(error.to_string(), Some(&error.hint())))
    }

    /// Runs the hooks that may keep the trial from beginning; the first that fails does. A way back is not kept from
    /// anybody: there, a failure is only written down.
    pub(super) fn ask_before(&self, journal: &mut Journal) -> Result<Result<(), Failure>, EngineError> {
        let way_back = journal.kind == Kind::Rollback;
        let hooks = self.hooks_of(HookKind::Before, journal);
        let files = match hooks.files() {
            Ok(files) => files,
            Err(error) => {
                journal.evidence.hooks.push(hooks.not_run(&error));
                let refused = Failure::of_environment(error.to_string(), Some(&error.hint()));
                return Ok(if way_back { Ok(()) } else { Err(refused) });
            }
        };
        if files.is_empty() {
            return Ok(Ok(()));
        }
        // On disk before the first: what one of them did may have to be undone by a hook that is told the outcome.
        journal.before_began = true;
        self.journals().save(journal)?;
        for path in files {
            if self.interrupted.load(Ordering::Relaxed) {
                let reason = format!("the updater was told to stop before the hook {}", path.display());
                return Ok(Err(Failure { reason, hint: None, fault: Fault::Interrupted, trouble: None }));
            }
            let result = self.run_hook(&hooks, &path);
            let failure = (!result.ok && !way_back).then(|| refusal(&result));
            journal.evidence.hooks.push(result);
            if let Some(failure) = failure {
                return Ok(Err(failure));
            }
        }
        Ok(Ok(()))
    }

    /// Tells the hooks how the update ended, if it got to its trial or to the hooks before it. At least once for each,
    /// but for a second crash in the middle: the journal knows who was told, and how often it was tried.
    pub(super) fn tell_after(&self, journal: &mut Journal, outcome: UpdateOutcome) {
        let tried = journal.entries.iter().any(|entry| entry.step == Step::Trial);
        if !(tried || journal.before_began) || journal.tellings >= MAX_TELLINGS {
            return;
        }
        let mut hooks = self.hooks_of(HookKind::After, journal);
        let told = [("OUTCOME", outcome.as_str()), ("REASON", &journal.reason)];
        hooks.told.extend(told.map(|(name, value)| (format!("PICKET_UPDATE_{name}"), value.to_owned())));
        let known = |journal: &Journal, hook: &Path| {
            let hook = hook.display().to_string();
            journal.evidence.hooks.iter().any(|known| known.kind == HookKind::After && known.hook == hook)
        };
        let files = match hooks.files() {
            Ok(files) => files,
            Err(error) => {
                self.progress.note(error.to_string());
                if !known(journal, &hooks.dir) {
                    journal.evidence.hooks.push(hooks.not_run(&error));
                }
                return;
            }
        };
        let untold: Vec<PathBuf> = files.into_iter().filter(|path| !known(journal, path)).collect();
        if untold.is_empty() {
            return;
        }
        journal.tellings += 1;
        if let Err(error) = self.journals().save(journal) {
            // Then the update cannot be settled now either, and the next recovery gets here again.
            tracing::warn!(%error, "hooks are not told how the update ended: that they were could not be noted");
            return;
        }
        for path in untold {
            let result = self.run_hook(&hooks, &path);
            journal.evidence.hooks.push(result);
            if let Err(error) = self.journals().save(journal) {
                tracing::warn!(%error, "what a hook said could not be noted");
            }
        }
    }

    fn run_hook(&self, hooks: &Hooks, path: &Path) -> HookResult {
        self.progress.note(format!("run {}", path.display()));
        let result = hooks.run_one(path);
        if !result.ok {
            self.progress.note(format!("{} failed ({})", result.hook, result.detail));
        }
        result
    }
}

/// Why a hook's failure keeps the update from its trial, and the way out.
fn refusal(result: &HookResult) -> Failure {
    let reason = format!("not tried: the hook {} failed ({})", result.hook, result.detail);
    let hint = format!(
        "mend what it says, or take its right to be executed away (`chmod a-x {}`); the next check tries again, and \
         `picket update apply` at once",
        result.hook
    );
    Failure::of_environment(reason, Some(&hint))
}
