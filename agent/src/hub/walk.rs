//! The way to the hub, step by step: what `picket test-connection` walks.
//!
//! Each step rests on the one before; the first that fails says why and what to do, and those after it are not tried.

use super::heartbeat::clock_ahead;
use super::record::Identity;
use super::relay::Relay;
use super::words::way_out;
use jiff::Timestamp;
use picket_pki::{ChainError, ChainPolicy, Renewal, SpkiPin, check_agent_chain, renewal};
use picket_protocol::hub::{WHOAMI_PATH, WIRE, WhoAmI};
use picket_transport::TransportError;
use picket_transport::hub::{
    DoorError, Greeting, HubCallError, HubClient, HubOptions, HubTrust, Route, connect, shake_hands,
};
use serde::Serialize;
use std::time::{Duration, Instant};

/// From how far apart on two clocks are warned of.
const CLOCK_WARNS: u64 = 60;
/// From how far apart on certificates that were just issued may not hold here: they are dated back by a day.
const CLOCK_FAILS: u64 = 24 * 3600;

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// The address can be used, and it is known through which proxy.
    Address,
    /// The name has addresses.
    Dns,
    /// One of them answers.
    Tcp,
    /// TLS comes about.
    Tls,
    /// The hub is the one that was named at enrolment.
    Pin,
    /// The own certificate holds, and the hub's authority vouches for it.
    Certificate,
    /// The two clocks agree.
    Clock,
    /// The hub knows this agent and hears it.
    Authorization,
    /// A request on a connection that stands, and how long it takes.
    RoundTrip,
    /// NATS lets this machine in, where events go that way.
    Nats,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It works.
    Ok,
    /// It works, but somebody should look.
    Warn,
    /// It does not.
    Failed,
}

/// A step that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Which.
    pub step: StepName,
    /// How it went.
    pub state: StepState,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// What was seen.
    pub message: String,
    /// What to do, where it did not work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl StepName {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Pin => "pin",
            Self::Certificate => "certificate",
            Self::Clock => "clock",
            Self::Authorization => "authorization",
            Self::RoundTrip => "round trip",
            Self::Nats => "nats",
        }
    }
}

/// Whom to walk to.
#[derive(Debug)]
pub struct Goal<'a> {
    /// The hub's address.
    pub hub: &'a str,
    /// By which keys it is known.
    pub pins: &'a [SpkiPin],
    /// Who walks; nobody yet, with a token that was not used.
    pub identity: Option<&'a Identity>,
    /// The way of events through NATS, where they go that way.
    pub relay: Option<&'a Relay>,
}

/// A step that failed: what, and what to do.
type Failure = (String, Option<String>);

/// Walks until a step fails, and tells `tell` of each as it is done. Says whether all worked.
pub fn walk(goal: &Goal<'_>, options: &HubOptions, tell: &mut dyn FnMut(Step)) -> bool {
    Walk { goal, options, tell }.all().is_some()
}

struct Walk<'a> {
    goal: &'a Goal<'a>,
    options: &'a HubOptions,
    tell: &'a mut dyn FnMut(Step),
}

impl Walk<'_> {
    fn all(&mut self) -> Option<()> {
        let limit = self.options.timeouts.connect;
        let (goal, options) = (self.goal, self.options);
        let route = self.step(StepName::Address, || {
            let route = Route::new(goal.hub, &options.proxy).map_err(|error| {
                (error.to_string(), Some("the hub's address is in hub.json, the proxy is uplink.proxy".to_owned()))
            })?;
            let via = route.shown_proxy().map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
            Ok((format!("{}{via}", route.url()), route))
        })?;
        let addresses = self.step(StepName::Dns, || {
            let host = route.next_hop().0;
            let addresses = route.resolve().map_err(|source| {
                let fix = "check the address, /etc/resolv.conf and the network";
                (format!("the name {host} has no address: {source}"), Some(fix.to_owned()))
            })?;
            let list: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            Ok((list.join(", "), addresses))
        })?;
        let stream = self.step(StepName::Tcp, || {
            let stream = connect(&route, &addresses, limit).map_err(|error| door(&error))?;
            let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
            Ok((format!("connected to {peer}"), stream))
        })?;
        let began = Instant::now();
        let greeting = shake_hands(&route, stream, goal.pins, limit);
        let took = began.elapsed();
        let greeting = self.greeting(greeting, took)?;
        self.certificate()?;
        let trust = match goal.identity {
            Some(identity) => identity.trust(),
            None => HubTrust { roots: vec![greeting.root], identity: None },
        };
        self.calls(&trust)?;
        let Some(relay) = goal.relay else { return Some(()) };
        self.step(StepName::Nats, || match relay.connect() {
            Ok(()) => Ok((format!("connected to {}", relay.servers()), ())),
            Err(error) => Err((error.to_string(), Some("see uplink.nats, and whether the servers run".to_owned()))),
        })
    }

    /// The handshake is two steps: that TLS comes about, and with whom.
    fn greeting(&mut self, greeting: Result<Greeting, DoorError>, took: Duration) -> Option<Greeting> {
        match greeting {
            Ok(greeting) => {
                self.told(StepName::Tls, StepState::Ok, took, &greeting.protocol, None);
                let until = greeting.hub.not_after;
                let message =
                    format!("{} vouches for {}, until {until}", greeting.root.subject, greeting.hub.names.join(", "));
                self.told(StepName::Pin, StepState::Ok, Duration::ZERO, &message, None);
                Some(greeting)
            }
            Err(DoorError::Certificate { reason, .. }) => {
                self.told(StepName::Tls, StepState::Ok, took, "the hub shows a certificate", None);
                let fix = pin_fix(&reason);
                self.told(StepName::Pin, StepState::Failed, Duration::ZERO, &reason.to_string(), Some(fix.to_owned()));
                None
            }
            Err(error) => {
                let (message, fix) = door(&error);
                self.told(StepName::Tls, StepState::Failed, took, &message, fix);
                None
            }
        }
    }

    fn certificate(&mut self) -> Option<()> {
        let Some(identity) = self.goal.identity else {
            let message = "none yet: this machine is not enrolled";
            self.told(
                StepName::Certificate,
                StepState::Warn,
                Duration::ZERO,
                message,
                Some("enrol it with `picket enroll`".to_owned()),
            );
            return Some(());
        };
        let (leaf, now) = (identity.leaf(), Timestamp::now());
        let policy = ChainPolicy {
            roots: &identity.roots,
            identity: Some(identity.name()),
            pin: identity.client.key().pin(),
            now,
        };
        let (state, message, fix) = match (check_agent_chain(identity.client.chain(), &policy), renewal(leaf, now)) {
            // The hub hears one that expired, to renew it: that is the next step's to say.
            (_, Renewal::Expired) => {
                (StepState::Warn, format!("expired at {}", leaf.not_after), Some("renew it with `picket cert renew`"))
            }
            (Err(reason), _) => {
                (StepState::Failed, reason.to_string(), Some("renew it with `picket cert renew --force`"))
            }
            (Ok(_), Renewal::Due) => (
                StepState::Warn,
                format!("until {}; its renewal is due", leaf.not_after),
                Some("the agent renews it by itself, and `picket cert renew` at once"),
            ),
            (Ok(_), Renewal::NotBefore(at)) => {
                (StepState::Ok, format!("until {}, to be renewed after {at}", leaf.not_after), None)
            }
        };
        self.told(StepName::Certificate, state, Duration::ZERO, &message, fix.map(str::to_owned));
        (state != StepState::Failed).then_some(())
    }

    /// Clock, authorization and round trip: two requests.
    fn calls(&mut self, trust: &HubTrust) -> Option<()> {
        let client = match HubClient::new(self.goal.hub, trust, self.options) {
            Ok(client) => client,
            Err(error) => {
                self.told(StepName::Authorization, StepState::Failed, Duration::ZERO, &error.to_string(), None);
                return None;
            }
        };
        let began = Instant::now();
        let answer: Result<WhoAmI, HubCallError> = client.get(WHOAMI_PATH, None);
        let (took, now) = (began.elapsed(), Timestamp::now());
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let (message, fix) = call(&error);
                self.told(StepName::Authorization, StepState::Failed, took, &message, fix);
                return None;
            }
        };
        let (state, message) = clock(clock_ahead(now, answer.hub_time, took));
        let fix = (state != StepState::Ok).then(|| {
            "set the clock of this machine or of the hub, for example with `timedatectl set-ntp true`".to_owned()
        });
        self.told(StepName::Clock, state, Duration::ZERO, &message, fix);
        if state == StepState::Failed {
            return None;
        }
        if WIRE.common(answer.wire).is_none() {
            let message = format!("this machine speaks versions {WIRE} of the protocol, the hub {}", answer.wire);
            self.told(
                StepName::Authorization,
                StepState::Failed,
                took,
                &message,
                Some("update the side that is behind".to_owned()),
            );
            return None;
        }
        let (state, message, fix) = authorization(self.goal.identity, &answer);
        self.told(StepName::Authorization, state, took, &message, fix);
        if state == StepState::Failed {
            return None;
        }
        self.step(StepName::RoundTrip, || {
            let began = Instant::now();
            let again: WhoAmI = client.get(WHOAMI_PATH, None).map_err(|error| call(&error))?;
            let took = began.elapsed().as_secs_f64() * 1000.0;
            Ok((format!("{took:.1} ms, hub {}, seen as {}", again.hub_version, again.address), ()))
        })
    }

    fn step<T>(&mut self, step: StepName, act: impl FnOnce() -> Result<(String, T), Failure>) -> Option<T> {
        let began = Instant::now();
        match act() {
            Ok((message, value)) => {
                self.told(step, StepState::Ok, began.elapsed(), &message, None);
                Some(value)
            }
            Err((message, fix)) => {
                self.told(step, StepState::Failed, began.elapsed(), &message, fix);
                None
            }
        }
    }

    fn told(&mut self, step: StepName, state: StepState, took: Duration, message: &str, fix: Option<String>) {
        let took_ms = (took.as_secs_f64() * 10_000.0).round() / 10.0;
        let message = message.chars().filter(|c| !c.is_control()).collect();
        (self.tell)(Step { step, state, took_ms, message, fix });
    }
}

fn authorization(identity: Option<&Identity>, answer: &WhoAmI) -> (StepState, String, Option<String>) {
    match (identity, &answer.refusal) {
        (None, _) => (StepState::Warn, "the hub answers; this machine is not enrolled".to_owned(), None),
        (Some(identity), _) if answer.authorized && answer.agent_id == Some(identity.record.agent_id) => {
            (StepState::Ok, format!("heard as {} ({})", identity.record.name, identity.record.agent_id), None)
        }
        (Some(_), Some(refusal)) => (StepState::Failed, refusal.to_string(), way_out(refusal.code).map(str::to_owned)),
        (Some(_), None) => {
            let fix = "enrol again with `picket enroll --force`".to_owned();
            (StepState::Failed, "the hub takes this machine for another agent".to_owned(), Some(fix))
        }
    }
}

fn clock(ahead_ms: i64) -> (StepState, String) {
    let seconds = ahead_ms.unsigned_abs() / 1000;
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let message = if seconds == 0 {
        format!("{} ms {side} the hub's", ahead_ms.unsigned_abs())
    } else {
        format!("{seconds} s {side} the hub's")
    };
    let state = match seconds {
        CLOCK_FAILS.. => StepState::Failed,
        CLOCK_WARNS.. => StepState::Warn,
        _ => StepState::Ok,
    };
    (state, message)
}

fn pin_fix(reason: &ChainError) -> &'static str {
    match reason {
        ChainError::WrongPin { .. } => {
            "whoever answers is not the hub of the enrolment: a proxy that opens TLS, or a hub that was set up anew; \
             if the hub is new, enrol again with a new token"
        }
        ChainError::WrongName { .. } => {
            "the hub's certificate lacks this name: add it on the hub (names), or enrol by one it has"
        }
        ChainError::OutOfDate { .. } => {
            "set the clock of this machine; if it is right, the hub's certificate must be renewed there"
        }
        ChainError::Untrusted(_) | ChainError::WrongKey | ChainError::Malformed(_) => {
            "the hub's certificate chain is broken; on the hub, its log and the check `certificates` of /health say more"
        }
    }
}

fn door(error: &DoorError) -> Failure {
    let fix = match error {
        DoorError::Resolve { .. } => "check the address, /etc/resolv.conf and the network",
        DoorError::Connect { .. } => {
            "check that the hub runs, that its port is right, and that no firewall is in between"
        }
        DoorError::Proxy { .. } => "check uplink.proxy or HTTPS_PROXY, and what the proxy allows",
        DoorError::Tls { .. } => {
            "check that this is the hub's port for agents; a proxy that opens TLS must let it pass untouched"
        }
        DoorError::Certificate { reason, .. } => pin_fix(reason),
        DoorError::Address(_) => "check the address",
    };
    (error.to_string(), Some(fix.to_owned()))
}

fn call(error: &HubCallError) -> Failure {
    let fix = match error {
        HubCallError::Problem(problem) => way_out(problem.code).unwrap_or_default(),
        HubCallError::Transport(TransportError::Tls { .. }) => {
            "the hub does not take this machine's certificate: `picket cert check` shows it"
        }
        HubCallError::Transport(_) => {
            "try again; if it stays, a proxy or firewall in between cuts what it does not know"
        }
        HubCallError::Malformed { .. } => "whoever answers is no hub: check the address and the proxy",
    };
    (crate::keep::told(error), Some(fix.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::settings::UplinkSettings;
    use crate::hub::store::tests::Fleet;
    use picket_transport::ProxyChoice;
    use std::net::TcpListener;

    fn walked(hub: &str) -> (bool, Vec<Step>) {
        let pins = [Fleet::new().root.certificate().pin];
        let mut steps = Vec::new();
        let settings = UplinkSettings { proxy: "none".into(), ..UplinkSettings::default() };
        let goal = Goal { hub, pins: &pins, identity: None, relay: None };
        let all = walk(&goal, &settings.options("test", &ProxyChoice::none()), &mut |step| steps.push(step));
        (all, steps)
    }

    #[test]
    fn the_first_step_that_fails_is_the_last_and_says_what_to_do() {
        for (hub, name) in [
            ("http://hub.example", StepName::Address),
            ("https://hub.invalid:8444", StepName::Dns),
            ("https://127.0.0.1:1", StepName::Tcp),
        ] {
            let (all, steps) = walked(hub);
            let last = steps.last().unwrap();
            assert!(!all && last.step == name && last.state == StepState::Failed && last.fix.is_some(), "{steps:?}");
            assert!(steps[..steps.len() - 1].iter().all(|step| step.state == StepState::Ok));
        }
    }

    #[test]
    fn a_port_without_tls_fails_at_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = format!("https://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let (all, steps) = walked(&hub);
        assert!(!all && steps.last().unwrap().step == StepName::Tls, "{steps:?}");
        thread.join().unwrap();
    }

    #[test]
    fn clocks_that_differ_by_a_minute_are_warned_of_and_by_a_day_fail() {
        assert_eq!(clock(-300), (StepState::Ok, "300 ms behind the hub's".to_owned()));
        assert_eq!(clock(61_000).0, StepState::Warn);
        assert_eq!(clock(-86_400_000), (StepState::Failed, "86400 s behind the hub's".to_owned()));
    }
}
