//! The vendor's side through the binary: keys, thresholds, offline signing, determinism, and minisign's own word.

use picket_testkit::{Fault, Prefix, Ran, build};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A vendor's desk: the plain build, a folder, a passphrase in the environment.
pub(crate) struct Desk {
    dir: TempDir,
    pub(crate) runner: Prefix,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let mut runner = Prefix::new("http://127.0.0.1:9");
        runner.set("PICKET_RELEASE_PASSPHRASE", "correct horse");
        Self { dir: tempfile::tempdir().unwrap(), runner }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        // Paths in the arguments are relative to the desk.
        let place = |word: &&str| {
            word.strip_prefix('@').map_or_else(|| (*word).to_owned(), |name| self.path(name).display().to_string())
        };
        let arguments: Vec<String> = arguments.iter().map(place).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.runner.run_with(Path::new(env!("CARGO_BIN_EXE_picket")), &arguments)
    }

    pub(crate) fn keys(&self, names: &[(&str, &str)]) {
        for (kind, name) in names {
            self.run(&["release", "keygen", kind, "--out", &format!("@{name}")]).expect(0);
        }
    }

    /// A repository whose root needs two of three signatures.
    pub(crate) fn init(&self) {
        self.keys(&[
            ("root", "root1"),
            ("root", "root2"),
            ("root", "root3"),
            ("targets", "targets"),
            ("online", "online"),
        ]);
        self.keys(&[("minisign", "minisign")]);
        let roots = ["--root-key", "@root1.pub", "--root-key", "@root2.pub", "--root-key", "@root3.pub"];
        let rest = [
            "--root-threshold",
            "2",
            "--targets-key",
            "@targets.pub",
            "--online-key",
            "@online.pub",
            "--minisign-key",
            "@minisign.pub",
        ];
        self.run(&[&["release", "init", "--repo", "@repo"], &roots[..], &rest[..]].concat()).expect(0);
    }

    pub(crate) fn sign_root(&self) {
        self.run(&["release", "sign", "--repo", "@repo", "--key", "@root1", "--yes"]).expect(0);
        self.run(&["release", "sign", "--repo", "@repo", "--key", "@root3", "--yes"]).expect(0);
    }

    pub(crate) fn add(&self, version: &str) -> Ran {
        let archive = build("1.0.0", Fault::None).archive;
        let archive = archive.to_str().unwrap();
        let target = "x86_64-unknown-linux-musl";
        self.run(&[
            "release",
            "add",
            "--repo",
            "@repo",
            version,
            archive,
            "--target",
            target,
            "--minisign-key",
            "@minisign",
        ])
    }

    pub(crate) fn publish(&self) -> Ran {
        self.run(&["release", "publish", "--repo", "@repo", "--key", "@targets", "--key", "@online", "--out", "@tree"])
    }
}

#[test]
fn a_root_is_in_force_only_with_enough_signatures_one_of_them_made_on_another_machine() {
    let desk = Desk::new();
    desk.init();
    assert!(desk.add("1.0.0").expect(1).stderr.contains("the root is not signed yet"));
    let signed = desk.run(&["release", "sign", "--repo", "@repo", "--key", "@root1", "--yes"]).expect(0);
    assert!(signed.stdout.contains("root 1: 1 of 2 signatures"), "{}", signed.stdout);
    let stranger = desk.run(&["release", "sign", "--repo", "@repo", "--key", "@targets", "--yes"]).expect(1);
    assert!(stranger.stderr.contains("is no root or targets key"), "{}", stranger.stderr);

    // Another machine has the document and a key, and nothing else.
    let away = tempfile::tempdir().unwrap();
    fs::copy(desk.path("repo/staged/root.json"), away.path().join("root.json")).unwrap();
    let (document, signature) = (away.path().join("root.json"), away.path().join("root.sig"));
    let shown = desk
        .run(&[
            "release",
            "sign",
            "--document",
            document.to_str().unwrap(),
            "--key",
            "@root2",
            "--out",
            signature.to_str().unwrap(),
            "--yes",
        ])
        .expect(0);
    assert!(shown.stderr.contains("root: 2 of 3 keys"), "a person does not see what is signed: {}", shown.stderr);
    let attached = desk.run(&["release", "sign", "--repo", "@repo", "--attach", signature.to_str().unwrap()]).expect(0);
    assert!(attached.stdout.contains("root 1: 2 of 2 signatures"), "{}", attached.stdout);
    desk.add("1.0.0").expect(0);
    desk.publish().expect(0);
    let root = desk.path("repo/metadata/1.root.json");
    let verified = desk.run(&[
        "release",
        "verify",
        "@tree",
        "--root",
        root.to_str().unwrap(),
        "--from",
        "0.9.0",
        "--target",
        "x86_64-unknown-linux-musl",
    ]);
    assert!(verified.expect(0).stdout.contains("would: try release 1.0.0"));
}

#[test]
fn a_release_under_a_threshold_waits_for_the_second_signature() {
    let desk = Desk::new();
    desk.keys(&[
        ("root", "root"),
        ("targets", "t1"),
        ("targets", "t2"),
        ("online", "online"),
        ("minisign", "minisign"),
    ]);
    desk.run(&[
        "release",
        "init",
        "--repo",
        "@repo",
        "--root-key",
        "@root.pub",
        "--targets-key",
        "@t1.pub",
        "--targets-key",
        "@t2.pub",
        "--targets-threshold",
        "2",
        "--online-key",
        "@online.pub",
        "--minisign-key",
        "@minisign.pub",
    ])
    .expect(0);
    desk.run(&["release", "sign", "--repo", "@repo", "--key", "@root", "--yes"]).expect(0);
    desk.add("1.0.0").expect(0);
    let publish = ["release", "publish", "--repo", "@repo", "--key", "@t1", "--key", "@online", "--out", "@tree"];
    let waiting = desk.run(&publish).expect(7);
    assert!(waiting.stdout.contains("targets 1 has 1 of 2 signatures; nothing was published"), "{}", waiting.stdout);
    assert!(!desk.path("tree").exists());
    desk.run(&["release", "sign", "--repo", "@repo", "--key", "@t2", "--yes"]).expect(0);
    desk.run(&publish).expect(0);
    desk.run(&["release", "verify", "@tree"]).expect(0);
}

#[test]
fn minisigns_own_tool_verifies_what_we_sign_and_we_open_what_it_makes() {
    let desk = Desk::new();
    desk.init();
    desk.sign_root();
    desk.add("1.0.0").expect(0);
    desk.publish().expect(0);
    let artifact = desk.path("tree/download/1.0.0/picket-1.0.0-x86_64-unknown-linux-musl.tar.xz");
    let minisign =
        |arguments: &[&str]| Command::new("minisign").args(arguments).output().expect("minisign is installed");
    let key = desk.path("minisign.pub");
    let verified = minisign(&["-Vm", artifact.to_str().unwrap(), "-p", key.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success(), "{said}");
    assert!(said.contains("Trusted comment: picket 1.0.0 x86_64-unknown-linux-musl "), "{said}");
    fs::OpenOptions::new()
        .append(true)
        .open(&artifact)
        .map(|mut file| std::io::Write::write_all(&mut file, b"x"))
        .unwrap()
        .unwrap();
    assert!(!minisign(&["-Vm", artifact.to_str().unwrap(), "-p", key.to_str().unwrap()]).status.success());

    // A key that minisign made, without a passphrase, signs for us.
    let (secret, public) = (desk.path("theirs"), desk.path("theirs.pub"));
    let made = minisign(&["-G", "-W", "-s", secret.to_str().unwrap(), "-p", public.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = picket_release::minisign::SecretKey::load(&secret, b"").unwrap();
    assert_eq!(key.public_line(), picket_release::minisign::public_line(&public).unwrap());
}

#[test]
fn the_same_inputs_give_the_same_tree() {
    let mut desk = Desk::new();
    desk.runner.set("SOURCE_DATE_EPOCH", "1800000000");
    desk.init();
    desk.sign_root();
    // A copy of the signed repository, published twice.
    for copy in ["a", "b"] {
        let status = Command::new("cp").args(["-r"]).arg(desk.path("repo")).arg(desk.path(copy)).status().unwrap();
        assert!(status.success());
        let archive = build("1.0.0", Fault::None).archive;
        let repo = format!("@{copy}");
        desk.run(&[
            "release",
            "add",
            "--repo",
            &repo,
            "1.0.0",
            archive.to_str().unwrap(),
            "--target",
            "x86_64-unknown-linux-musl",
            "--minisign-key",
            "@minisign",
        ])
        .expect(0);
        let out = format!("@tree-{copy}");
        desk.run(&["release", "publish", "--repo", &repo, "--key", "@targets", "--key", "@online", "--out", &out])
            .expect(0);
    }
    let difference = Command::new("diff").arg("-r").arg(desk.path("tree-a")).arg(desk.path("tree-b")).output().unwrap();
    assert!(difference.status.success(), "{}", String::from_utf8_lossy(&difference.stdout));
}

#[test]
fn a_published_release_never_changes_and_a_key_is_never_replaced() {
    let desk = Desk::new();
    desk.init();
    desk.sign_root();
    desk.add("1.0.0").expect(0);
    desk.publish().expect(0);
    assert!(desk.add("1.0.0").expect(1).stderr.contains("a published release never changes"));
    let again = desk.run(&["release", "keygen", "root", "--out", "@root1"]).expect(1);
    assert!(again.stderr.contains("a key is never replaced"), "{}", again.stderr);
    let yank = desk.run(&["release", "yank", "--repo", "@repo", "1.0.0", "--reason", "bad"]).expect(1);
    assert!(yank.stderr.contains("the only release"), "{}", yank.stderr);
}

#[test]
fn a_refresh_renews_only_the_timestamp_and_a_root_can_be_renewed() {
    let desk = Desk::new();
    desk.init();
    desk.sign_root();
    desk.add("1.0.0").expect(0);
    desk.publish().expect(0);
    let refresh =
        desk.run(&["release", "refresh", "--repo", "@repo", "--key", "@online", "--out", "@tree", "--json"]).expect(0);
    let versions = refresh.json();
    assert_eq!((&versions["timestamp"], &versions["snapshot"]), (&2.into(), &1.into()));

    let keys = ["--root-key", "@root1.pub", "--root-key", "@root2.pub", "--targets-key", "@targets.pub"];
    let rest =
        ["--root-threshold", "2", "--online-key", "@online.pub", "--minisign-key", "@minisign.pub", "--next-root"];
    desk.run(&[&["release", "init", "--repo", "@repo"], &keys[..], &rest[..]].concat()).expect(0);
    // Two of the old keys, and both of the new ones: root1 and root2 are in each.
    desk.run(&["release", "sign", "--repo", "@repo", "--key", "@root1", "--yes"]).expect(0);
    assert!(!desk.path("repo/metadata/2.root.json").exists());
    desk.run(&["release", "sign", "--repo", "@repo", "--key", "@root2", "--yes"]).expect(0);
    desk.publish().expect(0);
    let first_root = desk.path("repo/metadata/1.root.json");
    let verified =
        desk.run(&["release", "verify", "@tree", "--root", first_root.to_str().unwrap(), "--json"]).expect(0);
    assert_eq!(verified.json()["root"], 2, "a client of the first root does not follow to the second");
}

#[test]
fn an_artifact_may_leave_the_repository_once_it_is_published_and_not_before() {
    let desk = Desk::new();
    desk.init();
    desk.sign_root();
    desk.add("1.0.0").expect(0);
    let file = |version: &str| {
        desk.path(&format!("repo/artifacts/{version}/picket-{version}-x86_64-unknown-linux-musl.tar.xz"))
    };
    let aside = desk.path("aside");
    fs::rename(file("1.0.0"), &aside).unwrap();
    desk.publish().expect(1);
    fs::rename(&aside, file("1.0.0")).unwrap();
    desk.publish().expect(0);

    fs::remove_dir_all(desk.path("repo/artifacts/1.0.0")).unwrap();
    desk.add("1.1.0").expect(0);
    // Into the tree that has it: nothing is missing there.
    desk.publish().expect(0);
    desk.run(&["release", "verify", "@tree", "--all"]).expect(0);
    // Into another one: that tree would lack what its metadata promises.
    let keys = ["--key", "@targets", "--key", "@online"];
    let elsewhere = desk.run(&[&["release", "publish", "--repo", "@repo", "--out", "@new"], &keys[..]].concat());
    assert!(elsewhere.expect(1).stderr.contains("the --out folder that machines follow now"));
    // As GitHub's assets: each version has a release of its own, and keeps it.
    let github = [&["release", "publish", "--repo", "@repo", "--github", "@assets"], &keys[..]].concat();
    let told = desk.run(&github).expect(0).stderr;
    assert!(told.contains("1.0.0/picket-1.0.0-x86_64-unknown-linux-musl.tar.xz is not in the repository"), "{told}");
    assert!(!desk.path("assets/v1.0.0").exists());
    assert!(desk.path("assets/v1.1.0/picket-1.1.0-x86_64-unknown-linux-musl.tar.xz.minisig").exists());
}

#[test]
fn a_signature_that_does_not_hold_counts_for_nothing() {
    let desk = Desk::new();
    desk.init();
    let sign = |key: &str, out: &str| {
        let words = ["release", "sign", "--document", "@repo/staged/root.json", "--yes"];
        desk.run(&[&words[..], &["--key", key, "--out", out]].concat()).expect(0);
    };
    sign("@root1", "@one.sig");
    sign("@root2", "@two.sig");
    desk.run(&["release", "sign", "--repo", "@repo", "--attach", "@one.sig"]).expect(0);
    // Two digits of the signature changed: as from another draft, or from a bad line.
    let mut signature: serde_json::Value = serde_json::from_slice(&fs::read(desk.path("two.sig")).unwrap()).unwrap();
    let text = signature["sig"].as_str().unwrap();
    let changed = format!("{}{}", if text.starts_with("00") { "11" } else { "00" }, &text[2..]);
    signature["sig"] = changed.into();
    fs::write(desk.path("bad.sig"), signature.to_string()).unwrap();
    let refused = desk.run(&["release", "sign", "--repo", "@repo", "--attach", "@bad.sig"]).expect(1);
    assert!(refused.stderr.contains("made for another draft, or damaged"), "{}", refused.stderr);
    assert!(!desk.path("repo/metadata/1.root.json").exists());
    desk.run(&["release", "sign", "--repo", "@repo", "--attach", "@two.sig"]).expect(0);
    assert!(desk.path("repo/metadata/1.root.json").exists());
}

#[test]
fn a_repository_survives_git_which_keeps_no_empty_folders() {
    let desk = Desk::new();
    desk.init();
    desk.sign_root();
    fs::remove_dir(desk.path("repo/staged")).unwrap();
    fs::remove_dir(desk.path("repo/channels")).unwrap();
    desk.add("1.0.0").expect(0);
    desk.publish().expect(0);
    fs::remove_dir(desk.path("repo/staged")).unwrap();
    desk.publish().expect(0);
}

#[test]
fn a_refresh_does_not_bring_out_a_root_under_which_nothing_is_signed_yet() {
    let desk = Desk::new();
    desk.init();
    desk.sign_root();
    desk.add("1.0.0").expect(0);
    desk.publish().expect(0);
    desk.keys(&[("targets", "targets2")]);
    let keys = ["--root-key", "@root1.pub", "--root-key", "@root2.pub", "--root-key", "@root3.pub"];
    let rest = ["--root-threshold", "2", "--targets-key", "@targets2.pub", "--online-key", "@online.pub"];
    let last = ["--minisign-key", "@minisign.pub", "--next-root"];
    desk.run(&[&["release", "init", "--repo", "@repo"], &keys[..], &rest[..], &last[..]].concat()).expect(0);
    desk.sign_root();
    let refresh = ["release", "refresh", "--repo", "@repo", "--key", "@online", "--out", "@tree"];
    assert!(desk.run(&refresh).expect(1).stderr.contains("`picket release publish` first"));
    desk.run(&["release", "verify", "@tree"]).expect(0);
    let publish = ["release", "publish", "--repo", "@repo", "--key", "@targets2", "--key", "@online"];
    desk.run(&[&publish[..], &["--out", "@tree"]].concat()).expect(0);
    desk.run(&refresh).expect(0);
    desk.run(&["release", "verify", "@tree"]).expect(0);
}

#[test]
fn a_secret_is_never_printed_and_never_taken_from_the_command_line() {
    let mut desk = Desk::new();
    let made = desk.run(&["release", "keygen", "root", "--out", "@root"]).expect(0);
    let secret = fs::read_to_string(desk.path("root")).unwrap();
    let body = secret.lines().nth(1).unwrap();
    assert!(!made.stdout.contains(body) && !made.stdout.contains("correct horse"));
    desk.runner.set("PICKET_RELEASE_PASSPHRASE", "wrong horse");
    let wrong = desk.run(&["release", "sign", "--document", "@root.pub", "--key", "@root", "--out", "@x", "--yes"]);
    assert!(!wrong.stderr.contains("horse"), "{}", wrong.stderr);
    let help = desk.run(&["release", "sign", "--help"]).expect(0).stdout;
    assert!(!help.contains("--passphrase <"), "a passphrase can be given where everybody sees it");
}
