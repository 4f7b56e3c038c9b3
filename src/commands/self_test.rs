//! `picket self-test`: what a version says of itself before it may run.

use super::Context;
use crate::build;
use crate::cli::SelfTestArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::settings::Settings;
use picket_config::{Layers, Resolved, documentation};
use picket_layout::{Role, Roles};
use picket_protocol::{SelfTestCheck, SelfTestReport};
use picket_service::units;
use picket_transport::{Client, Network, Timeouts};
use picket_update::Clock;
use picket_update::engine::fetch_release;
use picket_update::fetch::Releases;
use picket_update::trust::TrustStore;
use std::path::Path;

/// Runs every check and reports.
pub(super) fn run(context: &Context<'_>, args: &SelfTestArgs) -> Result<ExitCode, CommandError> {
    let mut checks = vec![check("crypto", crypto()), check("tls", tls()), check("configuration", configuration())];
    checks.push(check("random", random()));
    checks.push(check("clock", clock()));
    checks.push(check("sandbox", Ok(context.process.variable("PICKET_SANDBOX").unwrap_or("not confined").to_owned())));
    if let (Some(releases), Some(trust)) = (&args.releases, &args.trust) {
        checks.push(check("releases", fetch(releases, &args.channel, trust)));
    }
    let roles: Vec<Role> = args.roles.iter().copied().map(Role::from).collect();
    let roles = if roles.is_empty() { context.layout.roles() } else { Roles::from(roles) };
    let units = units::texts(&context.layout.clone().with_roles(roles));
    let report = SelfTestReport { build: build::info(), checks, units };
    let failed = report.failures().count();
    if args.json.json {
        context.output.json(&report);
    } else {
        context.output.result(format_args!("picket {}", report.build.long_version()));
        for check in &report.checks {
            let tone = if check.ok { Tone::Good } else { Tone::Bad };
            context.output.marked(tone, format_args!("{}: {}", check.name, check.detail));
        }
    }
    Ok(if failed == 0 { ExitCode::Success } else { ExitCode::Unhealthy })
}

fn check(name: &str, result: Result<String, String>) -> SelfTestCheck {
    let (ok, detail) = match result {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    SelfTestCheck { name: name.to_owned(), ok, detail }
}

/// RFC 8032 §7.1, test 3, through the very code that checks release metadata; one flipped bit must be refused.
fn crypto() -> Result<String, String> {
    picket_update::trust::self_check().map(|()| "Ed25519 and SHA-256 give the published results".to_owned())
}

fn tls() -> Result<String, String> {
    let provider = picket_transport::provider();
    let suites = provider.cipher_suites.len();
    if suites == 0 { Err("no cipher suite".to_owned()) } else { Ok(format!("{suites} cipher suites")) }
}

fn configuration() -> Result<String, String> {
    let keys = documentation::<Settings>();
    // Every default, written out as the environment would give it, must be read back as the default.
    let variables = keys
        .iter()
        .filter(|doc| !doc.is_entry())
        .filter_map(|doc| Some((doc.variable(), doc.default.as_str()?.to_owned())));
    let resolved: Resolved<Settings> = Layers::new::<Settings>().environment(variables).resolve();
    match resolved.problems.0.first() {
        Some(problem) => Err(problem.to_string()),
        None if resolved.settings != Settings::default() => Err("the defaults are not read back".to_owned()),
        None => Ok(format!("{} keys", keys.len())),
    }
}

fn random() -> Result<String, String> {
    let (a, b) = (picket_update::random_id(), picket_update::random_id());
    if a == b {
        Err("two random ids are the same".to_owned())
    } else {
        Ok("the system gives random numbers".to_owned())
    }
}

/// A clock before the day of the build makes every certificate and every signature look not yet valid.
fn clock() -> Result<String, String> {
    let built: jiff::civil::Date =
        build::info().built.parse().map_err(|e| format!("the build's day is no day: {e}"))?;
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    if today.saturating_add(jiff::Span::new().days(1)) < built {
        return Err(format!("the clock says {today}, but this was built on {built}"));
    }
    Ok(format!("the clock says {today}"))
}

fn fetch(releases: &str, channel: &str, trust: &Path) -> Result<String, String> {
    #[cfg(feature = "faults")]
    if picket_agent::stamp::fault() == Some("no-fetch") {
        return Err("this build was made unable to fetch (PICKET_BUILD_FAULT)".to_owned());
    }
    let releases = Releases::parse(releases).map_err(|e| e.to_string())?;
    // Who lets a version test itself says in its environment how servers are reached: its configuration is none of the
    // confined process's business.
    let opened = releases.open(|| Client::new(&build::user_agent(), Timeouts::default(), &Network::default()));
    let origin = opened.map_err(|e| e.to_string())?;
    let trusted = fetch_release(&origin, &TrustStore::new(trust), &Clock::system(), channel, &build::info().target)
        .map_err(|e| describe(&e))?;
    let [root, timestamp, snapshot, targets] = trusted.versions();
    Ok(format!("root {root}, timestamp {timestamp}, snapshot {snapshot}, targets {targets}"))
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
