//! Help and errors of every command, as they are printed.
//!
//! The texts are in `tests/suite/golden/`; `SNAPSHOTS=overwrite cargo test --test suite cli` writes them anew.

use picket_testkit::Prefix;
use snapbox::{Data, assert_data_eq};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn golden(name: &str) -> Data {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/golden").join(format!("{name}.txt"));
    Data::read_from(&path, None)
}

/// Runs the plain build in an empty prefix and returns everything it printed, free of what changes from run to run.
fn transcript(arguments: &[&str]) -> String {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let ran = prefix.run_with(Path::new(env!("CARGO_BIN_EXE_picket")), arguments);
    let text = format!(
        "$ picket {}\nexit code {}\n--- stdout\n{}--- stderr\n{}",
        arguments.join(" "),
        ran.code,
        ran.stdout,
        ran.stderr
    );
    let folder = prefix.path("").display().to_string();
    let text = text.replace(folder.trim_end_matches('/'), "PREFIX").replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let text =
        text.replace(&prefix.health_port.to_string(), "HEALTH").replace(&prefix.metrics_port.to_string(), "METRICS");
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let text = text.replace(&today, "TODAY");
    // clap shows the variable's value where it is set.
    text.replace("[env: PICKET_PREFIX=PREFIX]", "[env: PICKET_PREFIX=]")
}

/// Every command that the help shows, with its words.
fn commands() -> Vec<Vec<String>> {
    let mut found = vec![vec![]];
    let mut all = Vec::new();
    while let Some(words) = found.pop() {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = transcript(&arguments);
        let section = help.split("Commands:\n").nth(1).unwrap_or_default();
        for line in section.lines().take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap_or_default();
            if name != "help" && line.starts_with("  ") && !line.starts_with("   ") {
                found.push([words.clone(), vec![name.to_owned()]].concat());
            }
        }
        all.push(words);
    }
    all
}

#[test]
fn the_help_of_every_command_is_as_it_was_reviewed() {
    let all = commands();
    assert!(all.len() > 35, "only {} commands were found", all.len());
    for words in all {
        let name = if words.is_empty() { "picket".to_owned() } else { words.join("-") };
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        assert_data_eq!(transcript(&arguments), golden(&format!("help-{name}")));
    }
}

#[test]
fn errors_say_what_and_what_to_do_next() {
    let missing = "/nonexistent/root.json";
    let cases: [(&str, &[&str]); 21] = [
        ("unknown-command", &["instal"]),
        ("not-installed-service", &["service", "start"]),
        ("not-installed-update", &["update", "apply", "--yes"]),
        ("not-installed-status", &["update", "status"]),
        ("not-installed-doctor", &["doctor"]),
        ("not-installed-uninstall", &["uninstall", "--yes"]),
        ("bad-version", &["update", "apply", "two"]),
        ("bad-set", &["agent", "run", "--set", "log_level"]),
        ("bad-value", &["agent", "run", "--set", "log_level=loud", "--set", "update.soak=soon"]),
        ("config-missing-file", &["config", "check", "--config", "/nonexistent/config.yaml"]),
        ("install-missing-root", &["install", "--root-keys", missing]),
        ("install-bad-releases", &["install", "--releases", "http://releases.example.com"]),
        ("install-bad-channel", &["install", "--channel", "Stable!"]),
        ("release-no-repository", &["release", "publish", "--repo", "/nonexistent", "--key", "k"]),
        ("release-verify-nowhere", &["release", "verify", "/nonexistent"]),
        ("release-verify-refused", &["release", "verify", "http://127.0.0.1:9"]),
        ("release-keygen-no-passphrase", &["release", "keygen", "root", "--out", "/nonexistent/key"]),
        ("release-add-no-target", &["release", "add", "1.0.0", "/bin/true", "--minisign-key", "k"]),
        ("self-test-no-trust", &["self-test", "--releases", "https://example.com"]),
        ("prefix-and-user", &["--prefix", "/x", "--user", "doctor"]),
        ("sandbox-no-program", &["sandbox", "--scratch", "/tmp"]),
    ];
    for (name, arguments) in cases {
        assert_data_eq!(transcript(arguments), golden(&format!("error-{name}")));
    }
}

#[test]
fn without_arguments_it_shows_its_help_and_with_version_everything_of_the_build() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_picket"));
    assert!(prefix.run_with(&exe, &[]).expect(2).stderr.contains("Usage: picket"));
    let version = prefix.run_with(&exe, &["--version"]).expect(0).stdout;
    let words: Vec<&str> = version.trim_end_matches([')', '\n']).split(' ').collect();
    assert_eq!(words[..2], ["picket", env!("CARGO_PKG_VERSION")]);
    assert!(words[2].len() == 13 || words[2] == "(unknown", "no commit in {version:?}");
    assert_eq!(words[3].len(), "2026-11-21".len(), "no day in {version:?}");
    assert!(words[4].contains("-linux-"), "no target in {version:?}");
}

#[test]
fn a_result_that_nobody_gets_ends_nothing_early_and_is_told() {
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_picket"));
    let run = |stdout: Stdio| Command::new(&exe).arg("--version").stdout(stdout).output().unwrap();
    let full = run(fs::File::options().write(true).open("/dev/full").unwrap().into());
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.contains("the result could not be written: No space left on device"), "{said}");
    // Who closes the pipe has read enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let closed = run(writer.into());
    assert_eq!(
        (closed.status.code(), closed.stderr.len()),
        (Some(0), 0),
        "{}",
        String::from_utf8_lossy(&closed.stderr)
    );
}

#[test]
fn results_go_to_stdout_and_talk_to_stderr_and_colours_only_to_terminals() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_picket"));
    let plan = prefix.run_with(&exe, &["install", "--dry-run"]).expect(0);
    assert!(plan.stdout.contains("Situation: nothing is installed"), "{}", plan.stdout);
    assert_eq!(plan.stderr, "");
    assert!(!plan.stdout.contains('\u{1b}'));
    let colored = prefix.run_with(&exe, &["--color", "always", "install", "--dry-run"]).expect(0);
    assert!(colored.stdout.contains('\u{1b}'));
}

#[test]
fn completions_and_manual_pages_come_from_the_same_definition() {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let exe = PathBuf::from(env!("CARGO_BIN_EXE_picket"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = prefix.run_with(&exe, &["completions", shell]).expect(0).stdout;
        assert!(script.contains("rollback"), "{shell}");
    }
    let dir = prefix.path("man");
    prefix.run_with(&exe, &["man", "--dir", dir.to_str().unwrap()]).expect(0);
    for page in ["picket.1", "picket-update.1", "picket-update-apply.1", "picket-release-publish.1"] {
        let text = std::fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.starts_with(".ie") || text.contains(".TH"), "{page}");
    }
    assert!(!dir.join("picket-sandbox.1").exists());
}
