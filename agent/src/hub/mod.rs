//! The agent's side of a hub: who this machine is there, what it delivers, what it is told.
//!
//! ```text
//! store, record, pending    the identity on disk: one switch for key, certificate, roots
//! exchange                  enrolling, renewing, and how the answers are checked
//! keeper, renewing          the thread that looks after all of it
//! coming_back               asking whether a lost identity is known again
//! talk, heartbeat           the WebSocket
//! uplink                    where batches of events go
//! pushed, taker             configuration that the hub gives
//! state                     how it stands, for health and metrics
//! walk                      `picket test-connection`
//! ```
//!
//! A hub that is away, refuses or lies keeps the agent from nothing but the hub: it measures, watches and keeps all the
//! same. Only two words of the hub's own cost an identity, and even they delete no key.

#[cfg(test)]
mod by_hand;
mod clock;
mod coming_back;
mod exchange;
mod heartbeat;
pub(crate) mod keeper;
mod pending;
pub mod pushed;
mod record;
mod relay;
mod renewing;
mod schedule;
mod settings;
pub(crate) mod state;
mod store;
mod stream_note;
pub(crate) mod taker;
mod talk;
pub(crate) mod uplink;
pub mod walk;
mod words;

pub use exchange::{About, Enrolment, ExchangeError, enrol, renew};
pub use heartbeat::ledgers;
pub use record::{CHAIN_FILE, HubRecord, Identity, IdentityError, KEY_FILE, NewSet, RECORD_FILE, ROOTS_FILE};
pub use relay::{Relay, relay_failure};
pub(crate) use settings::Way;
pub use settings::{UplinkSettings, Via};
pub use store::{CertStore, Counts, Lost};
pub use uplink::uplink_error;
pub use words::way_out;

use crate::checks;
use crate::config::HubConfig;
use crate::keep::Kept;
use crate::reload::{Asker, CheckLayer};
use jiff::Timestamp;
use keeper::{Keeper, Parts};
use picket_protocol::BuildInfo;
use picket_telemetry::{Finding, Health};
use pushed::Effective;
use state::HubState;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;
use taker::Taker;
use tokio::sync::{Notify, watch};

/// What the hub's thread needs of the rest of the agent.
pub(crate) struct Needs {
    pub(crate) config: HubConfig,
    pub(crate) build: BuildInfo,
    pub(crate) update_status: PathBuf,
    pub(crate) health: Arc<Health>,
    pub(crate) kept: Arc<Kept>,
    pub(crate) check: CheckLayer,
    pub(crate) reload: Asker,
    pub(crate) effective: Arc<Mutex<Effective>>,
    pub(crate) started: Instant,
}

/// The hub's thread, running.
pub(crate) struct HubWorks {
    pub(crate) state: Arc<HubState>,
    pub(crate) certs: CertStore,
    settings: Arc<Mutex<Way>>,
    wake: Arc<Notify>,
    recheck: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl HubWorks {
    /// Starts the thread, whether there is an identity or not.
    ///
    /// # Errors
    /// When the system refuses a thread or an event loop.
    pub(crate) fn start(needs: Needs) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let state = Arc::new(HubState::new(needs.config.uplink.via));
        let settings = Arc::new(Mutex::new(Way::of(&needs.config)));
        let (wake, recheck) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        register(&needs.health, &state);
        let certs = CertStore::new(&needs.config.certs_dir);
        watch_refusals(&needs.kept, &certs, &recheck, &wake);
        let taker = Taker {
            path: needs.config.layer.clone(),
            published: needs.config.published_layer.clone(),
            check: needs.check,
            reload: needs.reload,
            effective: needs.effective,
        };
        if let Ok(Some(layer)) = pushed::Layer::read(&taker.path) {
            layer.publish(&taker.published);
        }
        let uptime = jiff::SignedDuration::try_from(needs.started.elapsed()).unwrap_or_default();
        let parts = Parts {
            build: needs.build,
            machine_hint: crate::identity::agent_id(std::path::Path::new("/etc/machine-id")),
            update_status: needs.update_status,
            health: needs.health,
            switch: Arc::clone(&needs.kept.switch),
            kept: needs.kept,
            state: Arc::clone(&state),
            settings: Arc::clone(&settings),
            recheck: Arc::clone(&recheck),
            wake: Arc::clone(&wake),
            taker,
            started: (needs.started, Timestamp::now() - uptime),
            config: needs.config,
        };
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name("picket-hub".to_owned()).spawn(move || {
            runtime.block_on(Keeper::new(parts, stopped).run());
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        })?;
        Ok(Self { state, certs, settings, wake, recheck, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Takes over settings that changed.
    pub(crate) fn configure(&self, way: Way) {
        *keeper::lock(&self.settings) = way;
        self.wake.notify_one();
    }

    /// Says goodbye to the hub and ends the thread.
    pub(crate) fn stop(&self) {
        let _ = self.stop.send(true);
        if let Some(thread) = keeper::lock(&self.thread).take() {
            let _ = thread.join();
        }
        self.recheck.store(false, Ordering::Relaxed);
    }
}

/// A delivery that the hub refuses may be the first to hear that the identity is lost.
fn watch_refusals(kept: &Arc<Kept>, certs: &CertStore, recheck: &Arc<AtomicBool>, wake: &Arc<Notify>) {
    let (certs, recheck, wake) = (certs.clone(), Arc::clone(recheck), Arc::clone(wake));
    kept.switch.on_refusal(Box::new(move |error, serial| {
        let picket_transport::hub::HubCallError::Problem(problem) = error else { return };
        if !error.costs_identity() {
            return;
        }
        // While another process changes the identity, nothing is noted: if the hub means the new one, it says so again.
        let (code, detail) = (problem.code.as_str(), &problem.detail);
        let marked = certs.lock().and_then(|lock| certs.mark_lost(&lock, serial, code, detail, Timestamp::now()));
        if let Err(error) = marked {
            tracing::error!(error = crate::keep::told(&error), "the hub took the identity back");
        }
        recheck.store(true, Ordering::Relaxed);
        wake.notify_one();
    }));
}

fn register(health: &Arc<Health>, state: &Arc<HubState>) {
    let enrolled = Arc::clone(state);
    health.probe(checks::ENROLLED, move || enrolled.snapshot().enrolled());
    let certificates = Arc::clone(state);
    let none = || Finding::pass("no certificate is needed without a hub");
    health.probe(checks::CERTIFICATES, move || {
        certificates.snapshot().certificates(Timestamp::now()).unwrap_or_else(none)
    });
    let connection = Arc::clone(state);
    let none = || Finding::pass("no hub is spoken to");
    health.probe(checks::HUB_CONNECTION, move || connection.snapshot().connection(Instant::now()).unwrap_or_else(none));
}
