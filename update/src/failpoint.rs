//! Places where a test build of the updater can be stopped, to see that it recovers from there.
//!
//! Test builds only (feature `failpoints`). `PICKET_FAILPOINT=<place>` ends the process there as a crash would;
//! `PICKET_FAILPOINT=<place>=hold:<file>` creates the file and stands still while it is there, so that the test
//! can cut the power, or do its part and remove the file.

/// Marks a place.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn reach(_place: &str) {}

/// Marks a place: ends or holds the process if the test asked for it.
#[cfg(feature = "failpoints")]
#[expect(clippy::disallowed_methods, reason = "a test's switch must reach every depth of the updater")]
pub(crate) fn reach(place: &str) {
    let Ok(wanted) = std::env::var("PICKET_FAILPOINT") else { return };
    let (name, action) = wanted.split_once('=').unwrap_or((&wanted, "abort"));
    if name != place {
        return;
    }
    match action.strip_prefix("hold:") {
        Some(file) => {
            let _ = std::fs::File::create(file);
            while std::path::Path::new(file).exists() {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
        None => std::process::abort(),
    }
}
