//! Letting a version test itself, confined, before it may run.

use crate::child::{self, Keep};
use crate::sandbox::{self, Confinement, Identity};
use picket_durable::Context;
use picket_protocol::self_test::SELF_TEST_MAX_BYTES;
use picket_protocol::{SelfTestReport, TargetTriple};
use semver::Version;
use std::ffi::OsString;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a self-test may take: it needs milliseconds; a machine under load gets a hundred times more.
const OFFLINE_LIMIT: Duration = Duration::from_secs(30);
/// How long a fetch of the release metadata may take: four small files, each with its own time limits.
const FETCH_LIMIT: Duration = Duration::from_secs(120);

/// Runs self-tests of other versions.
#[derive(Debug, Clone)]
pub struct SelfTests {
    /// The proven version's executable, which confines.
    pub judge: PathBuf,
    /// The user that a confined process becomes.
    pub identity: Option<Identity>,
    /// Where scratch folders are made: a folder that the confined user can reach.
    pub scratch_root: PathBuf,
    /// The options that select the installation, for the units it writes.
    pub scope: Vec<OsString>,
    /// Variables that reach the confined process: how this machine reaches the network, where a user's folders are.
    pub environment: Vec<(String, String)>,
    /// Authorities (PEM) to believe in the place of the machine's, where an operator named some beside those: a version under
    /// test, old or new, knows `SSL_CERT_FILE` (OpenSSL's variable).
    pub authorities: Option<String>,
}

/// The authorities' place in the scratch folder.
const AUTHORITIES: &str = "authorities.pem";

/// A self-test that did not bring a report.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The executable could not be started, or did not end well.
    #[error("it does not pass its self-test ({0})")]
    Failed(String),
    /// What it printed is no report.
    #[error("its self-test prints no report that this version understands")]
    NoReport(#[source] serde_json::Error),
    /// The scratch folder could not be made.
    #[error("the self-test cannot be prepared")]
    Scratch(#[from] picket_durable::Error),
}

/// What to test.
#[derive(Debug, Clone)]
pub enum Test<'a> {
    /// Everything that needs no network.
    Offline,
    /// That it can fetch and verify the release metadata, starting from this trusted root.
    Fetch {
        /// `update.releases`.
        releases: &'a str,
        /// `update.channel`.
        channel: &'a str,
        /// The trusted root metadata.
        root: &'a [u8],
    },
}

/// Why a report speaks against the executable that is to be `version` for `target`, if it does.
pub(crate) fn objection(report: &SelfTestReport, version: &Version, target: &TargetTriple) -> Option<String> {
    let build = &report.build;
    if build.version != *version || build.target != *target {
        return Some(format!(
            "the executable of version {version} says that it is {} for {}",
            build.version, build.target
        ));
    }
    let check = report.failures().next()?;
    Some(format!("version {version} fails its self-test: {} ({})", check.name, check.detail))
}

impl SelfTests {
    /// Lets `exe` test itself.
    ///
    /// # Errors
    /// When it does not end well. A report whose checks failed is no error here.
    pub fn run(&self, exe: &Path, test: &Test<'_>) -> Result<SelfTestReport, SelfTestError> {
        let scratch = self.scratch(test)?;
        let result = self.run_in(&scratch, exe, test);
        let _ = picket_durable::remove_tree(&scratch);
        result
    }

    fn run_in(&self, scratch: &Path, exe: &Path, test: &Test<'_>) -> Result<SelfTestReport, SelfTestError> {
        let mut arguments: Vec<OsString> = ["self-test", "--json"].map(OsString::from).to_vec();
        arguments.extend(self.scope.iter().cloned());
        let limit = match test {
            Test::Offline => OFFLINE_LIMIT,
            Test::Fetch { releases, channel, .. } => {
                arguments.extend(["--releases", releases, "--channel", channel, "--trust"].map(OsString::from));
                arguments.push(scratch.join("trust").into());
                FETCH_LIMIT
            }
        };
        let confinement = Confinement { scratch: scratch.to_owned(), network: matches!(test, Test::Fetch { .. }) };
        let mut command = sandbox::command(&self.judge, &confinement, self.identity, exe, &arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if self.authorities.is_some() {
            command.env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", scratch.join(AUTHORITIES));
        }
        let outcome = child::run(command, limit, Keep::First(SELF_TEST_MAX_BYTES))
            .map_err(|e| SelfTestError::Failed(format!("{} cannot be started: {e}", self.judge.display())))?;
        // A self-test that found something says so in its report, and in its exit status.
        match serde_json::from_slice(&outcome.stdout) {
            Ok(report) => Ok(report),
            Err(_) if !outcome.success() => Err(SelfTestError::Failed(outcome.describe(limit))),
            Err(error) => Err(SelfTestError::NoReport(error)),
        }
    }

    fn scratch(&self, test: &Test<'_>) -> Result<PathBuf, SelfTestError> {
        let scratch = self.scratch_root.join(format!("scratch-{}", uuid::Uuid::now_v7().simple()));
        picket_durable::create_dir(&scratch, 0o700)?;
        if let Test::Fetch { root, .. } = test {
            let trust = scratch.join("trust");
            picket_durable::create_dir(&trust, 0o700)?;
            let file = trust.join("root.json");
            picket_durable::write_atomic(&file, root, 0o600)?;
            self.give(&file)?;
            self.give(&trust)?;
        }
        if let Some(pem) = &self.authorities {
            let file = scratch.join(AUTHORITIES);
            picket_durable::write_atomic(&file, pem.as_bytes(), 0o600)?;
            self.give(&file)?;
        }
        self.give(&scratch)?;
        Ok(scratch)
    }

    fn give(&self, path: &Path) -> Result<(), picket_durable::Error> {
        let Some(identity) = self.identity else { return Ok(()) };
        chown(path, Some(identity.uid), Some(identity.gid)).doing("set the owner of", path)
    }
}
