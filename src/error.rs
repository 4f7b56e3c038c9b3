//! Every way in which a command fails: one enum, one exit code for each, a way out where there is one.

use crate::exit_code::ExitCode;
use picket_agent::BuildError;
use picket_agent::hub::{ExchangeError, IdentityError, way_out};
use picket_config::Problem;
use picket_durable::LockError;
use picket_hub::app::belonging::BelongingError;
use picket_hub::authority::KeysError;
use picket_hub::db::DbError;
use picket_hub::life::StartError;
use picket_hub::refusal::Refusal;
use picket_installer::ApplyError;
use picket_installer::uninstall::RemovalError;
use picket_layout::{Layout, NoHome};
use picket_outbox::OutboxError;
use picket_pki::{ChainError, TokenError};
use picket_protocol::hub::ProblemCode;
use picket_release::ReleaseError;
use picket_seal::{FileError, KeyError};
use picket_sensor::SensorError;
use picket_service::ServiceError;
use picket_store::StoreError;
use picket_telemetry::logs::LogError;
use picket_transport::hub::{DoorError, HubCallError};
use picket_transport::{NetworkError, UrlError};
use picket_update::EngineError;
use picket_update::archive::ArchiveError;
use picket_update::fetcher::FetcherError;
use picket_update::progress::Trouble;
use picket_update::trust::TrustError;
use std::io;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// It needs root.
    #[error("{0} of the system's installation needs root")]
    NeedsRoot(&'static str),
    /// There is no installation.
    #[error("Picket is not installed here: {} is missing", _0.display())]
    NotInstalled(std::path::PathBuf),
    /// The configuration cannot be used.
    #[error("the configuration cannot be used:\n{}", list(_0))]
    Config(Vec<Problem>),
    /// That of the hub cannot be used.
    #[error("the hub's configuration cannot be used:\n{}", list(_0))]
    HubConfig(Vec<Problem>),
    /// An address in the configuration cannot be used.
    #[error("update.releases cannot be used")]
    Releases(#[source] UrlError),
    /// The address of the API in the configuration cannot be used.
    #[error("update.releases_api cannot be used")]
    ReleasesApi(#[source] UrlError),
    /// The executable is somebody else's to replace.
    #[error("{} belongs to {}; nothing was changed", exe.display(), owner.who)]
    Owned {
        /// The executable.
        exe: std::path::PathBuf,
        /// Whose it is.
        owner: picket_installer::Owner,
    },
    /// It is not known how other machines are reached.
    #[error("the network cannot be used as it is configured: {0}")]
    Network(#[from] NetworkError),
    /// A word on the command line means nothing.
    #[error("{0}")]
    Usage(String),
    /// A person said no.
    #[error("nothing was done")]
    Declined,
    /// A question that nobody can answer.
    #[error("there is no terminal to ask on: {0}?")]
    CannotAsk(String),
    /// A password that nobody can type.
    #[error("there is no terminal to ask on for {0}")]
    NoPassword(String),
    /// The updater that was asked ended without an answer.
    #[error("the updater ended without finishing the update")]
    UpdaterGone,
    /// The agent did not become ready after its installation.
    #[error("the agent was installed and started, but is not ready: {0}")]
    NotReady(String),
    /// Something is still there after the removal.
    #[error("something is left over:\n{0}")]
    Leftovers(String),
    /// The home folder is not known.
    #[error(transparent)]
    NoHome(#[from] NoHome),
    /// The log cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The agent cannot start.
    #[error(transparent)]
    Agent(#[from] BuildError),
    /// A system installation needs a service manager that we know.
    #[error("systemd does not run on this machine, so the agent could not be a service of it")]
    NoServiceManager,
    /// Only systemd runs a hub as a service.
    #[error("a hub as a service needs systemd, and this installation has the supervisor")]
    NoHubService {
        /// The options that select the installation, with a leading space.
        options: String,
    },
    /// The agent of a system installation was started by hand, as root.
    #[error("the agent of a system installation runs as the user picket, not as root")]
    AgentAsRoot,
    /// The sensor of a system installation was started by hand, as root.
    #[error("the sensor of a system installation runs as the user picket-sensor, not as root")]
    SensorAsRoot,
    /// The sensor cannot start, or did not end in good order.
    #[error(transparent)]
    Sensor(#[from] SensorError),
    /// The installer failed.
    #[error(transparent)]
    Install(#[from] ApplyError),
    /// The uninstaller failed.
    #[error(transparent)]
    Uninstall(#[from] RemovalError),
    /// The service manager failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The updater failed.
    #[error(transparent)]
    Update(#[from] EngineError),
    /// A release is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// An archive is refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The vendor's side failed.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The queue of events failed.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// What is kept is another user's.
    #[error("{} belongs to another user", _0.display())]
    NotOwner(std::path::PathBuf),
    /// Something is there already that would be replaced.
    #[error("{} exists; nothing was written", _0.display())]
    Exists(std::path::PathBuf),
    /// The agent does not answer.
    #[error("the agent does not answer on {address}")]
    AgentSilent {
        /// Where it should.
        address: std::net::SocketAddr,
        /// What was said instead.
        source: Box<picket_transport::TransportError>,
    },
    /// The agent did not take what it was given.
    #[error("{0}")]
    NotTaken(String),
    /// The hub of a system installation was started by hand, as root.
    #[error("the hub of a system installation runs as the user picket-hub, not as root")]
    HubAsRoot,
    /// The hub cannot start.
    #[error(transparent)]
    Hub(#[from] Box<StartError>),
    /// A backup is not of the hub that has these keys.
    #[error("the backup is not this hub's: it was not signed with {}", _0.display())]
    OtherHubsBackup(std::path::PathBuf),
    /// The old root is still needed.
    #[error("{_0} agents know only the old root; nothing was changed")]
    RootNeeded(u64),
    /// The hub refuses what was asked.
    #[error(transparent)]
    HubRefused(#[from] Refusal),
    /// The identity at the hub cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The hub gave no certificate.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// What was given is no enrolment token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The machine is an agent already.
    #[error("this machine is enrolled at {hub} as {name} ({agent}); nothing was changed")]
    Enrolled {
        /// Where.
        hub: String,
        /// Under which name.
        name: String,
        /// Who it is there.
        agent: String,
    },
    /// The agent keeps to itself.
    #[error("uplink.via is none: this machine speaks to no hub")]
    NoHub,
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] picket_durable::Error),
    /// The system refused something.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

impl CommandError {
    /// The exit code: the one place that chooses.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::NeedsRoot(_) | Self::AgentAsRoot | Self::SensorAsRoot | Self::HubAsRoot | Self::NotOwner(_) => {
                ExitCode::NotPermitted
            }
            Self::Hub(error) => hub_code(error),
            Self::Store(error) => store_code(error),
            Self::Keys(error) => key_code(error),
            Self::Identity(error) => identity_code(error),
            Self::Exchange(error) => exchange_code(error),
            Self::Outbox(OutboxError::OtherKeys(_)) => ExitCode::Keys,
            Self::NotInstalled(_) | Self::Update(EngineError::NotInstalled(_)) => ExitCode::NotInstalled,
            Self::Config(_)
            | Self::HubConfig(_)
            | Self::Releases(_)
            | Self::ReleasesApi(_)
            | Self::Network(_)
            | Self::Update(EngineError::Fetcher(FetcherError::Network(_)))
            | Self::NoHub
            | Self::Sensor(SensorError::Config(_)) => ExitCode::Config,
            Self::Usage(_) | Self::CannotAsk(_) | Self::NoPassword(_) | Self::Token(_) => ExitCode::Usage,
            Self::Update(EngineError::Busy(_))
            | Self::Agent(BuildError::AlreadyRunning(_))
            | Self::Outbox(OutboxError::Lock(LockError::Held { .. })) => ExitCode::Busy,
            Self::NotReady(_) | Self::AgentSilent { .. } => ExitCode::Unhealthy,
            Self::OtherHubsBackup(_) => ExitCode::Untrusted,
            Self::Owned { .. }
            | Self::RootNeeded(_)
            | Self::Update(EngineError::Refused(_) | EngineError::NoPrevious) => ExitCode::NotTried,
            Self::Update(error @ EngineError::Fetcher(_)) => match error.trouble() {
                Trouble::Network => ExitCode::Network,
                Trouble::Untrusted => ExitCode::Untrusted,
                Trouble::Refused => ExitCode::NotTried,
                Trouble::Machine => ExitCode::Failure,
            },
            Self::Update(EngineError::Trust(error)) | Self::Trust(error) => {
                if error.is_network_trouble() {
                    ExitCode::Network
                } else {
                    ExitCode::Untrusted
                }
            }
            Self::Declined
            | Self::UpdaterGone
            | Self::Leftovers(_)
            | Self::NoHome(_)
            | Self::NoServiceManager
            | Self::NoHubService { .. }
            | Self::Log(_)
            | Self::Agent(_)
            | Self::Sensor(_)
            | Self::Install(_)
            | Self::Uninstall(_)
            | Self::Service(_)
            | Self::Update(_)
            | Self::Archive(_)
            | Self::Release(_)
            | Self::Outbox(_)
            | Self::Exists(_)
            | Self::Enrolled { .. }
            | Self::NotTaken(_)
            | Self::HubRefused(_)
            | Self::File(_)
            | Self::System { .. } => ExitCode::Failure,
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NeedsRoot(_) => {
                Some("run it with sudo, or choose an installation of your own with --user or --prefix DIR".to_owned())
            }
            Self::NotInstalled(_) => {
                Some("install with `picket install`, or name the installation with --user or --prefix DIR".to_owned())
            }
            Self::HubConfig(_) => Some(
                "`picket doctor` shows this again; docs/reference/hub.md has every key, and so has `picket reference hub`"
                    .to_owned(),
            ),
            Self::Config(_) | Self::Network(_) => {
                Some("`picket config check` shows this again, `picket config schema` what is allowed".to_owned())
            }
            Self::NoServiceManager => {
                Some("choose a folder with --prefix DIR; `picket service run` runs it there".to_owned())
            }
            Self::NoHubService { options } => {
                Some(format!("`picket hub init{options}` and `picket hub serve{options}` run one in the foreground"))
            }
            Self::AgentAsRoot | Self::SensorAsRoot | Self::HubAsRoot => {
                Some("`picket service start` starts it as it should be".to_owned())
            }
            Self::NotOwner(_) => {
                Some("run it with sudo, or name another installation with --user or --prefix DIR".to_owned())
            }
            Self::Owned { owner, .. } => Some(format!("{}; or put a copy of your own elsewhere", owner.way)),
            Self::Exists(_) => Some("give another name, or --force to replace it".to_owned()),
            Self::Store(error) => store_hint(error),
            Self::RootNeeded(_) => Some(
                "`picket hub ca status` names them; they renew when they connect; --force leaves them behind, to be enrolled \
                 again with a new token"
                    .to_owned(),
            ),
            Self::OtherHubsBackup(_) => Some(
                "put that hub's folder of keys in place first; --other-keys restores it nevertheless: without those keys no \
                 agent is known here any more, and people's tokens cannot be read"
                    .to_owned(),
            ),
            Self::Identity(IdentityError::NoPrevious(_)) => {
                Some("`picket cert renew --force` gets a new one; if the hub refuses that, enrol anew with `picket enroll`".to_owned())
            }
            Self::Identity(IdentityError::NotEnrolled) => {
                Some("make a token on the hub with `picket hub token create`, then `picket enroll` here".to_owned())
            }
            Self::Exchange(error) => exchange_hint(error),
            Self::Enrolled { .. } => Some("--force enrols it anew, under a new identity".to_owned()),
            Self::NoHub => Some("set uplink.via to auto or hub".to_owned()),
            Self::Outbox(OutboxError::NotYet(_)) => {
                Some("it may still do so; `picket cache status` shows what became of it".to_owned())
            }
            Self::CannotAsk(_) => Some("say --yes if you mean it".to_owned()),
            Self::NoPassword(_) => Some("give it with --password-file FILE, or on standard input with --password-file -".to_owned()),
            Self::UpdaterGone => {
                Some("`picket update status` says what runs now; the log of the updater says why it ended".to_owned())
            }
            Self::AgentSilent { .. } => Some(
                "start it with `picket service start`; `picket doctor` says if another program has its port".to_owned(),
            ),
            Self::NotReady(_) => Some("`picket service logs` and `picket doctor` show why".to_owned()),
            Self::Leftovers(_) => Some("look at it, and remove it by hand if it is not yours".to_owned()),
            Self::Update(error) => error.hint(),
            Self::Trust(error) => Some(error.hint().to_owned()),
            Self::Release(error) => error.hint(),
            Self::Service(ServiceError::Command { message, .. }) if message.contains("Access denied") => {
                Some("run it with sudo".to_owned())
            }
            Self::Service(ServiceError::Command { command, .. }) if command.starts_with("systemctl start") => {
                Some("`picket service logs` and `picket doctor` show why".to_owned())
            }
            Self::File(error) | Self::Install(ApplyError::File(error)) if is_denied(error) => {
                Some("run it with sudo, or choose a place of your own with --user or --prefix DIR".to_owned())
            }
            Self::File(error) if error.source.kind() == io::ErrorKind::NotFound => {
                Some("nothing is there under this name: see whether it is right".to_owned())
            }
            _ => None,
        }
    }

    /// The system refused `what`.
    pub(crate) fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }

    /// The installation of `layout` must be there.
    pub(crate) fn require_installed(layout: &Layout) -> Result<(), Self> {
        let link = layout.current_link();
        if std::fs::symlink_metadata(&link).is_ok() { Ok(()) } else { Err(Self::NotInstalled(link)) }
    }
}

fn hub_code(error: &StartError) -> ExitCode {
    match error {
        StartError::Config(_) => ExitCode::Config,
        StartError::Bus(bus) if bus.is_setting() => ExitCode::Config,
        StartError::Belonging(BelongingError::Database(error)) | StartError::Database(error) => database_code(error),
        StartError::Keys(KeysError::Busy(_)) => ExitCode::Busy,
        // The unit starts no hub again that says of its keys that they are wrong: not so what may be otherwise in a moment.
        StartError::Keys(KeysError::File(_) | KeysError::Seal(KeyError::Io(_) | KeyError::Random))
        | StartError::Bus(_)
        | StartError::Tls(_)
        | StartError::Bind(_)
        | StartError::Unready(_)
        | StartError::System(_) => ExitCode::Failure,
        StartError::Keys(_) | StartError::Belonging(_) => ExitCode::Keys,
    }
}

fn database_code(error: &DbError) -> ExitCode {
    match error {
        // It has moved: its new address belongs into the configuration.
        DbError::Shut { .. } => ExitCode::Config,
        DbError::Corrupt { .. } | DbError::Backup { .. } => ExitCode::Damaged,
        DbError::Unavailable { .. } => ExitCode::Network,
        DbError::Busy { .. } => ExitCode::Busy,
        _ => ExitCode::Failure,
    }
}

fn store_code(error: &StoreError) -> ExitCode {
    match error {
        StoreError::InUse { .. } => ExitCode::Busy,
        StoreError::Key(error) => key_code(error),
        StoreError::BadBackup { .. } => ExitCode::Damaged,
        StoreError::SealedFile { source, .. } => match &**source {
            FileError::OtherDevice(_) | FileError::UnknownKey(_) => ExitCode::Keys,
            FileError::Form | FileError::Damaged(_) | FileError::TooLong => ExitCode::Damaged,
            FileError::Io(_) | FileError::Random => ExitCode::Failure,
        },
        error if error.is_key_trouble() => ExitCode::Keys,
        error if error.is_damage() => ExitCode::Damaged,
        _ => ExitCode::Failure,
    }
}

fn key_code(error: &KeyError) -> ExitCode {
    match error {
        KeyError::Missing(_)
        | KeyError::Malformed { .. }
        | KeyError::OtherDevice(_)
        | KeyError::Older { .. }
        | KeyError::Exposed { .. } => ExitCode::Keys,
        KeyError::Exists(_) | KeyError::Io(_) | KeyError::Random | KeyError::Active(_) => ExitCode::Failure,
    }
}

fn identity_code(error: &IdentityError) -> ExitCode {
    match error {
        IdentityError::Busy => ExitCode::Busy,
        IdentityError::Damaged { .. } => ExitCode::Damaged,
        IdentityError::NotEnrolled | IdentityError::NoPrevious(_) => ExitCode::NotInstalled,
        IdentityError::File(_) => ExitCode::Failure,
    }
}

fn exchange_code(error: &ExchangeError) -> ExitCode {
    match error {
        ExchangeError::Call(HubCallError::Problem(problem)) => match problem.code {
            ProblemCode::Overloaded
            | ProblemCode::RateLimited
            | ProblemCode::StorageUnavailable
            | ProblemCode::Draining
            | ProblemCode::Internal => ExitCode::Network,
            _ => ExitCode::Refused,
        },
        ExchangeError::Door(DoorError::Certificate { .. }) | ExchangeError::Answer(_) => ExitCode::Untrusted,
        ExchangeError::Door(_) | ExchangeError::Call(_) => ExitCode::Network,
        ExchangeError::Pki(_) => ExitCode::Failure,
    }
}

fn exchange_hint(error: &ExchangeError) -> Option<String> {
    match error {
        ExchangeError::Call(HubCallError::Problem(problem)) => way_out(problem.code).map(str::to_owned),
        ExchangeError::Door(DoorError::Certificate { reason: ChainError::WrongPin { .. }, .. }) => Some(
            "whoever answers is not the hub that made the token: a proxy that opens TLS, or another machine; do not go on"
                .to_owned(),
        ),
        ExchangeError::Door(DoorError::Certificate { reason: ChainError::OutOfDate { .. }, .. }) => {
            Some("set the clock of this machine, for example with `timedatectl set-ntp true`".to_owned())
        }
        ExchangeError::Door(_) | ExchangeError::Call(_) => {
            Some("`picket test-connection` walks the way to the hub and names the step that fails".to_owned())
        }
        ExchangeError::Answer(_) => Some(
            "nothing of it was taken; see whether the clock of this machine is right, then `picket test-connection`".to_owned(),
        ),
        ExchangeError::Pki(_) => None,
    }
}

/// Most errors of the store say themselves what to do.
fn store_hint(error: &StoreError) -> Option<String> {
    match error {
        StoreError::SealedFile { source, .. } => match &**source {
            FileError::OtherDevice(_) | FileError::UnknownKey(_) => {
                Some("name the key file that it was sealed with: --key FILE".to_owned())
            }
            FileError::Form | FileError::Damaged(_) => {
                Some("nothing was changed; take another copy of the backup".to_owned())
            }
            _ => None,
        },
        StoreError::Sqlite { .. } if error.is_damage() => {
            Some("`picket data verify` names the damage, `picket data recover` saves what is intact".to_owned())
        }
        _ => None,
    }
}

fn is_denied(error: &picket_durable::Error) -> bool {
    error.source.kind() == io::ErrorKind::PermissionDenied
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_hub_ends_for_good_over_what_is_wrong_and_not_over_what_may_be_otherwise_in_a_moment() {
        let away = || DbError::Unavailable { operation: "ask", why: "it is away".to_owned(), retry: Duration::ZERO };
        // Its unit does not start it again after these.
        let for_good =
            |error: StartError| matches!(hub_code(&error), ExitCode::Config | ExitCode::Damaged | ExitCode::Keys);
        assert!(for_good(StartError::Keys(KeysError::None("keys".into()))));
        assert!(for_good(StartError::Keys(KeysError::OtherSeal("seal.key".into()))));
        assert!(!for_good(StartError::Keys(KeysError::Busy("keys".into()))));
        assert!(!for_good(StartError::Belonging(BelongingError::Database(away()))));
        assert!(!for_good(StartError::Database(away())));
    }
}
