//! `picket doctor`: looks for anything that is not as it should be, and says how to mend it.

use super::Context;
use crate::build;
use crate::cli::{ConfigArgs, JsonArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::{settings, wiring};
use picket_config::Gravity;
use picket_installer::facts::inspect;
use picket_installer::{Accounts, Found, Receipt, find_copies};
use picket_layout::{FETCH_USER, Role};
use picket_localapi::PortHolder;
use picket_protocol::CheckStatus;
use picket_protocol::update_status::{UpdateOutcome, UpdateStatus};
use picket_service::{ServiceState, ServiceStatus};
use picket_update::Clock;
use picket_update::gate::Probe;
use picket_update::state;
use picket_update::trust::{TrustClient, TrustStore};
use picket_versions::VersionDirs;
use serde::Serialize;
use std::net::SocketAddr;

/// Something that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// A stable name.
    code: &'static str,
    /// How bad it is.
    severity: Severity,
    /// What was found.
    message: String,
    /// How to mend it.
    fix: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Ok,
    Warn,
    Error,
}

#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn ok(&mut self, code: &'static str, message: impl Into<String>) {
        self.0.push(Finding { code, severity: Severity::Ok, message: message.into(), fix: None });
    }

    pub(super) fn warn(&mut self, code: &'static str, message: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { code, severity: Severity::Warn, message: message.into(), fix: Some(fix.into()) });
    }

    pub(super) fn error(&mut self, code: &'static str, message: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { code, severity: Severity::Error, message: message.into(), fix: Some(fix.into()) });
    }
}

/// Runs `picket doctor`.
pub(super) fn run(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let mut findings = Findings::default();
    if installation(context, &mut findings)? {
        service(context, &mut findings);
        updates(context, &mut findings);
        fetcher(context, &mut findings);
    }
    configuration(context, &mut findings);
    let roles = context.layout.roles();
    if roles.has(Role::Agent) {
        super::doctor_hub::look(context, &mut findings);
    }
    if roles.has(Role::Hub) {
        super::doctor_own_hub::look(context, &mut findings);
    }
    machine(context, &mut findings);
    let worst = findings.0.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    if json.json {
        context.output.json(&serde_json::json!({ "ok": worst < Severity::Error, "findings": findings.0 }));
    } else {
        for finding in &findings.0 {
            let tone = match finding.severity {
                Severity::Ok => Tone::Good,
                Severity::Warn => Tone::Warn,
                Severity::Error => Tone::Bad,
            };
            context.output.marked(tone, format_args!("{}: {}", finding.code, finding.message));
            if let Some(fix) = &finding.fix {
                context.output.marked(Tone::Plain, format_args!("fix: {fix}"));
            }
        }
    }
    Ok(if worst < Severity::Error { ExitCode::Success } else { ExitCode::Unhealthy })
}

/// How well the updater's unprivileged half can be confined here.
fn fetcher(context: &Context<'_>, findings: &mut Findings) {
    let layout = &context.layout;
    if layout.has_service_user() && Accounts::of(layout).fetch.is_none() {
        let message =
            format!("the user {FETCH_USER} is missing; what is downloaded is met by the agent's user instead");
        findings.warn("fetcher", message, again(context));
    } else if let Some(missing) = picket_update::sandbox::missing_means() {
        let message =
            format!("what is downloaded is met by a process that is confined less than it could be: {missing}");
        findings.warn("fetcher", message, "a newer kernel; updates are verified all the same");
    } else {
        findings.ok("fetcher", "what is downloaded is met by a process that Landlock and seccomp confine");
    }
}

fn again(context: &Context<'_>) -> String {
    format!("run `picket install{}` again", context.layout.scope().as_options())
}

/// Looks at what the installer made; `false` when there is nothing.
fn installation(context: &Context<'_>, findings: &mut Findings) -> Result<bool, CommandError> {
    let layout = &context.layout;
    match Receipt::load(layout)?.filter(|_| layout.receipt().exists()) {
        None => {
            let message = format!("Picket is not installed ({})", layout.scope());
            findings.error("installed", message, format!("`picket install{}`", layout.scope().as_options()));
            return Ok(false);
        }
        Some(receipt) if !receipt.complete => {
            findings.error("installed", "the installation did not get to its end", again(context));
        }
        Some(receipt) => findings.ok("installed", format!("since {} ({})", receipt.installed, receipt.scope)),
    }
    let accounts = Accounts::of(layout);
    let (mut misfits, mut hidden) = (0, 0);
    let files = layout.config_files().into_iter();
    let files = files.filter(|path| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()));
    for entry in layout.entries().into_iter().chain(files.map(|path| layout.file_entry(&path))) {
        let place = entry.path.display().to_string();
        match inspect(&entry, layout, &accounts) {
            Found::Fits => continue,
            // Folders of this boot come with the service.
            Found::Absent if entry.class == picket_layout::Class::Runtime => continue,
            Found::Absent if entry.class == picket_layout::Class::Shared => continue,
            // What an older version installed has fewer of them.
            Found::Absent if layout.hook_dirs().contains(&entry.path) => continue,
            Found::Hidden => {
                hidden += 1;
                continue;
            }
            Found::Absent => findings.error("layout", format!("{place} is missing"), again(context)),
            Found::Differs(differs) => {
                let differs: Vec<String> = differs.iter().map(ToString::to_string).collect();
                findings.error("layout", format!("{place}: {}", differs.join(", ")), again(context));
            }
        }
        misfits += 1;
    }
    if hidden > 0 {
        findings.warn("layout", format!("{hidden} places can be seen by root only"), "run `sudo picket doctor`");
    } else if misfits == 0 {
        findings.ok("layout", "every folder and link has its owner and mode");
    }
    versions(context, findings);
    Ok(true)
}

fn versions(context: &Context<'_>, findings: &mut Findings) {
    let dirs = VersionDirs::new(&context.layout);
    match dirs.current() {
        None => findings.error("current_version", "the `current` link names no version", again(context)),
        Some(version) => match dirs.intact(&version) {
            Ok(_) => findings.ok("current_version", format!("{version}, every byte as it was put there")),
            Err(error) => findings.error(
                "current_version",
                format!("{version}: {error}"),
                "`picket update rollback`, or install this version again from a fresh download",
            ),
        },
    }
    if let Some(previous) = dirs.previous() {
        match dirs.intact(&previous) {
            Ok(_) => findings.ok("previous_version", format!("{previous} can be gone back to")),
            Err(error) => findings.warn(
                "previous_version",
                format!("{previous}: {error}"),
                "the next update replaces it; until then there is nothing to go back to",
            ),
        }
    }
}

fn service(context: &Context<'_>, findings: &mut Findings) {
    let registrar = picket_service::registrar(&context.layout);
    let has_agent = context.layout.roles().has(Role::Agent);
    let start = format!("`picket service start{}`", context.layout.scope().as_options());
    let status = match registrar.status() {
        Ok(status) => status,
        Err(error) => {
            findings.error("service", format!("the service manager cannot be asked: {error}"), "see its own log");
            return;
        }
    };
    let what = format!("{} ({})", status.detail, status.manager);
    match status.state {
        ServiceState::Running => findings.ok("service", what),
        ServiceState::Starting | ServiceState::Stopping => findings.warn("service", what, "look again in a moment"),
        ServiceState::Stopped => findings.warn("service", what, start),
        ServiceState::NotRegistered => {
            findings.error("service", "the service manager does not know it", again(context));
        }
        ServiceState::Restarting | ServiceState::Failed => {
            findings.error("service", what, "`picket service logs` shows why");
        }
    }
    if !status.enabled && status.state != ServiceState::NotRegistered && status.manager == "systemd" {
        let (who, unit) = if has_agent { ("agent", "picket-agent") } else { ("hub", "picket-hub") };
        findings.warn("boot", format!("the {who} is not started at boot"), format!("`systemctl enable {unit}`"));
    }
    if let Some(hub) = &status.hub {
        super::doctor_own_hub::service(hub, findings);
    }
    if has_agent && status.state == ServiceState::Running {
        sensor(context, &status, findings);
        health(context, findings);
    }
}

/// The sensor of an agent that runs. Without it the agent sees less; that is worth a warning, and no more.
fn sensor(context: &Context<'_>, status: &ServiceStatus, findings: &mut Findings) {
    if !context.layout.has_sensor() {
        return;
    }
    let Some(sensor) = &status.sensor else {
        findings.warn("sensor", "the service manager does not know it", again(context));
        return;
    };
    match sensor.state {
        ServiceState::Running => findings.ok("sensor", &sensor.detail),
        ServiceState::Starting | ServiceState::Stopping => {
            findings.warn("sensor", &sensor.detail, "look again in a moment");
        }
        ServiceState::Stopped | ServiceState::NotRegistered => {
            findings.warn("sensor", &sensor.detail, "`picket service start`");
        }
        ServiceState::Restarting | ServiceState::Failed if Accounts::of(&context.layout).sensor.is_none() => {
            let fix = format!("{}, then `picket service start`", again(context));
            findings.warn("sensor", format!("the user {} is missing", picket_layout::SENSOR_USER), fix);
        }
        ServiceState::Restarting | ServiceState::Failed => {
            findings.warn("sensor", &sensor.detail, "`picket service logs` shows why");
        }
    }
}

fn health(context: &Context<'_>, findings: &mut Findings) {
    let resolved = settings::read(&context.layout, context.process, &ConfigArgs::default());
    let address = resolved.settings.health.listen.get();
    match super::service::probe(context).and_then(|probe| probe.health()) {
        None => findings.error("health", format!("the agent does not answer on {address}"), port_fix(address)),
        Some(report) => {
            let bad = report.checks.iter().filter(|(_, check)| check.status != CheckStatus::Pass);
            let bad: Vec<_> = bad.collect();
            for (code, check) in &bad {
                let message = format!("{code}: {}", check.message);
                let fix = "see the message; `picket service logs` may show more";
                if check.status == CheckStatus::Fail {
                    findings.error("health", message, fix);
                } else {
                    findings.warn("health", message, fix);
                }
            }
            if bad.is_empty() {
                findings.ok("health", format!("{} checks pass", report.checks.len()));
            }
        }
    }
}

fn port_fix(address: SocketAddr) -> String {
    format!(
        "the port may be held by {}; stop that, or set health.listen to another port and restart",
        PortHolder::of(address)
    )
}

fn configuration(context: &Context<'_>, findings: &mut Findings) {
    let resolved = settings::read(&context.layout, context.process, &ConfigArgs::default());
    for problem in &resolved.problems.0 {
        if problem.gravity == Gravity::Error {
            findings.error(
                "configuration",
                problem.to_string(),
                "correct it; `picket config schema` says what is allowed",
            );
        } else {
            findings.warn("configuration", problem.to_string(), "correct or remove the key");
        }
    }
    let channels = settings::channel_problems(&resolved, &super::agent::sender(&resolved.settings.device_id));
    for problem in &channels {
        findings.warn("configuration", problem.to_string(), "correct it; the other channels work");
    }
    let network = settings::network_problem(&resolved);
    if let Some(problem) = &network {
        let fix = "name a file of certificates (PEM) that the agent's user may read, too";
        findings.warn("configuration", problem.to_string(), fix);
    }
    if resolved.problems.0.is_empty() && channels.is_empty() && network.is_none() {
        findings.ok("configuration", "every key is known and valid");
    }
}

fn updates(context: &Context<'_>, findings: &mut Findings) {
    let layout = &context.layout;
    if std::fs::read_dir(layout.update_dir()).is_err() {
        findings.warn("updates", "the updater's state can be read by root only", "run `sudo picket doctor`");
        return;
    }
    let store = TrustStore::new(layout.update_dir().join("tuf"));
    let clock = Clock::system();
    let pinned = wiring::pinned_root(layout).ok().flatten();
    let trust = TrustClient::new(&store, &clock).offline(pinned.as_deref());
    let status = state::derive(layout, &clock, trust.as_ref().ok().cloned());
    match trust {
        Err(error) => findings.warn("updates", error.to_string(), error.hint()),
        Ok(trust) => {
            let (role, at) = trust.first();
            if at < clock.now() {
                let fix = "`picket update check`; if the server offers nothing newer, ask the vendor";
                findings.warn("updates", format!("the release {role} metadata expired on {at}"), fix);
            } else {
                findings.ok("updates", format!("release metadata is trusted until {at} ({role})"));
            }
        }
    }
    last_update(&status, findings);
}

fn last_update(status: &UpdateStatus, findings: &mut Findings) {
    if let Some(running) = &status.running {
        let message = format!("{} to {} stands at the {} step", running.from, running.to, running.step);
        findings.warn("update_under_way", message, "if no updater runs, `picket update recover` settles it");
    }
    if let Some(last) = status.last.as_ref().filter(|last| last.outcome != UpdateOutcome::Committed) {
        let message = format!("{} to {}: {}", last.from, last.to, last.reason);
        findings.warn("last_update", message, format!("`picket update apply {}` tries it again", last.to));
    }
    if let Some(error) = status.last_check.as_ref().and_then(|check| check.error.as_ref()) {
        findings.warn("last_check", error.clone(), "`picket update check` tries it again");
    }
}

fn machine(context: &Context<'_>, findings: &mut Findings) {
    let layout = &context.layout;
    let reserve = settings::read(layout, context.process, &ConfigArgs::default()).settings.update.disk_reserve;
    if let Ok(free) = picket_durable::free_space(layout.program_dir()) {
        let text = format!("{} MiB are free in {}", free >> 20, layout.program_dir().display());
        if free < reserve.0 {
            findings.warn("disk", text, "free some space: updates wait for update.disk_reserve");
        } else {
            findings.ok("disk", text);
        }
    }
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let built = build::info().built;
    match built.parse::<jiff::civil::Date>() {
        Ok(built) if today < built => {
            let message = format!("the clock says {today}, this version was built on {built}");
            findings.error("clock", message, "set the clock; nothing that is signed can be checked with a wrong one");
        }
        _ => findings.ok("clock", format!("{today} (UTC)")),
    }
    match picket_transport::machine_authorities() {
        0 => findings.warn(
            "authorities",
            "this machine has no certificate authorities of its own; those that Picket was built with are believed",
            "install the package ca-certificates, or name a file with network.authorities or SSL_CERT_FILE",
        ),
        _ => findings.ok("authorities", "the certificate authorities of this machine are believed"),
    }
    let copies = find_copies(layout, &context.process.path(), &context.process.exe);
    for copy in &copies {
        let message = format!("another copy: {} ({})", copy.path.display(), copy.what);
        findings.warn(
            "copies",
            message,
            "remove the one you do not need, or name the one you mean with --user or --prefix",
        );
    }
    if copies.is_empty() {
        findings.ok("copies", "no other copy of Picket");
    }
}
