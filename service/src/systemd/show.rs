//! Reading `systemctl show`: `Name=value` lines, one property each.

use std::collections::BTreeMap;
use std::path::Path;

/// The properties we ask for.
pub(super) const WANTED: [&str; 12] = [
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "UnitFileState",
    "MainPID",
    "NRestarts",
    "InvocationID",
    "FragmentPath",
    "DropInPaths",
    "ExecStart",
    "NeedDaemonReload",
];

/// The properties of one unit.
#[derive(Debug, Default)]
pub(super) struct Properties(BTreeMap<String, String>);

/// Parses what `systemctl show` printed; a line without `=` belongs to nothing we ask for.
pub(super) fn parse(text: &str) -> Properties {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Properties(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

impl Properties {
    /// A property's value; empty where the manager has none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Why a trial through `/run` could not work: the unit in force is not the one of ours below `units`, or what it
    /// starts is not `exe`.
    pub(super) fn trial_obstacle(&self, name: &str, units: &Path, exe: &Path) -> Option<String> {
        match self.get("LoadState") {
            "loaded" | "not-found" => {}
            "masked" => return Some(format!("{name} is masked; unmask it with `systemctl unmask`")),
            other => return Some(format!("{name} cannot be loaded ({other})")),
        }
        let fragment = self.get("FragmentPath");
        let replaced =
            !fragment.is_empty() && !Path::new(fragment).starts_with(units) && !fragment.starts_with("/run/");
        if replaced {
            return Some(format!(
                "{fragment} replaces our unit, so a new version could not be tried; turn it into a drop-in with \
                 `systemctl edit {name}` and remove it"
            ));
        }
        let program = self.started_program();
        if program.is_some_and(|program| Path::new(program) != exe) && self.get("DropInPaths").contains('/') {
            return Some(format!(
                "a drop-in ({}) changes ExecStart to {}, so a new version could not be tried; remove ExecStart from it",
                self.get("DropInPaths"),
                program.unwrap_or_default()
            ));
        }
        None
    }

    /// The program of `ExecStart={ path=/x ; argv[]=/x y ; … }`.
    fn started_program(&self) -> Option<&str> {
        self.get("ExecStart").split_once("path=")?.1.split(" ;").next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::ServiceState;

    const UNITS: &str = "/usr/local/lib/systemd/system";
    const EXE: &str = "/opt/picket/current/picket";

    fn agent(lines: &str) -> Properties {
        parse(&format!(
            "LoadState=loaded\nFragmentPath={UNITS}/picket-agent.service\n\
             ExecStart={{ path={EXE} ; argv[]={EXE} agent run ; ignore_errors=no }}\n{lines}"
        ))
    }

    #[test]
    fn a_unit_that_restarts_by_itself_is_not_taken_for_a_starting_or_stopped_one() {
        for (lines, state) in [
            ("ActiveState=active\nSubState=running", ServiceState::Running),
            ("ActiveState=activating\nSubState=auto-restart", ServiceState::Restarting),
            ("ActiveState=activating\nSubState=start", ServiceState::Starting),
            ("ActiveState=inactive\nSubState=dead", ServiceState::Stopped),
            ("ActiveState=failed\nSubState=failed\nResult=exit-code", ServiceState::Failed),
            ("ActiveState=deactivating\nSubState=stop-sigterm", ServiceState::Stopping),
        ] {
            assert_eq!(agent(lines).status().state, state, "{lines}");
        }
        assert_eq!(parse("LoadState=not-found\nActiveState=inactive").status().state, ServiceState::NotRegistered);
    }

    #[test]
    fn an_administrators_own_unit_is_an_obstacle_and_a_drop_in_is_not() {
        let obstacle = |properties: Properties| {
            properties.trial_obstacle("picket-agent.service", Path::new(UNITS), Path::new(EXE))
        };
        assert_eq!(obstacle(agent("")), None);
        assert_eq!(obstacle(agent("DropInPaths=/etc/systemd/system/picket-agent.service.d/memory.conf")), None);
        assert!(obstacle(agent("FragmentPath=/etc/systemd/system/picket-agent.service")).unwrap().contains("replaces"));
        assert!(obstacle(parse("LoadState=masked")).unwrap().contains("unmask"));
        let wrapped = "DropInPaths=/etc/systemd/system/picket-agent.service.d/x.conf\n\
                       ExecStart={ path=/usr/bin/nice ; argv[]=nice ; }";
        assert!(obstacle(agent(wrapped)).unwrap().contains("/usr/bin/nice"));
    }
}
