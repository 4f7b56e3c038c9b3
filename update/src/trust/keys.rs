//! One key, one voice: a threshold counts keys, not the names that they go by.
//!
//! A key's id is whatever the metadata calls it (TUF specification v1.0.33, §4.2), so that one key under two ids would
//! sign twice and make "two of three" one person's word. A role that wants more than one signature must name each key
//! once.

use sigstore_tuf::{Delegations, Error, Key, Root};
use std::collections::BTreeMap;

/// Checks every role of `root`.
///
/// # Errors
/// [`Error::Malformed`] for a role that would count one key twice.
pub(super) fn check_root(root: &Root) -> Result<(), Error> {
    root.roles.iter().try_for_each(|(name, role)| check(name, &role.keyids, role.threshold, &root.keys))
}

/// Checks the role called `name` among those that were delegated.
///
/// # Errors
/// [`Error::Malformed`] when it would count one key twice.
pub(super) fn check_delegated(delegations: &Delegations, name: &str) -> Result<(), Error> {
    let mut roles = delegations.roles.iter().filter(|role| role.name == name);
    roles.try_for_each(|role| check(name, &role.keyids, role.threshold, &delegations.keys))
}

fn check(role: &str, ids: &[String], threshold: usize, keys: &BTreeMap<String, Key>) -> Result<(), Error> {
    if threshold < 2 {
        return Ok(());
    }
    let mut seen: BTreeMap<Vec<u8>, &String> = BTreeMap::new();
    for id in ids {
        // A key that cannot be used signs nothing, so it counts for nothing.
        let Some(key) = keys.get(id).and_then(|key| key.verification_key().ok()) else { continue };
        if let Some(other) = seen.insert(key.as_bytes().to_vec(), id)
            && other != id
        {
            return Err(Error::Malformed(format!("it counts one key twice for {role}, as {other} and as {id}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ONE: &str = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29";
    const TWO: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn checked(ids: &[(&str, &str)], threshold: usize) -> Result<(), Error> {
        let key = |public: &str| json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}});
        let keys = json!(ids.iter().map(|(id, public)| (*id, key(public))).collect::<BTreeMap<_, _>>());
        let ids: Vec<String> = ids.iter().map(|(id, _)| (*id).to_owned()).collect();
        check("targets", &ids, threshold, &serde_json::from_value(keys).unwrap())
    }

    #[test]
    fn a_key_under_two_names_is_refused_where_it_would_count_twice() {
        assert!(checked(&[("a", ONE), ("b", TWO)], 2).is_ok());
        let error = checked(&[("a", ONE), ("b", TWO), ("c", ONE)], 2).unwrap_err().to_string();
        assert!(error.contains("one key twice for targets, as a and as c"), "{error}");
        assert!(checked(&[("a", ONE), ("b", ONE.to_uppercase().as_str())], 2).is_err(), "spelled in capitals");
        assert!(checked(&[("a", ONE), ("b", ONE)], 1).is_ok(), "one signature is wanted, and one is made");
        assert!(checked(&[("a", ONE), ("a", ONE)], 2).is_ok(), "an id that is listed twice is one id");
    }
}
