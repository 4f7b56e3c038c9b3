//! Two replicas on one bus, of either kind.

use bytes::Bytes;
use picket_bus::{Bus, Heard, Item, MemoryBus, NatsBus, NatsSettings, Pattern, QueueSpec, Subject, Subscription};
use picket_testkit::NatsServer;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

pub const TENANT: Uuid = Uuid::from_u128(1);
pub const AGENT: Uuid = Uuid::from_u128(0xa);
/// How long a busy machine may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Two replicas of the hub on one bus.
pub struct Replicas {
    pub one: Arc<dyn Bus>,
    pub two: Arc<dyn Bus>,
    /// Ends last.
    _server: Option<NatsServer>,
}

#[expect(clippy::unused_async, reason = "the contract waits for either")]
pub async fn memory() -> Replicas {
    let bus = MemoryBus::new();
    Replicas { one: Arc::new(bus.clone()), two: Arc::new(bus), _server: None }
}

pub async fn nats() -> Replicas {
    let server = NatsServer::start();
    let one = Arc::new(connect(&server).await);
    let two = Arc::new(connect(&server).await);
    Replicas { one, two, _server: Some(server) }
}

pub async fn connect(server: &NatsServer) -> NatsBus {
    NatsBus::connect(settings(server)).await.unwrap()
}

/// Strict where the server can be.
pub fn settings(server: &NatsServer) -> NatsSettings {
    NatsSettings {
        servers: vec![server.url()],
        monitoring: if server.can_sync() { vec![server.monitoring()] } else { Vec::new() },
        accept_unknown_sync: !server.can_sync(),
        timeout: Duration::from_secs(3),
        ..NatsSettings::default()
    }
}

pub fn spec() -> QueueSpec {
    QueueSpec { lease: Duration::from_secs(20), ..QueueSpec::events() }
}

pub fn item(id: &str) -> Item {
    Item {
        id: id.into(),
        subject: Subject::events(TENANT, AGENT),
        reply: None,
        headers: Vec::new(),
        body: Bytes::from(format!("body of {id}")),
    }
}

/// What a subscriber hears next.
pub async fn next(subscription: &mut Subscription) -> Heard {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("nothing was heard").expect("the bus is closed")
}

pub fn said(subject: &Subject, body: &'static str) -> Heard {
    Heard::Message { subject: subject.clone(), body: Bytes::from_static(body.as_bytes()) }
}

/// Hears until a message whose body is `last`; what came before.
pub async fn until(subscription: &mut Subscription, last: &'static str) -> Vec<Heard> {
    let mut heard = Vec::new();
    loop {
        match next(subscription).await {
            Heard::Message { body, .. } if body == last.as_bytes() => return heard,
            other => heard.push(other),
        }
    }
}

pub fn everything() -> Pattern {
    Pattern::tenant(TENANT)
}
