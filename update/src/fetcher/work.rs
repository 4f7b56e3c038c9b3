//! The fetcher at work: confined from its first step, cut off from the network before it unpacks.

use super::job::MAX_LINE;
use super::transcript::Recorder;
use super::{Job, Places, Refusal, Said, Task};
use crate::archive::{ArchiveError, Format, unpack};
use crate::clock::Clock;
use crate::engine::{Failure, chain, fetch_channel};
use crate::fetch::{Download, DownloadError, Location, Server};
use crate::sandbox::{self, Border};
use crate::trust::minisign::{MAX_SIGNATURE_BYTES, trusted_comment};
use crate::trust::source::MetadataSource;
use crate::trust::{MinisignKeys, TrustClient, TrustError, TrustStore, VerifiedTarget};
use picket_durable::Context;
use picket_protocol::TargetTriple;
use picket_transport::{Client, Timeouts, TransportError};
use semver::Version;
use sigstore_tuf::Error as TufError;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
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
    BufReader::new(input.take(MAX_LINE)).read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line)?;
    let border = Border::of_fetcher(places, trusted_files, Path::new(&job.releases));
    let how = sandbox::shut_in(&border)?;
    let output = Output(Mutex::new(output));
    output.say(&Said::Confined { how: how.describe() })?;
    let done = match &job.task {
        Task::Look { channel, target } => look(places, &job, channel, target),
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

fn server(job: &Job) -> Result<Server, Refusal> {
    let location = Location::parse(&job.releases).map_err(|error| refusal(&TransportError::from(error).into()))?;
    let (patience, usual) = (Duration::from_millis(job.stall_ms), Timeouts::default());
    let timeouts = Timeouts { connect: usual.connect.min(patience), response: patience, stall: patience };
    Ok(Server { client: Client::new(&job.user_agent, timeouts), location })
}

fn refusal(error: &TrustError) -> Refusal {
    let expired = matches!(error, TrustError::Refused { source: TufError::Expired { .. }, .. })
        || matches!(error, TrustError::ClockBack { .. });
    Refusal { expired, ..Refusal::from(Failure::of_trust(error)) }
}

fn machine(error: picket_durable::Error) -> Refusal {
    Failure::from(error).into()
}

fn look(places: &Places, job: &Job, channel: &str, target: &TargetTriple) -> Result<(), Refusal> {
    let store = own_store(places).map_err(machine)?;
    picket_durable::create_dir(&places.transcript(), 0o700).map_err(machine)?;
    let server = server(job)?;
    let recorder = Recorder { source: &server, dir: &places.transcript() };
    look_at(&store, &Clock::system(), &recorder, channel, target).map_err(|error| refusal(&error))
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
        let server = server(job)?;
        download(places, &server, wanted, &|done, total| {
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

fn download(
    places: &Places,
    server: &Server,
    wanted: &Wanted<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<std::path::PathBuf, Refusal> {
    let artifact = wanted.artifact;
    let trust = |error: TrustError| refusal(&error);
    let url = |url: Result<picket_transport::SafeUrl, _>| url.map_err(|e| trust(TransportError::from(e).into()));
    let signature = server.optional(&url(server.location.signature(artifact))?, MAX_SIGNATURE_BYTES);
    let signature = signature.map_err(|error| trust(error.into()))?;
    let missing = || trust(TrustError::Missing(format!("minisign signature of {}", artifact.path)));
    let signature = signature.ok_or_else(missing)?;
    let kept = places.signature();
    File::create(&kept).and_then(|mut file| file.write_all(&signature)).doing("write", &kept).map_err(machine)?;
    let signature = String::from_utf8_lossy(&signature).into_owned();
    let url = url(server.location.target(artifact))?;
    let download = Download { client: &server.client, url, target: artifact, dir: &places.downloads(), progress };
    let archive = download.run().map_err(|error| Refusal::from(broken_off(error)))?;
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
