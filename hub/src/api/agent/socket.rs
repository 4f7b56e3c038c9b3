//! One agent's WebSocket, from its first frame to its last.

use crate::api::websocket::Socket;
use crate::app::identity::KnownAgent;
use crate::app::presence::{Connection, MAX_FRAMES, Machine, Told};
use crate::server::told_to_stop;
use crate::state::Hub;
use futures_util::{SinkExt as _, StreamExt as _};
use picket_hub_db::{AgentSeen, AgentStatus, SeenOutcome};
use picket_protocol::hub::{Bye, ByeReason, Frame, Heartbeat, Hello, WIRE, Welcome};
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tungstenite::Message;
use uuid::Uuid;

/// How long the agent may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// After how many heartbeats a configuration is sent again that the agent says nothing of.
const OFFER_AGAIN: u32 = 10;
/// After how many heartbeats it is looked again whether the agent's certificate is used beside a newer one.
const LOOK_AGAIN: u64 = 10;
/// How many heartbeats may be missed before the connection is taken for dead.
const MISSED: u32 = 3;
/// How long one frame may take to be written.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Over how long the agents of a hub that stops come back, at most. The first heartbeat comes up to an interval later: with
/// the usual 30 s all are heard again within 45 s, not within a minute and what connecting takes.
const COME_BACK: Duration = Duration::from_secs(15);
/// How long a goodbye is waited on for the peer's own.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Why the loop ended.
enum End {
    /// We say goodbye.
    Bye(Bye),
    /// The same agent connected anew, as this machine.
    Replaced(Machine),
    /// The peer is gone, or said goodbye.
    Gone,
}

/// Speaks with an agent until either side has had enough.
pub(super) async fn serve(hub: Arc<Hub>, agent: KnownAgent, address: IpAddr, mut stream: Socket) {
    let hello = match hello(&mut stream).await {
        Ok(hello) => hello,
        Err(end) => return finish(&mut stream, end).await,
    };
    let Some(wire) = WIRE.common(hello.wire) else {
        let detail = format!("this hub speaks versions {WIRE} of the protocol, the agent {}", hello.wire);
        return finish(&mut stream, bye(ByeReason::WireUnsupported, detail, None)).await;
    };
    let (to_agent, mut told) = mpsc::channel(MAX_FRAMES);
    let connection = Connection {
        id: Uuid::now_v7(),
        incarnation: hello.incarnation,
        boot_id: hello.boot_id,
        machine_hint: hello.machine_hint.chars().take(128).collect(),
        version: hello.version.to_string(),
        address: address.to_string(),
        serial: agent.serial.clone(),
        since: hub.clock.now(),
        to_agent,
    };
    let (id, machine) = (connection.id, Machine::from(&connection));
    let interval = hub.settings.heartbeat.get();
    let welcome = Welcome {
        wire,
        version: hub.build.version.clone(),
        hub_time: hub.clock.now(),
        heartbeat_ms: millis(interval),
        first_heartbeat_ms: millis(splay(agent.id, interval)),
    };
    if send(&mut stream, &Frame::Welcome(welcome)).await.is_err() {
        return;
    }
    hub.presence.join(agent.id, connection);
    tracing::debug!(agent = %agent.id, %address, version = %hello.version, "an agent is connected");
    let mut talk = Talk { hub: &hub, agent: &agent, machine: &machine, stream: &mut stream, offered: 0 };
    let end = talk.run(&mut told, interval).await;
    hub.presence.leave(agent.id, id);
    if let End::Replaced(other) = &end
        && machine.differs(other)
        && still_there(&mut stream).await
    {
        hub.twins(agent.id, &[machine, other.clone()]).await;
    }
    finish(&mut stream, end).await;
}

struct Talk<'a> {
    hub: &'a Arc<Hub>,
    agent: &'a KnownAgent,
    machine: &'a Machine,
    stream: &'a mut Socket,
    /// For how many heartbeats it is not looked at which configuration the agent should have.
    offered: u32,
}

impl Talk<'_> {
    async fn run(&mut self, told: &mut mpsc::Receiver<Told>, interval: Duration) -> End {
        let mut stop = self.hub.stop.clone();
        let silence = interval * MISSED;
        let silent = tokio::time::sleep(silence);
        tokio::pin!(silent);
        let certificate_ends = self.agent.not_after.duration_since(self.hub.clock.now());
        let certificate_ends = tokio::time::sleep(certificate_ends.try_into().unwrap_or(Duration::ZERO));
        tokio::pin!(certificate_ends);
        loop {
            let frame = tokio::select! {
                message = self.stream.next() => match message {
                    Some(Ok(Message::Text(text))) => Frame::read(&text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                        silent.as_mut().reset(tokio::time::Instant::now() + silence);
                        continue;
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Gone,
                    Some(Ok(_)) => Err("frames are text".to_owned()),
                },
                told = told.recv() => match told {
                    Some(Told::Frame(Frame::Bye(bye))) => return End::Bye(bye),
                    Some(Told::Frame(frame)) => match send(self.stream, &frame).await {
                        Ok(()) => continue,
                        Err(end) => return end,
                    },
                    Some(Told::Replaced(machine)) => return End::Replaced(machine),
                    None => return End::Gone,
                },
                () = &mut silent => {
                    let detail = format!("nothing was heard for {} s", silence.as_secs());
                    return bye(ByeReason::Silent, detail, None);
                }
                () = &mut certificate_ends => {
                    let detail = "the certificate has expired; renew it with: picket cert renew".to_owned();
                    return bye(ByeReason::CertificateExpired, detail, None);
                }
                () = told_to_stop(&mut stop) => {
                    // Each agent another time: the hub that comes back is not to be run over.
                    let wait = come_back(self.agent.id, interval);
                    return bye(ByeReason::Draining, "the hub is stopping".to_owned(), Some(wait));
                }
            };
            silent.as_mut().reset(tokio::time::Instant::now() + silence);
            let end = match frame {
                Ok(frame) => self.heard(frame).await,
                Err(detail) => Err(bye(ByeReason::Protocol, detail, Some(Duration::from_secs(60)))),
            };
            if let Err(end) = end {
                return end;
            }
        }
    }

    async fn heard(&mut self, frame: Frame) -> Result<(), End> {
        match frame {
            Frame::Heartbeat(heartbeat) => {
                let seq = heartbeat.seq;
                match self.hub.heartbeats.store(self.seen(&heartbeat)).await {
                    Ok(SeenOutcome::Noted { was, boot_returned, previous_boot, previous_key }) => {
                        if boot_returned {
                            let before = Machine { boot_id: previous_boot, ..self.machine.clone() };
                            self.hub.twins(self.agent.id, &[before, self.machine.clone()]).await;
                        } else if let Some(key) = previous_key {
                            another_key(self.hub, self.agent, self.machine, previous_boot, &key).await;
                        }
                        if was != AgentStatus::Online {
                            self.hub.tell_agent_changed(self.agent.id);
                        }
                    }
                    Ok(SeenOutcome::Unknown | SeenOutcome::Retired) => {
                        let detail = "the hub does not know the agent any more; enrol again with: picket enroll";
                        return Err(bye(ByeReason::UnknownAgent, detail.to_owned(), None));
                    }
                    // It is not acknowledged; the agent sends the next one all the same.
                    Err(refusal) => {
                        tracing::debug!(agent = %self.agent.id, %refusal, "a heartbeat is not stored");
                        return Ok(());
                    }
                }
                if seq.is_multiple_of(LOOK_AGAIN) {
                    self.hub.note_use_again(self.agent).await;
                }
                let heard = Frame::Heard { seq, hub_time: self.hub.clock.now() };
                send(self.stream, &heard).await?;
                // Looked at each time: what was decided on another replica, or found no room among the frames, comes with
                // the next heartbeat. An agent that was sent one may take a while, or not believe it.
                if self.offered == 0 {
                    let offer = self.hub.offer_config(self.agent.id, heartbeat.config.as_ref()).await;
                    self.offered = if offer.is_ok_and(|sent| sent) { OFFER_AGAIN } else { 0 };
                } else {
                    self.offered -= 1;
                }
                Ok(())
            }
            Frame::ConfigStatus(status) => {
                self.offered = 0;
                if let Err(refusal) = self.hub.note_config_status(self.agent.id, &status).await {
                    tracing::debug!(agent = %self.agent.id, %refusal, "the state of a configuration is not kept");
                }
                Ok(())
            }
            Frame::Bye(bye) => {
                tracing::debug!(agent = %self.agent.id, reason = ?bye.reason, detail = bye.detail, "an agent says goodbye");
                Err(End::Gone)
            }
            Frame::Hello(_) => Err(bye(ByeReason::Protocol, "hello is said once".to_owned(), None)),
            // What only a hub says means nothing from an agent; what is unknown is of a later version.
            Frame::Welcome(_)
            | Frame::Heard { .. }
            | Frame::Config(_)
            | Frame::RenewCertificate { .. }
            | Frame::Unknown => Ok(()),
        }
    }

    fn seen(&self, heartbeat: &Heartbeat) -> AgentSeen {
        let json = |value: serde_json::Result<serde_json::Value>| value.ok();
        let mut health = json(serde_json::to_value(&heartbeat.health));
        // Beside its health, where people see it: times of events that the machine made are off by as much.
        if let (Some(health), Some(ahead)) = (&mut health, heartbeat.clock_ahead_ms) {
            health["clock_ahead_ms"] = ahead.into();
        }
        AgentSeen {
            boot_id: heartbeat.boot_id,
            version: Some(heartbeat.version.to_string()),
            health,
            ledger: json(serde_json::to_value(&heartbeat.ledgers)),
            update: heartbeat.update.as_ref().and_then(|update| json(serde_json::to_value(update))),
            config_hash: heartbeat.config.as_ref().map(|config| config.effective_sha256.clone()),
            address: Some(self.machine.address.clone()),
            certificate_expires_at: Some(self.agent.not_after),
            key_hash: Some(*self.agent.pin.as_bytes()),
            ..AgentSeen::new(self.agent.id, self.hub.clock.now())
        }
    }
}

/// The heartbeat before this one was of another key. After a renewal it is the key before; if this one's certificate has been
/// superseded, whoever has the newer one is another machine, or went back to the one before.
async fn another_key(hub: &Hub, agent: &KnownAgent, machine: &Machine, previous_boot: Option<Uuid>, key: &[u8; 32]) {
    let own = hub.db.certificate(hub.tenant, &agent.serial).await;
    if !own.is_ok_and(|own| own.is_some_and(|own| own.superseded_at.is_some())) {
        return;
    }
    let others = hub.db.certificates_by_key(hub.tenant, key).await.unwrap_or_default();
    let newer = others.into_iter().find(|other| other.issued.agent == agent.id);
    let before = Machine {
        boot_id: previous_boot.or(machine.boot_id),
        serial: newer.map(|newer| newer.issued.serial).unwrap_or_default(),
        ..machine.clone()
    };
    hub.twins(agent.id, &[before, machine.clone()]).await;
}

async fn hello(stream: &mut Socket) -> Result<Hello, End> {
    match tokio::time::timeout(HELLO_LIMIT, stream.next()).await {
        Ok(Some(Ok(Message::Text(text)))) => match Frame::read(&text) {
            Ok(Frame::Hello(hello)) => Ok(hello),
            Ok(_) => Err(bye(ByeReason::Protocol, "the first frame is hello".to_owned(), None)),
            Err(detail) => Err(bye(ByeReason::Protocol, detail, None)),
        },
        Ok(Some(Ok(_))) => Err(bye(ByeReason::Protocol, "the first frame is hello, as text".to_owned(), None)),
        Ok(Some(Err(_)) | None) => Err(End::Gone),
        Err(_) => Err(bye(ByeReason::Silent, "no hello came".to_owned(), None)),
    }
}

async fn send(stream: &mut Socket, frame: &Frame) -> Result<(), End> {
    match tokio::time::timeout(WRITE_LIMIT, stream.send(Message::text(frame.write()))).await {
        Ok(Ok(())) => Ok(()),
        // Gone, or so slow that it might as well be.
        Ok(Err(_)) | Err(_) => Err(End::Gone),
    }
}

/// Whether somebody still answers: a ping is answered by the peer's library (RFC 6455 §5.5.2).
async fn still_there(stream: &mut Socket) -> bool {
    let ping = stream.send(Message::Ping(bytes::Bytes::from_static(b"there?")));
    if !matches!(tokio::time::timeout(WRITE_LIMIT, ping).await, Ok(Ok(()))) {
        return false;
    }
    let pong = async {
        while let Some(Ok(message)) = stream.next().await {
            if matches!(message, Message::Pong(_)) {
                return true;
            }
        }
        false
    };
    tokio::time::timeout(CLOSE_LIMIT, pong).await.unwrap_or(false)
}

/// Says goodbye and closes; waits a little for the peer's own goodbye.
async fn finish(stream: &mut Socket, end: End) {
    let last = match end {
        End::Gone => None,
        End::Bye(bye) => Some(bye),
        End::Replaced(_) => Some(Bye {
            reason: ByeReason::Replaced,
            detail: "the same agent has connected anew; a copy of a machine must be enrolled anew".to_owned(),
            retry_after_ms: Some(60_000),
        }),
    };
    if let Some(bye) = last {
        let _ = send(stream, &Frame::Bye(bye)).await;
    }
    let closing = async {
        let _ = stream.close(None).await;
        while let Some(Ok(_)) = stream.next().await {}
    };
    let _ = tokio::time::timeout(CLOSE_LIMIT, closing).await;
}

fn bye(reason: ByeReason, detail: String, retry_after: Option<Duration>) -> End {
    End::Bye(Bye { reason, detail, retry_after_ms: retry_after.map(millis) })
}

/// A time within `interval` that is the agent's own: what spreads a fleet evenly.
fn splay(agent: Uuid, interval: Duration) -> Duration {
    let digest: [u8; 32] = Sha256::digest(agent.as_bytes()).into();
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&digest[..4]);
    interval.mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX))
}

/// When an agent is to come back to a hub that stops: its own share of half an interval, or of [`COME_BACK`] where that is less.
fn come_back(agent: Uuid, interval: Duration) -> Duration {
    splay(agent, (interval / 2).min(COME_BACK))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_whose_hub_stopped_is_heard_again_well_within_a_minute() {
        let interval = Duration::from_secs(30);
        let slowest = (0..3000).map(|_| {
            let agent = Uuid::now_v7();
            come_back(agent, interval) + splay(agent, interval)
        });
        let slowest = slowest.max().unwrap();
        assert!((Duration::from_secs(40)..=Duration::from_secs(45)).contains(&slowest), "{slowest:?}");
        assert!(come_back(Uuid::max(), Duration::from_secs(600)) <= COME_BACK);
    }

    #[test]
    fn a_fleet_is_spread_over_the_interval() {
        let interval = Duration::from_secs(30);
        let mut seconds = [0; 30];
        for _ in 0..3000 {
            let at = splay(Uuid::now_v7(), interval);
            assert!(at <= interval);
            seconds[usize::try_from(at.as_secs()).unwrap().min(29)] += 1;
        }
        assert!(seconds.iter().all(|count| (50..200).contains(count)), "{seconds:?}");
    }
}
