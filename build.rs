//! What a build knows of itself: version, commit, target, day, and the release root it pins.
//!
//! | variable at build time | meaning |
//! |---|---|
//! | `PICKET_BUILD_VERSION` | another version than Cargo.toml's: for vendors' test builds |
//! | `PICKET_BUILD_COMMIT` | the commit, where there is no git |
//! | `SOURCE_DATE_EPOCH` | the time of the build, for reproducible builds |
//! | `PICKET_RELEASE_ROOT` | a file: the release root that the binary pins; without it, `release/root.json` if it is there |

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::panic,
    reason = "a build script speaks to cargo by printing, reads files of the build, and stops it when it must"
)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    for variable in ["PICKET_BUILD_VERSION", "PICKET_BUILD_COMMIT", "SOURCE_DATE_EPOCH", "PICKET_RELEASE_ROOT"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let version = variable("PICKET_BUILD_VERSION").or_else(|| variable("CARGO_PKG_VERSION")).unwrap_or_default();
    let commit = variable("PICKET_BUILD_COMMIT").or_else(git_commit).unwrap_or_else(|| "unknown".to_owned());
    // Not PICKET_*: cargo hands these to the programs it runs, and the agent would take them for configuration.
    println!("cargo::rustc-env=BUILD_VERSION={version}");
    println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    println!("cargo::rustc-env=BUILD_TARGET={}", variable("TARGET").unwrap_or_default());
    println!("cargo::rustc-env=BUILD_DAY={}", day(epoch()));
    pin_release_root();
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn git_commit() -> Option<String> {
    let git = Path::new(".git");
    if git.is_dir() {
        // HEAD says which branch, the reflog says when it moved.
        for file in ["HEAD", "logs/HEAD"] {
            println!("cargo::rerun-if-changed={}", git.join(file).display());
        }
    }
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn epoch() -> u64 {
    let given = variable("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse().ok());
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()))
}

/// The UTC day of a time, `YYYY-MM-DD`: Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>), for days since 1970.
fn day(epoch: u64) -> String {
    let days = epoch / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Where a vendor commits the root that every build pins.
const COMMITTED_ROOT: &str = "release/root.json";

/// Copies the pinned root to where `include_bytes!` finds it; an empty file pins nothing.
fn pin_release_root() {
    let out = PathBuf::from(variable("OUT_DIR").unwrap_or_default()).join("release-root.json");
    let given = variable("PICKET_RELEASE_ROOT");
    let committed = || Path::new(COMMITTED_ROOT).exists().then(|| COMMITTED_ROOT.to_owned());
    // The folder: a file that is not there would make every build a new one.
    println!("cargo::rerun-if-changed={}", given.as_deref().unwrap_or("release"));
    let bytes = match given.or_else(committed) {
        Some(path) => fs::read(&path).unwrap_or_else(|error| panic!("the release root {path}: {error}")),
        None => Vec::new(),
    };
    fs::write(&out, bytes).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
}
