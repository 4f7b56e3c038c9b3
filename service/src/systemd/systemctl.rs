//! Running `systemctl`, from a fixed place and with bounded output.

use crate::registrar::ServiceError;
use std::process::{Command, Stdio};

/// Where `systemctl` is: never looked up through a PATH that a caller may have bent.
const PLACES: [&str; 2] = ["/usr/bin/systemctl", "/bin/systemctl"];

/// `systemctl`, for the system or for the caller's own manager.
#[derive(Debug, Clone, Copy)]
pub(super) struct Systemctl {
    /// Whether it is the caller's own manager.
    pub(super) user: bool,
}

impl Systemctl {
    /// Runs it with `arguments` and returns what it printed.
    pub(super) fn run(self, arguments: &[&str]) -> Result<String, ServiceError> {
        let program = PLACES.into_iter().find(|place| std::path::Path::new(place).exists()).unwrap_or(PLACES[0]);
        let mut command = Command::new(program);
        if self.user {
            command.arg("--user");
        }
        command.arg("--no-ask-password").args(arguments).stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
        // Pagers and colours are for people; the answer is for us.
        command.env("SYSTEMD_PAGER", "").env("SYSTEMD_COLORS", "0");
        let output = command.output().map_err(|source| ServiceError::Spawn { program: program.to_owned(), source })?;
        tracing::trace!(?arguments, status = %output.status, "systemctl");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let message: String = stderr.trim().chars().take(2_000).collect();
        let message = if message.is_empty() { output.status.to_string() } else { message };
        let user = if self.user { " --user" } else { "" };
        Err(ServiceError::Command { command: format!("systemctl{user} {}", arguments.join(" ")), message })
    }
}
