//! `picket dev`: everything in one process, and nothing of it afterwards.

use picket_testkit::{Fault, Prefix, build, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

struct Dev {
    child: Child,
    made: Value,
    tmp: tempfile::TempDir,
}

impl Dev {
    fn start() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = Command::new(build("1.0.0", Fault::None).exe)
            .args(["dev", "--json"])
            .env("TMPDIR", tmp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(tmp.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut text = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            text.push_str(&line.unwrap());
            if text.ends_with('}') {
                break;
            }
        }
        let made = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        Self { child, made, tmp }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.tmp.path().join("log")).unwrap()
    }

    fn at(&self, key: &str) -> PathBuf {
        PathBuf::from(self.made[key].as_str().unwrap())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folders(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.path().is_dir()).count()
}

#[test]
fn dev_runs_hub_and_agent_finds_what_changes_and_leaves_nothing_behind() {
    let mut dev = Dev::start();
    for address in ["api", "agents"] {
        assert!(dev.made[address].as_str().unwrap().starts_with("https://127.0.0.1:"), "{}", dev.made);
    }
    assert!(dev.at("folder").starts_with(dev.tmp.path()) && dev.at("ca").exists());
    for secret in ["password", "token"] {
        let secret = dev.made[secret].as_str().unwrap();
        assert!(secret.len() >= 20 && !dev.log().contains(secret));
    }
    let watched = PathBuf::from(dev.made["watched"][0].as_str().unwrap());
    // What is changed before the watcher has its baseline is no change.
    let port = dev.made["agent_health"].as_str().unwrap().split([':', '/']).nth(4).unwrap().parse().unwrap();
    let anywhere = Prefix::new("http://127.0.0.1:9");
    wait_until("the agent to watch", || {
        let health = anywhere.get(port, "/health", "").and_then(|(_, text)| serde_json::from_str::<Value>(&text).ok());
        health.is_some_and(|health| health["checks"]["files"]["status"] == "pass")
    });
    fs::write(watched.join(".ssh/authorized_keys"), "ssh-ed25519 AAAA").unwrap();
    wait_until("a finding", || dev.log().contains("a finding"));
    kill_process(Pid::from_child(&dev.child), Signal::INT).unwrap();
    assert!(dev.child.wait().unwrap().success(), "{}", dev.log());
    assert_eq!(folders(dev.tmp.path()), 0, "{}", dev.log());
}
