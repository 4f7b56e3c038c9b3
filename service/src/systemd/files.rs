//! Our unit files: the registered ones, and the ones a trial lays over them until the next boot.
//!
//! One version registers and tries the units of another, so nothing here goes by a list of names alone: a version may
//! bring a unit that this one does not know, or lack one that this one has.

use super::{ALL, RECOVER, UPDATE, UPDATE_DUE, units};
use crate::registrar::{ServiceError, Trial};
use picket_protocol::UnitText;
use std::path::{Path, PathBuf};

/// Where unit files are.
#[derive(Debug)]
pub(super) struct UnitFiles {
    pub(super) units: PathBuf,
    pub(super) trial_units: PathBuf,
    /// The folder that a trial's unit text must name instead of the `current` link.
    pub(super) current: PathBuf,
    /// The unit of the service that a version is judged by: the agent's, or the hub's where there is no agent.
    pub(super) first: &'static str,
}

/// Whether `name` can be a unit of ours, of whichever version.
fn is_ours(name: &str) -> bool {
    let Some((stem, kind)) = name.strip_prefix("picket-").and_then(|rest| rest.rsplit_once('.')) else { return false };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !stem.is_empty() && stem.bytes().all(plain) && ["service", "timer", "path", "socket"].contains(&kind)
}

/// Whether `name` is a service that lives all day beside or as the agent, and so is tried: everything but the updater's
/// own, which judges.
fn is_tried(name: &str) -> bool {
    let service = Path::new(name).extension().is_some_and(|extension| extension == "service");
    service && is_ours(name) && ![UPDATE, UPDATE_DUE, RECOVER].contains(&name)
}

impl UnitFiles {
    /// The path of a registered unit.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.units.join(name)
    }

    /// The path of a unit on trial.
    pub(super) fn trial_path(&self, name: &str) -> PathBuf {
        self.trial_units.join(name)
    }

    /// Writes the units; says whether any changed.
    pub(super) fn write(&self, units: &[UnitText]) -> Result<bool, ServiceError> {
        picket_durable::create_dir(&self.units, 0o755)?;
        let mut changed = false;
        for unit in units.iter().filter(|unit| is_ours(&unit.name)) {
            changed |= write_if_changed(&self.path(&unit.name), &unit.text)?;
        }
        Ok(changed)
    }

    /// The registered units that this version knows and that `units` lacks: what a version without them would leave
    /// behind. Units without the first service's are no version's.
    pub(super) fn surplus(&self, units: &[UnitText]) -> Vec<&'static str> {
        let brings = |name: &str| units.iter().any(|unit| unit.name == name);
        if !brings(self.first) {
            return Vec::new();
        }
        ALL.into_iter().filter(|name| !brings(name) && self.path(name).exists()).collect()
    }

    /// Every unit of ours that is registered, of whichever version.
    pub(super) fn registered(&self) -> Vec<String> {
        names(&self.units)
    }

    /// The services beside the first one that are registered or on trial.
    pub(super) fn companions(&self) -> Vec<String> {
        let mut found = names(&self.units);
        found.extend(self.on_trial());
        found.retain(|name| is_tried(name) && name != self.first);
        found.sort();
        found.dedup();
        found
    }

    /// The units that a trial laid over the registered ones.
    pub(super) fn on_trial(&self) -> Vec<String> {
        let laid = names(&self.trial_units).into_iter();
        laid.filter(|name| name == self.first || self.is_trial_text(name)).collect()
    }

    fn is_trial_text(&self, name: &str) -> bool {
        let text = picket_durable::read_if_present(&self.trial_path(name), units::MAX_BYTES);
        text.ok().flatten().is_some_and(|text| units::is_for_trial(&text))
    }

    /// Lays the trial's services over the registered ones. Returns the registered ones that the version does not bring.
    pub(super) fn lay(&self, trial: &Trial) -> Result<Vec<String>, ServiceError> {
        if !trial.units.iter().any(|unit| unit.name == self.first) {
            return Err(ServiceError::Command {
                command: format!("trial of {}", trial.version),
                message: format!("the version brings no {}", self.first),
            });
        }
        let dir = trial.exe.parent().unwrap_or(Path::new("/"));
        picket_durable::create_dir(&self.trial_units, 0o755)?;
        for unit in trial.units.iter().filter(|unit| is_tried(&unit.name)) {
            let text = units::for_trial(&unit.text, &self.current, dir, &trial.version);
            write_if_changed(&self.trial_path(&unit.name), &text)?;
        }
        let brings = |name: &String| trial.units.iter().any(|unit| unit.name == *name);
        Ok(self.companions().into_iter().filter(|name| !brings(name)).collect())
    }

    /// Removes what [`UnitFiles::lay`] laid.
    pub(super) fn lift(&self) -> Result<(), ServiceError> {
        for name in self.on_trial() {
            picket_durable::remove_if_present(&self.trial_path(&name))?;
        }
        Ok(())
    }
}

/// The names of ours in a folder that may not be there.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        // `picket-agent.service.d` and `.wants` are folders of an administrator's.
        .filter(|name| is_ours(name))
        .collect();
    names.sort();
    names
}

/// Writes `text` to `path` unless it is there already; says whether it wrote.
fn write_if_changed(path: &Path, text: &str) -> Result<bool, ServiceError> {
    let present = picket_durable::read_if_present(path, units::MAX_BYTES)?;
    if present.as_deref() == Some(text.as_bytes()) {
        return Ok(false);
    }
    picket_durable::write_atomic(path, text.as_bytes(), 0o644)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::{AGENT, HUB, SENSOR};
    use super::*;
    use picket_layout::{Layout, Roles, Scope};
    use semver::Version;

    struct Place {
        files: UnitFiles,
        _dir: tempfile::TempDir,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Scope::System).unwrap();
        let at = |path: &Path| dir.path().join(path.strip_prefix("/").unwrap());
        let (units, trial_units) = (at(layout.unit_dir()), at(layout.trial_unit_dir()));
        Place { files: UnitFiles { units, trial_units, current: layout.current_link(), first: AGENT }, _dir: dir }
    }

    /// What a version of today brings.
    fn with_sensor() -> Vec<UnitText> {
        units::texts(&Layout::of(Scope::System).unwrap())
    }

    /// What a version before the sensor brought.
    fn without_sensor() -> Vec<UnitText> {
        with_sensor().into_iter().filter(|unit| unit.name != SENSOR).collect()
    }

    fn trial(units: Vec<UnitText>) -> Trial {
        let version = Version::new(2, 0, 0);
        let exe = Layout::of(Scope::System).unwrap().version_exe(&version);
        Trial { version, exe, units }
    }

    fn text(path: &Path) -> String {
        picket_durable::read_text(path, units::MAX_BYTES).unwrap()
    }

    #[test]
    fn a_trial_runs_agent_and_sensor_of_the_new_version_and_leaves_nothing() {
        let Place { files, _dir } = place();
        files.write(&with_sensor()).unwrap();
        assert_eq!(files.lay(&trial(with_sensor())).unwrap(), Vec::<String>::new());
        assert_eq!(files.on_trial(), [AGENT, SENSOR]);
        for name in [AGENT, SENSOR] {
            assert!(text(&files.trial_path(name)).contains("\nExecStart=/opt/picket/versions/2.0.0/picket "), "{name}");
            assert!(text(&files.path(name)).contains("\nExecStart=/opt/picket/current/picket "), "{name}");
        }
        files.lift().unwrap();
        assert_eq!(files.on_trial(), Vec::<String>::new());
        assert_eq!(files.companions(), [SENSOR]);
    }

    #[test]
    fn a_version_that_brings_the_sensor_is_tried_with_it_and_kept_with_it() {
        let Place { files, _dir } = place();
        files.write(&without_sensor()).unwrap();
        assert_eq!(files.companions(), Vec::<String>::new());
        files.lay(&trial(with_sensor())).unwrap();
        assert_eq!(files.companions(), [SENSOR]);
        // Back: nothing of it is left. Forward: it is registered.
        files.lift().unwrap();
        assert_eq!(files.companions(), Vec::<String>::new());
        assert!(files.write(&with_sensor()).unwrap());
        assert_eq!(files.companions(), [SENSOR]);
    }

    #[test]
    fn a_version_without_the_sensor_is_tried_without_it_and_takes_it_away() {
        let Place { files, _dir } = place();
        files.write(&with_sensor()).unwrap();
        assert_eq!(files.lay(&trial(without_sensor())).unwrap(), [SENSOR], "it has to be stopped");
        assert_eq!(files.on_trial(), [AGENT]);
        assert_eq!(files.surplus(&without_sensor()), [SENSOR]);
        assert_eq!(files.surplus(&with_sensor()), Vec::<&str>::new());
        assert_eq!(files.surplus(&[]), Vec::<&str>::new(), "no version is without an agent");
    }

    #[test]
    fn a_unit_of_a_later_version_is_registered_tried_and_found_again() {
        let Place { files, _dir } = place();
        let mut later = with_sensor();
        later.push(UnitText { name: "picket-dreamer.service".into(), text: "[Service]\nExecStart=/x\n".into() });
        files.write(&later).unwrap();
        files.lay(&trial(later)).unwrap();
        assert_eq!(files.on_trial(), [AGENT, "picket-dreamer.service", SENSOR]);
        assert_eq!(files.companions(), ["picket-dreamer.service", SENSOR]);
        assert!(files.registered().contains(&"picket-dreamer.service".to_owned()));
    }

    #[test]
    fn a_hub_is_tried_beside_the_agent_and_alone_and_taken_away_with_its_role() {
        let texts = |roles| units::texts(&Layout::of(Scope::System).unwrap().with_roles(roles));
        let Place { mut files, _dir } = place();
        files.write(&texts(Roles::ALL)).unwrap();
        assert_eq!(files.lay(&trial(texts(Roles::ALL))).unwrap(), Vec::<String>::new());
        assert_eq!(files.on_trial(), [AGENT, HUB, SENSOR]);
        assert!(text(&files.trial_path(HUB)).contains("\nExecStart=/opt/picket/versions/2.0.0/picket hub serve\n"));
        files.lift().unwrap();
        assert_eq!(files.surplus(&texts(Roles::AGENT)), [HUB]);

        files.first = HUB;
        assert!(files.lay(&trial(texts(Roles::AGENT))).is_err(), "a version that knows no hub is not tried on one");
        files.lay(&trial(texts(Roles::HUB))).unwrap();
        assert_eq!(files.on_trial(), [HUB]);
        assert!(files.surplus(&texts(Roles::HUB)).contains(&AGENT));
    }

    #[test]
    fn names_that_are_not_ours_are_neither_written_nor_removed() {
        let Place { files, _dir } = place();
        let foreign = ["ssh.service", "../picket-x.service", "picket-.service", "picket-x.mount", "picket-a/b.service"];
        let texts = foreign.map(|name| UnitText { name: name.into(), text: String::new() });
        assert!(!files.write(&texts).unwrap());
        // An administrator's own override in /run.
        picket_durable::create_dir(&files.trial_units, 0o755).unwrap();
        picket_durable::write_atomic(&files.trial_path(SENSOR), b"[Service]\n", 0o644).unwrap();
        files.lift().unwrap();
        assert!(files.trial_path(SENSOR).exists());
    }
}
