//! Agents that are broken on purpose. Test builds only (feature `faults`), chosen when the binary is built with
//! `PICKET_BUILD_FAULT=<name>`, or afterwards (see [`crate::stamp`]): the way to have a signed release that really fails.

use std::time::Duration;

/// How this build is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Ends with an error as soon as it is started.
    Crash,
    /// Never becomes ready and never answers.
    Hang,
    /// Becomes ready, but says it is unhealthy.
    Unhealthy,
    /// Becomes ready, and ends with an error one second later, again and again.
    Flap,
    /// Becomes ready, then its main loop stands still.
    Stuck,
}

/// The fault this binary was built with.
pub(crate) fn built_in() -> Option<Fault> {
    match crate::stamp::fault()? {
        "crash" => Some(Fault::Crash),
        "hang" => Some(Fault::Hang),
        "unhealthy" => Some(Fault::Unhealthy),
        "flap" => Some(Fault::Flap),
        "stuck" => Some(Fault::Stuck),
        _ => None,
    }
}

/// Stands still for ever.
pub(crate) fn stand_still() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
