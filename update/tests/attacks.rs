//! Every attack on updates that we know of, one folder of fixtures each: what a machine makes of it, and what a person reads.
//!
//! The fixtures in `tests/attacks/` are files that an independent implementation wrote (`make.py`: python-tuf and
//! `cryptography`). Each folder has a story (`attack.json`), step by step: at such a time the server shows such files, and
//! the machine takes a release or refuses with such words. The server is real, so is everything from its answer to the
//! verified file; only the clock is told.
#![expect(clippy::disallowed_methods, reason = "tests look at files directly")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use picket_protocol::TargetTriple;
use picket_testkit::{Behaviour, ReleaseServer};
use picket_transport::{Client, Network, Timeouts, TransportError};
use picket_update::engine::fetch_channel;
use picket_update::fetch::{Download, DownloadError, Location, Server};
use picket_update::progress::Trouble;
use picket_update::trust::minisign::{MAX_SIGNATURE_BYTES, trusted_comment};
use picket_update::trust::{TrustClient, TrustError, TrustStore};
use picket_update::{Clock, EngineError};
use semver::Version;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// An attack, as its folder tells it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    /// Who does what, in one sentence.
    story: String,
    /// What kind of machine is attacked.
    target: TargetTriple,
    /// The root that it was installed with.
    root: PathBuf,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    what: String,
    /// What the machine's clock says.
    at: jiff::Timestamp,
    /// The folders that the server shows, each laid over those before it.
    show: Vec<PathBuf>,
    /// Files that it does not show.
    #[serde(default)]
    without: Vec<PathBuf>,
    /// How it misbehaves.
    #[serde(default)]
    server: Vec<Misbehaviour>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Misbehaviour {
    /// A part of the path that it is about.
    file: String,
    /// So many bytes more than there are.
    trailing: Option<usize>,
    /// After so many bytes, nothing more.
    stall: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Expect {
    /// The release of this version was downloaded and passed both locks.
    Head { head: Version },
    /// Nothing was: the words that are said, the words of the hint, and the kind of trouble.
    Refused { refused: Vec<String>, hint: Vec<String>, trouble: Trouble },
}

/// Why a machine took no release, as a person is told.
#[derive(Debug)]
struct Refusal {
    chain: String,
    hint: String,
    trouble: Trouble,
}

impl From<TrustError> for Refusal {
    fn from(error: TrustError) -> Self {
        let error = EngineError::from(error);
        Self { chain: error.chain(), hint: error.hint().unwrap_or_default(), trouble: error.trouble() }
    }
}

impl From<DownloadError> for Refusal {
    fn from(error: DownloadError) -> Self {
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        let chain = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        Self { chain, hint: error.hint().to_owned(), trouble: error.trouble() }
    }
}

/// A machine that keeps what it trusts from one step to the next, and nothing else.
struct Machine {
    dir: TempDir,
    root: Vec<u8>,
    target: TargetTriple,
}

impl Machine {
    /// Looks for a release and downloads it, as the updater does: metadata, channel, artifact, second lock.
    fn look(&self, url: &str, at: jiff::Timestamp) -> Result<Version, Refusal> {
        let (store, clock) = (TrustStore::new(self.dir.path().join("trust")), Clock::fixed(at));
        let client = TrustClient::new(&store, &clock);
        // A stall of a second is one; everything else may take its time on a busy machine.
        let timeouts = Timeouts { stall: Duration::from_secs(1), ..Timeouts::default() };
        let server = Server {
            client: Client::new("picket-test", timeouts, &Network::default()),
            location: Location::parse(url).unwrap(),
        };
        let mut trusted = client.refresh(Some(&self.root), &server)?;
        let channel = fetch_channel(&client, &server, &mut trusted, "stable", &self.target)?;
        let version = channel.head.clone();
        let artifact = &channel.releases[&version].artifacts[&self.target];
        let target = client.find(&mut trusted, &server, &artifact.path)?;
        let address = |url: Result<_, picket_transport::UrlError>| url.map_err(TransportError::from);
        let signature_url = address(server.location.signature(&target)).map_err(TrustError::from)?;
        let signature = server.optional(&signature_url, MAX_SIGNATURE_BYTES).map_err(TrustError::from)?;
        let missing = || TrustError::Missing(format!("minisign signature of {}", target.path));
        let signature = String::from_utf8_lossy(&signature.ok_or_else(missing)?).into_owned();
        let url = address(server.location.target(&target)).map_err(TrustError::from)?;
        let dir = self.dir.path().join("downloads");
        let download = Download { client: &server.client, url, target: &target, dir: &dir, progress: &|_, _| () };
        let unverified = download.run()?;
        let comment = trusted_comment(&version, &self.target, &target.sha256()?);
        let file = BufReader::new(fs::File::open(&unverified).unwrap());
        let verdict = trusted.minisign_keys().verify(&target.path, file, &signature, &comment);
        fs::remove_file(&unverified).unwrap();
        verdict?;
        Ok(version)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks")
}

fn copy_over(from: &Path, to: &Path) {
    assert!(from.is_dir(), "{} is no folder", from.display());
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy_over(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// Has the server show what it shows at a step.
fn show(attack: &Path, step: &Step, dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        fs::remove_dir_all(entry.path()).unwrap();
    }
    step.show.iter().for_each(|layer| copy_over(&attack.join(layer), dir));
    step.without.iter().for_each(|file| fs::remove_file(dir.join(file)).unwrap());
}

fn misbehave(server: &ReleaseServer, misbehaviour: &Misbehaviour) {
    let behaviour = match (misbehaviour.trailing, misbehaviour.stall) {
        (Some(bytes), None) => Behaviour::Trailing(bytes),
        (None, Some(bytes)) => Behaviour::StallAfter(bytes),
        _ => panic!("one misbehaviour at a time"),
    };
    server.misbehave(&misbehaviour.file, behaviour);
}

/// Plays the attack of this name.
fn play(name: &str) {
    let dir = folder().join(name);
    let attack: Attack = serde_json::from_slice(&fs::read(dir.join("attack.json")).unwrap()).unwrap();
    assert!(attack.story.len() > 20, "{name} has no story");
    let root = fs::read(dir.join(&attack.root)).unwrap();
    let machine = Machine { dir: tempfile::tempdir().unwrap(), root, target: attack.target };
    let tree = tempfile::tempdir().unwrap();
    let server = ReleaseServer::start(tree.path());
    for step in &attack.steps {
        let at = format!("{name}, {}", step.what);
        show(&dir, step, tree.path());
        server.behave();
        step.server.iter().for_each(|misbehaviour| misbehave(&server, misbehaviour));
        match (machine.look(&server.url(), step.at), &step.expect) {
            (Ok(version), Expect::Head { head }) => assert_eq!(version, *head, "{at}"),
            (Err(refusal), Expect::Refused { refused, hint, trouble }) => {
                for word in refused {
                    assert!(refusal.chain.contains(word), "{at}: {word:?} is not said: {refusal:#?}");
                }
                for word in hint {
                    let hint = refusal.hint.to_lowercase();
                    assert!(hint.contains(&word.to_lowercase()), "{at}: the hint lacks {word:?}: {refusal:#?}");
                }
                assert_eq!(refusal.trouble, *trouble, "{at}: {refusal:#?}");
            }
            (Ok(version), _) => panic!("{at}: release {version} was taken"),
            (Err(refusal), _) => panic!("{at}: {refusal:#?}"),
        }
    }
}

/// Makes a test of each attack, and the list of them.
macro_rules! attacks {
    ($($folder:literal $sentence:ident)*) => {
        $(#[test] fn $sentence() { play($folder); })*
        const PLAYED: &[&str] = &[$($folder),*];
    };
}

attacks! {
    "arbitrary-software-by-a-hub" a_hub_that_signs_releases_itself_gets_nothing_run
    "arbitrary-software-by-a-mirror" a_mirror_that_replaces_a_release_gets_nothing_run
    "clock-turned-back" what_was_once_seen_expired_stays_expired_when_the_clock_goes_back
    "clock-turned-forward" a_clock_that_ran_ahead_stops_no_update_for_good
    "compromised-root" one_stolen_root_key_changes_no_keys_and_is_rotated_out
    "duplicate-key-ids" one_key_never_counts_as_two
    "endless-data" a_server_that_never_stops_sending_is_cut_off
    "expired-metadata" metadata_that_has_expired_stops_updates_until_it_is_renewed
    "fast-forward-and-recovery" a_stolen_online_key_that_ran_the_versions_up_is_healed_by_a_new_root
    "fast-forward-of-the-snapshot-and-recovery" a_snapshot_that_promises_impossible_targets_is_healed_by_a_new_root
    "indefinite-freeze" a_mirror_that_shows_the_same_for_ever_is_found_out_by_its_dates
    "key-rotation-online" a_new_online_key_is_followed_and_the_old_one_counts_no_more
    "key-rotation-root" new_root_keys_are_followed_and_the_old_ones_count_no_more
    "key-rotation-targets" a_new_targets_key_is_followed_and_the_old_one_counts_no_more
    "minisign-key-swapped" a_release_whose_second_lock_does_not_open_is_thrown_away
    "mix-and-match" files_that_were_never_published_together_are_refused
    "one-key-stolen" one_stolen_key_of_two_signs_no_release
    "re-serialised-metadata" the_same_metadata_in_other_bytes_passes_only_where_no_hash_is_pinned
    "replayed-channel-document" an_old_or_a_foreign_channel_document_is_refused
    "rollback-of-the-snapshot" a_new_timestamp_for_an_old_snapshot_is_refused
    "rollback-of-the-targets" a_new_snapshot_of_old_targets_is_refused
    "rollback-of-the-timestamp" an_older_timestamp_is_refused
    "skipped-roots" a_machine_that_missed_four_roots_follows_them_one_by_one
    "slow-retrieval" a_server_that_falls_silent_is_left
    "threshold-not-met" metadata_with_too_few_signatures_is_refused
    "truncated-metadata" metadata_that_was_cut_short_is_refused
    "wrong-product" another_product_of_the_same_vendor_is_refused
    "wrong-target-triple" a_build_for_another_kind_of_machine_is_refused
}

#[test]
fn every_folder_of_fixtures_is_played_and_every_attack_has_its_folder() {
    let folders = fs::read_dir(folder()).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let folders: BTreeSet<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(folders, PLAYED.iter().map(|name| (*name).to_owned()).collect());
}
