//! What is left to see where the kernel gives less.

use super::{NEVER, Watch, connect, in_own_network, reset, src};
use picket_netwatch::Means;
use picket_protocol::SightLevel;
use picket_protocol::event::{Confidence, Direction, NetworkMethod};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::net::TcpListener;

/// From now on this thread, and those it starts, are refused a system call with this argument, as by a sandbox.
fn refuse(call: i64, argument: u8, value: u64, errno: i32) {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap();
    let filter = SeccompFilter::new(
        [(call, vec![SeccompRule::new(vec![condition]).unwrap()])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(u32::try_from(errno).unwrap()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn without_any_capability_connections_are_seen_and_it_is_said_whose_are_not() {
    in_own_network(|| {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let watch = Watch::start(Means::Best, &[("interval", NEVER)]);
        let sight = watch.watcher.sight();
        assert_eq!((sight.level, sight.method.as_str()), (SightLevel::Reduced, "sock_diag"));
        assert!(sight.detail.contains("CAP_SYS_PTRACE"), "{sight:?}");
        let (client, server) = connect(&listener);
        reset(client);
        drop(server);
        assert_eq!(watch.take(4).len(), 4);
        watch.end();
    });
}

#[test]
fn where_the_kernel_does_not_tell_of_ends_dumps_do_and_the_sight_says_what_is_missed() {
    in_own_network(|| {
        for (means, method, name) in [
            (Means::DumpsOnly, NetworkMethod::SockDiag, "sock_diag"),
            (Means::ProcOnly, NetworkMethod::ProcPoll, "proc"),
        ] {
            let watch = Watch::start(means, &[("interval", "100ms")]);
            let sight = watch.watcher.sight();
            assert_eq!((sight.level, sight.method.as_str()), (SightLevel::Reduced, name));
            assert!(sight.detail.contains("reset"), "{sight:?}");
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            // Long enough to be seen, and reset.
            let (client, server) = connect(&listener);
            let from = client.local_addr().unwrap();
            let opened = watch.take(2);
            assert_eq!(
                opened.iter().map(|e| e.direction).collect::<Vec<_>>(),
                [Direction::Inbound, Direction::Outbound]
            );
            reset(client);
            drop(server);
            let mut events = [opened, watch.take(2)].concat();
            assert!(events.iter().all(|event| src(event) == from));
            assert!(events[2..].iter().all(|event| event.actor.as_ref().unwrap().pid == std::process::id()));
            // Short, and closed in order: TIME-WAIT is left of the side that closed first.
            let (client, server) = connect(&listener);
            let from = client.local_addr().unwrap();
            drop(client);
            drop(server);
            let short = watch.take(2);
            assert!(
                short.iter().all(|event| src(event) == from && event.direction == Direction::Outbound),
                "{short:?}"
            );
            events.extend(short);
            assert!(events.iter().all(|e| (e.method, e.confidence) == (method, Confidence::Inferred)));
            watch.end();
        }
    });
}

#[test]
fn a_sandbox_without_netlink_leaves_proc() {
    in_own_network(|| {
        refuse(libc::SYS_socket, 0, 16, libc::EAFNOSUPPORT);
        let watch = Watch::start(Means::Best, &[("interval", "100ms")]);
        let sight = watch.watcher.sight();
        assert_eq!((sight.level, sight.method.as_str()), (SightLevel::Reduced, "proc"));
        assert!(sight.detail.contains("AF_NETLINK"), "{sight:?}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_client, _server) = connect(&listener);
        assert!(watch.take(2).iter().all(|event| event.method == NetworkMethod::ProcPoll));
    });
}

#[test]
fn a_sandbox_without_multicast_leaves_dumps() {
    in_own_network(|| {
        refuse(libc::SYS_setsockopt, 1, 270, libc::EPERM);
        let watch = Watch::start(Means::Best, &[("interval", "100ms")]);
        let sight = watch.watcher.sight();
        assert_eq!((sight.level, sight.method.as_str()), (SightLevel::Reduced, "sock_diag"));
        assert!(sight.detail.contains("notices"), "{sight:?}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_client, _server) = connect(&listener);
        assert!(watch.take(2).iter().all(|event| event.method == NetworkMethod::SockDiag));
    });
}
