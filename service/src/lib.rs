//! Registered with the service manager: systemd, or the supervisor for prefixes and containers.
//!
//! One small trait, [`Registrar`], and one implementation for each kind of manager. It has the verbs that installing,
//! watching and updating need, and no more: register, start, stop, status, and the *trial*, in which the manager runs
//! another version than the one it would start at boot, and forgets about it at a power cut.
//!
//! | | systemd | supervisor |
//! |---|---|---|
//! | registered by | unit files in `/usr/local/lib/systemd/system` | nothing: `picket service run` knows its units |
//! | trial | V2's unit text in `/run/systemd/system` | an override in the supervisor's memory |
//! | power cut during a trial | `/run` is gone, boot starts `current` | the supervisor is gone, its next start runs `current` |
//! | the updater's owner | `picket-update.service` | a child of the supervisor, never of the agent |

mod registrar;
pub mod supervisor;
pub mod systemd;

pub use registrar::{LogQuery, Registrar, SensorStatus, ServiceError, ServiceState, ServiceStatus, Trial};
pub use systemd::units;

use picket_layout::{Layout, Scope};
use std::path::Path;

/// The folder whose presence says that systemd runs this machine (`sd_booted(3)`).
const SYSTEMD_BOOTED: &str = "/run/systemd/system";

/// The registrar of an installation: systemd where it runs, the supervisor for a prefix and where there is none.
pub fn registrar(layout: &Layout) -> Box<dyn Registrar> {
    let systemd = match layout.scope() {
        Scope::Prefix(_) => None,
        Scope::System => Path::new(SYSTEMD_BOOTED).is_dir().then(|| systemd::Systemd::system(layout)),
        Scope::User => systemd::Systemd::user(layout),
    };
    match systemd {
        Some(systemd) => Box::new(systemd),
        None => Box::new(supervisor::Supervised::new(layout)),
    }
}
