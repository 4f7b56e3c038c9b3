//! Other copies of Picket on the machine: a person should know which one a command is about.

use picket_layout::{EXECUTABLE, Layout, Scope};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Another copy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Copy {
    /// Where it is.
    pub path: PathBuf,
    /// What it is: an installation of which kind, a package's file, or a loose executable.
    pub what: String,
}

/// Looks for copies other than `layout`'s installation: other installations, and executables called `picket` on `path`
/// (the PATH of the caller). `own` is the executable that asks.
pub fn find_copies(layout: &Layout, path: &[PathBuf], own: &Path) -> Vec<Copy> {
    let mut copies = Vec::new();
    for scope in [Scope::System, Scope::User] {
        let Ok(other) = Layout::of(scope.clone()) else { continue };
        if other.program_dir() != layout.program_dir() && other.receipt().exists() {
            copies.push(Copy { path: other.program_dir().to_owned(), what: format!("a {scope} installation") });
        }
    }
    let real_own = own.canonicalize().ok();
    let mut seen = Vec::new();
    for dir in path {
        let candidate = dir.join(EXECUTABLE);
        let Ok(real) = candidate.canonicalize() else { continue };
        let ours = real.starts_with(layout.program_dir()) || Some(&real) == real_own.as_ref();
        let known = copies.iter().any(|copy| real.starts_with(&copy.path)) || seen.contains(&real);
        if ours || known || !is_executable(&real) {
            continue;
        }
        let what = package_of(&real).map_or_else(
            || "an executable on the PATH".to_owned(),
            |package| format!("a file of the package {package}"),
        );
        seen.push(real);
        copies.push(Copy { path: candidate, what });
    }
    copies
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The package that a file belongs to, as dpkg or rpm know it.
pub fn package_of(path: &Path) -> Option<String> {
    let ask = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(path).stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let dpkg = ask("/usr/bin/dpkg-query", &["--search"]).and_then(|text| Some(text.split_once(':')?.0.to_owned()));
    dpkg.or_else(|| ask("/usr/bin/rpm", &["--query", "--file"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_executable_of_that_name_is_found_and_our_own_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Scope::Prefix(dir.path().join("prefix"))).unwrap();
        let (own, other) = (dir.path().join("own"), dir.path().join("other"));
        for folder in [&own, &other] {
            picket_durable::create_dir(folder, 0o755).unwrap();
            picket_durable::write_atomic(&folder.join("picket"), b"#!", 0o755).unwrap();
        }
        let copies = find_copies(&layout, &[own.clone(), other.clone(), other.clone()], &own.join("picket"));
        let found: Vec<&Path> = copies.iter().map(|copy| copy.path.as_path()).collect();
        assert!(found.contains(&other.join("picket").as_path()) && !found.contains(&own.join("picket").as_path()));
        assert_eq!(found.iter().filter(|path| path.starts_with(&other)).count(), 1);
    }
}
