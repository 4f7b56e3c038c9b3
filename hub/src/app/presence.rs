//! Who is connected to this very process, and how to reach them.

use jiff::Timestamp;
use picket_protocol::hub::Frame;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Frames that may wait for one agent. A configuration, a request to renew, a goodbye: more at once is no traffic of ours.
pub const MAX_FRAMES: usize = 16;

/// One connection of an agent.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Tells this connection from any other.
    pub id: Uuid,
    /// Which life of the agent's process it is.
    pub incarnation: Uuid,
    /// Which boot of its machine.
    pub boot_id: Option<Uuid>,
    /// The machine's id, hashed.
    pub machine_hint: String,
    /// Its version.
    pub version: String,
    /// From where.
    pub address: String,
    /// The serial number of its certificate.
    pub serial: String,
    /// Since when.
    pub since: Timestamp,
    /// Where what it is to hear goes.
    pub to_agent: mpsc::Sender<Told>,
}

/// What the task that holds a connection is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// Send this.
    Frame(Frame),
    /// The same agent has connected anew, as this machine. If the peer still answers, there are two.
    Replaced(Machine),
}

/// What is known of the machine behind a connection: what tells two machines with one identity apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Its boot.
    pub boot_id: Option<Uuid>,
    /// The machine's id, hashed.
    pub machine_hint: String,
    /// From where it connects.
    pub address: String,
    /// The serial number of the certificate that it shows.
    pub serial: String,
}

impl Machine {
    /// Whether the two are not the same life of the same machine.
    pub fn differs(&self, other: &Self) -> bool {
        let boots = self.boot_id.zip(other.boot_id);
        self.machine_hint != other.machine_hint || boots.is_some_and(|(one, two)| one != two)
    }
}

impl From<&Connection> for Machine {
    fn from(connection: &Connection) -> Self {
        Self {
            boot_id: connection.boot_id,
            machine_hint: connection.machine_hint.clone(),
            address: connection.address.clone(),
            serial: connection.serial.clone(),
        }
    }
}

/// All connections of this process.
#[derive(Debug, Default)]
pub struct Presence {
    connected: Mutex<HashMap<Uuid, Connection>>,
}

impl Presence {
    /// Adds a connection of `agent`. One that it had is told that it is replaced.
    pub fn join(&self, agent: Uuid, connection: Connection) {
        let machine = Machine::from(&connection);
        let before = self.lock().insert(agent, connection);
        if let Some(before) = before {
            // Full or closed: then it is about to end anyway.
            let _ = before.to_agent.try_send(Told::Replaced(machine));
        }
    }

    /// Removes a connection, unless the agent has another one by now. Says whether it did.
    pub fn leave(&self, agent: Uuid, connection: Uuid) -> bool {
        let mut connected = self.lock();
        let is_this = connected.get(&agent).is_some_and(|present| present.id == connection);
        if is_this {
            connected.remove(&agent);
        }
        is_this
    }

    /// Sends a frame to an agent. Says whether it is connected here and has room for it.
    pub fn send(&self, agent: Uuid, frame: Frame) -> bool {
        let sender = self.lock().get(&agent).map(|connection| connection.to_agent.clone());
        sender.is_some_and(|sender| sender.try_send(Told::Frame(frame)).is_ok())
    }

    /// The connection of an agent.
    pub fn of(&self, agent: Uuid) -> Option<Connection> {
        self.lock().get(&agent).cloned()
    }

    /// Who is connected.
    pub fn agents(&self) -> Vec<Uuid> {
        self.lock().keys().copied().collect()
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Connection>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(boot: Uuid, to_agent: mpsc::Sender<Told>) -> Connection {
        Connection {
            id: Uuid::now_v7(),
            incarnation: Uuid::now_v7(),
            boot_id: Some(boot),
            machine_hint: "m".into(),
            version: "1.0.0".into(),
            address: "192.0.2.1".into(),
            serial: "01".into(),
            since: Timestamp::UNIX_EPOCH,
            to_agent,
        }
    }

    #[test]
    fn a_second_connection_replaces_the_first_which_hears_of_whom() {
        let presence = Presence::default();
        let (agent, boot) = (Uuid::now_v7(), Uuid::now_v7());
        let (first, mut first_hears) = mpsc::channel(MAX_FRAMES);
        let (second, mut second_hears) = mpsc::channel(MAX_FRAMES);
        let one = connection(boot, first);
        presence.join(agent, one.clone());
        presence.join(agent, connection(boot, second));
        let Ok(Told::Replaced(by)) = first_hears.try_recv() else { panic!("not told") };
        assert!(!by.differs(&(&one).into()), "the agent was restarted");
        // The end of the first connection does not take the place of the second.
        assert!(!presence.leave(agent, one.id));
        assert_eq!(presence.count(), 1);
        assert!(presence.send(agent, Frame::RenewCertificate { reason: "now".into() }));
        assert!(matches!(second_hears.try_recv(), Ok(Told::Frame(Frame::RenewCertificate { .. }))));
        assert!(!presence.send(Uuid::now_v7(), Frame::Unknown));
    }

    #[test]
    fn another_boot_or_another_machine_is_another_life() {
        let (to_agent, _hears) = mpsc::channel(MAX_FRAMES);
        let one = Machine::from(&connection(Uuid::now_v7(), to_agent));
        assert!(!one.differs(&one));
        assert!(one.differs(&Machine { boot_id: Some(Uuid::now_v7()), ..one.clone() }));
        assert!(one.differs(&Machine { machine_hint: "n".into(), ..one.clone() }));
        assert!(!one.differs(&Machine { boot_id: None, ..one.clone() }), "not known is not different");
    }
}
