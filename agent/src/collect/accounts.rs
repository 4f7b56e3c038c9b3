//! Who is who and who is here: names of accounts, and the users that are logged in.
//!
//! Names come from `/etc/passwd` alone. The C library's `getpwuid` would ask name services, too, and with LDAP that is
//! a question to the network, on a collector's thread; an account that only LDAP knows is shown by its number.
//!
//! Logged-in users come from utmp(5), a file of records of fixed size that can be read without `unsafe`: type, line and
//! name stand at the same place on every architecture, only the record's length differs. A system that keeps no utmp
//! (containers, musl distributions, systemd built without it) has no answer, and none is made up: systemd's own
//! session files are declared private, and counting accounts would be the answer to another question.

use super::text::{lines, number, printable};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The largest `/etc/passwd` that is searched, in bytes.
const PASSWD_LIMIT: u64 = 4 << 20;
/// The largest utmp that is read, in bytes: 10,000 logins.
const UTMP_LIMIT: u64 = 4 << 20;
/// Names kept; more than this many different users among the busiest processes begin anew.
const MAX_NAMES: usize = 256;
/// The most logged-in names that are listed.
const MAX_LOGGED_IN: usize = 64;
/// The first number of a person's account (login.defs(5)).
const FIRST_PERSON: u64 = 1_000;
/// The last one; above are `nobody` and what systemd gives to services for the time they run.
const LAST_PERSON: u64 = 60_000;

/// The length of a utmp record: times have 32 bits where a 32-bit sibling architecture shares the file (utmp(5)).
const UTMP_RECORD: Option<usize> = if cfg!(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm")) {
    Some(384)
} else if cfg!(target_arch = "aarch64") {
    Some(400)
} else {
    None
};
/// `ut_type` of a login.
const USER_PROCESS: u8 = 7;
/// Where `ut_user` stands: behind type, pid, line and id.
const UTMP_USER: std::ops::Range<usize> = 44..76;

/// Names of accounts, remembered until `/etc/passwd` changes.
#[derive(Debug)]
pub(super) struct Accounts {
    passwd: PathBuf,
    stamp: Option<(i64, i64, u64)>,
    names: BTreeMap<u32, Option<String>>,
}

impl Accounts {
    pub(super) fn new(passwd: impl Into<PathBuf>) -> Self {
        Self { passwd: passwd.into(), stamp: None, names: BTreeMap::new() }
    }

    /// The name of `uid`, or its number where no name is known.
    pub(super) fn name(&mut self, uid: u32) -> String {
        let stamp = std::fs::metadata(&self.passwd).ok().map(|meta| (meta.mtime(), meta.mtime_nsec(), meta.len()));
        if stamp != self.stamp || self.names.len() >= MAX_NAMES {
            self.names.clear();
            self.stamp = stamp;
        }
        let passwd = &self.passwd;
        let known = self.names.entry(uid).or_insert_with(|| {
            let text = picket_durable::read_bounded(passwd, PASSWD_LIMIT).ok()?;
            accounts(&text).find(|(_, number)| *number == u64::from(uid)).map(|(name, _)| name)
        });
        known.clone().unwrap_or_else(|| uid.to_string())
    }

    /// How many people have an account here.
    pub(super) fn people(&self) -> Option<usize> {
        let text = picket_durable::read_bounded(&self.passwd, PASSWD_LIMIT).ok()?;
        Some(accounts(&text).filter(|(_, uid)| (FIRST_PERSON..=LAST_PERSON).contains(uid)).count())
    }
}

/// Name and number of each account (passwd(5)): `name:password:uid:gid:…`.
fn accounts(text: &[u8]) -> impl Iterator<Item = (String, u64)> {
    lines(text).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        Some((printable(name, 64), number(fields.nth(1)?)?))
    })
}

/// The names of the users who are logged in, each once; `None` where the system does not keep account.
pub(super) fn logged_in(utmp: &Path) -> Option<Vec<String>> {
    let record = UTMP_RECORD?;
    let bytes = picket_durable::read_if_present(utmp, UTMP_LIMIT).ok()??;
    Some(names(&bytes, record))
}

fn names(bytes: &[u8], record: usize) -> Vec<String> {
    let logins = bytes.chunks_exact(record).filter(|login| login[0] == USER_PROCESS && login[1] == 0);
    let names = logins.map(|login| {
        let name = &login[UTMP_USER];
        printable(&name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())], 32)
    });
    let mut names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    names.sort();
    names.dedup();
    names.truncate(MAX_LOGGED_IN);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn login(kind: u8, user: &str) -> Vec<u8> {
        let mut record = vec![0; 384];
        record[0] = kind;
        record[UTMP_USER.start..UTMP_USER.start + user.len()].copy_from_slice(user.as_bytes());
        record
    }

    #[test]
    fn each_user_with_a_session_is_named_once_and_the_dead_are_not() {
        let bytes = [login(2, "reboot"), login(7, "ada"), login(7, "ada"), login(8, "bob"), login(7, "eve")].concat();
        assert_eq!(names(&bytes, 384), ["ada", "eve"]);
        // A record cut short by a write under way is not read.
        assert_eq!(names(&bytes[..bytes.len() - 1], 384), ["ada"]);
    }

    #[test]
    fn a_system_that_keeps_no_account_of_logins_has_no_answer() {
        assert_eq!(logged_in(Path::new("/nonexistent/utmp")), None);
    }

    #[test]
    fn a_name_is_found_again_after_the_accounts_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        picket_durable::write_atomic(&path, b"root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\nbroken\n", 0o644)
            .unwrap();
        let mut accounts = Accounts::new(&path);
        assert_eq!(
            (accounts.name(0), accounts.name(1000), accounts.name(7)),
            ("root".into(), "ada".into(), "7".into())
        );
        assert_eq!(accounts.people(), Some(1));
        picket_durable::write_atomic(&path, b"toor:x:0:0::/:/bin/sh\n", 0o644).unwrap();
        assert_eq!(accounts.name(0), "toor");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            names(&noise, 384);
            accounts(&noise).count();
        }
    }
}
