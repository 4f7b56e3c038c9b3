//! Whether this machine puts an update off just now: by its windows, or by hooks that call it busy.

use super::check::Checked;
use super::hooks::Told;
use super::{Engine, EngineError, Plan};
use crate::config::WindowClock;
use crate::decide::is_urgent;
use crate::defer::{Obstacle, until};
use crate::hooks::{HookKind, HookResult};
use crate::state::{self, Deferral, Due};
use crate::windows;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use picket_protocol::{Window, WindowTime};
use semver::Version;

/// Who may put an update off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayWait {
    /// Nobody.
    No,
    /// Hooks: a person asked, who is there now.
    ForHooks,
    /// Hooks, and windows: nobody is there.
    ForWindowsAndHooks,
}

impl Engine<'_> {
    /// Why the update is put off, in words, if it is; the updater is then due again when that may be over.
    /// What hooks said goes to `asked`.
    pub(super) fn put_off(
        &self,
        plan: &Plan,
        from: &Version,
        asked: &mut Vec<HookResult>,
    ) -> Result<Option<String>, EngineError> {
        let dir = self.layout.update_dir();
        let (deferral, due) = (state::deferral(dir), state::due(dir));
        let now = self.clock.now();
        let urgent = plan.checked.as_ref().is_some_and(|checked| is_urgent(&checked.channel, from, &plan.to));
        let Some(obstacle) = self.obstacle(plan, from, (urgent, now), asked)? else {
            deferral.clear()?;
            due.clear()?;
            return Ok(None);
        };
        // Of an older release, too: see `note_due`.
        let since = deferral.load().map_or(now, |known| known.since);
        let limit = if urgent { self.settings.defer_critical_at_most } else { self.settings.defer_at_most };
        let version = &plan.to;
        let Some(next) = until(&obstacle, now, since, limit.get()) else {
            self.progress.note(format!("{obstacle}, but {limit} are over: release {version} goes on"));
            due.clear()?;
            return Ok(None);
        };
        let reason = format!(
            "release {version} waits: {obstacle}; at most until {limit} after {since}. `picket update apply --now` does \
             not wait"
        );
        deferral.save(&Deferral { version: version.clone(), since, reason: reason.clone() })?;
        due.save(&Due { version: version.clone(), at: next })?;
        Ok(Some(reason))
    }

    fn obstacle(
        &self,
        plan: &Plan,
        from: &Version,
        (urgent, now): (bool, Timestamp),
        asked: &mut Vec<HookResult>,
    ) -> Result<Option<Obstacle>, EngineError> {
        if plan.may_wait == MayWait::No {
            return Ok(None);
        }
        if plan.may_wait == MayWait::ForWindowsAndHooks
            && let Some(obstacle) = self.closed_window(plan.checked.as_ref(), &plan.to, urgent, now)
        {
            return Ok(Some(obstacle));
        }
        let told = Told { id: None, kind: plan.kind, trigger: &plan.trigger, from, to: &plan.to };
        *asked = self.hooks(HookKind::Busy, &told, self.settings.hook_user.clone()).run()?;
        Ok(asked.iter().find(|result| !result.ok).map(Obstacle::of_hook))
    }

    /// The operator's windows, or the vendor's where there are none, if they are closed. The vendor's do not hold up
    /// what the vendor calls urgent.
    fn closed_window(
        &self,
        checked: Option<&Checked>,
        version: &Version,
        urgent: bool,
        now: Timestamp,
    ) -> Option<Obstacle> {
        let own: Vec<Window> = self.settings.windows.iter().map(|window| window.0).collect();
        let opens = |windows: &[Window], utc: bool| {
            let zone = if utc { TimeZone::UTC } else { self.zone.clone() };
            windows::opens(windows, &zone, now)
        };
        let (opens, whose) = if own.is_empty() {
            let release = checked?.channel.releases.get(version).filter(|_| !urgent)?;
            let rollout = release.rollout.as_ref()?;
            (opens(&rollout.windows, rollout.window_time == WindowTime::Utc), "the vendor's windows")
        } else {
            (opens(&own, self.settings.window_time == WindowClock::Utc), "this machine's windows (update.windows)")
        };
        (opens > now).then_some(Obstacle::Window { opens, whose })
    }
}
