//! `picket config …`.

mod history;
mod restore;

use super::Context;
use crate::cli::{ConfigArgs, ConfigCommand, JsonArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::settings::{self, Settings};
use picket_agent::reload::differences;
use picket_config::{Gravity, Origin, Setting};
use serde_json::{Value, json};

/// Runs `picket config …`.
pub(super) fn run(context: &Context<'_>, command: ConfigCommand) -> Result<ExitCode, CommandError> {
    match command {
        ConfigCommand::Show { origin, config, json } => show(context, origin, &config, &json),
        ConfigCommand::Check { config, json } => Ok(check(context, &config, &json)),
        ConfigCommand::Path => Ok(path(context)),
        ConfigCommand::Schema => {
            let mut schema = Settings::schema();
            schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
            schema["title"] = "Picket configuration".into();
            context.output.json(&schema);
            Ok(ExitCode::Success)
        }
        ConfigCommand::History(args) => history::show(context, &args),
        ConfigCommand::Diff(args) => history::diff(context, &args),
        ConfigCommand::Restore(args) => restore::run(context, &args),
    }
}

fn show(context: &Context<'_>, origin: bool, config: &ConfigArgs, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let resolved = settings::read(&context.layout, context.process, config);
    if resolved.problems.has_errors() {
        return Err(CommandError::Config(resolved.problems.0));
    }
    let effective = resolved.effective();
    if json.json && !origin {
        context.output.json(&shown("", &resolved.settings.show()));
        return Ok(ExitCode::Success);
    }
    if json.json {
        let entries: serde_json::Map<String, Value> = effective
            .iter()
            .map(|e| (e.key.clone(), json!({ "value": shown(&e.key, &e.value), "origin": e.origin.to_string() })))
            .collect();
        context.output.json(&entries);
        return Ok(ExitCode::Success);
    }
    let width = effective.iter().map(|e| e.key.len()).max().unwrap_or(0);
    for entry in &effective {
        let value = match shown(&entry.key, &entry.value) {
            Value::String(text) => history::plain(&text),
            other => history::plain(&other.to_string()),
        };
        let line = format!("{:width$}  {value}", entry.key);
        if origin {
            context.output.result(format_args!("{line}  ({})", entry.origin));
        } else {
            context.output.result(line);
        }
    }
    Ok(ExitCode::Success)
}

/// A value without what is secret in it: of an address the user, the query, and the path of a web hook. As the history
/// shows it.
fn shown(key: &str, value: &Value) -> Value {
    match differences(key, None, Some(value)).pop() {
        Some(difference) => difference.to.unwrap_or_default(),
        None => Value::Null,
    }
}

fn check(context: &Context<'_>, config: &ConfigArgs, json: &JsonArgs) -> ExitCode {
    let mut resolved = settings::read(&context.layout, context.process, config);
    let channels = settings::channel_problems(&resolved, &super::agent::sender(&resolved.settings.device_id));
    let network = settings::network_problem(&resolved);
    resolved.problems.0.extend(channels.into_iter().chain(network));
    let problems = &resolved.problems.0;
    if json.json {
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| {
                let (file, line) = match &problem.origin {
                    Origin::File { path, line } => (Some(path.display().to_string()), *line),
                    _ => (None, None),
                };
                let gravity = match problem.gravity {
                    Gravity::Error => "error",
                    Gravity::Unknown => "unknown key",
                    Gravity::Warning => "warning",
                };
                json!({
                    "origin": problem.origin.to_string(), "file": file, "line": line, "key": problem.key,
                    "gravity": gravity, "message": problem.message,
                })
            })
            .collect();
        context.output.json(&json!({ "ok": problems.is_empty(), "files": resolved.files, "problems": problems }));
    } else {
        for problem in problems {
            let tone = if problem.gravity == Gravity::Error { Tone::Bad } else { Tone::Warn };
            context.output.marked(tone, problem);
        }
        if problems.is_empty() {
            let files: Vec<String> = resolved.files.iter().map(|file| file.display().to_string()).collect();
            let read = if files.is_empty() { "no file, only defaults".to_owned() } else { files.join(", ") };
            context.output.marked(Tone::Good, format_args!("the configuration is in order ({read})"));
        }
    }
    match (resolved.problems.has_errors(), problems.is_empty()) {
        (true, _) => ExitCode::Config,
        (false, false) => ExitCode::Unhealthy,
        (false, true) => ExitCode::Success,
    }
}

fn path(context: &Context<'_>) -> ExitCode {
    let resolved = settings::read(&context.layout, context.process, &ConfigArgs::default());
    match resolved.files.first() {
        Some(file) => context.output.result(file.display()),
        None => {
            let dir = context.layout.config_dir().display();
            context.output.result(dir);
            context
                .output
                .say(format_args!("there is no file yet; config.yaml, config.json or config.toml can be put there"));
        }
    }
    ExitCode::Success
}
