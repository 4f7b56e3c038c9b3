//! The supervisor: a service manager of one's own, for prefixes and for containers without an init.
//!
//! `picket service run` is the whole of it: it starts the agent, restarts it when it fails, feeds and reads its
//! notifications, starts the updater when it is time, and forgets a trial when it ends. There is no other daemon. It
//! runs the version that was current when it was started, and is replaced when it is started next; the updater it
//! starts is always the current one.

mod control;
mod logfile;
mod policy;
mod process;
mod server;

pub use server::{Options, run};

use crate::registrar::{LogQuery, Registrar, ServiceError, ServiceState, ServiceStatus, Trial};
use control::{Answer, Request, ask};
use picket_layout::{Layout, Role};
use picket_protocol::UnitText;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long to wait for an agent to start or stop: its own limits and a little more.
const WAIT: Duration = Duration::from_secs(40);
/// How often to look meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// The supervisor as one installation's registrar.
#[derive(Debug, Clone)]
pub struct Supervised {
    layout: Layout,
}

impl Supervised {
    /// The supervisor of `layout`, running or not.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    fn demand(&self, request: &Request) -> Result<Answer, ServiceError> {
        ask(&self.layout, request)?
            .ok_or_else(|| ServiceError::NoSupervisor { options: self.layout.scope().as_options() })
    }

    /// Waits until the agent's state satisfies `done`.
    fn wait(&self, what: &str, done: impl Fn(ServiceState) -> bool) -> Result<(), ServiceError> {
        let began = Instant::now();
        while began.elapsed() < WAIT {
            match ask(&self.layout, &Request::Status)? {
                Some(answer) if done(answer.agent.state) => return Ok(()),
                Some(answer) if answer.agent.state == ServiceState::Failed => {
                    let message = format!("the agent failed: {}", answer.agent.detail);
                    return Err(ServiceError::Supervisor(message));
                }
                _ => std::thread::sleep(LOOK),
            }
        }
        Err(ServiceError::TimedOut { what: what.to_owned(), seconds: WAIT.as_secs() })
    }

    /// Starts the supervisor in the background, in a session of its own.
    fn launch(&self) -> Result<(), ServiceError> {
        let exe = self.layout.current_exe();
        let options = self.layout.scope().as_options();
        let mut command = Command::new(&exe);
        command.args(["service", "run", "--detached"]).args(scope_arguments(&self.layout));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|source| ServiceError::Spawn {
            program: format!("{} service run --detached{options}", exe.display()),
            source,
        })?;
        Ok(())
    }
}

/// The arguments that select `layout`'s installation.
fn scope_arguments(layout: &Layout) -> Vec<std::ffi::OsString> {
    match layout.scope() {
        picket_layout::Scope::System => vec![],
        picket_layout::Scope::User => vec!["--user".into()],
        picket_layout::Scope::Prefix(dir) => vec!["--prefix".into(), dir.into()],
    }
}

impl Registrar for Supervised {
    fn kind(&self) -> &'static str {
        "supervisor"
    }

    fn register(&self, _units: &[UnitText]) -> Result<bool, ServiceError> {
        // It has no unit files: what it starts is in the program itself.
        Ok(false)
    }

    fn unit_path(&self, _name: &str) -> Option<PathBuf> {
        None
    }

    fn enable(&self, _role: Role) -> Result<(), ServiceError> {
        // Nothing of ours runs at the boot of this machine: whoever starts the container or the prefix does.
        Ok(())
    }

    fn unregister(&self) -> Result<(), ServiceError> {
        if ask(&self.layout, &Request::Shutdown)?.is_none() {
            return Ok(());
        }
        let began = Instant::now();
        while ask(&self.layout, &Request::Status).is_ok_and(|answer| answer.is_some()) {
            if began.elapsed() > WAIT {
                return Err(ServiceError::TimedOut {
                    what: "stopping the supervisor".to_owned(),
                    seconds: WAIT.as_secs(),
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn start(&self) -> Result<(), ServiceError> {
        if ask(&self.layout, &Request::Start)?.is_none() {
            self.launch()?;
        }
        self.wait("starting the agent", |state| state == ServiceState::Running)
    }

    fn start_role(&self, role: Role) -> Result<(), ServiceError> {
        match role {
            Role::Agent => self.start(),
            Role::Hub => Err(ServiceError::NoHub),
        }
    }

    fn stop(&self) -> Result<(), ServiceError> {
        if ask(&self.layout, &Request::Stop)?.is_none() {
            return Ok(());
        }
        self.wait("stopping the agent", |state| matches!(state, ServiceState::Stopped | ServiceState::Failed))
    }

    fn restart(&self) -> Result<(), ServiceError> {
        self.demand(&Request::Restart).map(drop)
    }

    fn status(&self) -> Result<ServiceStatus, ServiceError> {
        Ok(ask(&self.layout, &Request::Status)?.map_or_else(
            || ServiceStatus {
                manager: "supervisor".to_owned(),
                state: ServiceState::Stopped,
                enabled: false,
                pid: None,
                restarts: 0,
                run: String::new(),
                detail: "the supervisor does not run".to_owned(),
                sensor: None,
                hub: None,
            },
            |answer| answer.agent,
        ))
    }

    fn begin_trial(&self, trial: &Trial) -> Result<(), ServiceError> {
        self.demand(&Request::BeginTrial { version: trial.version.clone(), exe: trial.exe.clone() }).map(drop)
    }

    fn end_trial(&self) -> Result<bool, ServiceError> {
        // Without a supervisor there is no memory that could hold a trial.
        let had_one = self.trial_is_on()?;
        ask(&self.layout, &Request::EndTrial)?;
        Ok(had_one)
    }

    fn trial_is_on(&self) -> Result<bool, ServiceError> {
        Ok(ask(&self.layout, &Request::Status)?.is_some_and(|answer| answer.trial.is_some()))
    }

    fn start_updater(&self) -> Result<(), ServiceError> {
        self.demand(&Request::Update).map(drop)
    }

    fn updater_is_running(&self) -> Result<bool, ServiceError> {
        Ok(ask(&self.layout, &Request::Status)?.is_some_and(|answer| answer.updater))
    }

    fn trial_obstacle(&self) -> Result<Option<String>, ServiceError> {
        Ok(None)
    }

    fn log_command(&self, query: &LogQuery) -> Vec<String> {
        let file = self.layout.log_dir().join(logfile::NAME).display().to_string();
        let mut command = vec!["tail".to_owned(), format!("--lines={}", query.lines)];
        if query.follow {
            command.push("--follow=name".to_owned());
        }
        command.push(file);
        command
    }
}
