//! Where the rooms meet: the updater's ports filled with the service room, the trust with the pinned root.

mod engine;
mod export;
mod machine;
mod owner;
mod portable;
mod probe;
mod store;
mod watchers;

pub(crate) use engine::{Parts, pinned_root, with_engine};
pub(crate) use export::{Export, log_and_export};
pub(crate) use machine::MachineOf;
pub(crate) use owner::{as_owner, as_owner_of};
pub(crate) use portable::with_portable;
pub(crate) use probe::{ServiceProbe, of_hub};
pub(crate) use store::read_store;
pub(crate) use watchers::ConfiguredWatchers;

use picket_layout::{Layout, Scope};
use std::ffi::OsString;

/// The options that select `layout`'s installation on another command line.
pub(crate) fn scope_options(layout: &Layout) -> Vec<OsString> {
    match layout.scope() {
        Scope::System => Vec::new(),
        Scope::User => vec!["--user".into()],
        Scope::Prefix(dir) => vec!["--prefix".into(), dir.into()],
    }
}

/// The machine's id, or nothing where it has none.
pub(crate) fn machine_id() -> String {
    picket_durable::read_text(std::path::Path::new("/etc/machine-id"), 256).unwrap_or_default()
}
