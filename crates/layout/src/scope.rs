//! The three kinds of installation.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Which installation a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The machine's: `/opt/picket`, needs root.
    System,
    /// One person's: in the home folder, needs no root.
    User,
    /// A tree below one folder (absolute), owned by whoever makes it: tests, demos, containers.
    Prefix(PathBuf),
}

impl Scope {
    /// Whether changing this installation needs root.
    pub fn needs_root(&self) -> bool {
        matches!(self, Self::System)
    }

    /// The options that select this scope again on another command line, with a leading space where not empty.
    pub fn as_options(&self) -> String {
        match self {
            Self::System => String::new(),
            Self::User => " --user".to_owned(),
            Self::Prefix(dir) => format!(" --prefix {}", dir.display()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::User => f.write_str("user"),
            Self::Prefix(dir) => write!(f, "prefix {}", dir.display()),
        }
    }
}
