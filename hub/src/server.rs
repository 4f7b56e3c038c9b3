//! A listener with TLS: bounded in connections, in the time of a handshake, of a header and of silence, drained when told
//! to stop.
//!
//! On a listener that asks for client certificates, who shows none that is in force shares a quarter of the connections, and
//! an agent has a few of its own. Every connection begins among the strangers', so one address has a part of these only, and
//! a stranger's ends after a while. So neither one machine of a stranger's nor one that was taken over can shut agents out
//! by holding as many as it can.

use crate::activity::{Activity, counted};
use crate::app::admission::{Turn, Turns};
use crate::app::people::abuse::counted_as;
use crate::place::{Place, Placed};
use axum::Router;
use axum::middleware::from_fn_with_state;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use picket_hub_db::Network;
pub(crate) use picket_localapi::told_to_stop;
use picket_pki::Certificate;
use rustls::ServerConfig;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

/// How long a handshake may take: four round trips of a slow line.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to send a header, from the connection's first moment and from the answer before: a stranger,
/// and somebody with a certificate. The second is longer than what clients keep an idle connection for.
const HEADER_LIMIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// How long an HTTP/2 connection may be without a request: as above.
const IDLE_LIMIT: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(300));
/// How long a stranger's connection may last where certificates are asked for: who enrols or renews needs seconds.
const STRANGER_LIMIT: Duration = Duration::from_secs(60);
/// How long the request that is under way then may go on: as long as its body may take to arrive.
const LAST_REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// How long an idle one may take to say goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);
/// Of how many connections one is for those without a certificate, where certificates are asked for.
const STRANGERS_SHARE: usize = 4;
/// How many connections one agent may have: its WebSocket, one for requests, as many of each that a network cut and that are
/// not known to be dead, and a command or a new version that looks whether it gets through.
const CONNECTIONS_EACH: u32 = 8;
/// The largest header of a request, in bytes (HTTP/1.1 and HTTP/2).
const MAX_HEADER: usize = 16 << 10;
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;

/// Who is at the other end of a connection: an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address that the system sees.
    pub address: SocketAddr,
    /// The client certificate, where one was shown and an authority in force vouches for it.
    pub certificate: Option<Arc<Certificate>>,
}

impl Peer {
    /// The address without the port, and an IPv4 address as one.
    pub fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }
}

/// What a listener counted.
#[derive(Debug, Default)]
pub struct ListenerCounters {
    /// Connections that are open.
    pub open: AtomicU64,
    /// Connections that were accepted.
    pub accepted: AtomicU64,
    /// Handshakes that failed or took too long.
    pub failed_handshakes: AtomicU64,
    /// Connections that were refused because as many were open as are allowed.
    pub refused: AtomicU64,
}

/// A listener that has its port.
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limit: Limit,
    counters: Arc<ListenerCounters>,
}

/// Whose certificate it is, as far as that is known without asking anybody: none for one that is not in force.
pub type Holder = Arc<dyn Fn(&Certificate) -> Option<Uuid> + Send + Sync>;

/// How many connections may be open at a time, `WebSockets` among them.
pub struct Limit {
    /// Of all.
    pub most: usize,
    /// Of one address.
    pub each: EachAddress,
    /// Where certificates are asked for, the limits are those of agents, and of each address as long as a connection is a
    /// stranger's; strangers share a quarter as many.
    pub holder: Option<Holder>,
}

/// How many connections one address may have, as [`counted_as`] counts it.
pub struct EachAddress {
    turns: Turns<String>,
    /// Whose address says nothing of who is behind it.
    exempt: Vec<Network>,
}

impl EachAddress {
    /// At most `most`; none is counted for 0, and of `exempt` none ever.
    pub fn new(most: u32, exempt: &[Network]) -> Self {
        let most = if most == 0 { u32::MAX } else { most };
        Self { turns: Turns::new(most), exempt: exempt.to_vec() }
    }

    /// Whether another one may come: then with its turn where it is counted.
    fn admit(&self, address: IpAddr) -> Result<Option<Turn<String>>, Full> {
        let address = address.to_canonical();
        if self.exempt.iter().any(|network| network.holds(address)) {
            return Ok(None);
        }
        self.turns.take(counted_as(address)).map(Some).ok_or(Full)
    }
}

/// An address has as many as it may have.
#[derive(Debug, PartialEq, Eq)]
struct Full;

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("the hub cannot listen on {address} for {name}: stop who does, or set listen.{name} to another address")]
pub struct BindError {
    /// For whom it would listen: `agents`, `api`.
    pub name: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// What the system said.
    pub source: std::io::Error,
}

impl Listener {
    /// Takes the port. At most `limit` connections are open at a time; what becomes of them is counted in `counters`.
    ///
    /// # Errors
    /// When somebody has it, or the system refuses.
    pub async fn bind(
        name: &'static str,
        address: SocketAddr,
        tls: ServerConfig,
        router: Router,
        limit: Limit,
        counters: Arc<ListenerCounters>,
    ) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| BindError { name, address, source })?;
        Ok(Self { name, socket: listener, tls: Arc::new(tls), router, limit, counters })
    }

    /// Where it listens: with the port that the system chose, if it was to.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<ListenerCounters> {
        Arc::clone(&self.counters)
    }

    /// Serves until `stop` turns true, then lets open requests finish for at most `drain_limit`.
    pub async fn serve(self, mut stop: watch::Receiver<bool>, drain_limit: Duration) {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let Limit { most, each, holder } = self.limit;
        let known = holder.map(|holder| {
            Arc::new(Known { holder, room: Arc::new(Semaphore::new(most)), each: Turns::new(CONNECTIONS_EACH) })
        });
        let strangers = if known.is_some() { (most / STRANGERS_SHARE).max(1) } else { most };
        let strangers = Arc::new(Semaphore::new(strangers));
        let mut connections = JoinSet::new();
        loop {
            let (stream, address) = tokio::select! {
                () = told_to_stop(&mut stop) => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, most likely; trying again at once would only burn the CPU.
                        tracing::warn!(listener = self.name, %error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let permit = Arc::clone(&strangers).try_acquire_owned();
            let (Ok(permit), Ok(of_address)) = (permit, each.admit(address.ip())) else {
                // Closed at once: a machine that is told nothing tries again with its own backoff.
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            let connection = Connection {
                name: self.name,
                acceptor: acceptor.clone(),
                router: self.router.clone(),
                counters: Arc::clone(&self.counters),
                known: known.clone(),
                stop: stop.clone(),
            };
            let place = Place::new(Arc::clone(&self.counters), permit, of_address);
            connections.spawn(async move { connection.serve(stream, address, place).await });
        }
        drop(self.socket);
        let drained = tokio::time::timeout(drain_limit, async { while connections.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(listener = self.name, limit = ?drain_limit, "open requests were cut at the drain limit");
        }
    }
}

/// The places of agents.
struct Known {
    holder: Holder,
    room: Arc<Semaphore>,
    each: Turns<Uuid>,
}

impl Known {
    /// Moves an agent's connection to one of its own places. Says whether there was one.
    fn move_in(&self, agent: Uuid, place: &mut Place) -> bool {
        let turn = self.each.take(agent);
        let permit = Arc::clone(&self.room).try_acquire_owned().ok();
        turn.zip(permit).map(|(turn, permit)| place.change(permit, turn)).is_some()
    }
}

struct Connection {
    name: &'static str,
    acceptor: TlsAcceptor,
    router: Router,
    counters: Arc<ListenerCounters>,
    /// The places of agents, where certificates are asked for.
    known: Option<Arc<Known>>,
    stop: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(&self, stream: TcpStream, address: SocketAddr, mut place: Place) {
        // Small answers must not wait for the next one.
        let _ = stream.set_nodelay(true);
        let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, self.acceptor.accept(stream)).await;
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.failed(address, &error),
            Err(_) => return self.failed(address, &"it took too long"),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = shown.and_then(|der| Certificate::from_der(der).ok()).map(Arc::new);
        let known = self.known.as_ref().zip(certificate.as_ref());
        let holder = known.and_then(|(known, shown)| Some((known, (known.holder)(shown)?)));
        let is_known = holder.is_some();
        if holder.is_some_and(|(known, agent)| !known.move_in(agent, &mut place)) {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let choose = |(stranger, known)| if is_known { known } else { stranger };
        let over = async {
            match self.known.as_ref().filter(|_| !is_known) {
                Some(_) => tokio::time::sleep(STRANGER_LIMIT).await,
                None => std::future::pending().await,
            }
        };
        let activity = Activity::default();
        let router = self
            .router
            .clone()
            .layer(axum::Extension(Peer { address, certificate }))
            .layer(from_fn_with_state(activity.clone(), counted));
        let service = TowerToHyperService::new(router);
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(Placed::new(stream, place));
        // Which of the two was agreed on in the handshake: nothing is guessed from bytes that may never come.
        let result = if is_http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(u32::try_from(MAX_HEADER).unwrap_or(u32::MAX))
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(20))
                .serve_connection(io, service);
            tokio::pin!(connection);
            let mut stop = self.stop.clone();
            let idle = activity.idle_for(choose(IDLE_LIMIT));
            tokio::select! {
                result = connection.as_mut() => result,
                () = told_to_stop(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
                () = idle => {
                    connection.as_mut().graceful_shutdown();
                    // Whoever does not answer the goodbye is not waited for.
                    tokio::time::timeout(GOODBYE_LIMIT, connection).await.unwrap_or(Ok(()))
                }
                () = over => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(LAST_REQUEST_LIMIT, connection).await.unwrap_or(Ok(()))
                }
            }
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(choose(HEADER_LIMIT))
                .max_buf_size(MAX_HEADER)
                .serve_connection(io, service)
                .with_upgrades();
            tokio::pin!(connection);
            let mut stop = self.stop.clone();
            tokio::select! {
                result = connection.as_mut() => result,
                () = told_to_stop(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
                () = over => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(LAST_REQUEST_LIMIT, connection).await.unwrap_or(Ok(()))
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(listener = self.name, %address, %error, "a connection ended early");
        }
    }

    fn failed(&self, address: SocketAddr, error: &dyn std::fmt::Display) {
        self.counters.failed_handshakes.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(listener = self.name, %address, %error, "a TLS handshake failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_whoever_speaks_for_others_as_many_as_come() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let each = EachAddress::new(2, &["10.0.0.0/8".parse().unwrap()]);
        let held = [each.admit(ip("192.0.2.1")).unwrap(), each.admit(ip("::ffff:192.0.2.1")).unwrap()];
        assert_eq!(each.admit(ip("192.0.2.1")).unwrap_err(), Full);
        assert!(each.admit(ip("192.0.2.2")).is_ok(), "another one's");
        let neighbours = [each.admit(ip("2001:db8::1")).unwrap(), each.admit(ip("2001:db8::2")).unwrap()];
        assert_eq!(each.admit(ip("2001:db8::3")).unwrap_err(), Full, "a customer of IPv6 is one");
        for _ in 0..100 {
            assert!(each.admit(ip("10.1.2.3")).unwrap().is_none());
        }
        drop((held, neighbours));
        assert!(each.admit(ip("192.0.2.1")).is_ok());
        let unlimited = EachAddress::new(0, &[]);
        let all: Vec<_> = (0..1000).map(|_| unlimited.admit(ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(all.len(), 1000);
    }
}
