//! One connection with the hub, from hello to goodbye.

use super::clock::within;
use super::heartbeat::clock_ahead;
use super::keeper::{Keeper, LOOK, Live};
use jiff::Timestamp;
use picket_protocol::hub::{Bye, ByeReason, FRAME_MAX_BYTES, Frame, Hello, SOCKET_PATH, Signed, WIRE, Welcome};
use picket_transport::hub::{Heard, HubCallError, HubSocket, SocketLimits};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval_at, sleep_until, timeout};

/// How long the hub may take to say welcome.
const WELCOME_LIMIT: Duration = Duration::from_secs(15);
/// How long one frame may take to be written.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Between which intervals heartbeats are sent, whatever the hub says.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// How many heartbeats may stay unanswered before the connection is taken for dead.
const MISSED: u32 = 3;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// This process stops.
    Stopped,
    /// The identity or the settings changed.
    Changed,
    /// It never came about.
    Refused(HubCallError),
    /// The hub said goodbye.
    Bye(Bye),
    /// It broke.
    Gone(String),
    /// The hub does not answer any more.
    Silent,
}

impl End {
    /// In a word, for metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Changed => "changed",
            Self::Refused(error) => error.code().map_or("unreachable", |code| code.as_str()),
            Self::Bye(bye) => match bye.reason {
                ByeReason::Draining => "draining",
                ByeReason::Overloaded => "overloaded",
                ByeReason::Replaced => "replaced",
                ByeReason::Revoked => "revoked",
                ByeReason::UnknownAgent => "unknown_agent",
                ByeReason::CertificateExpired => "certificate_expired",
                ByeReason::CertificateRenewed => "certificate_renewed",
                ByeReason::WireUnsupported => "wire_unsupported",
                ByeReason::Protocol => "protocol",
                ByeReason::Silent => "silent",
                ByeReason::Unknown => "unknown",
            },
            Self::Gone(_) => "gone",
            Self::Silent => "no_answer",
        }
    }

    /// What went wrong, if anything did.
    pub(super) fn told(&self) -> Option<String> {
        let text = match self {
            Self::Stopped | Self::Changed => return None,
            Self::Refused(error) => crate::keep::told(error),
            Self::Bye(bye) => format!("the hub ended the connection: {}", bye.detail),
            Self::Gone(why) => why.clone(),
            Self::Silent => "the hub does not answer any more".to_owned(),
        };
        Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
    }
}

/// A heartbeat that was not answered yet.
struct Waiting {
    seq: u64,
    since: Instant,
}

impl Keeper {
    /// Connects, and speaks until either side has had enough.
    pub(super) async fn talk(&mut self, live: &Arc<Live>) -> End {
        let limits =
            SocketLimits { connect: live.options.timeouts.connect, write: WRITE_LIMIT, message: FRAME_MAX_BYTES };
        let agent = &live.options.user_agent;
        let connecting = HubSocket::connect(&live.route, SOCKET_PATH, &live.trust, agent, limits);
        let mut stop = self.stop.clone();
        let mut socket = tokio::select! {
            connected = connecting => match connected {
                Ok(socket) => socket,
                Err(error) => return End::Refused(error),
            },
            _ = stop.changed() => return End::Stopped,
        };
        let welcome = match self.greet(&mut socket).await {
            Ok(welcome) => welcome,
            Err(end) => return end,
        };
        self.welcomed();
        let end = self.converse(live, &mut socket, &welcome).await;
        let last = match &end {
            End::Stopped => Some((ByeReason::Draining, "the agent stops")),
            End::Changed => Some((ByeReason::CertificateRenewed, "the agent comes back with what changed")),
            End::Silent => Some((ByeReason::Silent, "no answer came")),
            End::Refused(_) | End::Bye(_) | End::Gone(_) => None,
        };
        if let Some((reason, detail)) = last {
            let bye = Bye { reason, detail: detail.to_owned(), retry_after_ms: None };
            let _ = timeout(CLOSE_LIMIT, socket.send(Frame::Bye(bye).write())).await;
        }
        socket.close(CLOSE_LIMIT).await;
        end
    }

    async fn greet(&mut self, socket: &mut HubSocket) -> Result<Welcome, End> {
        let hello = Hello {
            wire: WIRE,
            version: self.parts.build.version.clone(),
            incarnation: self.incarnation,
            boot_id: picket_outbox::kernel_boot().parse().ok(),
            machine_hint: self.parts.machine_hint.clone(),
            now: Timestamp::now(),
        };
        socket.send(Frame::Hello(hello).write()).await.map_err(|error| End::Gone(error.to_string()))?;
        let heard = timeout(WELCOME_LIMIT, async {
            loop {
                match socket.hear().await {
                    Heard::Sign => {}
                    heard => return heard,
                }
            }
        });
        let text = match heard.await {
            Ok(Heard::Text(text)) => text,
            Ok(Heard::End(why)) => return Err(End::Gone(why)),
            Err(_) | Ok(Heard::Sign) => return Err(End::Silent),
        };
        match Frame::read(&text) {
            Ok(Frame::Welcome(welcome)) if (WIRE.oldest..=WIRE.newest).contains(&welcome.wire) => Ok(welcome),
            Ok(Frame::Bye(bye)) => Err(End::Bye(bye)),
            Ok(_) => Err(End::Gone("the hub did not say welcome".to_owned())),
            Err(error) => Err(End::Gone(error)),
        }
    }

    async fn converse(&mut self, live: &Arc<Live>, socket: &mut HubSocket, welcome: &Welcome) -> End {
        let every = within(welcome.heartbeat_ms, INTERVALS.0, INTERVALS.1);
        let first = within(welcome.first_heartbeat_ms, Duration::ZERO, every);
        let mut due = tokio::time::Instant::now() + first;
        let mut looks = interval_at(tokio::time::Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting: Option<Waiting> = None;
        let mut unanswered = 0;
        let mut stop = self.stop.clone();
        let wake = Arc::clone(&self.parts.wake);
        loop {
            tokio::select! {
                heard = socket.hear() => {
                    let frame = match heard {
                        Heard::Sign => continue,
                        Heard::End(why) => return End::Gone(why),
                        Heard::Text(text) => match Frame::read(&text) {
                            Ok(frame) => frame,
                            Err(error) => return End::Gone(error),
                        },
                    };
                    match frame {
                        Frame::Heard { seq, hub_time } => {
                            let Some(answered) = waiting.take_if(|waiting| waiting.seq == seq) else { continue };
                            unanswered = 0;
                            let (took, now) = (answered.since.elapsed(), Timestamp::now());
                            let ahead = clock_ahead(now, hub_time, took);
                            self.parts.state.change(|state| state.heard(took, ahead, (Instant::now(), now)));
                        }
                        Frame::Config(signed) => {
                            if let Some(answer) = self.take_config(live, signed).await
                                && let Err(error) = socket.send(answer.write()).await
                            {
                                return End::Gone(error.to_string());
                            }
                        }
                        Frame::RenewCertificate { reason } => {
                            tracing::info!(reason, "the hub asks for the certificate to be renewed");
                            self.asked = true;
                            if self.look().await {
                                return End::Changed;
                            }
                        }
                        Frame::Bye(bye) => return End::Bye(bye),
                        // What only an agent says means nothing from a hub; what is unknown is of a later version.
                        Frame::Hello(_) | Frame::Welcome(_) | Frame::Heartbeat(_) | Frame::ConfigStatus(_)
                        | Frame::Unknown => {}
                    }
                }
                () = sleep_until(due) => {
                    if waiting.is_some() {
                        unanswered += 1;
                        self.parts.state.change(|state| state.heartbeats_failed += 1);
                    }
                    if unanswered >= MISSED {
                        return End::Silent;
                    }
                    let heartbeat = self.heartbeat(live);
                    waiting = Some(Waiting { seq: heartbeat.seq, since: Instant::now() });
                    if let Err(error) = socket.send(Frame::Heartbeat(Box::new(heartbeat)).write()).await {
                        return End::Gone(error.to_string());
                    }
                    // From the plan and not from now: heartbeats keep their place in the interval.
                    due = (due + every).max(tokio::time::Instant::now());
                }
                _ = looks.tick() => {
                    if self.look().await {
                        return End::Changed;
                    }
                }
                () = wake.notified() => {
                    if self.look().await {
                        return End::Changed;
                    }
                }
                _ = stop.changed() => return End::Stopped,
            }
        }
    }

    /// Puts a configuration in force; what to answer.
    async fn take_config(&self, live: &Arc<Live>, signed: Signed) -> Option<Frame> {
        let (taker, live) = (self.parts.taker.clone(), Arc::clone(live));
        let taken = tokio::task::spawn_blocking(move || taker.take(&live.identity.record, &signed)).await.ok()?;
        match taken {
            Ok(status) => {
                let applied = status.state == picket_protocol::hub::ConfigState::Applied;
                tracing::info!(version = status.version, applied, errors = ?status.errors, "the hub gave a configuration");
                self.parts.state.change(|state| {
                    *(if applied { &mut state.configs_taken } else { &mut state.configs_refused }) += 1;
                    state.config = Some(status.clone());
                });
                Some(Frame::ConfigStatus(status))
            }
            Err(error) => {
                tracing::warn!(%error, "a configuration of the hub's is not taken");
                self.parts.state.change(|state| state.configs_refused += 1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HubConfig;
    use crate::hub::pushed::{Effective, Layer};
    use crate::hub::settings::{UplinkSettings, Via};
    use crate::hub::state::Standing;
    use crate::hub::store::tests::Fleet;
    use crate::hub::{CertStore, HubWorks, Needs};
    use crate::keep::Kept;
    use crate::reload::Asker;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ed25519_dalek::{Signer as _, SigningKey};
    use futures_util::{SinkExt as _, StreamExt as _};
    use picket_pki::HubNames;
    use picket_protocol::hub::{ConfigDocument, ConfigState, ConfigStatus, Heartbeat};
    use picket_protocol::{BuildInfo, StateFormat};
    use picket_telemetry::Health;
    use picket_transport::ProxyChoice;
    use rustls::pki_types::CertificateDer;
    use semver::Version;
    use std::collections::BTreeMap;
    use std::path::Path;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_tungstenite::tungstenite::Message;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn server(fleet: &Fleet) -> tokio_rustls::TlsAcceptor {
        let names = HubNames::new(["127.0.0.1"]).unwrap();
        let (leaf, key) = fleet.intermediate.hub(&names, Timestamp::now()).unwrap();
        let chain: Vec<CertificateDer<'static>> =
            [&leaf, fleet.intermediate.certificate(), fleet.root.certificate()].map(|each| each.der().clone()).into();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(fleet.root.certificate().der().clone()).unwrap();
        let provider = picket_transport::provider();
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain, key.to_der())
            .unwrap();
        Arc::new(config).into()
    }

    /// A hub that hears one agent after the other: what it hears goes to `heard`, what is in `say` is said after the first
    /// heartbeat of each connection.
    async fn hub(
        listener: TcpListener,
        acceptor: tokio_rustls::TlsAcceptor,
        say: Vec<Vec<Frame>>,
        heard: mpsc::UnboundedSender<Frame>,
    ) {
        for mut say in say {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = acceptor.accept(tcp).await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(tls).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                let Message::Text(text) = message else { continue };
                let frame = Frame::read(text.as_str()).unwrap();
                let now = Timestamp::now() - jiff::SignedDuration::from_secs(90);
                let mut answers = match &frame {
                    Frame::Hello(_) => vec![Frame::Welcome(Welcome {
                        wire: 1,
                        version: Version::new(1, 0, 0),
                        hub_time: now,
                        heartbeat_ms: 1000,
                        first_heartbeat_ms: 0,
                    })],
                    Frame::Heartbeat(heartbeat) => vec![Frame::Heard { seq: heartbeat.seq, hub_time: now }],
                    _ => Vec::new(),
                };
                if matches!(frame, Frame::Heartbeat(_)) {
                    answers.append(&mut say);
                }
                heard.send(frame).unwrap();
                for answer in answers {
                    socket.send(Message::text(answer.write())).await.unwrap();
                }
            }
        }
    }

    fn needs(dir: &Path, certs: &CertStore) -> Needs {
        let build = BuildInfo {
            version: Version::new(1, 2, 3),
            commit: "unknown".into(),
            target: "x86_64-unknown-linux-gnu".parse().unwrap(),
            built: "2026-11-21".into(),
            state_format: StateFormat { reads_from: 1, writes: 1 },
        };
        let config = HubConfig {
            certs_dir: certs.dir().to_owned(),
            layer: dir.join("layer.json"),
            published_layer: dir.join("shown.json"),
            stream_note: dir.join("stream.json"),
            user_agent: "test".into(),
            uplink: UplinkSettings { via: Via::Auto, proxy: "none".into(), ..UplinkSettings::default() },
            proxy: ProxyChoice::none(),
        };
        let in_force = Effective { sha256: "ab".into(), needs_restart: Vec::new() };
        Needs {
            config,
            build,
            update_status: dir.join("none.json"),
            health: Arc::new(Health::default()),
            kept: Arc::new(Kept::nothing()),
            check: Arc::new(|_| Ok(())),
            reload: Asker::answering(move || Ok(in_force.clone())),
            effective: Arc::default(),
            started: Instant::now(),
        }
    }

    fn signed(key: &SigningKey, agent_id: uuid::Uuid) -> Signed {
        let settings = BTreeMap::from([("log_level".to_owned(), "debug".into())]);
        let document = ConfigDocument { agent_id, sequence: 9, version: 4, issued_at: Timestamp::now(), settings };
        let payload = serde_json::to_string(&document).unwrap();
        let signature = STANDARD.encode(key.sign(&Signed::message("config", &payload)).to_bytes());
        Signed { purpose: "config".into(), payload, signature }
    }

    async fn next(heard: &mut mpsc::UnboundedReceiver<Frame>) -> Frame {
        timeout(PATIENCE, heard.recv()).await.expect("a frame in time").expect("a hub that listens")
    }

    async fn next_heartbeat(heard: &mut mpsc::UnboundedReceiver<Frame>) -> Box<Heartbeat> {
        loop {
            if let Frame::Heartbeat(heartbeat) = next(heard).await {
                return heartbeat;
            }
        }
    }

    async fn next_status(heard: &mut mpsc::UnboundedReceiver<Frame>) -> ConfigStatus {
        loop {
            if let Frame::ConfigStatus(status) = next(heard).await {
                return status;
            }
        }
    }

    #[test]
    fn an_agent_enrols_while_it_runs_beats_takes_a_configuration_and_stops_when_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let certs = CertStore::new(dir.path().join("certs"));
        let works = HubWorks::start(needs(dir.path(), &certs)).unwrap();
        assert!(matches!(works.state.snapshot().standing, Standing::None));

        let (fleet, key) = (Fleet::new(), SigningKey::from_bytes(&[9; 32]));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            let config = Frame::Config(signed(&key, fleet.agent.agent));
            let replay = config.clone();
            let bye = |reason| Frame::Bye(Bye { reason, detail: "by hand".into(), retry_after_ms: Some(1) });
            let say = vec![vec![config, bye(ByeReason::Draining)], vec![replay, bye(ByeReason::Revoked)]];
            let (tell, mut heard) = mpsc::unbounded_channel();
            let hub = tokio::spawn(hub(listener, server(&fleet), say, tell));

            // As the command does it, beside the process that runs.
            let mut set = fleet.set(&url);
            set.record.command_key = STANDARD.encode(key.verifying_key().as_bytes());
            certs.install(&certs.lock().unwrap(), &set).unwrap();

            let Frame::Hello(hello) = next(&mut heard).await else { panic!("hello is the first frame") };
            assert_eq!(hello.version, Version::new(1, 2, 3));
            let heartbeat = next_heartbeat(&mut heard).await;
            assert_eq!((heartbeat.seq, heartbeat.certificate.serial.as_str()), (1, set.chain[0].serial.as_str()));
            let status = next_status(&mut heard).await;
            assert_eq!(
                (status.state, status.version, status.effective_sha256.as_str()),
                (ConfigState::Applied, 4, "ab")
            );
            // It came back by itself, the same life of the process, and says what it has.
            let Frame::Hello(again) = next(&mut heard).await else { panic!("hello is the first frame") };
            assert_eq!(again.incarnation, hello.incarnation);
            let heartbeat = next_heartbeat(&mut heard).await;
            assert!(heartbeat.seq > 1 && heartbeat.config.unwrap().version == 4);
            assert!(heartbeat.clock_ahead_ms.unwrap() > 80_000, "the hub's clock is 90 s behind");
            timeout(PATIENCE, hub).await.unwrap().unwrap();
        });
        let began = Instant::now();
        while !matches!(works.state.snapshot().standing, Standing::Lost(_)) {
            assert!(began.elapsed() < PATIENCE, "{:?}", works.state.snapshot());
            std::thread::yield_now();
        }
        let identity = certs.load().unwrap().expect("nothing is deleted");
        assert_eq!(certs.lost(&identity).unwrap().code, "revoked");
        let layer = Layer::read(&dir.path().join("layer.json")).unwrap().unwrap();
        assert_eq!((layer.sequence, layer.settings.len()), (9, 1));
        let snapshot = works.state.snapshot();
        assert_eq!((snapshot.configs_taken, snapshot.configs_refused), (1, 1), "what was sent again is refused");
        assert!(snapshot.heartbeats >= 1 && snapshot.connects == 2);
        works.stop();
    }
}
