//! A machine that becomes an agent, over the real wire: the token's pins, a key of its own, a request, a certificate.

use picket_agent::hub::{About, Enrolment, NewSet, UplinkSettings, enrol};
use picket_pki::{EnrolmentToken, PrivateKey};
use picket_protocol::hub::Machine as MachineWords;
use picket_transport::ProxyChoice;
use picket_transport::hub::{ClientIdentity, HubOptions, HubTrust};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// How requests introduce themselves.
pub const USER_AGENT: &str = "picket/1.0.0 (load)";
/// How often an enrolment that is sent away is tried again.
const ATTEMPTS: u32 = 100;

/// How the hub is called: as an agent with default settings calls it, never through a proxy.
pub fn options() -> HubOptions {
    UplinkSettings { proxy: "none".into(), ..UplinkSettings::default() }.options(USER_AGENT, &ProxyChoice::none())
}

/// A machine that is enrolled.
#[derive(Clone)]
pub struct Machine {
    /// Its place among the simulated ones.
    pub index: u32,
    /// Who it is at the hub.
    pub id: Uuid,
    /// Where the hub is.
    pub hub: String,
    /// Whom it believes and what it shows.
    pub trust: HubTrust,
    /// Its boot, which is its stream of events.
    pub boot: Uuid,
}

/// What the machine says of itself.
pub fn about(index: u32) -> About {
    let machine = MachineWords {
        hostname: format!("load-{index}"),
        os: "linux".into(),
        arch: "x86_64".into(),
        machine_hint: format!("load-{index}"),
        facts: BTreeMap::new(),
    };
    let version = semver::Version::new(1, 0, 0);
    About { name: format!("load-{index}"), agent_type: "server".into(), version, machine, stream: None }
}

/// Enrols one. A hub that sends it away is asked again when it said; how often that was is counted in `shed`.
pub fn become_agent(token: &EnrolmentToken, index: u32, shed: &AtomicUsize) -> NewSet {
    let pem = PrivateKey::generate().unwrap().to_pem();
    for _ in 0..ATTEMPTS {
        // The same key: an answer that was lost is given again for that one only.
        match enrol(token, PrivateKey::from_pem(&pem).unwrap(), &about(index), &options()) {
            Ok(Enrolment::Done(set)) => return *set,
            Ok(Enrolment::Pending(pending)) => panic!("the hub wants a person: {pending:?}"),
            Err(picket_agent::hub::ExchangeError::Call(error)) if error.retry_after().is_some() => {
                shed.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(error.retry_after().unwrap_or(Duration::from_secs(1)));
            }
            Err(error) => panic!("machine {index} is not enrolled: {error}"),
        }
    }
    panic!("machine {index} was sent away {ATTEMPTS} times");
}

impl Machine {
    /// The machine with this identity.
    pub fn of(index: u32, set: NewSet) -> Self {
        let identity = ClientIdentity::new(set.chain, set.key).unwrap();
        Self {
            index,
            id: set.record.agent_id,
            hub: set.record.hub,
            trust: HubTrust { roots: set.roots, identity: Some(Arc::new(identity)) },
            boot: Uuid::now_v7(),
        }
    }
}

/// A fleet that was enrolled.
pub struct Enrolled {
    /// The machines, by index.
    pub machines: Vec<Machine>,
    /// How often one was sent away.
    pub shed: usize,
    /// How long all of it took.
    pub took: Duration,
    /// How long each one took, the waits of those that were sent away included.
    pub delays: crate::delays::Delays,
}

/// Enrols `count` machines from index `first` on, `at_once` at a time.
pub fn enrol_many(token: &EnrolmentToken, first: u32, count: u32, at_once: usize) -> Enrolled {
    let (next, shed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (machines, delays) = (Mutex::new(Vec::new()), crate::delays::Delays::default());
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let number = u32::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
                    if number >= count {
                        return;
                    }
                    let asked = std::time::Instant::now();
                    let machine = Machine::of(first + number, become_agent(token, first + number, &shed));
                    delays.note(asked.elapsed());
                    machines.lock().unwrap().push(machine);
                }
            });
        }
    });
    let took = began.elapsed();
    let mut machines = machines.into_inner().unwrap();
    machines.sort_by_key(|machine| machine.index);
    Enrolled { machines, shed: shed.into_inner(), took, delays }
}
