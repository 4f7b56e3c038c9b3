//! `picket release …`: the vendor's side.

use super::{Context, release_bundle, release_rollout, release_verify};
use crate::build;
use crate::cli::{AddArgs, InitArgs, KeyKind, KeygenArgs, PublishArgs, ReleaseCommand, SignArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use picket_protocol::TargetTriple;
use picket_protocol::channel::ReleaseFile;
use picket_release::{
    Addition, Detached, Document, Lifetimes, PublicKey, PublishOptions, Published, ReleaseError, Repository, RootPlan,
    SecretKey, Waiting, minisign, pack_executable,
};
use picket_update::archive::{Format, unpack};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The largest archive that is added, unpacked, in bytes: far above any release of ours.
const MAX_UNPACKED: u64 = 1 << 30;
/// The largest signature or notes file, in bytes.
const MAX_SMALL: u64 = 64 << 10;

/// Runs `picket release …`.
pub(super) fn run(context: &Context<'_>, command: ReleaseCommand) -> Result<ExitCode, CommandError> {
    match command {
        ReleaseCommand::Keygen(args) => keygen(context, &args),
        ReleaseCommand::Init(args) => init(context, &args),
        ReleaseCommand::Add(args) => add(context, &args),
        ReleaseCommand::Sign(args) => sign(context, &args),
        ReleaseCommand::Publish(args) => publish(context, &args, false),
        ReleaseCommand::Refresh(args) => publish(context, &args, true),
        ReleaseCommand::Rollout(args) => release_rollout::rollout(context, &args),
        ReleaseCommand::Plan(args) => release_rollout::show_plan(context, &args),
        ReleaseCommand::Stop(args) => release_rollout::stop(context, &args),
        ReleaseCommand::Resume(args) => release_rollout::resume(context, &args),
        ReleaseCommand::Head(args) => release_rollout::head(context, &args),
        ReleaseCommand::Yank(args) => release_rollout::yank(context, &args),
        ReleaseCommand::Verify(args) => release_verify::run(context, &args),
        ReleaseCommand::Bundle(args) => release_bundle::run(context, &args),
    }
}

/// The time that metadata is made at: `SOURCE_DATE_EPOCH` where it is set, so that output can be repeated.
pub(super) fn now(context: &Context<'_>) -> jiff::Timestamp {
    let epoch = context.process.variable("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse().ok());
    epoch.and_then(|epoch| jiff::Timestamp::from_second(epoch).ok()).unwrap_or_else(jiff::Timestamp::now)
}

/// The passphrase: from a file, from the environment, or asked for; never from the command line, where others see it.
fn passphrase(context: &Context<'_>, file: Option<&Path>, prompt: &str) -> Result<Zeroizing<String>, CommandError> {
    if let Some(file) = file {
        let text = Zeroizing::new(picket_durable::read_text(file, MAX_SMALL)?);
        return Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()));
    }
    if let Some(passphrase) = context.process.variable("PICKET_RELEASE_PASSPHRASE") {
        return Ok(Zeroizing::new(passphrase.to_owned()));
    }
    if !context.process.interactive {
        return Err(CommandError::Usage(
            "a passphrase is needed: give --passphrase-file FILE, or PICKET_RELEASE_PASSPHRASE in the environment"
                .to_owned(),
        ));
    }
    let typed = rpassword::prompt_password(format!("{prompt}: "));
    Ok(Zeroizing::new(typed.map_err(|source| CommandError::system("the passphrase cannot be read", source))?))
}

fn open_key(context: &Context<'_>, path: &Path, file: Option<&Path>) -> Result<SecretKey, CommandError> {
    if minisign::SecretKey::is_key_file(path) {
        let message = format!("{} is a minisign key; it signs artifacts with `picket release add`", path.display());
        return Err(CommandError::Usage(message));
    }
    let passphrase = passphrase(context, file, &format!("Passphrase of {}", path.display()))?;
    Ok(SecretKey::load(path, passphrase.as_bytes())?)
}

fn keygen(context: &Context<'_>, args: &KeygenArgs) -> Result<ExitCode, CommandError> {
    let file = args.passphrase.passphrase_file.as_deref();
    let first = passphrase(context, file, &format!("New passphrase for {}", args.out.display()))?;
    let from_person = file.is_none() && context.process.variable("PICKET_RELEASE_PASSPHRASE").is_none();
    if from_person && *first != *passphrase(context, None, "Again")? {
        return Err(CommandError::Usage("the two passphrases differ; nothing was made".to_owned()));
    }
    if first.is_empty() {
        return Err(CommandError::Usage("an empty passphrase protects nothing; nothing was made".to_owned()));
    }
    let id = if args.kind == KeyKind::Minisign {
        let key = minisign::SecretKey::generate()?;
        key.save(&args.out, first.as_bytes())?;
        key.public_line()
    } else {
        let key = SecretKey::generate()?;
        key.save(&args.out, first.as_bytes())?;
        key.public().id()
    };
    let public = picket_release::key::public_path(&args.out);
    if args.json.json {
        context.output.json(&json!({ "secret": args.out, "public": public, "id": id }));
    } else {
        context.output.field("Secret key", args.out.display());
        context.output.field("Public key", public.display());
        context.output.field(if args.kind == KeyKind::Minisign { "Public line" } else { "Key id" }, id);
        context
            .output
            .hint("keep the secret key and its passphrase apart, and a copy of both where a fire cannot reach");
    }
    Ok(ExitCode::Success)
}

fn public_keys(paths: &[PathBuf]) -> Result<Vec<PublicKey>, CommandError> {
    Ok(paths.iter().map(|path| PublicKey::load(path)).collect::<Result<_, _>>()?)
}

fn init(context: &Context<'_>, args: &InitArgs) -> Result<ExitCode, CommandError> {
    let minisign = args.minisign_key.iter().map(|path| minisign::public_line(path)).collect::<Result<_, _>>()?;
    let plan = RootPlan {
        root: public_keys(&args.root_key)?,
        root_threshold: args.root_threshold,
        targets: public_keys(&args.targets_key)?,
        targets_threshold: args.targets_threshold,
        online: public_keys(&args.online_key)?,
        minisign,
    };
    let repo = &args.repository.repo;
    let (repository, version) = if args.next_root {
        let repository = Repository::open(repo)?;
        let version = repository.stage_next_root(&plan, now(context))?;
        (repository, version)
    } else {
        let lifetimes = Lifetimes {
            root: args.root_days,
            targets: args.targets_days,
            snapshot: args.snapshot_days,
            timestamp: args.timestamp_days,
        };
        (Repository::create(repo, &plan, lifetimes, now(context))?, 1)
    };
    let staged = repository.staged(picket_release::Role::Root);
    if args.json.json {
        context.output.json(&json!({ "repository": repo, "root_version": version, "staged": staged }));
        return Ok(ExitCode::Success);
    }
    context.output.field("Repository", repo.display());
    context.output.field("Waiting for signatures", staged.display());
    context.output.hint(format_args!(
        "sign it here with `picket release sign --key ROOT.pem`, or carry it to the key: `picket release sign --document \
         root.json --key ROOT.pem --out root.sig` there, `picket release sign --attach root.sig` here"
    ));
    Ok(ExitCode::Success)
}

fn add(context: &Context<'_>, args: &AddArgs) -> Result<ExitCode, CommandError> {
    let target = match &args.target {
        Some(target) => target.clone(),
        None => target_in_name(&args.file)?,
    };
    let work = args.repository.repo.join(".work");
    picket_durable::remove_tree(&work)?;
    picket_durable::create_dir(&work, 0o700)?;
    let result = add_in(context, args, &target, &work);
    picket_durable::remove_tree(&work)?;
    result
}

fn add_in(context: &Context<'_>, args: &AddArgs, target: &TargetTriple, work: &Path) -> Result<ExitCode, CommandError> {
    let repository = Repository::open(&args.repository.repo)?;
    let is_archive = Format::of(&args.file.to_string_lossy()).is_ok();
    let archive = if is_archive { args.file.clone() } else { work.join("picket.tar.xz") };
    if !is_archive {
        context.output.say(format_args!("packing {}", args.file.display()));
        pack_executable(&args.file, &archive, args.xz_level)?;
    }
    let files = unpacked_files(&archive, &work.join("unpacked"))?;
    let unpacked: u64 = files.values().map(|file| file.length).sum();
    let notes = match &args.notes_file {
        Some(file) => Some(picket_durable::read_text(file, MAX_SMALL)?.trim().to_owned()),
        None => args.notes.clone(),
    };
    let key_file = &args.minisign_key;
    let prompt = format!("Passphrase of {}", key_file.display());
    let passphrase = passphrase(context, args.passphrase.passphrase_file.as_deref(), &prompt)?;
    let key = minisign::SecretKey::load(key_file, passphrase.as_bytes())?;
    let addition = Addition {
        channel: args.channel.clone(),
        version: args.version.clone(),
        target: target.clone(),
        archive,
        unpacked,
        files,
        notes,
        critical: args.critical,
        state_format: args.state_format.unwrap_or(build::info().state_format.writes),
    };
    let path = repository.add(&addition, &key, now(context))?;
    if args.json.json {
        context.output.json(&json!({ "version": args.version, "target": target, "path": path, "unpacked": unpacked }));
    } else {
        context.output.marked(Tone::Good, format_args!("added {path} to channel {}", args.channel));
        context.output.hint("`picket release publish` makes it visible");
    }
    Ok(ExitCode::Success)
}

/// The beginnings of the target triples that Rust builds servers for.
const ARCHITECTURES: [&str; 6] = ["x86_64-", "aarch64-", "armv7-", "i686-", "riscv64gc-", "arm-"];

/// The target triple that a file name holds, as cargo-dist's do.
fn target_in_name(file: &Path) -> Result<TargetTriple, CommandError> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = Format::ENDINGS.into_iter().find_map(|(ending, _)| name.strip_suffix(ending)).unwrap_or(name);
    let start = ARCHITECTURES.iter().filter_map(|arch| stem.find(arch)).min();
    start.and_then(|start| stem[start..].parse().ok()).ok_or_else(|| {
        CommandError::Usage(format!("{name:?} does not say what it was built for; give --target TRIPLE"))
    })
}

/// The files that an archive unpacks to, by the very code that machines unpack it with.
fn unpacked_files(archive: &Path, into: &Path) -> Result<BTreeMap<String, ReleaseFile>, CommandError> {
    picket_durable::create_dir(into, 0o700)?;
    unpack(archive, Format::of(&archive.to_string_lossy())?, into, MAX_UNPACKED)?;
    let files = picket_versions::record_files(into)?;
    Ok(files.into_iter().map(|file| (file.path, ReleaseFile { length: file.length, sha256: file.sha256 })).collect())
}

fn sign(context: &Context<'_>, args: &SignArgs) -> Result<ExitCode, CommandError> {
    if !args.attach.is_empty() {
        return attach(context, args);
    }
    let path = args.key.as_ref().ok_or_else(|| CommandError::Usage("--key FILE is missing".to_owned()))?;
    if let (Some(document), Some(out)) = (&args.document, &args.out) {
        return sign_apart(context, args, document, out, path);
    }
    let repository = Repository::open(&args.repository.repo)?;
    for role in [picket_release::Role::Root, picket_release::Role::Targets] {
        let staged = repository.staged(role);
        if staged.exists() {
            Document::load(&staged)?.describe().iter().for_each(|line| context.output.say(line));
        }
    }
    context.confirm(args.yes, "Sign this?")?;
    let key = open_key(context, path, args.passphrase.passphrase_file.as_deref())?;
    let signed = repository.sign_staged(&key)?;
    if args.json.json {
        context.output.json(&signed);
    } else {
        for signed in &signed {
            let tone = if signed.is_complete() { Tone::Good } else { Tone::Warn };
            let (role, version) = (signed.role.as_str(), signed.version);
            context
                .output
                .marked(tone, format_args!("{role} {version}: {} of {} signatures", signed.have, signed.need));
        }
    }
    Ok(ExitCode::Success)
}

/// Signs a document on a machine that has no repository.
fn sign_apart(
    context: &Context<'_>,
    args: &SignArgs,
    document: &Path,
    out: &Path,
    key: &Path,
) -> Result<ExitCode, CommandError> {
    let document = Document::load(document)?;
    document.describe().iter().for_each(|line| context.output.say(line));
    context.confirm(args.yes, "Sign this?")?;
    let key = open_key(context, key, args.passphrase.passphrase_file.as_deref())?;
    let detached = document.sign(&key)?;
    picket_durable::write_json(out, &detached, 0o644)?;
    if args.json.json {
        context.output.json(&detached);
    } else {
        context.output.field("Signature", out.display());
        context.output.hint(format_args!("bring it back with `picket release sign --attach {}`", out.display()));
    }
    Ok(ExitCode::Success)
}

fn attach(context: &Context<'_>, args: &SignArgs) -> Result<ExitCode, CommandError> {
    let repository = Repository::open(&args.repository.repo)?;
    for file in &args.attach {
        let bytes = picket_durable::read_bounded(file, MAX_SMALL)?;
        let detached: Detached = serde_json::from_slice(&bytes).map_err(|e| {
            CommandError::Release(ReleaseError::BadFile {
                path: file.clone(),
                reason: format!("it is no signature ({e})"),
            })
        })?;
        let signed = repository.attach(&detached)?;
        if args.json.json {
            context.output.json(&signed);
        } else {
            let tone = if signed.is_complete() { Tone::Good } else { Tone::Warn };
            let (role, version) = (signed.role.as_str(), signed.version);
            context
                .output
                .marked(tone, format_args!("{role} {version}: {} of {} signatures", signed.have, signed.need));
        }
    }
    Ok(ExitCode::Success)
}

fn publish(context: &Context<'_>, args: &PublishArgs, only_refresh: bool) -> Result<ExitCode, CommandError> {
    let repository = Repository::open(&args.repository.repo)?;
    let file = args.passphrase.passphrase_file.as_deref();
    let keys = args.key.iter().map(|path| open_key(context, path, file)).collect::<Result<Vec<_>, _>>()?;
    let options = PublishOptions { keys: &keys, now: now(context) };
    let result = if only_refresh { Ok(repository.refresh(&options)?) } else { repository.publish(&options)? };
    let published = match result {
        Ok(published) => published,
        Err(waiting) => return Ok(needs_signatures(context, args, &waiting)),
    };
    if let Some(out) = &args.out {
        repository.write_tree(out)?;
    }
    let elsewhere = args.github.as_deref().map(|github| repository.write_github_assets(github)).transpose()?;
    show_published(context, args, &published);
    for artifact in elsewhere.iter().flatten() {
        context.output.say(format_args!("{artifact} is not in the repository: it stays where it was published"));
    }
    Ok(ExitCode::Success)
}

fn needs_signatures(context: &Context<'_>, args: &PublishArgs, waiting: &Waiting) -> ExitCode {
    let signed = &waiting.signed;
    if args.json.json {
        context.output.json(waiting);
    } else {
        let (role, version) = (signed.role.as_str(), signed.version);
        let message =
            format!("{role} {version} has {} of {} signatures; nothing was published", signed.have, signed.need);
        context.output.marked(Tone::Warn, message);
        context.output.hint("another key holder signs it with `picket release sign`; then publish again");
    }
    ExitCode::NeedsSignatures
}

fn show_published(context: &Context<'_>, args: &PublishArgs, published: &Published) {
    if args.json.json {
        context.output.json(published);
        return;
    }
    let Published { root, targets, snapshot, timestamp, valid_until } = published;
    let versions = format!("root {root}, targets {targets}, snapshot {snapshot}, timestamp {timestamp}");
    context.output.marked(Tone::Good, format_args!("signed: {versions}"));
    context.output.field("Refresh before", valid_until);
    for place in args.out.iter().chain(&args.github) {
        context.output.field("Written to", place.display());
    }
}
