//! What the updater is asked to do: by a person (a request, root only) or by the agent (a wish, one line).

use picket_durable::Error;
use picket_protocol::wish::{WISH_MAX_BYTES, Wish};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The largest request, in bytes.
const MAX_BYTES: u64 = 4 << 10;
const NAME: &str = "request.json";

/// A person's request, written by `picket update apply` and its like into the updater's own folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// A random id, by which the person's command finds its answer in the progress.
    pub id: String,
    /// What is wanted.
    pub wanted: Wanted,
    /// Who asked, for the history: a user's name.
    pub by: String,
}

/// What a person can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum Wanted {
    /// Update to the channel's head, or to one of its versions.
    Apply {
        /// The version; a named one is tried even if it is held.
        version: Option<Version>,
        /// Whether hooks that call the machine busy, and this machine's turn in a rollout, are to be ignored.
        now: bool,
        /// Whether the release comes from the bundle that was put where the fetcher finds it.
        #[serde(default)]
        bundle: bool,
    },
    /// Go back to the previous version.
    Rollback {
        /// Even if the vendor took it back.
        #[serde(default)]
        force: bool,
    },
    /// Try a version that `picket install` put in place.
    Installed {
        /// The version.
        version: Version,
    },
}

impl Request {
    /// Leaves the request for the updater to find.
    pub fn leave(&self, update_dir: &Path) -> Result<(), Error> {
        picket_durable::write_json(&update_dir.join(NAME), self, 0o600)
    }

    /// Whether the request is still there: no updater has taken it up.
    pub fn is_waiting(update_dir: &Path) -> bool {
        update_dir.join(NAME).exists()
    }

    /// Takes the request away and returns it. One that cannot be read is thrown away.
    pub fn take(update_dir: &Path) -> Result<Option<Self>, Error> {
        let path = update_dir.join(NAME);
        let bytes = picket_durable::read_if_present(&path, MAX_BYTES);
        picket_durable::remove_if_present(&path)?;
        Ok(bytes?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}

/// Takes the agent's wish away and returns it. The file lies in a folder that the agent's user owns: no link is
/// followed, no pipe waited on, and what does not follow the grammar is thrown away.
///
/// Never fails: whatever the agent's user puts there must not keep anybody else from updating or going back.
pub fn take_wish(path: &Path) -> Option<Wish> {
    let bytes = picket_durable::read_untrusted(path, WISH_MAX_BYTES);
    if std::fs::symlink_metadata(path).is_ok() && std::fs::remove_file(path).is_err() {
        // A folder in its place would start the updater again and again.
        if let Err(error) = picket_durable::remove_tree(path) {
            tracing::warn!(%error, "what stands in the place of the agent's wish cannot be removed");
        }
    }
    match bytes {
        Ok(bytes) => String::from_utf8(bytes?).ok()?.parse().ok(),
        Err(error) => {
            tracing::warn!(%error, "the agent's wish was thrown away");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request { id: "x".into(), wanted: Wanted::Rollback { force: false }, by: "ann".into() };
        request.leave(dir.path()).unwrap();
        assert!(Request::is_waiting(dir.path()));
        assert_eq!(Request::take(dir.path()).unwrap(), Some(request));
        assert_eq!(Request::take(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_wish_that_is_a_trap_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("update-wish");
        let wish = |text: &str| {
            picket_durable::write_atomic(&path, text.as_bytes(), 0o600).unwrap();
            take_wish(&path)
        };
        assert_eq!(wish("latest\n"), Some(Wish::Latest));
        assert_eq!(wish(&"9".repeat(200)), None);
        std::os::unix::fs::symlink("/etc/shadow", &path).unwrap();
        assert_eq!(take_wish(&path), None);
        std::fs::create_dir_all(path.join("with/more")).unwrap();
        assert_eq!(take_wish(&path), None);
        assert!(!path.exists(), "the trap is still there");
    }
}
