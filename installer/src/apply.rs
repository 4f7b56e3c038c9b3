//! Doing what the plan says. Every step may be done again; the receipt is ahead of the deed.

use crate::accounts::{AccountError, Accounts, create_user};
use crate::plan::{Plan, Request, Step};
use crate::receipt::Receipt;
use picket_durable::Context;
use picket_layout::{Class, Entry, FETCH_USER, HUB_USER, Kind, Layout, SENSOR_USER, SERVICE_USER};
use picket_service::{Registrar, ServiceError};
use picket_versions::{PlaceError, VersionDirs, VersionSource};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::Path;

/// A step that failed. What was done before it stays, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Something stands in the way; nothing was done.
    #[error("{}", _0.join("\n"))]
    Obstacles(Vec<String>),
    /// The service user could not be made.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] picket_durable::Error),
    /// The version could not be put in place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The service manager refused.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Does every step of `plan` but [`Step::Start`] and [`Step::TryVersion`], which take time and are the caller's to watch,
/// and [`Step::CreateKey`] and [`Step::InitHub`], which are done as a service's user and not as root: they are returned, in
/// order. `told` hears of each step before it is done.
pub fn apply(
    plan: &Plan,
    request: &Request,
    layout: &Layout,
    registrar: &dyn Registrar,
    now: jiff::Timestamp,
    mut told: impl FnMut(&Step),
) -> Result<Vec<Step>, ApplyError> {
    if !plan.obstacles.is_empty() {
        return Err(ApplyError::Obstacles(plan.obstacles.clone()));
    }
    let mut left = Vec::new();
    if plan.steps.is_empty() {
        return Ok(left);
    }
    let mut receipt = begin(plan, request, layout, now)?;
    for step in &plan.steps {
        if is_callers(step) {
            left.push(step.clone());
            continue;
        }
        told(step);
        do_step(step, request, layout, registrar, &mut receipt, now)?;
    }
    receipt.complete = true;
    receipt.save(layout)?;
    Ok(left)
}

fn is_callers(step: &Step) -> bool {
    matches!(step, Step::CreateKey(_) | Step::InitHub(_) | Step::Start(_) | Step::TryVersion(_))
}

/// Writes down everything that is about to be made.
fn begin(plan: &Plan, request: &Request, layout: &Layout, now: jiff::Timestamp) -> Result<Receipt, ApplyError> {
    // The receipt's own folder comes first: without it there is nowhere to write to.
    picket_durable::create_dir(layout.program_dir(), 0o755)?;
    let mut receipt = Receipt::load(layout)?.unwrap_or_else(|| Receipt::new(layout, &request.build.version, now));
    receipt.complete = false;
    receipt.made_user |= plan.steps.contains(&Step::CreateUser(SERVICE_USER));
    receipt.made_sensor_user |= plan.steps.contains(&Step::CreateUser(SENSOR_USER));
    receipt.made_fetch_user |= plan.steps.contains(&Step::CreateUser(FETCH_USER));
    receipt.made_hub_user |= plan.steps.contains(&Step::CreateUser(HUB_USER));
    // An upgrade's new version reads here whose units it writes.
    receipt.roles = layout.roles();
    // Our own folders are ours even where somebody made one before us: a configuration put there ahead of time.
    for entry in layout.entries().into_iter().filter(|entry| entry.class != Class::Shared) {
        receipt.note(&entry.path, entry.kind, entry.class);
    }
    for (path, kind, class) in plan.steps.iter().flat_map(|step| step.makes(layout)) {
        receipt.note(&path, kind, class);
    }
    receipt.save(layout)?;
    Ok(receipt)
}

fn do_step(
    step: &Step,
    request: &Request,
    layout: &Layout,
    registrar: &dyn Registrar,
    receipt: &mut Receipt,
    now: jiff::Timestamp,
) -> Result<(), ApplyError> {
    match step {
        Step::CreateUser(name) => create_user(name)?,
        Step::CreateDir(entry) => {
            picket_durable::create_dir(&entry.path, entry.mode)?;
            correct(entry, layout)?;
        }
        Step::Correct(entry, _) => correct(entry, layout)?,
        Step::PlaceVersion(version) => {
            let versions = VersionDirs::new(layout);
            versions.copy(&request.exe)?;
            versions.place(version, &request.build.target, VersionSource::Installed { sha256: request.sha256 }, now)?;
        }
        Step::WriteFile(path, bytes) => {
            let entry = layout.file_entry(path);
            picket_durable::write_atomic(path, bytes, entry.mode)?;
            correct(&entry, layout)?;
        }
        Step::ForgetTrust(path) => {
            picket_durable::remove_tree(path)?;
        }
        Step::Link(link, target) => picket_durable::replace_symlink(link, target)?,
        Step::Register(units) => {
            let paths = units.iter().filter_map(|unit| registrar.unit_path(&unit.name));
            paths.for_each(|path| receipt.note(&path, Kind::File, Class::Program));
            receipt.save(layout)?;
            registrar.register(units)?;
        }
        Step::Enable(role) => registrar.enable(*role)?,
        Step::CreateKey(_) | Step::InitHub(_) | Step::Start(_) | Step::TryVersion(_) => {}
    }
    Ok(())
}

/// Gives a place its owner and mode. A link is never followed to somebody else's file.
fn correct(entry: &Entry, layout: &Layout) -> Result<(), ApplyError> {
    if entry.class == Class::Shared {
        return Ok(());
    }
    let owner = Accounts::of(layout).numbers(entry.owner);
    let set_owner = |path: &Path, (uid, gid): (u32, u32)| {
        if entry.kind == Kind::Link { lchown(path, Some(uid), Some(gid)) } else { chown(path, Some(uid), Some(gid)) }
    };
    if let Some(owner) = owner {
        set_owner(&entry.path, owner).doing("set the owner of", &entry.path)?;
    }
    if entry.kind != Kind::Link {
        // After the owner: a change of owner may take mode bits away.
        let mode = Permissions::from_mode(entry.mode);
        std::fs::set_permissions(&entry.path, mode).doing("set the mode of", &entry.path)?;
    }
    Ok(())
}
