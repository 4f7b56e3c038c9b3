//! The operator's hooks around an update: when they are run, as whom, for how long, what they are told, and which are not.

use crate::update::Fleet;
use picket_testkit::{Fault, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

impl Fleet {
    /// Writes a hook into a folder such as `update.d/before`.
    fn hook(&self, folder: &str, name: &str, script: &str) -> PathBuf {
        let dir = self.prefix.path(&format!("etc/picket/{folder}"));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        // Another file in its place: one that is being executed is busy.
        let fresh = dir.join(".new");
        fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, &path).unwrap();
        path
    }

    /// A hook after updates that writes what it is told to the file that this returns.
    fn listen(&self) -> PathBuf {
        let told = self.prefix.path("told");
        self.hook("update.d/after", "10-tell", &format!("env | sort >> {}", told.display()));
        told
    }

    /// What the hooks of one kind said at the last update.
    fn said(&self, kind: &str) -> Vec<serde_json::Value> {
        let history = self.prefix.picket(&["update", "history", "--json"]).expect(0).json();
        let hooks = history[0]["evidence"]["hooks"].as_array().unwrap().clone();
        hooks.into_iter().filter(|hook| hook["kind"] == kind).collect()
    }
}

fn text(path: &PathBuf) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_hook_before_the_trial_that_fails_keeps_the_update_from_it_and_the_next_check_tries_again() {
    let fleet = Fleet::with_config("  auto: all\n");
    let told = fleet.listen();
    let ran = fleet.prefix.path("ran");
    fleet.hook("update.d/before", "10-drain", &format!("echo drained >> {}", ran.display()));
    let hook = fleet.hook("update.d/before", "20-batch", "echo the nightly batch runs >&2; exit 1");
    fleet.hook("update.d/before", "30-late", &format!("echo late >> {}", ran.display()));
    fleet.release("2.0.0", Fault::None);
    let pid = fleet.prefix.health("/livez").unwrap().1["pid"].clone();
    let refused = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
    let reason = refused["reason"].as_str().unwrap();
    assert!(reason.starts_with("not tried: the hook ") && reason.contains("the nightly batch runs"), "{refused}");
    assert!(reason.contains(&hook.display().to_string()), "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("chmod a-x"), "{refused}");
    assert_eq!(fleet.prefix.health("/livez").unwrap().1["pid"], pid, "the agent was restarted");
    assert_eq!(text(&ran), "drained\n", "a hook ran after the one that failed");
    assert_eq!(fleet.prefix.status()["held"].as_array().unwrap().len(), 0, "it is held");
    // What the first of them did can be undone.
    assert!(text(&told).contains("PICKET_UPDATE_OUTCOME=refused\n"), "{}", text(&told));

    fleet.hook("update.d/before", "20-batch", "exit 0");
    fleet.daily_check();
    fleet.assert_on("2.0.0");
    assert!(text(&told).contains("PICKET_UPDATE_OUTCOME=committed\n"), "{}", text(&told));
    assert_eq!(fleet.said("before").len(), 3);
}

#[test]
fn hooks_after_an_update_are_told_how_it_ended_and_nothing_else_and_their_failure_is_only_written_down() {
    let fleet = Fleet::new();
    let told = fleet.listen();
    fleet.hook("update.d/after", "20-sad", "echo nobody answers; exit 3");
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    let lines = text(&told);
    let names: Vec<&str> = lines.lines().map(|line| line.split_once('=').unwrap().0).collect();
    let by_the_shell = ["OLDPWD", "PWD", "SHLVL", "_"];
    let names: Vec<&str> = names.into_iter().filter(|name| !by_the_shell.contains(name)).collect();
    assert_eq!(
        names,
        [
            "HOME",
            "LANG",
            "LOGNAME",
            "PATH",
            "PICKET_HOOK",
            "PICKET_HOOK_KIND",
            "PICKET_UPDATE_ASKED_BY",
            "PICKET_UPDATE_FROM",
            "PICKET_UPDATE_ID",
            "PICKET_UPDATE_KIND",
            "PICKET_UPDATE_OUTCOME",
            "PICKET_UPDATE_REASON",
            "PICKET_UPDATE_TO",
            "SHELL",
            "USER",
        ]
    );
    for line in ["FROM=1.0.0", "TO=2.0.0", "KIND=release", "OUTCOME=committed"] {
        assert!(lines.contains(&format!("PICKET_UPDATE_{line}\n")), "{line} is missing in {lines}");
    }
    let said = fleet.said("after");
    assert_eq!((said.len(), &said[1]["ok"], &said[1]["required"]), (2, &false.into(), &false.into()), "{said:?}");
    assert_eq!(
        (&said[1]["detail"], &said[1]["output"]),
        (&"exit status: 3: nobody answers".into(), &"nobody answers".into())
    );

    fleet.release("3.0.0", Fault::Crash);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(20);
    fleet.assert_on("2.0.0");
    let lines = text(&told);
    let last = lines.rsplit("PICKET_HOOK=").next().unwrap();
    assert!(last.contains("PICKET_UPDATE_OUTCOME=rolled-back\n") && last.contains("TO=3.0.0\n"), "{last}");
}

#[test]
fn a_crash_between_the_hooks_before_and_the_trial_is_told_to_those_after() {
    let mut fleet = Fleet::new();
    let told = fleet.listen();
    fleet.hook("update.d/before", "10-drain", "exit 0");
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.cut_power();
    fleet.prefix.set("PICKET_FAILPOINT", "snapshot-done-before");
    fleet.prefix.boot();
    assert_ne!(fleet.prefix.picket(&["update", "apply", "--yes"]).code, 0);
    fleet.prefix.cut_power();
    fleet.prefix.unset("PICKET_FAILPOINT");
    fleet.prefix.boot();
    fleet.assert_on("1.0.0");
    assert_eq!(text(&told).matches("PICKET_UPDATE_OUTCOME=interrupted\n").count(), 1, "{}", text(&told));
}

#[test]
fn a_hook_after_an_update_that_was_told_is_not_told_again_by_a_recovery() {
    let mut fleet = Fleet::new();
    let told = fleet.listen();
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.cut_power();
    fleet.prefix.set("PICKET_FAILPOINT", "settle-told");
    fleet.prefix.boot();
    assert_ne!(fleet.prefix.picket(&["update", "apply", "--yes"]).code, 0);
    fleet.prefix.cut_power();
    fleet.prefix.unset("PICKET_FAILPOINT");
    fleet.prefix.boot();
    fleet.assert_on("2.0.0");
    assert_eq!(text(&told).matches("PICKET_UPDATE_OUTCOME=committed\n").count(), 1, "{}", text(&told));
}

#[test]
fn a_hook_after_an_update_that_ends_its_updater_is_run_twice_and_no_more() {
    let fleet = Fleet::new();
    let told = fleet.prefix.path("told");
    // The parent of its parent: the updater, or whoever recovers.
    let script = format!(
        "echo $PICKET_UPDATE_OUTCOME >> {}; read -r _ _ _ up _ < /proc/$PPID/stat; kill -9 $up",
        told.display()
    );
    fleet.hook("update.d/after", "10-reboot", &script);
    fleet.release("2.0.0", Fault::None);
    assert_ne!(fleet.prefix.picket(&["update", "apply", "--yes"]).code, 0);
    wait_until("the update to be settled", || {
        fleet.prefix.picket(&["update", "recover"]);
        fleet.prefix.status()["running"].is_null()
    });
    fleet.assert_on("2.0.0");
    assert_eq!(text(&told), "committed\ncommitted\n");
}

#[test]
fn a_hook_ends_at_its_limit_and_everything_that_it_started_with_it() {
    let fleet = Fleet::with_config("  hook_limit: 1s\n");
    let pids = fleet.prefix.path("pids");
    let runaway = format!("setsid sh -c 'echo $$ >> {}; exec sleep 1000' &", pids.display());
    let gone = |count: usize| {
        wait_until("what the hooks left to be gone", || {
            let pids = text(&pids);
            let left = pids.lines().any(|pid| fs::exists(format!("/proc/{pid}")).unwrap());
            pids.lines().count() == count && !left
        });
    };
    fleet.hook("update.d/before", "10-slow", &format!("{runaway}\nsleep 1000"));
    fleet.release("2.0.0", Fault::None);
    let refused = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
    assert!(refused["reason"].as_str().unwrap().contains("no end after 1 s"), "{refused}");
    gone(1);
    // One that ends in time keeps nothing running either, and nobody waits for it.
    fleet.hook(
        "update.d/before",
        "10-slow",
        &format!("{runaway}\nwhile [ \"$(wc -l < {})\" -lt 2 ]; do :; done", pids.display()),
    );
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    gone(2);
}

#[test]
fn hooks_run_as_the_user_that_the_configuration_names_or_not_at_all() {
    let fleet = Fleet::with_config("  hook_user: nobody\n");
    let own = fleet.prefix.path("own");
    let script = format!("id -u; id -G; echo $HOME $USER; touch {} 2>/dev/null && exit 1; exit 0", own.display());
    fleet.hook("update.d/before", "10-who", &script);
    fleet.release("2.0.0", Fault::None);
    let config = fleet.prefix.path("etc/picket/config.yaml");
    let text = fs::read_to_string(&config).unwrap();
    if rustix::process::geteuid().is_root() {
        // One that the user may not read is not run as somebody who may.
        let secret = fleet.hook("update.d/before", "20-secret", "exit 0");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
        let refused = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
        assert!(refused["reason"].as_str().unwrap().contains("cannot be run as nobody"), "{refused}");
        let said = fleet.said("before");
        let user = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        let expected = format!("{}\n{}\n{} nobody", user.uid, user.gid, user.dir.display());
        assert_eq!(said[0]["output"], expected, "{said:?}");
        assert!(!own.exists());
    } else {
        let refused = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
        assert!(refused["reason"].as_str().unwrap().contains("only root can run them as \"nobody\""), "{refused}");
    }
    fs::write(&config, text.replace("hook_user: nobody", "hook_user: no-such-user")).unwrap();
    let refused = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
    assert!(refused["reason"].as_str().unwrap().contains("there is no user \"no-such-user\""), "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("useradd"), "{refused}");
}

#[test]
fn a_hook_that_somebody_else_could_have_written_refuses_the_update_before_the_agent_is_restarted() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    let pid = fleet.prefix.health("/livez").unwrap().1["pid"].clone();
    let proof = fleet.prefix.path("proof");
    for folder in ["update.d/before", "health.d/required"] {
        let hook = fleet.hook(folder, "10-evil", &format!("touch {}", proof.display()));
        let dir = hook.parent().unwrap().to_owned();
        for (place, mode, usual) in [(&hook, 0o777, 0o755), (&dir, 0o770, 0o750)] {
            fs::set_permissions(place, fs::Permissions::from_mode(mode)).unwrap();
            let refused = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
            let reason = refused["reason"].as_str().unwrap();
            let expected = format!("{} may be written by others (mode {mode:04o})", place.display());
            assert!(reason.contains(&expected), "{expected}: {refused}");
            assert!(refused["hint"].as_str().unwrap().contains("chmod go-w"), "{refused}");
            fs::set_permissions(place, fs::Permissions::from_mode(usual)).unwrap();
        }
        fs::remove_file(hook).unwrap();
    }
    assert!(!proof.exists());
    assert_eq!(fleet.prefix.health("/livez").unwrap().1["pid"], pid, "the agent was restarted");
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
}

#[test]
fn a_hook_keeps_nobody_from_going_back() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.hook("update.d/before", "10-never", "echo not now; exit 1");
    fleet.prefix.picket(&["update", "rollback", "--yes"]).expect(0);
    fleet.assert_on("1.0.0");
    let said = fleet.said("before");
    assert_eq!((said.len(), &said[0]["ok"]), (1, &false.into()), "{said:?}");
}
