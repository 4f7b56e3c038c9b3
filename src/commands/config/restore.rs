//! `picket config restore`: the files of an earlier configuration, put back.
//!
//! Only the configuration's own folder is written, whatever an entry says: entries come from a store that the agent's
//! user can write. The text is checked by this version before anything is touched.

use super::history::{Differing, differing, each, find, short, tell, time};
use crate::cli::{ConfigRestoreArgs, Pick};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::settings;
use crate::wiring;
use picket_agent::reload::{InForce, RestoreMark};
use picket_durable::{Context as _, Lock};
use picket_layout::Layout;
use rustix::fs::{Gid, Uid};
use serde_json::json;
use std::fs::{File, Metadata};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an agent that runs may take to take up the restored files: it waits for the folder to be quiet, three
/// seconds at most.
const TAKE_LIMIT: Duration = Duration::from_secs(10);
/// How often the history is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(200);
/// The largest configuration file, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Runs `picket config restore`.
pub(super) fn run(context: &Context<'_>, args: &ConfigRestoreArgs) -> Result<ExitCode, CommandError> {
    let layout = &context.layout;
    context.require_root("restoring the configuration")?;
    let (entry, newest) = (find(layout, &args.entry)?, find(layout, &Pick::Back(0))?);
    let plan = Plan::of(layout, &entry)?;
    if plan.is_done()? {
        context.output.say(format_args!("the files are those of {} already", short(&entry.sha256)));
        return report(context, args, &entry, &Done { kept: Vec::new(), found: Vec::new(), agent: Took::Nothing });
    }
    let (now, then) = (settings::read_folder(layout.config_dir()), settings::read_texts(plan.texts()));
    if then.problems.has_errors() && !args.force {
        return Err(CommandError::Config(then.problems.0));
    }
    for problem in &then.problems.0 {
        context.output.warn(problem);
    }
    // Files that cannot be used say nothing; the agent goes by what was in force before them.
    let before = if now.problems.has_errors() { newest.values.clone() } else { settings::values(&now) };
    let found = differing(&before, &settings::values(&then));
    if !args.json.json {
        context.output.result(format_args!("The files of {} ({}) would change:", short(&entry.sha256), time(entry.at)));
        tell(context, &found);
    }
    context.confirm(args.yes, "Restore them?")?;
    // Not asked on its port: neither the present nor the restored files need to name the one it has.
    let runs = wiring::as_owner(layout, || Ok(Lock::holder(&layout.agent_lock()).is_some()))?;
    let mark = RestoreMark::new(&context.process.person(), plan.texts());
    wiring::as_owner(layout, || Ok(picket_durable::write_json(&layout.restore_mark(), &mark, 0o600)?))?;
    let kept = plan.carry_out(layout)?;
    let agent = match (runs, then.problems.has_errors(), found.is_empty()) {
        (false, ..) => Took::NotRunning,
        (true, true, _) => Took::Refuses,
        (true, false, true) => Took::Nothing,
        (true, false, false) => await_agent(layout, &newest)?,
    };
    report(context, args, &entry, &Done { kept, found, agent })
}

/// What is done to which file.
struct Plan {
    /// What is written.
    writes: Vec<(PathBuf, String)>,
    /// Files of the present configuration.
    present: Vec<PathBuf>,
}

impl Plan {
    fn of(layout: &Layout, entry: &InForce) -> Result<Self, CommandError> {
        let names: Vec<PathBuf> =
            layout.config_files().into_iter().filter(|path| path.file_stem().is_some_and(|s| s == "config")).collect();
        for file in &entry.files {
            if !names.contains(&file.path) {
                return Err(CommandError::Usage(format!(
                    "that configuration was read from {}; only files of {} are restored",
                    file.path.display(),
                    layout.config_dir().display()
                )));
            }
        }
        let mut present = Vec::new();
        for path in names {
            match std::fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_file() => present.push(path),
                Ok(_) => {
                    let what = format!("{} is no plain file; restore what it leads to by hand", path.display());
                    return Err(CommandError::Usage(what));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(picket_durable::Error::new("inspect", path, error).into()),
            }
        }
        let writes = entry.files.iter().map(|file| (file.path.clone(), file.text.clone())).collect();
        Ok(Self { writes, present })
    }

    /// What is written, by path.
    fn texts(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.writes.iter().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// Whether the files are there as they should be, and no others.
    fn is_done(&self) -> Result<bool, CommandError> {
        if self.present.len() != self.writes.len() {
            return Ok(false);
        }
        for (path, text) in &self.writes {
            let present = picket_durable::read_if_present(path, FILE_MAX_BYTES)?;
            if present.as_deref() != Some(text.as_bytes()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the files; says under which names the replaced ones stay.
    fn carry_out(&self, layout: &Layout) -> Result<Vec<PathBuf>, CommandError> {
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        // Whose the new files are, and who may read them: as the old ones, or as the folder says.
        let model = match self.present.first() {
            Some(path) => Owned::of(&path.symlink_metadata().doing("inspect", path)?),
            None => {
                let folder = layout.config_dir();
                let mode = layout.file_entry(&folder.join("config.yaml")).mode;
                Owned { mode, ..Owned::of(&folder.symlink_metadata().doing("inspect", folder)?) }
            }
        };
        let mut kept = Vec::new();
        let written = |path: &PathBuf| self.writes.iter().any(|(written, _)| written == path);
        for path in self.present.iter().filter(|path| written(path)) {
            let beside = beside(path, &stamp);
            let owned = Owned::of(&path.symlink_metadata().doing("inspect", path)?);
            put(&beside, &picket_durable::read_bounded(path, FILE_MAX_BYTES)?, &owned)?;
            kept.push(beside);
        }
        for (path, text) in &self.writes {
            let owned = match path.symlink_metadata() {
                Ok(meta) => Owned::of(&meta),
                Err(_) => model,
            };
            put(path, text.as_bytes(), &owned)?;
        }
        // Last: two files at once are refused and told, none at all would be the defaults without a word.
        for path in self.present.iter().filter(|path| !written(path)) {
            let beside = beside(path, &stamp);
            picket_durable::rename(path, &beside)?;
            kept.push(beside);
        }
        Ok(kept)
    }
}

/// Owner and mode of a file.
#[derive(Clone, Copy)]
struct Owned {
    user: Uid,
    group: Gid,
    mode: u32,
}

impl Owned {
    fn of(meta: &Metadata) -> Self {
        Self { user: Uid::from_raw(meta.uid()), group: Gid::from_raw(meta.gid()), mode: meta.mode() & 0o7777 }
    }
}

/// A free name beside `path` that the agent does not take for a configuration.
fn beside(path: &Path, stamp: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let names = (1..).map(|count| match count {
        1 => format!("{name}.before-restore-{stamp}"),
        more => format!("{name}.before-restore-{stamp}-{more}"),
    });
    let mut free = names.map(|name| path.with_file_name(name)).filter(|path| path.symlink_metadata().is_err());
    free.next().unwrap_or_else(|| path.with_file_name(format!("{name}.before-restore")))
}

/// Replaces `path` in one step: nobody sees a part, nor a file that its reader may not read.
fn put(path: &Path, bytes: &[u8], owned: &Owned) -> Result<(), picket_durable::Error> {
    let temporary = picket_durable::temporary_name(path);
    let result = (|| {
        // Nobody else's until it has its owner.
        let mut file = picket_durable::create_new(&temporary, 0o600)?;
        file.write_all(bytes).doing("write", path)?;
        own(&file, owned).doing("set the owner of", path)?;
        file.sync_all().doing("sync", path)?;
        picket_durable::rename(&temporary, path)
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn own(file: &File, owned: &Owned) -> std::io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (owned.user.as_raw(), owned.group.as_raw()) {
        rustix::fs::fchown(file, Some(owned.user), Some(owned.group))?;
    }
    // After the owner: a change of owner takes bits away.
    rustix::fs::fchmod(file, owned.mode.into())?;
    Ok(())
}

/// What the agent made of it.
enum Took {
    /// No value changed.
    Nothing,
    /// It does not run.
    NotRunning,
    /// It cannot use the files.
    Refuses,
    /// It took them; these keys wait for its next start.
    Yes(Vec<String>),
    /// It said nothing in time.
    NotYet,
}

/// Waits until the history has an entry that is newer than `before`.
fn await_agent(layout: &Layout, before: &InForce) -> Result<Took, CommandError> {
    let began = Instant::now();
    while began.elapsed() < TAKE_LIMIT {
        let mut newest = None;
        each(layout, Some(1), |_, entry| {
            newest = Some(entry);
            ControlFlow::Break(())
        })?;
        if let Some(entry) = newest.filter(|entry| entry.at > before.at) {
            let waiting = entry.changed.into_iter().filter(|change| change.needs_restart);
            return Ok(Took::Yes(waiting.map(|change| change.key).collect()));
        }
        std::thread::sleep(LOOK);
    }
    Ok(Took::NotYet)
}

struct Done {
    kept: Vec<PathBuf>,
    found: Vec<Differing>,
    agent: Took,
}

fn report(
    context: &Context<'_>,
    args: &ConfigRestoreArgs,
    entry: &InForce,
    done: &Done,
) -> Result<ExitCode, CommandError> {
    let (word, waiting) = match &done.agent {
        Took::Nothing => ("unchanged", &[][..]),
        Took::NotRunning => ("not running", &[][..]),
        Took::Refuses => ("refuses", &[][..]),
        Took::Yes(waiting) => ("took it", waiting.as_slice()),
        Took::NotYet => ("no answer", &[][..]),
    };
    if args.json.json {
        context.output.json(&json!({
            "sha256": entry.sha256, "kept": done.kept, "differences": done.found,
            "agent": word, "needs_restart": waiting,
        }));
        return Ok(ExitCode::Success);
    }
    for path in &done.kept {
        context.output.say(format_args!("what was replaced is kept as {}", path.display()));
    }
    let restart = format!("`picket service restart{}`", context.layout.scope().as_options());
    match &done.agent {
        Took::Nothing => context.output.result("no value changed; there is nothing to take up"),
        Took::NotRunning => context.output.result("the agent does not run; it takes this at its next start"),
        Took::Refuses => {
            context.output.result("the agent cannot use these files; what was in force stays in force until it ends");
        }
        Took::Yes(waiting) if waiting.is_empty() => context.output.result("the agent took it"),
        Took::Yes(waiting) => {
            let waiting = waiting.join(", ");
            context.output.result(format_args!("the agent took it, except: {waiting}; {restart} for these"));
        }
        Took::NotYet => context.output.result(format_args!(
            "the agent has not taken it within {} s: variables or options may be over the file; {restart} if not",
            TAKE_LIMIT.as_secs()
        )),
    }
    Ok(ExitCode::Success)
}
