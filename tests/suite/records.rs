//! What the agent keeps and concludes, as people see it: the history of its configuration, and alerts.

use crate::agent::Foreground;
use picket_testkit::{Build, Prefix, Ran, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The secret part of a webhook's address.
const SECRET: &str = "T0K3N-IN-THE-PATH";

fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_picket"))
}

/// An agent of the plain build whose configuration file ends with `more`.
fn agent(more: &str) -> Foreground {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let file = prefix.path("etc/picket/config.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}{more}")).unwrap();
    start(prefix, &[])
}

fn start(prefix: Prefix, arguments: &[&str]) -> Foreground {
    fs::create_dir_all(prefix.path("var/log/picket")).unwrap();
    let build = Build {
        version: env!("CARGO_PKG_VERSION").into(),
        exe: exe().into(),
        archive: PathBuf::new(),
        target: "x86_64-unknown-linux-gnu".parse().unwrap(),
    };
    let agent = Foreground::start(&build, prefix, arguments);
    wait_until("the first entry of the history", || history(&agent).len() == 1);
    agent
}

fn run(agent: &Foreground, arguments: &[&str]) -> Ran {
    let ran = agent.prefix.run_with(exe(), arguments);
    assert!(!ran.stdout.contains(SECRET) && !ran.stderr.contains(SECRET), "a secret was told: {ran:?}");
    ran
}

fn history(agent: &Foreground) -> Vec<Value> {
    let ran = run(agent, &["config", "history", "--json"]);
    // The store is made a moment after the agent first answers.
    if ran.code == 0 { ran.json().as_array().unwrap().clone() } else { Vec::new() }
}

fn config_file(agent: &Foreground) -> PathBuf {
    agent.prefix.path("etc/picket/config.yaml")
}

fn edit(agent: &Foreground, change: impl Fn(&str) -> String) {
    let file = config_file(agent);
    fs::write(&file, change(&fs::read_to_string(&file).unwrap())).unwrap();
}

fn config_check(agent: &Foreground) -> (String, String) {
    let (_, health) = agent.prefix.health("/health").unwrap();
    let check = &health["checks"]["config"];
    (check["status"].as_str().unwrap().to_owned(), check["message"].as_str().unwrap().to_owned())
}

#[test]
fn every_configuration_that_was_in_force_is_in_the_history_with_who_when_and_a_diff() {
    let agent = agent("events: {fold: 5s}\n");
    let first = history(&agent).remove(0);
    assert_eq!((&first["cause"], &first["changed"]), (&"start".into(), &serde_json::json!([])));

    edit(&agent, |text| text.replace("fold: 5s", "fold: 7s"));
    wait_until("the change of the file to be taken", || history(&agent).len() == 2);
    let newest = history(&agent).remove(0);
    assert_eq!(newest["cause"], "file");
    let account = fs::read_to_string("/etc/passwd").unwrap();
    let own = rustix::process::getuid().as_raw().to_string();
    let me = account.lines().find(|line| line.split(':').nth(2) == Some(&own)).and_then(|line| line.split(':').next());
    assert_eq!(newest["who"].as_str(), me);
    let changed = serde_json::json!([{ "key": "events.fold", "from": "5s", "to": "7s", "needs_restart": false }]);
    assert_eq!(newest["changed"], changed);
    let diff = run(&agent, &["config", "diff"]).expect(0).stdout;
    assert!(diff.contains("  events.fold: \"5s\" -> \"7s\"\n"), "{diff}");
    let digest = first["sha256"].as_str().unwrap();
    let back = run(&agent, &["config", "diff", "current", &digest[..8], "--json"]).expect(0).json();
    assert_eq!((&back["differences"][0]["from"], &back["differences"][0]["to"]), (&"7s".into(), &"5s".into()));

    let lines = run(&agent, &["config", "history", "--limit", "1"]).expect(0).stdout;
    assert!(lines.lines().count() == 1 && lines.contains("  file "), "{lines}");
    for (pick, said) in [("ffffffff", "has a digest that begins ffffffff"), ("-3", "no 3 changes")] {
        let ran = run(&agent, &["config", "diff", pick]).expect(2);
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
}

#[test]
fn a_file_elsewhere_is_read_again_on_sighup_and_is_not_restored() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let text = fs::read_to_string(prefix.path("etc/picket/config.yaml")).unwrap();
    let elsewhere = prefix.path("elsewhere.yaml");
    fs::write(&elsewhere, format!("{text}events: {{fold: 5s}}\n")).unwrap();
    let agent = start(prefix, &["--config", elsewhere.to_str().unwrap()]);
    fs::write(&elsewhere, format!("{text}events: {{fold: 6s}}\n")).unwrap();
    agent.signal(Signal::HUP);
    wait_until("SIGHUP to be taken", || history(&agent).len() == 2);
    let newest = history(&agent).remove(0);
    assert_eq!((&newest["cause"], &newest["changed"][0]["to"]), (&"signal".into(), &"6s".into()));
    // Read again without a change, it is what is in force.
    agent.signal(Signal::HUP);
    let ran = run(&agent, &["config", "restore", "previous", "--yes"]).expect(2);
    assert!(ran.stderr.contains("elsewhere.yaml; only files of"), "{}", ran.stderr);
    assert_eq!(history(&agent).len(), 2);
}

#[test]
fn what_needs_a_restart_stays_told_until_there_was_one() {
    let agent = agent("events: {fold: 5s}\n");
    edit(&agent, |text| format!("{text}drain_limit: 6s\n"));
    wait_until("the change to be taken", || config_check(&agent).1.ends_with("picket service restart`): drain_limit"));
    edit(&agent, |text| text.replace("fold: 5s", "fold: 6s"));
    wait_until("the second change to be taken", || history(&agent).len() == 3);
    assert_eq!(history(&agent)[0]["changed"][0]["needs_restart"], false);
    let (status, message) = config_check(&agent);
    assert!(status == "warn" && message.contains("drain_limit"), "{message}");
    edit(&agent, |text| text.replace("drain_limit: 6s\n", ""));
    wait_until("nothing to wait for", || config_check(&agent).0 == "pass");
}

#[test]
fn an_unusable_configuration_changes_nothing_and_an_earlier_one_can_be_restored() {
    let agent = agent("events: {fold: 5s}\n");
    fs::set_permissions(config_file(&agent), fs::Permissions::from_mode(0o640)).unwrap();
    let good = fs::read_to_string(config_file(&agent)).unwrap();
    edit(&agent, |text| text.replace("fold: 5s", "fold: 8s"));
    wait_until("the change to be taken", || history(&agent).len() == 2);
    edit(&agent, |text| format!("{text}log_level: loud\n"));
    wait_until("the refusal to be told", || config_check(&agent).1.contains("stays in force"));
    assert_eq!(config_check(&agent).0, "warn");
    assert_eq!(history(&agent).len(), 2, "what was never in force is no history");

    let asked = run(&agent, &["config", "restore", "previous"]).expect(2);
    assert!(asked.stdout.contains("events.fold: \"8s\" -> \"5s\"") && asked.stderr.contains("--yes"), "{asked:?}");
    let bad = fs::read_to_string(config_file(&agent)).unwrap();
    let done = run(&agent, &["config", "restore", "previous", "--yes", "--json"]).expect(0).json();
    assert_eq!(done["agent"], "took it", "{done}");
    assert_eq!(fs::read_to_string(config_file(&agent)).unwrap(), good);
    assert_eq!(fs::metadata(config_file(&agent)).unwrap().permissions().mode() & 0o7777, 0o640);
    let kept = PathBuf::from(done["kept"][0].as_str().unwrap());
    assert!(kept.file_name().unwrap().to_str().unwrap().starts_with("config.yaml.before-restore-"), "{kept:?}");
    assert_eq!(fs::read_to_string(&kept).unwrap(), bad);
    let newest = history(&agent).remove(0);
    assert_eq!((&newest["cause"], &newest["changed"][0]["to"]), (&"restore".into(), &"5s".into()));
    wait_until("the warning to be over", || config_check(&agent).0 == "pass");

    let again = run(&agent, &["config", "restore", "current", "--yes"]).expect(0);
    assert!(again.stderr.contains("already"), "{}", again.stderr);
}

#[test]
fn a_configuration_can_be_restored_while_the_agent_is_down_and_one_that_cannot_be_used_is_refused() {
    let mut agent = agent("events: {fold: 5s}\n");
    edit(&agent, |text| text.replace("fold: 5s", "fold: 8s"));
    wait_until("the change to be taken", || history(&agent).len() == 2);
    agent.stop();
    fs::remove_file(config_file(&agent)).unwrap();
    fs::write(agent.prefix.path("etc/picket/config.toml"), "log_level = \"debug\"\n").unwrap();
    let ran = run(&agent, &["config", "restore", "-1", "--yes"]).expect(0);
    assert!(ran.stdout.contains("the agent does not run"), "{}", ran.stdout);
    let names: Vec<String> = agent.prefix.listing().into_iter().filter(|name| name.contains("etc/picket/")).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].contains("config.toml.before-restore-") && names[1].ends_with("config.yaml"), "{names:?}");
    let shown = run(&agent, &["config", "show", "--json"]).expect(0).json();
    assert_eq!((&shown["events"]["fold"], &shown["log_level"]), (&"5s".into(), &"info".into()));

    // A link is somebody's arrangement, not ours to replace.
    let elsewhere = agent.prefix.path("elsewhere.yaml");
    fs::rename(config_file(&agent), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, config_file(&agent)).unwrap();
    let ran = run(&agent, &["config", "restore", "current", "--yes"]).expect(2);
    assert!(ran.stderr.contains("is no plain file"), "{}", ran.stderr);
}

#[test]
fn no_secret_of_a_configuration_is_told() {
    let channel = |secret: &str| {
        format!("alerting: {{channels: [{{type: webhook, url: \"https://hooks.example.com/services/{secret}\"}}]}}\n")
    };
    let agent = agent(&channel("FIRST"));
    edit(&agent, |text| text.replace(&channel("FIRST"), &channel(SECRET)));
    wait_until("the change to be taken", || history(&agent).len() == 2);
    // `run` looks for the secret in everything that is printed.
    let json = run(&agent, &["config", "history", "--json"]).expect(0).json();
    assert_eq!(json[0]["changed"][0]["key"], "alerting.channels[0].url");
    assert_eq!(
        (&json[0]["changed"][0]["to"], &json[0]["changed"][0]["hidden"]),
        (&"https://hooks.example.com/…".into(), &true.into())
    );
    run(&agent, &["config", "history"]).expect(0);
    let diff = run(&agent, &["config", "diff"]).expect(0).stdout;
    assert!(diff.contains("(what differs is not shown)"), "{diff}");
    run(&agent, &["config", "restore", "previous", "--yes"]).expect(0);
    run(&agent, &["config", "restore", "previous", "--yes", "--json"]).expect(0);
    // Sealed: the store's files hold it nowhere in clear.
    let mut looked = 0;
    for name in agent.prefix.listing().into_iter().filter(|name| name.starts_with("var/lib/picket/store")) {
        let bytes = fs::read(agent.prefix.path(&name)).unwrap_or_default();
        looked += usize::from(!bytes.is_empty());
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{name} holds it in clear");
    }
    assert!(looked > 0);
}

#[test]
fn an_alert_is_listed_and_acknowledged_and_the_agent_agrees() {
    let agent = agent("collection_interval: 1s\nthresholds: {memory_usage: {warning: 0.0001, for: 0s}}\n");
    let list = |options: &[&str]| run(&agent, &[&["alerts", "list", "--json"], options].concat()).expect(0).json();
    let own = |alerts: &Value| alerts.as_array().unwrap().iter().find(|a| a["metric"] == "memory_usage").cloned();
    wait_until("the alert", || own(&list(&[])).is_some());
    let id = own(&list(&[])).unwrap()["id"].as_str().unwrap().to_owned();
    let short = &id[id.len() - 8..];
    let lines = run(&agent, &["alerts", "list"]).expect(0).stdout;
    assert!(lines.contains(short) && lines.contains("not acknowledged"), "{lines}");

    let unknown = run(&agent, &["alerts", "ack", "00000000-none"]).expect(2);
    assert!(unknown.stderr.contains(short), "the candidates are not listed: {}", unknown.stderr);
    run(&agent, &["alerts", "ack", short, "--note", &"x".repeat(600)]).expect(2);
    let note = "looking into it";
    let ran = run(&agent, &["alerts", "ack", short, "--by", "ada", "--note", note]).expect(0);
    assert_eq!(ran.stdout, format!("{short} is acknowledged by ada: {note}\n"));
    let answer = agent.prefix.get(agent.prefix.metrics_port, "/alerts", "").unwrap().1;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let seen = own(&answer["active"]).unwrap()["acknowledged"].clone();
    assert_eq!((&seen["by"], &seen["note"]), (&"ada".into(), &note.into()));
    assert!(run(&agent, &["alerts", "list"]).expect(0).stdout.contains("seen by ada: looking into it"));
    let again = run(&agent, &["alerts", "ack", &id]).expect(0);
    assert!(again.stdout.contains("already by ada"), "{}", again.stdout);
    let folder = agent.prefix.path("var/lib/picket/alert-acks");
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "what was taken is gone");

    // The threshold goes, the alert is closed, and can be acknowledged no more.
    edit(&agent, |text| text.replace("warning: 0.0001, for: 0s", "enabled: false"));
    wait_until("the alert to be closed", || own(&list(&[])).is_none());
    assert!(own(&list(&["--all"])).unwrap()["cleared_at"].is_string());
    let closed = run(&agent, &["alerts", "ack", &id]).expect(2);
    assert!(closed.stderr.contains("that alert is closed"), "{}", closed.stderr);
}

#[test]
fn without_an_agent_alerts_say_so_and_the_history_says_what_was() {
    let mut agent = agent("");
    agent.stop();
    let ran = run(&agent, &["alerts", "list"]).expect(6);
    let address = format!("127.0.0.1:{}", agent.prefix.metrics_port);
    assert!(ran.stderr.contains(&format!("the agent does not answer on {address}")), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: start it with"), "{}", ran.stderr);
    assert_eq!(history(&agent).len(), 1);
    let empty = Prefix::new("http://127.0.0.1:9");
    let ran = empty.run_with(exe(), &["config", "history"]).expect(1);
    assert!(ran.stderr.contains("there is no store at"), "{}", ran.stderr);
}

#[test]
fn events_after_a_reload_are_of_the_same_device() {
    let agent = agent("events: {sinks: [file], fold: 5s}\n");
    let devices = || {
        let text = fs::read_to_string(agent.prefix.path("var/log/picket/events.ndjson")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|event| event["type"] == "config").map(|event| event["device_id"].clone()).collect::<Vec<_>>()
    };
    wait_until("the event of the start", || devices().len() == 1);
    for (from, to) in [("fold: 5s", "fold: 6s"), ("fold: 6s", "fold: 7s")] {
        edit(&agent, |text| text.replace(from, to));
        let before = devices().len();
        wait_until("the event of the change", || devices().len() > before);
    }
    let devices = devices();
    assert!(devices.iter().all(|id| *id == devices[0] && id.as_str().is_some_and(|id| !id.is_empty())), "{devices:?}");
}

#[test]
fn the_log_is_as_loud_as_the_file_says_without_a_restart() {
    let mut agent = agent("log_level: error\nevents: {fold: 5s}\n");
    edit(&agent, |text| text.replace("log_level: error", "log_level: info"));
    wait_until("the change to be taken", || history(&agent).len() == 2);
    assert_eq!(history(&agent)[0]["changed"][0]["needs_restart"], false);
    edit(&agent, |text| text.replace("fold: 5s", "fold: 6s"));
    wait_until("the second change to be taken", || history(&agent).len() == 3);
    let log = agent.stopped_log();
    assert!(!log.contains("the agent serves"), "it was to log errors only: {log}");
    assert!(log.contains("events.fold"), "it was to log what it does: {log}");
}

#[test]
fn thresholds_that_contradict_themselves_are_refused_and_the_ones_in_force_stay() {
    let agent = agent("collection_interval: 1s\nthresholds: {memory_usage: {warning: 0.0001, for: 0s}}\n");
    edit(&agent, |text| text.replace("warning: 0.0001", "warning: 90, critical: 80"));
    wait_until("the refusal to be told", || config_check(&agent).1.contains("stays in force"));
    let told = config_check(&agent).1;
    assert!(told.contains("thresholds.memory_usage: critical must lie beyond warning"), "{told}");
    wait_until("the alert of the threshold in force", || {
        !run(&agent, &["alerts", "list", "--json"]).expect(0).json().as_array().unwrap().is_empty()
    });
    let ran = run(&agent, &["config", "check"]).expect(78);
    assert!(ran.stdout.contains("config.yaml:") && ran.stdout.contains("critical must lie beyond"), "{}", ran.stdout);
}

#[test]
fn root_reads_the_store_of_another_user_and_leaves_nothing_of_its_own_there() {
    let mut agent = agent("events: {fold: 5s}\n");
    edit(&agent, |text| text.replace("fold: 5s", "fold: 6s"));
    wait_until("the change to be taken", || history(&agent).len() == 2);
    agent.stop();
    if !rustix::process::geteuid().is_root() {
        // Nobody else's store can be made by who is not root; the rest is what the other tests do.
        return;
    }
    let other = 65_534;
    let state = |agent: &Foreground| -> Vec<PathBuf> {
        let names = agent.prefix.listing().into_iter().filter(|name| name.starts_with("var/lib/picket"));
        names.map(|name| agent.prefix.path(&name)).collect()
    };
    for path in state(&agent).iter().chain([&agent.prefix.path("")]) {
        std::os::unix::fs::lchown(path, Some(other), Some(other)).unwrap();
    }
    assert_eq!(history(&agent).len(), 2);
    run(&agent, &["config", "diff"]).expect(0);
    run(&agent, &["config", "restore", "previous", "--yes"]).expect(0);
    for path in state(&agent) {
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(&path).unwrap());
        assert_eq!(owner, other, "{} is root's", path.display());
    }
}
