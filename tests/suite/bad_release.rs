//! The runbook for a bad release, walked through: each command it names is run as it stands, against real machines.

use picket_testkit::{Build, Fault, Prefix, ReleaseServer, build, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A block of commands in the runbook.
struct Block {
    heading: String,
    on_a_machine: bool,
    commands: String,
}

fn runbook() -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbooks/bad-release.md");
    let (mut blocks, mut heading, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in fs::read_to_string(path).unwrap().lines() {
        match (&mut open, line) {
            (Some(_), "```") => blocks.extend(open.take()),
            (Some(block), line) => block.commands.extend([line, "\n"]),
            (None, "```sh" | "```sh machine") => {
                let on_a_machine = line.ends_with("machine");
                open = Some(Block { heading: heading.clone(), on_a_machine, commands: String::new() });
            }
            (None, line) => heading = line.strip_prefix("## ").map_or(heading, str::to_owned),
        }
    }
    blocks
}

/// A vendor's desk: a folder with keys, a repository, and `picket` on the path.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(desk.path("bin")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_picket"), desk.path("bin/picket")).unwrap();
        fs::write(desk.path("passphrase"), "correct horse\n").unwrap();
        for kind in ["root", "targets", "online", "minisign"] {
            desk.run(&format!("picket release keygen {kind} --out {kind}.key"));
        }
        desk.run(
            "picket release init --repo releases --root-key root.key.pub --targets-key targets.key.pub \
             --online-key online.key.pub --minisign-key minisign.key.pub
             picket release sign --repo releases --key root.key --yes",
        );
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs commands in the desk's folder and returns what they printed.
    fn run(&self, commands: &str) -> String {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let (fix, target) = (build("3.0.0", Fault::None), build("1.0.0", Fault::None).target);
        let output = Command::new("bash")
            .args(["-euc", commands])
            .current_dir(self.dir.path())
            .env("PATH", path)
            .envs([
                ("BAD", "2.0.0"),
                ("GOOD", "1.0.0"),
                ("REASON", "it fills disks"),
                ("TREE", "tree"),
                ("FIX", "3.0.0"),
            ])
            .envs([("PICKET_RELEASE_PASSPHRASE_FILE", "passphrase"), ("TARGET", &target.to_string())])
            .env("FILE", &fix.archive)
            .output()
            .unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{commands}\n{stdout}\n{stderr}");
        stdout.into_owned()
    }

    fn release(&self, build: &Build) {
        let Build { version, archive, target, .. } = build;
        self.run(&format!(
            "picket release add {version} {} --repo releases --target {target} --minisign-key minisign.key
             picket release publish --repo releases --key targets.key --key online.key --out tree",
            archive.display()
        ));
    }

    fn machine(&self, server: &ReleaseServer) -> Prefix {
        let prefix = Prefix::with_config(&format!("update:\n  releases: {}\n  auto: all\n", server.url()));
        prefix.install(&build("1.0.0", Fault::None), &self.path("releases/metadata/1.root.json"));
        prefix
    }
}

fn assert_on(machine: &Prefix, version: &str) {
    wait_until(&format!("version {version} to answer, proven"), || {
        machine.running_version().as_deref() == Some(version) && machine.current() == version
    });
}

#[test]
fn the_runbook_for_a_bad_release_does_what_it_says() {
    let desk = Desk::new();
    desk.release(&build("1.0.0", Fault::None));
    let server = ReleaseServer::start(&desk.path("tree"));
    let (hit, spared) = (desk.machine(&server), desk.machine(&server));
    desk.release(&build("2.0.0", Fault::None));
    hit.picket(&["update", "run"]).expect(0);
    assert_on(&hit, "2.0.0");

    let mut walked = Vec::new();
    for Block { heading, on_a_machine, commands } in runbook() {
        if on_a_machine {
            for line in commands.lines() {
                let words: Vec<&str> = line.split(' ').skip(1).collect();
                hit.picket(&words).expect(0);
            }
            assert_on(&hit, "1.0.0");
            let refused = hit.picket(&["update", "rollback", "--yes"]).expect(21);
            assert!(refused.stderr.contains("it fills disks"), "{}", refused.stderr);
            walked.push("a machine".to_owned());
            continue;
        }
        let told = desk.run(&commands);
        match heading.as_str() {
            "1. Stop" => {
                assert!(told.contains("the vendor stopped the rollout"), "{told}");
                spared.picket(&["update", "run"]).expect(0);
                hit.picket(&["update", "run"]).expect(0);
                assert_on(&spared, "1.0.0");
                assert_on(&hit, "2.0.0");
            }
            "2. See how far it went" => assert!(told.contains("spared by a stop"), "{told}"),
            "4. Yank" => assert!(told.contains("try release 1.0.0"), "{told}"),
            "5. Bring out the fix" => {
                assert!(told.contains("3.0.0"), "{told}");
                spared.picket(&["update", "run"]).expect(0);
                let available = spared.status()["available"].clone();
                assert_eq!((&available["version"], &available["turn"]["waves"]), (&"3.0.0".into(), &3.into()));
            }
            other => panic!("nothing is known of {other:?}: say here what its commands must do"),
        }
        walked.push(heading);
    }
    assert_eq!(walked, ["1. Stop", "2. See how far it went", "4. Yank", "a machine", "5. Bring out the fix"]);

    // The other way out of a halt, which the table under "Decide" names.
    desk.run("picket release stop 3.0.0 --repo releases --reason 'a false alarm'");
    desk.run("picket release resume 3.0.0 --repo releases");
}
