//! Whose the agent's files are, whoever works on them.

use crate::cache::queued;
use crate::data::{exe, filled, picket, text};
use picket_protocol::event::Priority;
use picket_testkit::Ran;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;

#[test]
fn what_root_does_in_another_users_folders_is_that_users_and_reaches_no_further() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let prefix = filled(50);
    queued(&prefix, &[(Priority::Low, 2)]);
    fs::set_permissions(prefix.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let state = prefix.path("var/lib/picket");
    let owner = 54_321;
    let everything = || -> Vec<PathBuf> {
        let names = prefix.listing().into_iter().map(|name| prefix.path(&name));
        names.filter(|path| path.starts_with(&state)).collect()
    };
    for path in everything() {
        std::os::unix::fs::lchown(path, Some(owner), Some(owner)).unwrap();
    }
    let backup = prefix.path("b.enc");
    let commands: [&[&str]; 9] = [
        &["data", "stats"],
        &["data", "verify"],
        &["data", "backup", "--output", &text(&backup)],
        &["data", "export-json", "--output", &text(&prefix.path("all.json"))],
        &["data", "cleanup", "--days", "1"],
        &["data", "recover"],
        &["data", "restore", "--yes", &text(&backup)],
        &["cache", "clean", "--yes"],
        &["data", "rekey"],
    ];
    for command in commands {
        picket(&prefix, command).expect(0);
        for path in everything() {
            assert_eq!(path.symlink_metadata().unwrap().uid(), owner, "{command:?} made {}", path.display());
        }
    }
    assert_eq!(backup.metadata().unwrap().uid(), 0);
    // Links that a subverted agent leaves where files are made.
    let victim = prefix.path("victim");
    fs::write(&victim, "root's own").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    for name in ["store/store.lock", "store/picket.db.unproven", "outbox/clean.wish", "outbox/outbox.lock", "store.key"]
    {
        let link = state.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        for command in commands {
            picket(&prefix, command);
        }
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "root's own");
    let stranger = |arguments: &[&str]| -> Ran {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "54322", "--regid", "54322", "--clear-groups"]).arg(exe()).args(arguments);
        command.env("PICKET_PREFIX", prefix.path("")).output().unwrap().into()
    };
    let refused = stranger(&["data", "stats"]).expect(4);
    assert!(
        refused.stderr.contains("belongs to another user") && refused.stderr.contains("sudo"),
        "{}",
        refused.stderr
    );
}
