//! The updater's unprivileged half: taken over, it can do nothing; killed, it harms nothing; lying, it is not believed.

use crate::update::Fleet;
use picket_testkit::{Fault, build};
use std::fs;

/// A fleet with a second release, whose fetchers are told something by a variable.
fn fleet_whose_fetcher(variable: &str, value: impl Fn(&Fleet) -> String) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.vendor.release(&build("2.0.0", Fault::None));
    let value = value(&fleet);
    // The supervisor hands its environment to the updater it starts.
    fleet.prefix.cut_power();
    fleet.prefix.set(variable, &value);
    fleet.prefix.boot();
    fleet
}

#[test]
fn the_kernel_refuses_a_fetcher_that_was_taken_over_everything_but_its_own_folders() {
    let target = |fleet: &Fleet| fleet.prefix.path("opt/picket/versions/planted");
    let keys = |fleet: &Fleet| {
        let key = fleet.prefix.path("var/lib/picket/keys/planted");
        fs::create_dir_all(key.parent().unwrap()).unwrap();
        fs::write(&key, "a key").unwrap();
        key
    };
    let told = |fleet: &Fleet| format!("{}:{}", target(fleet).display(), keys(fleet).display());
    let fleet = fleet_whose_fetcher("PICKET_FETCHER_EXPLOIT", told);
    let ran = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
    let said = ran["reason"].as_str().unwrap();
    assert!(said.contains("the planted exploit"), "{said}");
    let refused = [
        "write elsewhere: EACCES",
        "write to what is trusted: EACCES",
        "read the keys: EACCES",
        "read the other half's memory: EACCES",
        "signal the other half: EPERM",
        "start a program: EPERM",
        "open a TCP connection: EPERM",
        "open a UDP socket: EPERM",
        "open a Unix socket: EPERM",
    ];
    for attempt in refused {
        assert!(said.contains(attempt), "{attempt:?} is not said: {said}");
    }
    assert!(!said.contains("DONE"), "{said}");
    assert!(!target(&fleet).exists());
    assert_eq!(fleet.prefix.current(), "1.0.0");
}

#[test]
fn what_the_fetcher_brings_is_checked_again_by_the_half_that_puts_it_in_place() {
    let fleet = Fleet::new();
    fleet.vendor.release(&build("2.0.0", Fault::None));
    // The fetcher is done, and somebody changes what it brought.
    let hold = fleet.prefix.path("hold");
    let mut fleet = fleet;
    fleet.prefix.cut_power();
    fleet.prefix.set("PICKET_FAILPOINT", &format!("fetch-downloaded=hold:{}", hold.display()));
    fleet.prefix.boot();
    let altered = |place: &str, word: &str| {
        std::thread::scope(|scope| {
            let applied = scope.spawn(|| fleet.prefix.picket(&["update", "apply", "--yes", "--json"]));
            picket_testkit::wait_until("the fetcher to be done", || hold.exists());
            let dir = fleet.prefix.path("var/lib/picket-fetch").join(place);
            let mut files = fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path());
            let file = files.find(|path| path.extension().is_none_or(|kind| kind != "etag")).unwrap();
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).unwrap();
            fs::remove_file(&hold).unwrap();
            let ran = applied.join().unwrap().expect(30).json();
            assert!(ran["reason"].as_str().unwrap().contains(word), "{ran}");
        });
        assert_eq!(fleet.prefix.current(), "1.0.0");
        assert!(!fleet.prefix.path("opt/picket/versions/2.0.0").exists());
    };
    altered("downloads", "minisign signature is refused");
    fs::remove_dir_all(fleet.prefix.path("var/lib/picket-fetch/downloads")).unwrap();
    altered("out/unpacked", "not the file that the vendor signed");
}

#[test]
fn an_archive_whose_files_nobody_listed_is_unpacked_from_bytes_that_were_checked() {
    let fleet = Fleet::new();
    // As an older version's `release add` published it.
    fleet.vendor.release_archive("2.0.0", &build("2.0.0", Fault::None).archive);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(fleet.prefix.current(), "2.0.0");
    let left = fleet.prefix.listing();
    assert!(!left.iter().any(|name| name.ends_with("archive.verified")), "{left:?}");
}

#[test]
fn links_that_a_fetcher_plants_are_not_followed() {
    let mut fleet = Fleet::new();
    fleet.vendor.release(&build("2.0.0", Fault::None));
    let hold = fleet.prefix.path("hold");
    fleet.prefix.cut_power();
    fleet.prefix.set("PICKET_FAILPOINT", &format!("fetch-downloaded=hold:{}", hold.display()));
    fleet.prefix.boot();
    let secret = fleet.prefix.path("secret");
    fs::copy(&build("2.0.0", Fault::None).exe, &secret).unwrap();
    std::thread::scope(|scope| {
        let applied = scope.spawn(|| fleet.prefix.picket(&["update", "apply", "--yes", "--json"]));
        picket_testkit::wait_until("the fetcher to be done", || hold.exists());
        let unpacked = fleet.prefix.path("var/lib/picket-fetch/out/unpacked/picket");
        fs::remove_file(&unpacked).unwrap();
        // Even to the very bytes that were signed.
        std::os::unix::fs::symlink(&secret, &unpacked).unwrap();
        fs::remove_file(&hold).unwrap();
        let ran = applied.join().unwrap();
        assert_ne!(ran.code, 0, "{ran:?}");
    });
    assert_eq!(fleet.prefix.current(), "1.0.0");
}
