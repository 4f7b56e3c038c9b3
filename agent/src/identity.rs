//! The agent's identity on a machine that no hub has named yet.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::Path;

/// The machine's id, hashed for this product: machine-id(5) asks never to show the id itself to the outside.
///
/// Without a machine id (a container from scratch) the host's name takes its place.
pub fn agent_id(machine_id: &Path) -> String {
    let id = picket_durable::read_text(machine_id, 256).ok().filter(|id| !id.trim().is_empty());
    let id = id.or_else(|| sysinfo::System::host_name().ok()).unwrap_or_default();
    let digest = Sha256::new().chain_update(b"picket agent id\0").chain_update(id.trim().as_bytes()).finalize();
    digest.iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_id_is_stable_and_does_not_show_the_machine_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        picket_durable::write_atomic(&path, b"0123456789abcdef0123456789abcdef\n", 0o444).unwrap();
        let id = agent_id(&path);
        assert_eq!(id, agent_id(&path));
        assert_eq!(id.len(), 32);
        assert!(!id.contains("0123456789abcdef"));
    }
}
