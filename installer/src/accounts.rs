//! The users that agent, sensor and hub run as: whether they are there, and how to make and remove them.
//!
//! Users are made with the system's own tool, which knows about `/etc/login.defs`, sub-ids and NIS: shadow's `useradd`
//! on most distributions, busybox' `adduser` on small ones.

use nix::unistd::{Group, User};
use picket_layout::{Account, FETCH_USER, HUB_USER, Layout, Owner, SENSOR_USER, SERVICE_USER};
use std::path::Path;
use std::process::{Command, Stdio};

/// The numbers behind the accounts of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounts {
    /// Owner of the program: root in a system installation, else the caller.
    pub root: (u32, u32),
    /// The service user; `None` while it does not exist.
    pub service: Option<(u32, u32)>,
    /// The sensor's user; `None` while it does not exist.
    pub sensor: Option<(u32, u32)>,
    /// The hub's user; `None` while it does not exist.
    pub hub: Option<(u32, u32)>,
    /// The user of the updater's unprivileged half, with its own group; `None` while it does not exist.
    pub fetch: Option<(u32, u32)>,
}

/// The service user could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No tool for it was found.
    #[error("no tool to {0} a system user was found (useradd or adduser)")]
    NoTool(&'static str),
    /// The tool failed.
    #[error("{command} failed: {message}")]
    Tool {
        /// The command line.
        command: String,
        /// What it printed.
        message: String,
    },
}

impl Accounts {
    /// The accounts of `layout`'s installation, as they are now.
    pub fn of(layout: &Layout) -> Self {
        let caller = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if !layout.has_service_user() {
            let caller_is = Some(caller);
            return Self { root: caller, service: caller_is, sensor: caller_is, hub: caller_is, fetch: caller_is };
        }
        let group = Group::from_name(SERVICE_USER).ok().flatten();
        let numbers = |name| {
            let user = User::from_name(name).ok().flatten();
            user.zip(group.as_ref()).map(|(user, group)| (user.uid.as_raw(), group.gid.as_raw()))
        };
        let [service, sensor, hub] = [SERVICE_USER, SENSOR_USER, HUB_USER].map(numbers);
        let fetch = User::from_name(FETCH_USER).ok().flatten().map(|user| (user.uid.as_raw(), user.gid.as_raw()));
        Self { root: (0, 0), service, sensor, hub, fetch }
    }

    /// The user and group numbers of `owner`; `None` while the service user does not exist.
    pub fn numbers(&self, owner: Owner) -> Option<(u32, u32)> {
        let pick = |account| match account {
            Account::Root => Some(self.root),
            Account::Service => self.service,
            Account::Sensor => self.sensor,
            Account::Hub => self.hub,
        };
        Some((pick(owner.user)?.0, pick(owner.group)?.1))
    }
}

/// The group of one of our users: the service user's, which is made with the first of them. Who meets strangers' bytes is
/// on its own.
fn group_of(name: &str) -> &str {
    if name == FETCH_USER { FETCH_USER } else { SERVICE_USER }
}

/// Makes one of our users, with no password, no shell and no home.
pub fn create_user(name: &str) -> Result<(), AccountError> {
    let shell = ["/usr/sbin/nologin", "/sbin/nologin"].into_iter().find(|path| Path::new(path).exists());
    let shell = shell.unwrap_or("/bin/false");
    // A group that is there already, from the other user or an interrupted attempt, is used.
    let group_name = group_of(name);
    let has_group = Group::from_name(group_name).ok().flatten().is_some();
    let comment = match name {
        SENSOR_USER => "Picket sensor",
        HUB_USER => "Picket hub",
        FETCH_USER => "Picket updater's fetcher",
        _ => "Picket agent",
    };
    if let Some(useradd) = tool("useradd") {
        let existing = ["--gid", group_name];
        let group = if has_group { existing.as_slice() } else { &["--user-group"] };
        let rest = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--comment", comment];
        return run(useradd, &[group, &rest, &["--shell", shell, name]].concat());
    }
    let adduser = tool("adduser").ok_or(AccountError::NoTool("make"))?;
    if let Some(addgroup) = tool("addgroup").filter(|_| !has_group) {
        run(addgroup, &["-S", group_name])?;
    }
    run(adduser, &["-S", "-D", "-H", "-h", "/nonexistent", "-s", shell, "-G", group_name, name])
}

/// Removes one of our users, and its group where that is called after it.
pub fn remove_user(name: &str) -> Result<(), AccountError> {
    if User::from_name(name).ok().flatten().is_some() {
        let remover = tool("userdel").or_else(|| tool("deluser")).ok_or(AccountError::NoTool("remove"))?;
        run(remover, &[name])?;
    }
    // userdel takes the group along where login.defs says so; elsewhere it stays.
    if group_of(name) == name
        && Group::from_name(name).ok().flatten().is_some()
        && let Some(remover) = tool("groupdel").or_else(|| tool("delgroup"))
    {
        run(remover, &[name])?;
    }
    Ok(())
}

fn tool(name: &str) -> Option<String> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].into_iter().map(|dir| format!("{dir}/{name}"));
    places.into_iter().find(|path| Path::new(path).exists())
}

fn run(program: String, arguments: &[&str]) -> Result<(), AccountError> {
    let command = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
            Err(AccountError::Tool { command, message })
        }
        Err(error) => Err(AccountError::Tool { command, message: error.to_string() }),
    }
}
