//! `picket alerts …`: what the monitor of the running agent says, and who has seen it.

use super::Context;
use crate::build;
use crate::cli::{AckArgs, AlertsCommand, ConfigArgs, ListArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::{Tone, human};
use crate::{settings, wiring};
use picket_monitor::{MAX_BY, MAX_NOTE};
use picket_protocol::event::AlertLevel;
use picket_transport::{Client, Network, SafeUrl, Timeouts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

/// How long the agent may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The longest answer, in bytes: a few hundred alerts with long tags.
const ANSWER_MAX_BYTES: u64 = 8 << 20;
/// How long the agent may take to take an acknowledgement; it looks every second.
const TAKE_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const LOOK: Duration = Duration::from_millis(200);
/// How many digits of an id are shown: its end, for those that began together begin alike.
const SHORT: usize = 8;

/// `GET /alerts`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Report {
    active: Vec<Alert>,
    recent: Vec<Alert>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Alert {
    id: String,
    threshold: String,
    metric: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
    unit: String,
    level: AlertLevel,
    value: f64,
    bound: f64,
    message: String,
    raised_at: jiff::Timestamp,
    changed_at: jiff::Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acknowledged: Option<Acknowledgement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cleared_at: Option<jiff::Timestamp>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Acknowledgement {
    by: String,
    at: jiff::Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Runs `picket alerts …`.
pub(super) fn run(context: &Context<'_>, command: AlertsCommand) -> Result<ExitCode, CommandError> {
    match command {
        AlertsCommand::List(args) => list(context, &args),
        AlertsCommand::Ack(args) => acknowledge(context, &args),
    }
}

/// The agent's answer. Alerts live in the agent: without one that runs there is nobody to ask.
fn ask(context: &Context<'_>) -> Result<Report, CommandError> {
    let resolved = settings::read(&context.layout, context.process, &ConfigArgs::default());
    let address = resolved.settings.metrics.listen.get();
    let url: SafeUrl = format!("http://{address}/alerts").parse().map_err(CommandError::Releases)?;
    let client = Client::new(
        &build::user_agent(),
        Timeouts { connect: ANSWER_LIMIT, response: ANSWER_LIMIT, stall: ANSWER_LIMIT },
        &Network::default(),
    );
    let bytes = client
        .get_bytes(&url, ANSWER_MAX_BYTES)
        .map_err(|source| CommandError::AgentSilent { address, source: Box::new(source) })?;
    let report: Report = serde_json::from_slice(&bytes).map_err(|error| {
        CommandError::system(format!("what answers on {address} is not the agent"), io::Error::other(error))
    })?;
    // The ids become names of files.
    if report.active.iter().all(|alert| is_id(&alert.id)) {
        return Ok(report);
    }
    Err(CommandError::system(format!("what answers on {address} is not the agent"), io::Error::other("a strange id")))
}

/// Whether a text is a UUID as it is written (RFC 9562 §4).
fn is_id(text: &str) -> bool {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12] && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

fn list(context: &Context<'_>, args: &ListArgs) -> Result<ExitCode, CommandError> {
    let report = ask(context)?;
    let mut alerts = report.active;
    if args.all {
        alerts.extend(report.recent);
        alerts.sort_by_key(|alert| alert.raised_at);
    }
    if args.json.json {
        context.output.json(&alerts);
        return Ok(ExitCode::Success);
    }
    if alerts.is_empty() {
        context.output.marked(Tone::Good, if args.all { "no alert" } else { "no alert is open" });
    }
    for alert in &alerts {
        let tone = match (alert.cleared_at, alert.level) {
            (Some(_), _) => Tone::Plain,
            (None, AlertLevel::Warning) => Tone::Warn,
            (None, AlertLevel::Critical) => Tone::Bad,
        };
        context.output.marked(tone, line(alert, jiff::Timestamp::now()));
    }
    Ok(ExitCode::Success)
}

/// An alert in one line.
fn line(alert: &Alert, now: jiff::Timestamp) -> String {
    let since = |at: jiff::Timestamp| human(Duration::try_from(now.duration_since(at)).unwrap_or_default());
    let state = match (&alert.cleared_at, &alert.acknowledged) {
        (Some(at), _) => format!("closed {} ago", since(*at)),
        (None, Some(seen)) => {
            let note = seen.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            format!("for {}; seen by {}{note}", since(alert.raised_at), seen.by)
        }
        (None, None) => format!("for {}; not acknowledged", since(alert.raised_at)),
    };
    let text = format!("{}  {} ({state})", short(&alert.id), alert.message);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(SHORT)..).unwrap_or(id)
}

/// The alerts that `wanted` can mean.
fn meant<'a>(alerts: &'a [Alert], wanted: &str) -> Vec<&'a Alert> {
    let wanted = wanted.trim().to_ascii_lowercase();
    let fits = |alert: &&Alert| !wanted.is_empty() && (alert.id.starts_with(&wanted) || alert.id.ends_with(&wanted));
    alerts.iter().filter(fits).collect()
}

fn acknowledge(context: &Context<'_>, args: &AckArgs) -> Result<ExitCode, CommandError> {
    let by = args.by.clone().unwrap_or_else(|| context.process.person());
    let by = words(&by, MAX_BY, "the name")?;
    if by.is_empty() {
        return Err(CommandError::Usage("the name of who has seen it is empty".to_owned()));
    }
    let note = words(args.note.as_deref().unwrap_or_default(), MAX_NOTE, "the note")?;
    let report = ask(context)?;
    let alert = match meant(&report.active, &args.id)[..] {
        [alert] => alert.clone(),
        ref found => return Err(CommandError::Usage(not_meant(&report, found, &args.id))),
    };
    if let Some(seen) = &alert.acknowledged {
        return tell(context, args, &alert, seen, "has been acknowledged already");
    }
    context.require_root("acknowledging alerts")?;
    let folder = context.layout.alert_acks();
    let file = folder.join(&alert.id);
    wiring::as_owner(&context.layout, || {
        picket_durable::create_dir(&folder, 0o700)?;
        Ok(picket_durable::write_atomic(&file, format!("{by}\n{note}\n").as_bytes(), 0o600)?)
    })?;
    let began = Instant::now();
    while began.elapsed() < TAKE_LIMIT {
        std::thread::sleep(LOOK);
        let report = ask(context)?;
        let Some(now) = report.active.iter().find(|open| open.id == alert.id) else {
            return Err(CommandError::NotTaken("the alert was closed before it could be acknowledged".to_owned()));
        };
        if let Some(seen) = &now.acknowledged {
            return tell(context, args, now, seen, "is acknowledged");
        }
    }
    let limit = TAKE_LIMIT.as_secs();
    Err(CommandError::NotTaken(format!("the agent has not taken the acknowledgement within {limit} s")))
}

/// `text` in one line, refused when it is too long.
fn words(text: &str, max: usize, what: &str) -> Result<String, CommandError> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().any(char::is_control) {
        return Err(CommandError::Usage(format!("{what} holds control characters")));
    }
    if text.len() > max {
        return Err(CommandError::Usage(format!("{what} is longer than {max} bytes")));
    }
    Ok(text)
}

/// Why no alert is meant by `wanted`, and which could be.
fn not_meant(report: &Report, found: &[&Alert], wanted: &str) -> String {
    if found.is_empty()
        && let [closed] = meant(&report.recent, wanted)[..]
    {
        return format!("that alert is closed: {}", line(closed, jiff::Timestamp::now()));
    }
    let all: Vec<&Alert> = report.active.iter().collect();
    let (what, candidates) = if found.is_empty() {
        (format!("no open alert has an id that begins or ends with {wanted}"), all.as_slice())
    } else {
        (format!("more than one alert has an id that begins or ends with {wanted}"), found)
    };
    if candidates.is_empty() {
        return format!("{what}; none is open");
    }
    let lines = candidates.iter().map(|alert| format!("\n  {}", line(alert, jiff::Timestamp::now())));
    format!("{what}; open are:{}", lines.collect::<String>())
}

fn tell(
    context: &Context<'_>,
    args: &AckArgs,
    alert: &Alert,
    seen: &Acknowledgement,
    what: &str,
) -> Result<ExitCode, CommandError> {
    if args.json.json {
        context.output.json(alert);
    } else {
        let note = seen.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        context.output.result(format_args!("{} {what} by {}{note}", short(&alert.id), seen.by));
    }
    Ok(ExitCode::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(id: &str) -> Alert {
        let at = jiff::Timestamp::UNIX_EPOCH;
        Alert {
            id: id.to_owned(),
            threshold: "memory_usage".into(),
            metric: "memory_usage".into(),
            tags: BTreeMap::new(),
            unit: "percent".into(),
            level: AlertLevel::Warning,
            value: 91.0,
            bound: 90.0,
            message: "memory_usage is 91 percent".into(),
            raised_at: at,
            changed_at: at,
            acknowledged: None,
            cleared_at: None,
        }
    }

    #[test]
    fn an_alert_is_named_by_enough_of_its_id_from_either_end() {
        let alerts = [alert("01938b7e-0000-7000-8000-0000000000aa"), alert("01938b7e-0000-7000-8000-0000000000ab")];
        assert_eq!(meant(&alerts, "000000aa").len(), 1);
        assert_eq!(meant(&alerts, "01938B7E-0000-7000-8000-0000000000AB").len(), 1);
        assert_eq!(meant(&alerts, "01938b7e").len(), 2);
        assert!(meant(&alerts, "ff").is_empty() && meant(&alerts, "").is_empty());
        let report = Report { active: alerts.to_vec(), recent: Vec::new() };
        let told = not_meant(&report, &[], "ff");
        assert!(told.contains("000000aa  memory_usage") && told.contains("000000ab  memory_usage"), "{told}");
    }

    #[test]
    fn an_id_that_could_be_a_path_is_none() {
        assert!(is_id("01938b7e-0000-7000-8000-0000000000aa"));
        for wrong in
            ["../../../etc/passwd", "01938b7e000070008000000000000000", "", "01938b7e-0000-7000-8000-00000000/0aa"]
        {
            assert!(!is_id(wrong), "{wrong}");
        }
    }
}
