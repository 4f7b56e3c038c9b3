//! The fetcher at work: confined from its first step, cut off from the network before it unpacks.

use super::job::MAX_JOB;
use super::transcript::Recorder;
use super::{Job, Places, Refusal, Said, Task};
use crate::archive::{ArchiveError, Format, unpack};
use crate::clock::Clock;
use crate::engine::{Failure, chain, fetch_channel};
use crate::fetch::{Download, DownloadError, ExtractError, Origin, Releases, Server, target_place};
use crate::listing::{RepositoryApi, Token};
use crate::sandbox::{self, Border};
use crate::trust::minisign::{MAX_SIGNATURE_BYTES, trusted_comment};
use crate::trust::source::MetadataSource;
use crate::trust::{MinisignKeys, TrustClient, TrustError, TrustStore, VerifiedTarget};
use picket_durable::Context;
use picket_protocol::TargetTriple;
use picket_transport::{Client, Timeouts, TransportError, machine_authorities};
use semver::Version;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Confines this process, reads one job from `input`, does it, and says on `output` what comes of it.
///
/// `trusted_files` are files and folders that a TLS client must read beside the usual ones: the authorities that the
/// environment names.
///
/// # Errors
/// When it cannot be confined or cannot speak: nothing of the job was done then.
pub fn work(places: &Places, trusted_files: &[&Path], input: impl Read, output: impl Write + Send) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(input.take(MAX_JOB)).read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line)?;
    let border = Border::of_fetcher(places, trusted_files, Path::new(&job.releases));
    let mut how = sandbox::shut_in(&border)?;
    if matches!(Releases::parse(&job.releases), Ok(Releases::Bundle(_))) {
        // No network is needed from the first byte on.
        how.network = sandbox::cut_off()?;
    }
    let output = Output(Mutex::new(output));
    output.say(&Said::Confined { how: how.describe(), authorities: machine_authorities() })?;
    let done = match &job.task {
        Task::Look { channel, target } => look(places, &job, channel, target),
        Task::List { api, token, limit, target } => list(&job, api, token.as_ref(), *limit, target, &output),
        Task::Fetch { artifact, version, target, minisign, unpacked } => {
            let keys = MinisignKeys::from_lines(minisign);
            let wanted = Wanted { artifact, version, target, keys, unpacked: *unpacked };
            fetch(places, &job, &wanted, &output)
        }
    };
    output.say(&done.map_or_else(Said::Refused, |()| Said::Accepted))
}

/// Where it is said; the lines of two threads do not mix.
struct Output<W>(Mutex<W>);

impl<W: Write> Output<W> {
    fn say(&self, said: &Said) -> io::Result<()> {
        let mut line = serde_json::to_vec(said)?;
        line.push(b'\n');
        let mut output = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        output.write_all(&line)?;
        output.flush()
    }
}

fn origin(job: &Job) -> Result<Origin, Refusal> {
    let releases = Releases::parse(&job.releases).map_err(|error| Refusal::of(&TransportError::from(error).into()))?;
    let (patience, usual) = (Duration::from_millis(job.stall_ms), Timeouts::default());
    let timeouts = Timeouts { connect: usual.connect.min(patience), response: patience, stall: patience };
    let opened = releases.open(|| Client::new(&job.user_agent, timeouts, &job.network));
    opened.map_err(|error| Refusal::of(&error.into()))
}

impl Origin {
    fn refusal(&self, error: &TrustError) -> Refusal {
        match self {
            Self::Server(_) => Refusal::of(error),
            Self::Bundle(_) => Refusal::of_bundle(error),
        }
    }
}

fn machine(error: picket_durable::Error) -> Refusal {
    Failure::from(error).into()
}

fn look(places: &Places, job: &Job, channel: &str, target: &TargetTriple) -> Result<(), Refusal> {
    let store = own_store(places).map_err(machine)?;
    picket_durable::create_dir(&places.transcript(), 0o700).map_err(machine)?;
    let origin = origin(job)?;
    let recorder = Recorder { source: &origin, dir: &places.transcript() };
    look_at(&store, &Clock::system(), &recorder, channel, target).map_err(|error| origin.refusal(&error))
}

/// Refreshes what is trusted and reads the channel: what both halves do.
fn look_at(
    store: &TrustStore,
    clock: &Clock,
    source: &dyn MetadataSource,
    channel: &str,
    target: &TargetTriple,
) -> Result<(), TrustError> {
    let client = TrustClient::new(store, clock);
    let mut trusted = client.refresh(None, source)?;
    fetch_channel(&client, source, &mut trusted, channel, target).map(drop)
}

fn list<W: Write>(
    job: &Job,
    api: &str,
    token: Option<&Token>,
    limit: usize,
    target: &TargetTriple,
    output: &Output<W>,
) -> Result<(), Refusal> {
    let no_list =
        || Refusal::from(Failure::of_environment("there is no list but that of a repository".to_owned(), None));
    let Origin::Server(server) = origin(job)? else { return Err(no_list()) };
    let failed = |error: TransportError| {
        let hint = LISTING.iter().find(|(status, _)| error.status() == Some(*status)).map(|(_, hint)| *hint);
        let refused = Refusal::of(&error.into());
        Refusal { hint: hint.map(str::to_owned).or(refused.hint), ..refused }
    };
    let api = RepositoryApi::of(&server.location, api).map_err(|error| failed(error.into()))?;
    let Some(api) = api else { return Err(no_list()) };
    let listed = api.list(&server.client, token, limit, target).map_err(failed)?;
    listed
        .into_iter()
        .try_for_each(|release| output.say(&Said::Listed(release)))
        .map_err(|error| Failure::of_environment(format!("the list cannot be told: {error}"), None).into())
}

/// What to do about an answer of the API that is none.
const LISTING: [(u16, &str); 5] = [
    (401, TOKEN_REFUSED),
    (403, QUOTA),
    (
        404,
        "see whether update.releases names a repository; a private one needs a token (GH_TOKEN, or GH_ENTERPRISE_TOKEN)",
    ),
    (429, QUOTA),
    (422, "see update.releases and update.releases_api"),
];
const TOKEN_REFUSED: &str = "the token is not, or no longer, valid: see GH_TOKEN, GITHUB_TOKEN, or GH_ENTERPRISE_TOKEN";
const QUOTA: &str = "the API counts requests, and many machines may share this one's address: try again then, or give a token \
                     (GH_TOKEN; GH_ENTERPRISE_TOKEN for another host). `picket update check` needs no API";

/// A copy of what is trusted, to go on from.
fn own_store(places: &Places) -> Result<TrustStore, picket_durable::Error> {
    let own = places.own_trust();
    picket_durable::create_dir(&own, 0o700)?;
    let trust = places.trust();
    for entry in std::fs::read_dir(&trust).doing("list", &trust)? {
        let entry = entry.doing("list", &trust)?;
        let to = own.join(entry.file_name());
        std::fs::copy(entry.path(), &to).doing("copy", &to)?;
    }
    Ok(TrustStore::new(own))
}

/// An artifact that is to be fetched.
struct Wanted<'a> {
    artifact: &'a VerifiedTarget,
    version: &'a Version,
    target: &'a TargetTriple,
    keys: MinisignKeys,
    unpacked: u64,
}

fn fetch<W: Write>(places: &Places, job: &Job, wanted: &Wanted<'_>, output: &Output<W>) -> Result<(), Refusal> {
    let archive = {
        let origin = origin(job)?;
        bring(places, &origin, wanted, &|done, total| {
            // Nobody listens any more: the other half is gone, and this one will be.
            let _ = output.say(&Said::Download { done, total });
        })?
        // Here the connections are closed.
    };
    let cut = sandbox::cut_off().map_err(|error| {
        Refusal::from(Failure::of_environment(format!("the fetcher cannot give up the network: {error}"), None))
    })?;
    tracing::debug!(cut, "the fetcher gave up the network");
    #[cfg(feature = "failpoints")]
    if let Some(said) = super::exploit::try_everything(places) {
        return Err(Failure::of_environment(format!("the planted exploit: {said}"), None).into());
    }
    unpack_into(&places.unpacked(), &archive, wanted)
}

/// Brings the artifact and its signature, and checks both.
fn bring(
    places: &Places,
    origin: &Origin,
    wanted: &Wanted<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<PathBuf, Refusal> {
    let artifact = wanted.artifact;
    let trust = |error: TrustError| origin.refusal(&error);
    let signature = signature(origin, artifact).map_err(|error| trust(error.into()))?;
    let missing = || trust(TrustError::Missing(format!("minisign signature of {}", artifact.path)));
    let signature = signature.ok_or_else(missing)?;
    let kept = places.signature();
    File::create(&kept).and_then(|mut file| file.write_all(&signature)).doing("write", &kept).map_err(machine)?;
    let signature = String::from_utf8_lossy(&signature).into_owned();
    let archive = match origin {
        Origin::Server(server) => download(places, server, artifact, progress)?,
        Origin::Bundle(bundle) => {
            bundle.extract(artifact, &places.downloads(), progress).map_err(|error| match error {
                ExtractError::Trust(error) => trust(error),
                ExtractError::File(error) => machine(error),
            })?
        }
    };
    let sha256 = artifact.sha256().map_err(trust)?;
    let comment = trusted_comment(wanted.version, wanted.target, &sha256);
    let bytes = BufReader::new(File::open(&archive).doing("read", &archive).map_err(machine)?);
    if let Err(error) = wanted.keys.verify(&artifact.path, bytes, &signature, &comment) {
        // Whole, of the signed hash, and yet refused by the second lock: it must not be found again.
        picket_durable::remove_if_present(&archive).map_err(machine)?;
        return Err(trust(error));
    }
    Ok(archive)
}

fn signature(origin: &Origin, artifact: &VerifiedTarget) -> Result<Option<Vec<u8>>, TransportError> {
    match origin {
        Origin::Server(server) => server.optional(&server.location.signature(artifact)?, MAX_SIGNATURE_BYTES),
        Origin::Bundle(bundle) => bundle.small(&format!("{}.minisig", target_place(artifact)), MAX_SIGNATURE_BYTES),
    }
}

fn download(
    places: &Places,
    server: &Server,
    artifact: &VerifiedTarget,
    progress: &dyn Fn(u64, u64),
) -> Result<PathBuf, Refusal> {
    let url = server.location.target(artifact).map_err(|error| Refusal::of(&TransportError::from(error).into()))?;
    let download = Download { client: &server.client, url, target: artifact, dir: &places.downloads(), progress };
    download.run().map_err(|error| Refusal::from(broken_off(error)))
}

fn broken_off(error: DownloadError) -> Failure {
    match error {
        DownloadError::Mismatch(error) => Failure::of_trust(&error),
        DownloadError::File(error) => Failure::from(error),
        error => {
            Failure { trouble: Some(error.trouble()), ..Failure::of_environment(chain(&error), Some(error.hint())) }
        }
    }
}

fn unpack_into(dir: &Path, archive: &Path, wanted: &Wanted<'_>) -> Result<(), Refusal> {
    picket_durable::create_dir(dir, 0o700).map_err(machine)?;
    let format = Format::of(&wanted.artifact.path);
    let unpacked = format.and_then(|format| unpack(archive, format, dir, wanted.unpacked));
    unpacked.map_err(|error| match error {
        ArchiveError::File(error) => machine(error),
        error => Failure::of_version(chain(&error)).into(),
    })
}
