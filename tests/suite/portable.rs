//! An executable that somebody unpacked into a folder, with no installation: it becomes its next version by itself, and leaves
//! alone what is somebody else's.

use crate::trust::artifact;
use picket_testkit::{Behaviour, Build, FakeGitHub, Fault, Prefix, Ran, ReleaseServer, Vendor, build};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Somebody's home with `bin/picket`, version 1.0.0, in it, and a vendor who has released 2.0.0.
struct Home {
    dir: TempDir,
    vendor: Vendor,
    server: ReleaseServer,
    first: Build,
}

impl Home {
    fn new() -> Self {
        let vendor = Vendor::new();
        let first = build("1.0.0", Fault::None);
        vendor.release(&first);
        vendor.release(&build("2.0.0", Fault::None));
        let server = ReleaseServer::start(&vendor.tree());
        let home = Self { dir: TempDir::new().unwrap(), vendor, server, first };
        for folder in ["bin", "config/picket", "state"] {
            fs::create_dir_all(home.path(folder)).unwrap();
        }
        fs::copy(&home.first.exe, home.exe()).unwrap();
        fs::copy(home.vendor.root_file(), home.path("config/picket/release-root.json")).unwrap();
        home
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(path)
    }

    fn exe(&self) -> PathBuf {
        self.path("bin/picket")
    }

    fn run_as(&self, exe: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = Command::new(exe);
        command.args(arguments).env_clear().env("HOME", self.dir.path()).stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.path("config")).env("XDG_STATE_HOME", self.path("state"));
        command.env("PICKET_UPDATE_RELEASES", self.server.url()).env("PICKET_UPDATE_STALL_LIMIT", "2s");
        command.envs(variables.iter().copied()).output().unwrap().into()
    }

    fn picket(&self, arguments: &[&str]) -> Ran {
        self.run_as(&self.exe(), arguments, &[])
    }

    fn version(&self) -> String {
        self.picket(&["--version"]).expect(0).stdout
    }

    /// Nothing of an update is beside the executable, which is the one it was.
    fn assert_untouched(&self) {
        assert_eq!(fs::read(self.exe()).unwrap(), fs::read(&self.first.exe).unwrap(), "the executable changed");
        let names: Vec<_> = fs::read_dir(self.path("bin")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["picket"]);
    }
}

const APPLY: [&str; 4] = ["update", "apply", "--yes", "--json"];

#[test]
fn it_takes_a_release_from_a_bundle_too() {
    let home = Home::new();
    let bundle = home.path("carried.tar");
    let (tree, root) = (home.vendor.tree(), home.vendor.root_file());
    let [tree, out, root] = [&tree, &bundle, &root].map(|path| path.to_str().unwrap());
    home.picket(&["release", "bundle", tree, "--out", out, "--root", root]).expect(0);
    home.server.misbehave("/", Behaviour::Status(500));
    home.server.forget();
    let missing = home.picket(&[&APPLY[..], &["--bundle", "/nonexistent.tar"]].concat()).expect(1);
    assert!(missing.stderr.contains("/nonexistent.tar"), "{}", missing.stderr);
    home.assert_untouched();
    let applied = home.picket(&[&APPLY[..], &["--bundle", out]].concat()).expect(0).json();
    assert_eq!(applied["version"], "2.0.0");
    assert!(home.version().contains("2.0.0"), "{}", home.version());
    assert!(home.server.requests().is_empty(), "the network was asked");
    assert!(!home.path("state/picket-portable/fetch/bundle.tar").exists(), "the bundle takes up space");
}

#[test]
fn it_becomes_the_next_version_and_the_one_before_is_kept_beside_it() {
    let home = Home::new();
    let checked = home.picket(&["update", "check"]).expect(0);
    assert!(checked.stdout.starts_with("Update available: v2.0.0\nCurrent version: v1.0.0\n"), "{}", checked.stdout);
    assert!(checked.stderr.contains("replaces") && checked.stderr.contains("bin/picket"), "{}", checked.stderr);
    home.assert_untouched();
    home.picket(&["update", "apply"]).expect(2);
    home.assert_untouched();
    let applied = home.picket(&APPLY).expect(0).json();
    assert_eq!((&applied["outcome"], &applied["version"]), (&"committed".into(), &"2.0.0".into()));
    assert!(home.version().contains("2.0.0"), "{}", home.version());
    let old = home.path("bin/picket.old");
    assert!(home.run_as(&old, &["--version"], &[]).stdout.contains("1.0.0"));
    assert_eq!(fs::read_dir(home.path("bin")).unwrap().count(), 2);
    assert_eq!(fs::metadata(home.exe()).unwrap().permissions().mode() & 0o7777, 0o755);
    let state = fs::metadata(home.path("state/picket-portable")).unwrap();
    assert_eq!(state.permissions().mode() & 0o777, 0o700);
    // Nothing more to do; and the old one, put back, does it again.
    assert!(home.picket(&APPLY).expect(0).json()["reason"].as_str().unwrap().contains("up to date"));
    fs::rename(&old, home.exe()).unwrap();
    home.picket(&["update", "apply", "2.0.0", "--yes"]).expect(0);
    assert!(home.version().contains("2.0.0"));
    let back = home.picket(&["update", "apply", "9.9.9", "--yes"]).expect(21);
    assert!(back.stdout.contains("no release 9.9.9"), "{}{}", back.stdout, back.stderr);
    home.picket(&["update", "status"]).expect(3);
}

#[test]
fn what_was_not_signed_never_takes_its_place() {
    let home = Home::new();
    let archive = artifact(&home.vendor, "2.0.0");
    let real = fs::read(&archive).unwrap();
    let mut bytes = real.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&archive, bytes).unwrap();
    let tampered = home.picket(&APPLY).expect(30);
    assert!(tampered.stdout.contains("not the ones that the vendor signed"), "{}", tampered.stdout);
    home.assert_untouched();

    fs::write(&archive, real).unwrap();
    let signature = PathBuf::from(format!("{}.minisig", archive.display()));
    let own = fs::read_to_string(&signature).unwrap();
    let comment = own.lines().nth(2).unwrap().replace("trusted comment: ", "");
    let stranger = picket_release::minisign::SecretKey::generate().unwrap();
    fs::write(&signature, stranger.sign(&archive, &comment).unwrap()).unwrap();
    let foreign = home.picket(&APPLY).expect(30);
    assert!(foreign.stdout.contains("made by a key that the release root does not name"), "{}", foreign.stdout);
    home.assert_untouched();

    // What was once trusted is not forgotten: an older timestamp is a rollback.
    fs::write(&signature, own).unwrap();
    let timestamp = home.vendor.tree().join("metadata/timestamp.json");
    let old = fs::read(&timestamp).unwrap();
    home.vendor.publish();
    home.picket(&["update", "check"]).expect(0);
    fs::write(&timestamp, old).unwrap();
    let rolled = home.picket(&APPLY).expect(30);
    assert!(rolled.stderr.contains("rollback detected"), "{}", rolled.stderr);
    home.assert_untouched();

    fs::remove_file(home.path("config/picket/release-root.json")).unwrap();
    let fresh = home.run_as(&home.exe(), &APPLY, &[("XDG_STATE_HOME", home.path("other").to_str().unwrap())]);
    assert!(fresh.expect(30).stderr.contains("root"), "without a root nothing is trusted");
    home.assert_untouched();
}

#[test]
fn a_release_that_fails_its_self_test_does_not_take_its_place() {
    let home = Home::new();
    // Signed by the vendor, and yet another version inside.
    home.vendor.release(&Build { version: "3.0.0".to_owned(), ..build("1.0.0", Fault::None) });
    let refused = home.picket(&APPLY).expect(21);
    assert!(refused.stdout.contains("says that it is 1.0.0"), "{}", refused.stdout);
    home.assert_untouched();
}

#[test]
fn a_package_managers_file_is_left_to_it() {
    let home = Home::new();
    // A database of dpkg's in which the file belongs to a package.
    let database = home.path("dpkg");
    fs::create_dir_all(database.join("info")).unwrap();
    fs::write(database.join("info/format"), "1\n").unwrap();
    fs::write(database.join("info/picket.list"), format!("/.\n{}\n", home.exe().display())).unwrap();
    let status = "Package: picket\nStatus: install ok installed\nMaintainer: m <m@example.com>\nArchitecture: all\n\
                  Version: 1.0.0\nDescription: d\n\n";
    fs::write(database.join("status"), status).unwrap();
    let refused = home.run_as(&home.exe(), &APPLY, &[("DPKG_ADMINDIR", database.to_str().unwrap())]).expect(21);
    for words in ["belongs to the package picket", "apt upgrade"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    home.assert_untouched();
    assert_eq!(home.server.requests(), [""; 0], "nothing was asked for");

    let cellar = home.path("Cellar/picket/1.0.0/bin/picket");
    fs::create_dir_all(cellar.parent().unwrap()).unwrap();
    fs::copy(&home.first.exe, &cellar).unwrap();
    let brewed = home.run_as(&cellar, &APPLY, &[]).expect(21);
    assert!(brewed.stderr.contains("`brew upgrade picket`"), "{}", brewed.stderr);
    assert_eq!(fs::read(&cellar).unwrap(), fs::read(&home.first.exe).unwrap());
}

#[test]
fn an_installations_file_is_left_to_it() {
    let home = Home::new();
    let prefix = Prefix::new(&home.server.url());
    prefix.install(&home.first, &home.vendor.root_file());
    // Somebody put a file in the place of the installation's link.
    let link = prefix.path("usr/local/bin/picket");
    fs::remove_file(&link).unwrap();
    fs::copy(&home.first.exe, &link).unwrap();
    let refused = home.run_as(&link, &APPLY, &[]).expect(21);
    for words in ["belongs to the installation in", "picket update apply --prefix"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    assert_eq!(fs::read(&link).unwrap(), fs::read(&home.first.exe).unwrap());
}

#[test]
fn what_an_interrupted_update_left_is_in_nobodys_way() {
    let home = Home::new();
    let left = home.path("bin/.picket-update");
    fs::create_dir_all(left.join("unpacked")).unwrap();
    fs::write(left.join("picket"), "half").unwrap();
    home.picket(&["update", "apply", "--yes"]).expect(0);
    assert!(!left.exists());
    assert!(home.version().contains("2.0.0"));
}

#[test]
fn it_lists_releases_too() {
    let home = Home::new();
    let listed = home.picket(&["update", "check", "--releases"]).expect(0);
    assert!(listed.stdout.starts_with("v2.0.0  "), "{}", listed.stdout);
    let github = FakeGitHub::start();
    github.release("v7.0.0", "seven", false, &[]);
    let variables = [("PICKET_UPDATE_RELEASES", github.releases()), ("PICKET_UPDATE_RELEASES_API", github.api_url())];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let listed = home.run_as(&home.exe(), &["update", "check", "--releases"], &variables).expect(0);
    assert!(listed.stdout.contains("    seven"), "{}", listed.stdout);
}
