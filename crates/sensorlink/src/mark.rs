//! The agent's mark on disk: how far it got, so that what it has is not taken twice after a restart.

use picket_protocol::sensor::Mark;
use std::path::Path;

/// The largest mark file, in bytes.
const MAX_BYTES: u64 = 1 << 10;

/// The mark in `path`; `None` where there is none, or none that can be read: events then come again rather than never.
pub(crate) fn load(path: &Path) -> Option<Mark> {
    let bytes = picket_durable::read_untrusted(path, MAX_BYTES).ok().flatten()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes the mark.
pub(crate) fn save(path: &Path, mark: Mark) -> Result<(), picket_durable::Error> {
    picket_durable::write_json(path, &mark, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_mark_is_no_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mark");
        assert_eq!(load(&path), None);
        let mark = Mark { incarnation: uuid::Uuid::now_v7(), seq: 5 };
        save(&path, mark).unwrap();
        assert_eq!(load(&path), Some(mark));
        picket_durable::write_atomic(&path, b"{\"incarnation\":", 0o600).unwrap();
        assert_eq!(load(&path), None);
    }
}
