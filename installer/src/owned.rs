//! Whose file an executable is: a package manager's or an installation's, which alone may replace it.

use crate::copies::package_of;
use crate::receipt::Receipt;
use picket_layout::{Layout, Scope};
use std::path::{Path, PathBuf};

/// Who owns a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Who, as in "it belongs to …".
    pub who: String,
    /// How the file becomes a newer one.
    pub way: String,
}

/// The owner of the executable at `exe` (links resolved), if it has one.
pub fn owner_of(exe: &Path) -> Option<Owner> {
    by_place(exe).or_else(|| by_receipt(exe)).or_else(|| by_package(exe))
}

/// Folders that only a package manager writes: a part of the path, whose it is, and how it is told to update.
const PLACES: [(&str, &str, &str); 10] = [
    ("/Cellar/", "Homebrew", "`brew upgrade picket`"),
    ("/linuxbrew/", "Homebrew", "`brew upgrade picket`"),
    ("/nix/store/", "Nix", "update it where it is declared, or `nix profile upgrade picket`"),
    ("/gnu/store/", "Guix", "`guix upgrade picket`"),
    ("/snap/", "snapd", "`snap refresh picket`"),
    ("/var/lib/snapd/", "snapd", "`snap refresh picket`"),
    ("/flatpak/", "Flatpak", "`flatpak update`"),
    ("/.cargo/bin/", "cargo", "`cargo install picket` again"),
    ("/mise/installs/", "mise", "`mise upgrade picket`"),
    ("/.asdf/installs/", "asdf", "`asdf install picket latest`"),
];

fn by_place(exe: &Path) -> Option<Owner> {
    let path = exe.to_string_lossy();
    let (_, who, way) = PLACES.into_iter().find(|(part, _, _)| path.contains(part))?;
    Some(Owner { who: who.to_owned(), way: way.to_owned() })
}

/// An installation whose receipt names the file, or in whose folder of versions it is: the system's, the caller's, or one
/// below a prefix that the path lies in.
fn by_receipt(exe: &Path) -> Option<Owner> {
    let prefixes = exe.ancestors().skip(1).map(|dir| Scope::Prefix(dir.to_owned()));
    let layouts = [Scope::System, Scope::User].into_iter().chain(prefixes).filter_map(|scope| Layout::of(scope).ok());
    let owns = |layout: &Layout| {
        // `/` as a prefix is the system's layout under another name, whose receipt says so.
        let receipt = Receipt::load(layout).ok().flatten().filter(|_| layout.receipt().exists());
        receipt.is_some_and(|receipt| {
            exe.starts_with(layout.program_dir()) || receipt.items.iter().any(|item| real(&item.path) == real(exe))
        })
    };
    let layout = layouts.into_iter().find(owns)?;
    let options = layout.scope().as_options();
    Some(Owner {
        who: format!("the installation in {}", layout.program_dir().display()),
        way: format!("`picket update apply{options}`"),
    })
}

/// A path with the links in its folder resolved, but not the last one.
fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    folder.zip(path.file_name()).map_or_else(|| path.to_owned(), |(folder, name)| folder.join(name))
}

fn by_package(exe: &Path) -> Option<Owner> {
    // Where /bin is a link to /usr/bin, a package may have either name in its list.
    let short = exe.strip_prefix("/usr").ok().map(|rest| Path::new("/").join(rest));
    let package = package_of(exe).or_else(|| package_of(&short?))?;
    let way = "update it with your package manager (`apt upgrade`, `dnf upgrade`)".to_owned();
    Some(Owner { who: format!("the package {package}"), way })
}

#[cfg(test)]
mod tests {
    use super::*;
    use semver::Version;

    #[test]
    fn a_package_managers_folder_is_known_by_its_name() {
        for (path, who) in [
            ("/opt/homebrew/Cellar/picket/1.0.0/bin/picket", "Homebrew"),
            ("/home/linuxbrew/.linuxbrew/Cellar/picket/1/bin/picket", "Homebrew"),
            ("/nix/store/abc-picket-1.0.0/bin/picket", "Nix"),
            ("/snap/picket/12/bin/picket", "snapd"),
            ("/home/ann/.cargo/bin/picket", "cargo"),
        ] {
            assert_eq!(by_place(Path::new(path)).unwrap().who, who, "{path}");
        }
        for path in ["/home/ann/bin/picket", "/opt/tools/picket", "/home/ann/snap-shots/picket"] {
            assert_eq!(by_place(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_file_in_a_receipt_belongs_to_its_installation_and_one_beside_it_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let layout = Layout::of(Scope::Prefix(root.clone())).unwrap();
        let mut receipt = Receipt::new(&layout, &Version::new(1, 0, 0), jiff::Timestamp::UNIX_EPOCH);
        let link = root.join("usr/local/bin/picket");
        receipt.items.push(crate::receipt::Item {
            path: link.clone(),
            kind: picket_layout::Kind::Link,
            class: picket_layout::Class::Program,
        });
        std::fs::create_dir_all(layout.program_dir()).unwrap();
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        receipt.save(&layout).unwrap();
        let owner = by_receipt(&link).unwrap();
        assert!(owner.way.contains("--prefix") && owner.way.contains(root.to_str().unwrap()), "{owner:?}");
        assert!(by_receipt(&layout.program_dir().join("versions/9.9.9/picket")).is_some());
        assert_eq!(by_receipt(&root.join("home/ann/bin/picket")), None);
    }
}
