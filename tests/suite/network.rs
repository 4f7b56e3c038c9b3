//! Release servers that misbehave in every way there is: each attempt ends within its limits of time, memory and disk, a
//! person reads what to do, the machine goes on as it was, and the next honest answer is taken.

use crate::update::Fleet;
use picket_protocol::Sha256Digest;
use picket_testkit::{Behaviour, FakeGitHub, Fault, Identity, Prefix, ReleaseServer, Vendor, Watched, build};
use picket_transport::{Client, Network, Timeouts, TransportError};
use picket_update::fetch::{Download, DownloadError};
use picket_update::trust::VerifiedTarget;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What one attempt may take at most: bounds on an attack, generous on a busy machine.
const LONGEST: Duration = Duration::from_secs(45);
/// A debug build with everything in it; none of the attacks' gigabytes.
const MOST_MEMORY: u64 = 200 << 20;

/// `update` fails with this exit code and these words, within every bound.
fn assert_bounded(watched: &Watched, code: i32, words: &[&str], what: &str) {
    let said = format!("{}{}", watched.ran.stdout, watched.ran.stderr);
    assert_eq!(watched.ran.code, code, "{what}:\n{said}");
    for word in words {
        assert!(said.contains(word), "{what}: {word:?} is not said:\n{said}");
    }
    assert!(watched.took < LONGEST, "{what}: it took {:?}", watched.took);
    assert!(watched.peak_bytes < MOST_MEMORY, "{what}: it took {} MiB", watched.peak_bytes >> 20);
}

fn endless(first: &str, again: impl AsRef<[u8]>) -> Behaviour {
    Behaviour::Endless(first.as_bytes().to_vec(), again.as_ref().to_vec())
}

fn raw(bytes: impl AsRef<[u8]>) -> Behaviour {
    Behaviour::Raw(bytes.as_ref().to_vec())
}

/// Each behaviour for one metadata file: what it is, the exit code, and what a person reads.
fn of_metadata() -> Vec<(&'static str, Behaviour, i32, Vec<&'static str>)> {
    let soon = jiff::Timestamp::now().as_second() + 890;
    let spent = vec![("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", soon.to_string())];
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let limited = "it limits how often this address may ask";
    vec![
        ("redirects in a circle", Behaviour::Loop, 31, vec!["redirected more than 5 times", "may be compromised"]),
        ("redirects to nowhere", Behaviour::Refuse(302, Vec::new()), 31, vec!["redirects to nowhere"]),
        (
            "redirects to http",
            Behaviour::Redirect("http://a.example/x".into()),
            31,
            vec!["only https", "update.releases"],
        ),
        ("redirects to a file", Behaviour::Redirect("file:///etc/passwd".into()), 31, vec!["only https"]),
        (
            "spent quota",
            Behaviour::Refuse(403, spent),
            31,
            vec!["answered 403", limited, "ask again in 15 min", "mirror"],
        ),
        ("429", Behaviour::Refuse(429, vec![("retry-after", "30".into())]), 31, vec![limited, "ask again in 30 s"]),
        ("429 without a time", Behaviour::Status(429), 31, vec![limited, "ask again later"]),
        ("403 of a proxy", Behaviour::Status(403), 31, vec!["answered 403", "forbids it"]),
        ("500", Behaviour::Status(500), 31, vec!["answered 500", "try again later"]),
        (
            "503",
            Behaviour::Refuse(503, vec![("retry-after", "99".into())]),
            31,
            vec!["answered 503, asking to wait 99 s"],
        ),
        ("206 that nobody asked for", Behaviour::AlwaysPart, 31, vec!["a part of the file; the whole was asked for"]),
        ("a bomb in gzip", Behaviour::GzipBomb(1 << 30), 31, vec!["16384 bytes allowed"]),
        ("silence before the answer", Behaviour::Mute, 31, vec!["timed out", "keeps the line busy"]),
        ("silence in the answer", Behaviour::StallAfter(10), 31, vec!["timed out"]),
        (
            "a byte a second",
            Behaviour::DripAfter(10),
            31,
            vec!["fewer than 4096 bytes came in 4 s", "keeps the line busy"],
        ),
        ("a length that is too long", Behaviour::WrongLength(1000), 31, vec!["broke off"]),
        ("a length that is too short", Behaviour::WrongLength(-100), 30, vec!["timestamp metadata is refused"]),
        ("a body without an end", endless("HTTP/1.1 200 OK\r\n\r\n", [b'x'; 4096]), 31, vec!["16384 bytes allowed"]),
        ("headers without an end", endless("HTTP/1.1 200 OK\r\n", "x-again: and again\r\n"), 31, vec!["broke off"]),
        ("a header without an end", endless("HTTP/1.1 200 OK\r\nx: ", [b'x'; 4096]), 31, vec!["broke off"]),
        ("100 Continue without an end", endless("", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100)), 31, vec!["hint:"]),
        ("a chunk's length without an end", endless(chunked, [b'0'; 4096]), 31, vec!["broke off"]),
        ("chunks of one byte", endless(chunked, "1\r\nx\r\n".repeat(500)), 31, vec!["16384 bytes allowed"]),
        ("trailers without an end", endless(&format!("{chunked}0\r\n"), "a: b\r\n".repeat(500)), 31, vec!["hint:"]),
        ("a chunk longer than can be", raw(format!("{chunked}fffffffffffffffff\r\n{{}}")), 31, vec!["broke off"]),
        ("a chunk of negative length", raw(format!("{chunked}-1\r\n{{}}")), 31, vec!["broke off"]),
        ("another protocol", raw("SSH-2.0-OpenSSH_10.0\r\n"), 31, vec!["broke off"]),
        ("garbage", raw([0x16, 3, 1, 0, 200, 255, 0, 13, 10, 13, 10]), 31, vec!["broke off"]),
        ("nothing at all", raw(""), 31, vec!["hint:"]),
        (
            "a page of a captive portal",
            raw("HTTP/1.1 200 OK\r\n\r\n<html>log in</html>"),
            30,
            vec!["metadata is refused"],
        ),
    ]
}

#[test]
fn a_server_that_misbehaves_with_metadata_is_left_within_bounds_and_the_next_honest_answer_is_taken() {
    let fleet = Fleet::new();
    fleet.vendor.release(&build("2.0.0", Fault::None));
    for (what, behaviour, code, words) in of_metadata() {
        // What did not change would be answered without a body.
        fleet.vendor.publish();
        fleet.server.misbehave("timestamp.json", behaviour);
        assert_bounded(&fleet.prefix.watched(&["update", "check"]), code, &words, what);
        fleet.server.behave();
        assert_eq!(fleet.prefix.current(), "1.0.0", "{what}");
        let check = fleet.prefix.picket(&["update", "check"]).expect(0);
        assert!(check.stdout.contains("Update available: v2.0.0"), "{what}: {}", check.stdout);
    }
    fleet.vendor.publish();
    fleet.server.misbehave("2.root.json", Behaviour::Status(304));
    let words = ["nothing changed, to somebody who has nothing yet"];
    assert_bounded(&fleet.prefix.watched(&["update", "check"]), 31, &words, "304 that nobody asked for");
    assert_eq!(fleet.prefix.running_version().as_deref(), Some("1.0.0"));
}

#[test]
fn a_spent_quota_is_not_taken_for_the_end_of_the_roots_and_a_store_that_lists_no_names_is() {
    let fleet = Fleet::new();
    let limit = vec![("x-ratelimit-remaining", "0".to_owned())];
    fleet.vendor.publish();
    fleet.server.misbehave("2.root.json", Behaviour::Refuse(403, limit));
    let ran = fleet.prefix.picket(&["update", "check"]).expect(31);
    assert!(ran.stderr.contains("2.root.json: the server answered 403: it limits"), "{}", ran.stderr);
    for absent in [403, 404, 410] {
        fleet.server.behave();
        fleet.vendor.publish();
        fleet.server.misbehave("2.root.json", Behaviour::Status(absent));
        fleet.prefix.picket(&["update", "check"]).expect(0);
    }
}

#[test]
fn an_artifact_from_a_server_that_misbehaves_changes_nothing_and_comes_whole_the_next_time() {
    let fleet = Fleet::new();
    let second = build("2.0.0", Fault::None);
    fleet.vendor.release(&second);
    let size = fs::metadata(&second.archive).unwrap().len();
    let limit = Behaviour::Refuse(403, vec![("retry-after", "60".to_owned())]);
    let cases: [(&str, Behaviour, i32, &[&str]); 5] = [
        ("a bomb in gzip", Behaviour::GzipBomb(1 << 30), 30, &["bytes allowed"]),
        ("a spent quota", limit, 31, &["ask again in 60 s"]),
        ("a body without an end", endless("HTTP/1.1 200 OK\r\n\r\n", vec![0; 64 << 10]), 30, &["bytes allowed"]),
        ("a byte a second", Behaviour::DripAfter(200_000), 31, &["bytes came in 4 s", "what has arrived is kept"]),
        ("a part that begins too early", Behaviour::EarlierPart(1), 20, &[]),
    ];
    for (what, behaviour, code, words) in cases {
        let last = code == 20;
        fleet.server.misbehave(".tar.xz$", behaviour);
        fleet.server.forget();
        let watched = fleet.prefix.watched(&["update", "apply", "--yes", "--json"]);
        if last {
            // The whole was asked for instead, and the update went on.
            assert_bounded(&watched, 0, &["committed"], what);
            let requests = fleet.server.requests();
            assert!(requests.iter().any(|request| request.contains(".tar.xz range 2000")), "{requests:?}");
            assert!(fleet.server.body_bytes() > size, "{what}");
            continue;
        }
        assert_bounded(&watched, code, words, what);
        assert_eq!(fleet.prefix.current(), "1.0.0", "{what}");
        assert!(downloaded(&fleet.prefix) <= size + 4096, "{what}: {} bytes on disk", downloaded(&fleet.prefix));
        fleet.server.behave();
    }
    assert_eq!(fleet.prefix.current(), "2.0.0");
}

fn downloaded(prefix: &Prefix) -> u64 {
    let entries = fs::read_dir(prefix.path("var/lib/picket-fetch/downloads")).into_iter().flatten().flatten();
    entries.map(|entry| entry.metadata().unwrap().len()).sum()
}

/// A server with one file, and a folder to download it into.
struct Shelf {
    tree: TempDir,
    server: ReleaseServer,
    bytes: Vec<u8>,
    downloads: TempDir,
}

const FILE: &str = "file";
const QUICK: Timeouts =
    Timeouts { connect: Duration::from_secs(1), response: Duration::from_secs(1), stall: Duration::from_millis(500) };

impl Shelf {
    fn new(length: usize) -> Self {
        let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        let (tree, downloads) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let shelf = Self { server: ReleaseServer::start(tree.path()), tree, bytes, downloads };
        shelf.offer(&shelf.bytes);
        shelf
    }

    fn offer(&self, bytes: &[u8]) {
        fs::write(self.tree.path().join(FILE), bytes).unwrap();
    }

    fn download(&self) -> Result<PathBuf, DownloadError> {
        let target = VerifiedTarget {
            path: FILE.to_owned(),
            length: self.bytes.len() as u64,
            hashes: Sha256Digest::new(Sha256::digest(&self.bytes).into()).into(),
            hash_in_name: false,
        };
        let download = Download {
            client: &Client::new("test", QUICK, &Network::default()),
            url: format!("{}/{FILE}", self.server.url()).parse().unwrap(),
            target: &target,
            dir: self.downloads.path(),
            progress: &|_, _| {},
        };
        let began = Instant::now();
        let result = download.run();
        assert!(began.elapsed() < LONGEST, "it took {:?}", began.elapsed());
        let kept: u64 =
            fs::read_dir(self.downloads.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(kept <= self.bytes.len() as u64 + 512, "{kept} bytes on disk");
        result
    }

    /// An honest server now brings the file; returns the bytes it took.
    fn finish(&self) -> u64 {
        self.server.behave();
        self.server.forget();
        let path = self.download().unwrap();
        assert!(fs::read(path).unwrap() == self.bytes, "other bytes");
        self.server.body_bytes()
    }

    /// An attempt that breaks off after so many bytes.
    fn begin(&self, bytes: usize) {
        self.server.misbehave(FILE, Behaviour::CutAfter(bytes));
        self.download().unwrap_err();
        self.server.behave();
        self.server.forget();
    }
}

#[test]
fn a_download_that_is_cut_at_every_chunk_asks_for_no_byte_twice() {
    let chunk = 64 << 10;
    let shelf = Shelf::new(20 * chunk + 123);
    shelf.server.misbehave(FILE, Behaviour::CutAfter(chunk));
    let mut attempts = 1;
    while shelf.download().is_err() {
        attempts += 1;
        assert!(attempts < 30, "it does not go on");
    }
    assert_eq!((attempts, shelf.server.body_bytes()), (21, shelf.bytes.len() as u64));
    let expected: Vec<String> = (1..21).map(|at| format!("GET /{FILE} range {}", at * chunk)).collect();
    assert_eq!(shelf.server.requests()[1..], expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_download_that_is_cut_anywhere_goes_on_with_the_very_next_byte(
        length in 1_usize..200_000, cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..4)
    ) {
        let shelf = Shelf::new(length);
        let mut there = 0;
        for cut in cuts {
            let more = cut.index(length - there);
            shelf.server.misbehave(FILE, Behaviour::CutAfter(more));
            shelf.download().unwrap_err();
            shelf.server.behave();
            there += more;
        }
        prop_assert_eq!(shelf.finish(), (length - there) as u64);
    }
}

#[test]
fn a_server_that_answers_with_another_part_is_asked_for_the_whole() {
    let shelf = Shelf::new(300_000);
    for (what, behaviour) in [
        ("an earlier part", Behaviour::EarlierPart(1)),
        ("from the beginning", Behaviour::EarlierPart(100_000)),
        ("no such part", Behaviour::Status(416)),
    ] {
        shelf.begin(100_000);
        shelf.server.misbehave(FILE, behaviour.clone());
        if let Behaviour::Status(_) = behaviour {
            // To the whole, too: then what has arrived is kept.
            let error = shelf.download().unwrap_err();
            assert!(
                matches!(&error, DownloadError::Transport(TransportError::Status { status: 416, .. })),
                "{error:?}"
            );
            assert_eq!(shelf.server.requests().len(), 2, "{what}");
            assert_eq!(shelf.finish(), 200_000, "{what}");
        } else {
            let path = shelf.download().unwrap();
            assert!(fs::read(&path).unwrap() == shelf.bytes, "{what}");
            fs::remove_file(path).unwrap();
        }
        shelf.server.behave();
    }
}

#[test]
fn etags_that_lie_cost_a_download_at_most_one_more_attempt() {
    let shelf = Shelf::new(300_000);
    let forged: Vec<u8> = shelf.bytes.iter().map(|byte| byte ^ 1).collect();

    // One ETag for other bytes: what was put together is thrown away, and the next attempt begins anew.
    shelf.server.misbehave(FILE, Behaviour::Etag("\"same\"".to_owned()));
    shelf.offer(&forged);
    shelf.server.misbehave(FILE, Behaviour::CutAfter(100_000));
    shelf.download().unwrap_err();
    shelf.offer(&shelf.bytes);
    shelf.server.behave();
    shelf.server.misbehave(FILE, Behaviour::Etag("\"same\"".to_owned()));
    let error = shelf.download().unwrap_err();
    assert!(matches!(error, DownloadError::Mismatch(_)), "{error:?}");
    assert_eq!(shelf.finish(), 300_000);
    fs::remove_dir_all(shelf.downloads.path()).unwrap();

    // Another ETag for the same bytes each time: all of it comes again, and fits.
    shelf.server.misbehave(FILE, Behaviour::RestlessEtag);
    shelf.server.misbehave(FILE, Behaviour::CutAfter(100_000));
    shelf.download().unwrap_err();
    assert_eq!(shelf.finish(), 300_000);
    fs::remove_dir_all(shelf.downloads.path()).unwrap();

    // A weak one says nothing about bytes, and nothing is asked to go on by it.
    shelf.server.misbehave(FILE, Behaviour::Etag("W/\"1\"".to_owned()));
    shelf.server.misbehave(FILE, Behaviour::CutAfter(100_000));
    shelf.download().unwrap_err();
    assert_eq!(shelf.finish(), 300_000);
    assert_eq!(shelf.server.requests(), [format!("GET /{FILE}")]);
}

#[test]
fn a_download_from_a_server_that_misbehaves_stays_within_its_bounds_and_comes_whole_the_next_time() {
    let cases = [
        ("silence", Behaviour::StallAfter(1000)),
        ("a byte a second", Behaviour::DripAfter(1000)),
        ("no answer", Behaviour::Mute),
        ("a length that is too long", Behaviour::WrongLength(5000)),
        ("a length that is too short", Behaviour::WrongLength(-5000)),
        ("more than was signed", Behaviour::Trailing(1 << 20)),
        ("a body without an end", endless("HTTP/1.1 200 OK\r\n\r\n", [7; 4096])),
        ("a bomb in gzip", Behaviour::GzipBomb(1 << 20)),
        ("a loop", Behaviour::Loop),
        ("500", Behaviour::Status(500)),
        ("a part that nobody asked for", Behaviour::AlwaysPart),
    ];
    for (what, behaviour) in cases {
        let shelf = Shelf::new(100_000);
        shelf.server.misbehave(FILE, behaviour.clone());
        match (shelf.download(), &behaviour) {
            // All bytes came; that more were promised is no matter.
            (Ok(_), Behaviour::WrongLength(5000)) => {}
            (Err(_), _) => {
                shelf.finish();
            }
            (Ok(_), _) => panic!("{what}: it was taken"),
        }
    }
}

#[test]
fn a_file_on_the_server_that_became_shorter_does_not_hold_a_download_up() {
    let shelf = Shelf::new(300_000);
    let same = || Behaviour::Etag("\"same\"".to_owned());
    shelf.server.misbehave(FILE, same());
    shelf.server.misbehave(FILE, Behaviour::CutAfter(200_000));
    shelf.download().unwrap_err();
    shelf.server.behave();
    shelf.server.misbehave(FILE, same());
    shelf.offer(&shelf.bytes[..100_000]);
    shelf.download().unwrap_err();
    shelf.offer(&shelf.bytes);
    shelf.finish();
}

#[test]
fn a_server_with_a_certificate_that_does_not_fit_is_refused_with_advice() {
    let vendor = Vendor::new();
    let first = build("1.0.0", Fault::None);
    vendor.release(&first);
    let own = ReleaseServer::start_tls(&vendor.tree());
    let mut prefix = Prefix::new(&own.url());
    prefix.install(&first, &vendor.root_file());
    for (identity, word) in [(Identity::OfAnotherHost, "not valid for name"), (Identity::Expired, "expired")] {
        let server = ReleaseServer::start_tls_as(&vendor.tree(), identity);
        follow(&mut prefix, &server);
        let words = ["no trusted TLS connection", word, "check this machine's clock"];
        assert_bounded(&prefix.watched(&["update", "check"]), 31, &words, word);
        assert_eq!(server.requests(), [""; 0], "something was asked of a stranger");
    }
    let mute = ReleaseServer::start_mute_tls();
    follow(&mut prefix, &mute);
    let words = ["timed out", "check update.releases and the network"];
    assert_bounded(&prefix.watched(&["update", "check"]), 31, &words, "silence in the handshake");
    assert!(!mute.requests().is_empty());
    follow(&mut prefix, &own);
    prefix.picket(&["update", "check"]).expect(0);
}

/// Lets the configuration follow `server`, and every command trust its authority.
fn follow(prefix: &mut Prefix, server: &ReleaseServer) {
    let (config, authority) = (prefix.path("etc/picket/config.yaml"), prefix.path("authority.pem"));
    let text = fs::read_to_string(&config).unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix("  releases: ") {
        Some(_) => format!("  releases: {}\n", server.url()),
        None => format!("{line}\n"),
    });
    fs::write(&config, lines.collect::<String>()).unwrap();
    if let Some(pem) = &server.authority {
        fs::write(&authority, pem).unwrap();
    }
    prefix.set("SSL_CERT_FILE", authority.to_str().unwrap());
}

#[test]
fn what_github_signs_into_an_address_is_in_no_log_and_no_error() {
    let (vendor, github) = (Vendor::new(), FakeGitHub::start());
    let (first, second) = (build("1.0.0", Fault::None), build("2.0.0", Fault::None));
    vendor.release(&first);
    vendor.release(&second);
    github.publish(&vendor);
    let prefix = Prefix::with_config(&format!("log_level: trace\nupdate:\n  releases: {}\n", github.releases()));
    prefix.install(&first, &vendor.root_file());
    let applied = prefix.picket(&["update", "apply", "--yes", "--json"]).expect(0);
    // A page of HTML for a file that is not there.
    github.delete_asset("timestamp.json");
    let missing = prefix.picket(&["update", "check"]).expect(31);
    assert!(missing.stderr.contains("has no timestamp.json"), "{}", missing.stderr);
    assert!(github.requests().iter().any(|request| request.starts_with("store ") && request.contains("sig=s3cret")));
    for text in [prefix.log(), applied.stdout, applied.stderr, missing.stderr] {
        assert!(!text.contains("s3cret"), "{text}");
    }
}
