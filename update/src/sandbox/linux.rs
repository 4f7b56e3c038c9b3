//! Landlock and seccomp.

use super::Border;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Landlock's first ABI that also refuses truncation (Linux 6.2); older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V3;

/// Makes everything but `scratch` and `/dev/null` read-only; says whether the kernel does it.
pub(super) fn confine_writes(scratch: &Path) -> io::Result<bool> {
    let write = AccessFs::from_write(LANDLOCK);
    let build = || {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(write)?
            .create()?
            .add_rule(PathBeneath::new(PathFd::new(scratch)?, write))?
            .add_rule(PathBeneath::new(PathFd::new("/dev/null")?, AccessFs::WriteFile))?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(ruleset.restrict_self()?)
    };
    let status = build().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Lets `socket(2)` make Unix sockets only, and refuses `io_uring`; says whether the kernel does it.
pub(super) fn close_network() -> io::Result<bool> {
    let not_unix =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::try_from(libc::AF_UNIX).unwrap_or(1));
    let rule = not_unix.and_then(|condition| SeccompRule::new(vec![condition])).map_err(io::Error::other)?;
    let rules = BTreeMap::from([(libc::SYS_socket, vec![rule]), (libc::SYS_io_uring_setup, vec![])]);
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let refuse = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap_or(1));
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    // A kernel without seccomp filters (containers of old) says EINVAL; the other layers stand.
    Ok(seccompiler::apply_filter(&program).is_ok())
}

/// Landlock's first ABI that also knows signals and abstract sockets (Linux 6.12); older kernels enforce what they know.
const LANDLOCK_FETCHER: ABI = ABI::V6;

/// Makes what `border` does not name unreadable and unwritable, nothing executable, no port ours, and no process
/// outside reachable by a signal; says whether the kernel does the first of these.
pub(super) fn confine_files(border: &Border) -> io::Result<bool> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let all = AccessFs::from_all(LANDLOCK_FETCHER);
    let write = all & !AccessFs::Execute;
    let build = || {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(LANDLOCK_FETCHER))?
            .create()?;
        for path in &border.writable {
            ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, write))?;
        }
        for path in &border.readable {
            let access = if path.is_dir() { read } else { AccessFs::ReadFile.into() };
            ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(ruleset.restrict_self()?)
    };
    let status = build().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Refuses the system calls that a program which fetches and unpacks has no use for, and one that was taken over has:
/// to start programs, to look into other processes or signal them, to change the mounts, the kernel or the keys, to
/// listen, and every kind of socket but those that a name and a server are reached by.
pub(super) fn refuse_calls() -> io::Result<bool> {
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let other = families.into_iter().map(|family| argument(0, SeccompCmpOp::Ne, i64::from(family)));
    let other = SeccompRule::new(other.collect::<io::Result<_>>()?).map_err(io::Error::other)?;
    let own = i64::from(rustix::process::getpid().as_raw_nonzero().get());
    let another = SeccompRule::new(vec![argument(0, SeccompCmpOp::Ne, own)?]).map_err(io::Error::other)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = USELESS.into_iter().map(|call| (call, vec![])).collect();
    rules.insert(libc::SYS_socket, vec![other]);
    // abort(3) signals its own thread.
    rules.insert(libc::SYS_tgkill, vec![another]);
    apply(rules)
}

/// Refuses every call by which bytes leave or enter through a socket; says whether the kernel does it.
pub(super) fn refuse_sockets() -> io::Result<bool> {
    apply(SOCKETS.into_iter().map(|call| (call, vec![])).collect())
}

const USELESS: [i64; 41] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mknodat,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

const SOCKETS: [i64; 11] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

fn argument(number: u8, operator: SeccompCmpOp, value: i64) -> io::Result<SeccompCondition> {
    #[expect(clippy::cast_sign_loss, reason = "the kernel compares bits")]
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value as u64).map_err(io::Error::other)
}

/// Puts a filter on every thread that answers the calls of `rules` with EPERM; says whether the kernel takes it.
fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>) -> io::Result<bool> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let refuse = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap_or(1));
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    // A kernel without seccomp filters (containers of old) says EINVAL; the other layers stand.
    Ok(seccompiler::apply_filter_all_threads(&program).is_ok())
}

/// Whether the kernel has Landlock, and seccomp filters.
pub(super) fn means() -> (bool, bool) {
    let landlock = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .is_ok();
    // proc(5): the line is there from Linux 4.14, where the kernel was built with filters.
    let seccomp = picket_durable::read_untrusted(std::path::Path::new("/proc/self/status"), 64 << 10).ok().flatten();
    let seccomp = seccomp.is_some_and(|status| String::from_utf8_lossy(&status).contains("Seccomp_filters:"));
    (landlock, seccomp)
}
