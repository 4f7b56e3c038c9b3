//! A small HTTP/1.1 server on one loopback address: bounded in connections, header size and time.

use crate::correlation::correlated;
use crate::only_this_host;
use crate::port_holder::PortHolder;
use axum::Router;
use axum::http::HeaderName;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections served at a time. A scraper and an orchestrator need two; a leak in a local script must not cost us our
/// file descriptors.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to send its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The read buffer, and with it the largest request header, in bytes. hyper's minimum is 8 KiB.
const MAX_BUFFER: usize = 16 << 10;
/// How long a connection may last: a scrape takes milliseconds.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait between attempts to get a port that somebody else holds: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A server that may not have its port yet.
pub struct Server {
    /// For messages: `health` or `metrics`.
    pub name: &'static str,
    /// The setting that names its address, for who has to give it another one.
    pub setting: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it answers.
    pub router: Router,
    /// The header in which requests bring a correlation id, and take it home.
    pub correlation: HeaderName,
}

/// A server that has its port.
pub struct BoundServer {
    listener: TcpListener,
    router: Router,
    correlation: HeaderName,
}

/// A port that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error(
        "the {name} server cannot listen on {address}: the port is held by {holder}; \
             stop that or set {setting} to another port"
    )]
    InUse {
        /// The server's name.
        name: &'static str,
        /// The setting that names its address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Who holds it.
        holder: PortHolder,
    },
    /// The system refused.
    #[error("the {name} server cannot listen on {address}")]
    Refused {
        /// The server's name.
        name: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl Server {
    /// Takes the port; must be called on the runtime that will serve.
    ///
    /// # Errors
    /// Who holds the port, or what the system said; and the server, to try again.
    pub async fn bind(self) -> Result<BoundServer, (Self, BindError)> {
        match TcpListener::bind(self.address).await {
            Ok(listener) => Ok(BoundServer { listener, router: self.router, correlation: self.correlation }),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                let holder = PortHolder::of(self.address);
                let error = BindError::InUse { name: self.name, setting: self.setting, address: self.address, holder };
                Err((self, error))
            }
            Err(source) => {
                let error = BindError::Refused { name: self.name, address: self.address, source };
                Err((self, error))
            }
        }
    }

    /// Takes the port, however long it takes, and tells `report` of each failure (`Some`) and of success (`None`).
    ///
    /// A held port is no reason to end: an agent in a crash loop sees nothing of its machine, and the holder may go.
    pub async fn bind_with_patience(mut self, report: impl Fn(Option<&BindError>)) -> BoundServer {
        let mut wait = RETRY.0;
        loop {
            match self.bind().await {
                Ok(bound) => {
                    report(None);
                    return bound;
                }
                Err((server, error)) => {
                    report(Some(&error));
                    self = server;
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}

/// Returns when `stop` turns true, or when nobody can turn it any more.
pub async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl BoundServer {
    /// Where it listens: with the port that the system chose, if it was to.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` turns true, then lets open requests finish for at most `drain_limit`.
    pub async fn serve(self, mut stop: watch::Receiver<bool>, drain_limit: Duration) {
        let correlated = axum::middleware::from_fn_with_state(self.correlation, correlated);
        let router = self.router.layer(correlated).layer(axum::middleware::from_fn(only_this_host));
        let service = TowerToHyperService::new(router);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // The permit is taken before accepting: what is too much waits in the kernel's queue, at no cost to us.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let stream = tokio::select! {
                () = told_to_stop(&mut stop) => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors, most likely; trying again at once would only burn the CPU.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(TokioIo::new(stream), service.clone());
            let mut stop = stop.clone();
            connections.spawn(async move {
                let _permit = permit;
                tokio::pin!(connection);
                let result = tokio::select! {
                    result = connection.as_mut() => result,
                    // Whoever asks and does not read must not take the place of those who do.
                    () = tokio::time::sleep(CONNECTION_LIMIT) => return,
                    () = told_to_stop(&mut stop) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection ended early");
                }
            });
        }
        drop(self.listener);
        let drained = tokio::time::timeout(drain_limit, async { while connections.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(limit = ?drain_limit, "open requests were cut at the drain limit");
        }
    }
}
