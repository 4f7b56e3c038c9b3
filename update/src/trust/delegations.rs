//! Finding a target through delegations: pre-order, depth first, bounded (TUF specification v1.0.33, §5.6.7).
//!
//! A vendor may hand parts of the targets to other keys, for example one team's platform. A delegated role is asked only
//! for the paths that were handed to it, and a *terminating* delegation ends the search even where it has no answer.

use super::{TrustError, keys};
use sigstore_tuf::{Error as TufError, TargetFile, TrustedMetadataSet};
use std::collections::BTreeSet;

/// The most roles one search looks into (python-tuf's `max_delegations`).
const MAX_ROLES: usize = 32;
/// The longest file name of a delegated role's metadata that is kept; longer ones are fetched each time. File systems
/// take 255 bytes, of which `.json` and a temporary name's suffix need some.
const MAX_FILE_NAME: usize = 200;

/// What one role says about one path.
pub(super) struct View {
    found: Option<TargetFile>,
    /// The roles that it hands the path to, in order of preference.
    children: Vec<String>,
    /// Whether nobody but those may be asked.
    terminating: bool,
}

/// Searches for a path. `visit` is told a role and who delegated to it, and shows the role's view once the role is
/// verified; `None` when it is not to be had.
pub(super) fn search(
    mut visit: impl FnMut(&str, &str) -> Result<Option<View>, TrustError>,
) -> Result<Option<TargetFile>, TrustError> {
    let mut to_visit = vec![("targets".to_owned(), "root".to_owned())];
    let mut visited = BTreeSet::new();
    while let Some((role, delegator)) = to_visit.pop() {
        if visited.contains(&role) {
            continue;
        }
        if visited.len() >= MAX_ROLES {
            tracing::warn!(limit = MAX_ROLES, "the search through delegated roles was broken off");
            break;
        }
        let Some(view) = visit(&role, &delegator)? else { continue };
        if view.found.is_some() {
            return Ok(view.found);
        }
        if view.terminating {
            to_visit.clear();
        }
        to_visit.extend(view.children.into_iter().rev().map(|child| (child, role.clone())));
        visited.insert(role);
    }
    Ok(None)
}

/// What the loaded `role` says about `path`; `None` when it is not loaded.
pub(super) fn view(set: &TrustedMetadataSet, role: &str, path: &str) -> Result<Option<View>, TrustError> {
    let Some(targets) = set.targets_role(role) else { return Ok(None) };
    let mut view = View { found: targets.target(path).cloned(), children: Vec::new(), terminating: false };
    for child in targets.delegations.iter().flat_map(|delegations| &delegations.roles) {
        if !is_delegated(&child.name) || !child.matches_path(path).map_err(refused)? {
            continue;
        }
        if let Some(delegations) = &targets.delegations {
            keys::check_delegated(delegations, &child.name).map_err(refused)?;
        }
        view.children.push(child.name.clone());
        if child.terminating {
            view.terminating = true;
            break;
        }
    }
    Ok(Some(view))
}

/// Whether a role of this name may be delegated to: the four top-level names are the root's to give.
pub(super) fn is_delegated(role: &str) -> bool {
    !matches!(role, "root" | "timestamp" | "snapshot" | "targets")
}

/// The name of a role's metadata file without its version and `.json`: percent-encoded (RFC 3986 §2.1), so that no name
/// leads out of its folder; the same as python-tuf's.
pub(super) fn file_name(role: &str) -> String {
    super::percent_encode(role, "")
}

/// The name under which a delegated role is kept on disk; `None` for one that no file system would take.
pub(super) fn stored_name(role: &str) -> Option<String> {
    Some(file_name(role)).filter(|name| name.len() <= MAX_FILE_NAME)
}

pub(super) fn refused(source: TufError) -> TrustError {
    TrustError::Refused { role: "delegated targets", source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Walks a graph given as `role → children` (`!` marks a terminating one) and returns the roles in order.
    fn walk(graph: &[(&str, &[&str])]) -> Vec<String> {
        let graph: BTreeMap<&str, &[&str]> = graph.iter().copied().collect();
        let mut order = Vec::new();
        let visit = |role: &str, _: &str| {
            order.push(role.to_owned());
            let all = graph.get(role).copied().unwrap_or_default();
            let end = all.iter().position(|child| child.ends_with('!'));
            let children = &all[..end.map_or(all.len(), |end| end + 1)];
            let children = children.iter().map(|child| child.trim_end_matches('!').to_owned()).collect();
            Ok(Some(View { found: None, children, terminating: end.is_some() }))
        };
        assert_eq!(search(visit).unwrap(), None);
        order
    }

    #[test]
    fn roles_are_asked_depth_first_and_each_once() {
        assert_eq!(
            walk(&[("targets", &["a", "b"]), ("a", &["c"]), ("c", &["targets", "b"])]),
            ["targets", "a", "c", "b"]
        );
    }

    #[test]
    fn a_terminating_role_ends_the_search() {
        assert_eq!(walk(&[("targets", &["a", "b!", "c"]), ("b", &["d"])]), ["targets", "a", "b", "d"]);
        assert_eq!(walk(&[("targets", &["a", "c"]), ("a", &["b!"])]), ["targets", "a", "b"]);
    }

    #[test]
    fn a_chain_without_end_is_broken_off() {
        let names: Vec<String> = (0..100).map(|i| format!("r{i}")).collect();
        let next: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
        let mut graph: Vec<(&str, &[&str])> = vec![("targets", &next[0])];
        graph.extend((0..99).map(|i| (names[i].as_str(), &next[i + 1][..])));
        assert_eq!(walk(&graph).len(), MAX_ROLES);
    }

    #[test]
    fn no_role_name_leads_out_of_its_folder() {
        assert_eq!(file_name("../../etc/passwd"), "..%2F..%2Fetc%2Fpasswd");
        assert_eq!(file_name("a b?#é"), "a%20b%3F%23%C3%A9");
        assert_eq!(stored_name(&"x".repeat(201)), None);
    }
}
