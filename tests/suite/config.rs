//! The configuration through the binary: layers, origins, problems.

use picket_testkit::Prefix;
use std::fs;
use std::path::Path;

fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_picket"))
}

fn prefix_with(text: &str) -> Prefix {
    let prefix = Prefix::new("http://127.0.0.1:9");
    fs::write(prefix.path("etc/picket/config.yaml"), text).unwrap();
    prefix
}

#[test]
fn every_value_tells_where_it_came_from() {
    let mut prefix = prefix_with("log_level: DEBUG\nupdate:\n  auto: off\n  soak: 90\n");
    prefix.set("PICKET_UPDATE_SOAK", "2m");
    let ran =
        prefix.run_with(exe(), &["config", "show", "--origin", "--json", "--set", "update.channel=beta"]).expect(0);
    let shown = ran.json();
    let file = prefix.path("etc/picket/config.yaml").display().to_string();
    for (key, value, origin) in [
        ("log_level", "debug", format!("{file}:1")),
        ("update.auto", "off", format!("{file}:3")),
        ("update.soak", "2m", "environment PICKET_UPDATE_SOAK".to_owned()),
        ("update.channel", "beta", "--set".to_owned()),
        ("drain_limit", "5s", "default".to_owned()),
    ] {
        assert_eq!(shown[key]["value"], value, "{key}");
        assert_eq!(shown[key]["origin"], origin, "{key}");
    }
}

#[test]
fn the_secret_part_of_an_address_is_not_shown() {
    let text = "update:\n  releases: https://ann:hunter2@example.com/r?token=t0k3n\nalerting:\n  channels:\n    - type: webhook\n      url: https://hooks.example.com/services/T0/S3CR3T?key=k3y\n";
    let prefix = prefix_with(text);
    for arguments in [
        &["config", "show"][..],
        &["config", "show", "--json"],
        &["config", "show", "--origin"],
        &["config", "show", "--origin", "--json"],
    ] {
        let told = prefix.run_with(exe(), arguments).expect(0).stdout;
        assert!(told.contains("hooks.example.com/…") && told.contains("example.com/r?…"), "{told}");
        for secret in ["hunter2", "t0k3n", "S3CR3T", "k3y"] {
            assert!(!told.contains(secret), "{arguments:?} shows {secret}: {told}");
        }
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_file_line_and_key() {
    let mut prefix =
        prefix_with("log_level: loud\nhealth:\n  listen: 0.0.0.0:9091\nupdate:\n  sock: 5s\n  auto: maybe\n");
    prefix.set("PICKET_LOG_LEVLE", "info");
    let ran = prefix.run_with(exe(), &["config", "check"]).expect(78);
    let file = prefix.path("etc/picket/config.yaml").display().to_string();
    for expected in [
        "warn  environment PICKET_LOG_LEVLE: sets no key; did you mean PICKET_LOG_LEVEL?".to_owned(),
        format!("fail  {file}:1: log_level: expected one of off, error, warn, info, debug, trace, found \"loud\""),
        format!("fail  {file}:3: health.listen: expected an address of this machine only"),
        format!("warn  {file}:5: update.sock: no such key; did you mean \"update.soak\"?"),
        format!("fail  {file}:6: update.auto: expected one of off, critical, all, found \"maybe\""),
    ] {
        assert!(ran.stdout.contains(&expected), "{expected:?} is missing in\n{}", ran.stdout);
    }
    let json = prefix.run_with(exe(), &["config", "check", "--json"]).expect(78).json();
    assert_eq!(json["problems"].as_array().unwrap().len(), 5);
    assert_eq!(json["problems"][1]["line"], 1);
}

#[test]
fn an_unknown_key_fails_the_check_but_not_the_agent() {
    let prefix = prefix_with("update:\n  from_the_future: true\n");
    prefix.run_with(exe(), &["config", "check"]).expect(6);
    prefix.run_with(exe(), &["config", "show"]).expect(0);
}

#[test]
fn a_channel_that_cannot_reach_anybody_fails_the_check_and_not_the_agent() {
    let text = "smtp:\n  username: picket\n  password_file: /nonexistent/secret\nalerting:\n  channels:\n    \
                - {type: log}\n    - {type: webhook, url: \"http://hooks.example.com/T0/S3CR3T\"}\n    \
                - {type: email, recipients: [ann@example.com]}\n    - {type: email, recipients: [nobody]}\n";
    let prefix = prefix_with(text);
    let ran = prefix.run_with(exe(), &["config", "check"]).expect(6);
    let file = prefix.path("etc/picket/config.yaml").display().to_string();
    for expected in [
        format!("warn  {file}:6: alerting.channels[1].url: "),
        format!("warn  {file}:3: smtp.password_file: cannot read /nonexistent/secret: No such file"),
        format!("warn  {file}:6: alerting.channels[3].recipients: \"nobody\" is no mail address"),
    ] {
        assert!(ran.stdout.contains(&expected), "{expected:?} is missing in\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains("S3CR3T") && ran.stdout.contains("do not go out this way"), "{}", ran.stdout);
    let json = prefix.run_with(exe(), &["config", "check", "--json"]).expect(6).json();
    assert_eq!((&json["ok"], &json["problems"][0]["gravity"]), (&false.into(), &"warning".into()));
    prefix.run_with(exe(), &["config", "show"]).expect(0);
}

#[test]
fn a_build_that_cannot_send_spans_refuses_to_be_asked_and_says_which_can() {
    if cfg!(feature = "otel") {
        return;
    }
    let prefix = prefix_with("otlp:\n  endpoint: https://collector.example.com:4318\n");
    let ran = prefix.run_with(exe(), &["config", "check"]).expect(78);
    let file = prefix.path("etc/picket/config.yaml").display().to_string();
    let expected = format!("fail  {file}:2: otlp.endpoint: this build cannot send spans; use one built with");
    assert!(ran.stdout.contains(&expected), "{}", ran.stdout);
}

#[test]
fn all_three_formats_are_read_and_two_at_once_are_refused() {
    let prefix = prefix_with("log_level: debug\n");
    let etc = prefix.path("etc/picket");
    let level = || prefix.run_with(exe(), &["config", "show", "--json"]).expect(0).json()["log_level"].clone();
    assert_eq!(level(), "debug");
    fs::remove_file(etc.join("config.yaml")).unwrap();
    fs::write(etc.join("config.json"), "{\n\t\"log_level\": \"WARN\"\n}").unwrap();
    assert_eq!(level(), "warn");
    fs::remove_file(etc.join("config.json")).unwrap();
    fs::write(etc.join("config.toml"), "log_level = \"error\"\n").unwrap();
    assert_eq!(level(), "error");
    fs::write(etc.join("config.yaml"), "log_level: info\n").unwrap();
    let ran = prefix.run_with(exe(), &["config", "show"]).expect(78);
    assert!(ran.stderr.contains("config.toml") && ran.stderr.contains("stands beside"), "{}", ran.stderr);
}

#[test]
fn an_agent_with_an_unusable_configuration_says_so_and_is_not_started_again_and_again() {
    let prefix = prefix_with("log_level: loud\n");
    let ran = prefix.run_with(exe(), &["agent", "run"]).expect(78);
    assert!(ran.stderr.contains("config.yaml:1: log_level"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: `picket config check`"), "{}", ran.stderr);
}

#[test]
fn the_schema_knows_every_key_that_is_shown() {
    let prefix = prefix_with("");
    let schema = prefix.run_with(exe(), &["config", "schema"]).expect(0).json();
    let shown = prefix.run_with(exe(), &["config", "show", "--origin", "--json"]).expect(0).json();
    for key in shown.as_object().unwrap().keys() {
        let pointer = format!("/properties/{}", key.replace('.', "/properties/"));
        let entry = schema.pointer(&pointer).unwrap_or_else(|| panic!("{key} is not in the schema"));
        assert!(entry["description"].as_str().is_some_and(|text| !text.is_empty()), "{key} is not described");
    }
}
