//! `picket hub init`.

use super::{actor, as_hub, options, runtime, with_hub};
use crate::cli::HubInitArgs;
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::settings::hub as settings;
use picket_hub::authority::{InitReport, KeysFolder, Made};
use picket_hub::db::Permission;
use picket_hub::life::{self, StartError};
use serde::Serialize;
use zeroize::Zeroizing;

/// What was made.
#[derive(Debug, Serialize)]
pub(in crate::commands) struct Report {
    #[serde(flatten)]
    keys: InitReport,
    /// The configuration file that was written, if one was.
    config: Option<String>,
    /// Where machines reach the hub.
    url: String,
    /// The administrator that was made, if one was.
    admin: Option<String>,
    /// The secret with which they set their password, if that was asked for.
    setup_secret: Option<String>,
}

/// Makes what is missing, and tells.
pub(super) fn run(context: &Context<'_>, args: &HubInitArgs) -> Result<ExitCode, CommandError> {
    let report = make(context, args)?;
    if args.json.json {
        context.output.json(&report);
    } else {
        tell(context, &report);
        if !report.is_empty() {
            context.output.hint("start it with: picket hub serve");
        }
    }
    Ok(ExitCode::Success)
}

impl Report {
    fn is_empty(&self) -> bool {
        self.keys.made.is_empty() && self.admin.is_none() && self.config.is_none()
    }
}

/// Makes what is missing.
pub(in crate::commands) fn make(context: &Context<'_>, args: &HubInitArgs) -> Result<Report, CommandError> {
    context.require_root("the hub")?;
    let config = write_config(context, args)?;
    picket_durable::create_dir(&context.layout.hub_dir(), 0o700)?;
    let resolved = settings::resolve(&context.layout, context.process, context.hub)?;
    let settings = resolved.settings;
    if settings.names.is_empty() {
        return Err(CommandError::Usage(
            "say by which name machines reach this hub: picket hub init --name hub.example.com".to_owned(),
        ));
    }
    let folder = KeysFolder::new(context.layout.hub_keys_dir());
    let replaced = if args.replace_lost_keys { replace_lost(context, &folder)? } else { Vec::new() };
    let mut keys = crate::wiring::as_owner_of(&context.layout.hub_dir(), || {
        let made = folder.init(&settings.fleet, &settings.names, jiff::Timestamp::now());
        made.map_err(|error| Box::new(StartError::Keys(error)).into())
    })?;
    keys.made.extend(replaced);
    let url = settings.public_url().map_err(|error| Box::new(StartError::Config(error)))?;
    let (admin, setup_secret) = first_admin(context, args)?;
    Ok(Report { keys, config, url, admin, setup_secret: setup_secret.map(|secret| secret.to_string()) })
}

/// Makes the keys anew that are lost, and gives up what a hub could not start with.
fn replace_lost(context: &Context<'_>, folder: &KeysFolder) -> Result<Vec<Made>, CommandError> {
    let by = actor(context);
    let made = as_hub(context, || {
        let made = folder.replace_lost().map_err(|error| Box::new(StartError::Keys(error)))?;
        // Also when the key is there already: this may have been broken off.
        let (options, _) = options(context)?;
        runtime()?.block_on(life::give_up_sealed(&options)).map_err(Box::new)?;
        Ok(made)
    })?;
    let details = serde_json::json!({ "made": made });
    with_hub(context, async |hub| Ok(hub.audit(&by, "keys.replace_lost", "keys", details).await?))?;
    Ok(made)
}

/// Writes hub.yaml, if there is none. Says where.
fn write_config(context: &Context<'_>, args: &HubInitArgs) -> Result<Option<String>, CommandError> {
    let layout = &context.layout;
    if settings::file(layout).is_some() {
        if !args.names.is_empty() {
            context.output.hint("the configuration is there already; change names in it to change them");
        }
        return Ok(None);
    }
    if args.names.is_empty() {
        return Ok(None);
    }
    let text = config_text(&args.names, args.fleet.as_deref());
    let path = layout.hub_settings();
    if !layout.config_dir().exists() {
        std::fs::create_dir_all(layout.config_dir())
            .map_err(|error| CommandError::system(format!("cannot make {}", layout.config_dir().display()), error))?;
    }
    picket_durable::write_atomic(&path, text.as_bytes(), 0o644)?;
    Ok(Some(path.display().to_string()))
}

/// What hub.yaml says of a new hub.
pub(in crate::commands) fn config_text(names: &[String], fleet: Option<&str>) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("  - {}\n", quoted(name))).collect();
    let names = names.concat();
    let fleet = fleet.map(|fleet| format!("fleet: {}\n", quoted(fleet))).unwrap_or_default();
    format!("# The hub's configuration. Every key with its meaning: picket reference hub\n{fleet}names:\n{names}")
}

/// A text as YAML takes it whatever is in it: JSON is YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Makes the first administrator, if there is nobody who may do everything.
fn first_admin(
    context: &Context<'_>,
    args: &HubInitArgs,
) -> Result<(Option<String>, Option<Zeroizing<String>>), CommandError> {
    let by = actor(context);
    let has_admin = with_hub(context, async |hub| Ok(hub.has_admin().await?))?;
    if has_admin {
        return Ok((None, None));
    }
    // Asked for before anything is made, so that who gives up at the prompt leaves nothing half done.
    let password = match (&args.password_file, args.one_time) {
        (Some(file), _) => Some(super::people::read_password(file)?),
        (None, false) if context.process.interactive => Some(super::people::ask_password(&args.admin)?),
        (None, _) => None,
    };
    with_hub(context, async |hub| {
        let existing =
            hub.db.user_by_name(hub.tenant, &args.admin).await.map_err(picket_hub::refusal::Refusal::from)?;
        let user = match existing {
            Some(user) => user,
            None => hub.create_user(&args.admin, "Administrator", &by).await?,
        };
        let secret = match &password {
            Some(password) => {
                hub.set_password(&user, password, &by).await?;
                None
            }
            // Who has a password needs no link, and could not use one.
            None if user.password.is_some() => None,
            None => Some(hub.setup_secret(&user, &by).await?),
        };
        let all = Permission { principal: format!("user:{}", user.id), action: "*".to_owned(), tag: None };
        hub.grant(&all, &by).await?;
        Ok((Some(user.name), secret))
    })
}

/// Tells a person what was made.
pub(in crate::commands) fn tell(context: &Context<'_>, report: &Report) {
    let output = context.output;
    for made in &report.keys.made {
        output.say(match made {
            Made::Root => "made the root authority",
            Made::Intermediate => "made the intermediate authority",
            Made::HubCertificate => "made the hub's certificate",
            Made::CommandKey => "made the key that signs configurations and commands",
            Made::SealKey => "made the key that seals secrets in the database",
        });
    }
    if let Some(config) = &report.config {
        output.say(format_args!("wrote {config}"));
    }
    output.field("hub", &report.url);
    output.field("pin", report.keys.pin);
    if let Some(admin) = &report.admin {
        output.field("administrator", admin);
    }
    if let Some(secret) = &report.setup_secret {
        output.field("to set the password", secret);
        output.hint("it holds for a day and once: POST it with the new password to /api/v1/auth/setup");
    }
    if report.keys.root_key_present && report.keys.made.contains(&Made::Root) {
        let path = context.layout.hub_keys_dir().join("root.key");
        output.hint(format_args!("{} is not needed from day to day: take it to a safe", path.display()));
    }
    if report.is_empty() {
        output.say("everything was there already");
    }
}
