//! The hub's life: `Options → start() → Running → stop()`.

use crate::api::people::{RequestRates, Suspicions};
use crate::app::admission::{Admission, Each, Turns};
use crate::app::belonging::{self, BelongingError};
use crate::app::books::{self, Books};
use crate::app::heartbeats::Heartbeats;
use crate::app::identity::Identities;
use crate::app::intake::Intake;
use crate::app::judge::{self, JudgeCounters};
use crate::app::lines::Lines;
use crate::app::own_events::{self, OwnEvents, OwnStream};
use crate::app::people::abuse::Failures;
use crate::app::people::jwt::{self, KeysRefused, Tokens};
use crate::app::people::password::Passwords;
use crate::app::presence::Presence;
use crate::app::relayed::{self, RelayCounters};
use crate::app::replicas::{self, Telling};
use crate::app::rules::RuleSet;
use crate::app::upkeep;
use crate::authority::{AgentVerifier, HotCertificate, KeysError, KeysFolder, agent_server, people_server};
use crate::bus::{self, NoBus};
use crate::clock::Clock;
use crate::config::{ConfigError, HubSettings};
use crate::refusal::Refusal;
use crate::security::Security;
use crate::server::{BindError, EachAddress, Holder, Limit, Listener};
use crate::state::{Hub, Listeners, Parts};
use crate::watch::{LocalServer, Watched, look_after_health};
use jiff::SignedDuration;
use picket_hub_db::{DbError, Location as DbLocation, Options as DbOptions, TenantId};
use picket_hub_rules::Shard;
use picket_protocol::BuildInfo;
use picket_protocol::hub::ProblemCode;
use picket_seal::Sealer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// How many seconds' worth of enrolments one address may have at once.
const ENROLMENT_BURST: u32 = 5;
/// How often one agent may renew its certificate: it does so once in two months; an operator may force it, and an answer may be
/// lost.
const RENEWAL_PERIOD: Duration = Duration::from_secs(60);
const RENEWAL_BURST: u32 = 5;
/// How many batches of one agent may be on their way: it sends one after the other, and one that it gave up may linger.
const BATCHES_EACH: u32 = 2;

/// Everything resolved: what a hub starts with.
#[derive(Clone)]
pub struct Options {
    /// Which build this is.
    pub build: BuildInfo,
    /// What was configured.
    pub settings: HubSettings,
    /// How it defends itself.
    pub security: Security,
    /// Where its keys lie.
    pub keys: KeysFolder,
    /// The folder with rules of the operator's own, where there is one.
    pub rules_dir: Option<std::path::PathBuf>,
    /// Where everything is kept.
    pub database: String,
    /// What time it is.
    pub clock: Clock,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the database: its address may hold a password.
        f.debug_struct("Options")
            .field("build", &self.build)
            .field("settings", &self.settings)
            .field("keys", &self.keys)
            .field("rules_dir", &self.rules_dir)
            .finish_non_exhaustive()
    }
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] DbError),
    /// There is no way to the other replicas.
    #[error(transparent)]
    Bus(#[from] NoBus),
    /// Keys and database are not of one hub.
    #[error(transparent)]
    Belonging(#[from] BelongingError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up with the keys: {0}")]
    Tls(#[from] rustls::Error),
    /// A port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Something else the hub needs could not be made ready.
    #[error("the hub could not make itself ready: {0}")]
    Unready(Refusal),
    /// The system refused something.
    #[error("the system refused: {0}")]
    System(#[from] std::io::Error),
}

/// A hub that serves.
pub struct Running {
    hub: Arc<Hub>,
    agents: SocketAddr,
    api: SocketAddr,
    local: LocalServer,
    stop: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    writing: Vec<JoinHandle<()>>,
}

/// A hub without its ports: for looking after it on its own machine.
pub struct Assembled {
    /// What everything in the hub shares.
    pub hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    writing: Vec<JoinHandle<()>>,
    /// What keeps the hub's own events, and what tells replicas.
    telling: [JoinHandle<()>; 2],
}

impl Assembled {
    /// Stores what was accepted, and closes the database.
    pub async fn close(self) {
        let _ = self.stop.send(true);
        let (db, limit) = (Arc::clone(&self.hub.db), self.hub.settings.drain_limit.get());
        // What was changed from here is to reach the replicas that serve.
        for task in self.telling {
            let _ = tokio::time::timeout(limit, task).await;
        }
        self.hub.replicas.close().await;
        drop(self.hub);
        for mut task in self.writing {
            if tokio::time::timeout(limit, &mut task).await.is_err() {
                task.abort();
            }
        }
        db.close().await;
    }
}

/// Gives up what was sealed with a `seal.key` that is lost and replaced, as far as a hub could not start with it: the keys that
/// sign tokens. What else does not open says so when it is needed.
///
/// # Errors
/// When keys or database cannot be used.
pub async fn give_up_sealed(options: &Options) -> Result<(), StartError> {
    let (folder, now) = (&options.keys, options.clock.now());
    let keys = folder.load()?;
    let sealer = Sealer::new(Arc::new(folder.seal()?)).map_err(KeysError::Seal)?;
    let db = picket_hub_db::open(&options.database, &DbOptions::default()).await?;
    let given_up = async {
        db.ensure_default_tenant(now).await?;
        // Nothing is given up in the database of another hub.
        belonging::check(&*db, TenantId::DEFAULT, &keys.pins(), folder, now).await?;
        jwt::give_up_lost(&*db, TenantId::DEFAULT, &sealer, now).await.map(drop).map_err(StartError::Unready)
    }
    .await;
    db.close().await;
    given_up
}

/// Opens keys and database, and makes of them a hub that does not serve.
///
/// # Errors
/// What is missing, and what to do about it.
pub async fn assemble(options: Options) -> Result<Assembled, StartError> {
    let Options { build, settings, security, keys: folder, rules_dir, database, clock } = options;
    let public_url = settings.public_url()?;
    let enrolment_networks = settings.enrolment_networks()?;
    let network = settings.network.resolve().map_err(|error| ConfigError { key: error.key, message: error.reason })?;
    let patterns = &security.policies.input_validation.forbidden_patterns;
    let suspicions = Suspicions::new(patterns)
        .map_err(|message| ConfigError { key: "input_validation.forbidden_patterns", message })?;
    // What a power cut interrupted is finished before it is read.
    folder.renew_if_due(&settings.names, clock.now())?;
    let keys = folder.load()?;
    let sealer = Sealer::new(Arc::new(folder.seal()?)).map_err(KeysError::Seal)?;
    let db = picket_hub_db::open(&database, &DbOptions::default()).await?;
    let tenant = TenantId::DEFAULT;
    db.ensure_default_tenant(clock.now()).await?;
    belonging::check(&*db, tenant, &keys.pins(), &folder, clock.now()).await?;
    let (stop, stopped) = watch::channel(false);
    let (replicas, to_say) = bus::open(&settings.bus).await?;
    let replicas = Arc::new(replicas);
    let (wake, _) = watch::channel(0_u64);
    let wake = Arc::new(wake);
    let stored = {
        let (wake, replicas) = (Arc::clone(&wake), Arc::clone(&replicas));
        move |new: u64| {
            wake.send_modify(|count| *count = count.wrapping_add(new));
            replicas.tell(Telling::Stored);
        }
    };
    let limits = settings.limits.clone();
    let max_bytes = usize::try_from(limits.intake.0).unwrap_or(usize::MAX);
    let (intake, intake_task) = Intake::start(Arc::clone(&db), tenant, max_bytes, stored);
    let (heartbeats, heartbeat_task) = Heartbeats::start(Arc::clone(&db), tenant);
    let passwords = Passwords::new()
        .map_err(|error| StartError::Unready(Refusal::new(ProblemCode::Internal, error.to_string())))?;
    let tokens = Tokens::new(&public_url);
    tokens.load(&db, tenant, &sealer, clock.now()).await.map_err(|refused| match refused {
        KeysRefused::OtherSeal => StartError::Keys(KeysError::OtherSeal(folder.path("seal.key"))),
        KeysRefused::Refused(refusal) => StartError::Unready(refusal),
    })?;
    let (own_events, to_keep) = OwnEvents::new();
    let hub = Arc::new(Hub::new(
        Parts {
            build,
            network,
            clock,
            db,
            tenant,
            grace: SignedDuration::try_from(settings.certificates.grace.get()).unwrap_or(SignedDuration::MAX),
            identities: Identities::default(),
            lines: Lines::default(),
            presence: Presence::default(),
            intake,
            heartbeats,
            enrolments: Admission::new("enrolments", settings.enrolment.per_second),
            // A site behind one address may bring up a rack; somebody without a token cannot shut out the fleet.
            enrolments_each: {
                let rate = settings.enrolment.per_second_each.max(1);
                let burst = rate.saturating_mul(ENROLMENT_BURST);
                Each::new("enrolments of one address", Duration::from_secs(1) / rate, burst)
            },
            renewals_each: Each::new("renewals of one agent", RENEWAL_PERIOD, RENEWAL_BURST),
            batches_each: Turns::new(BATCHES_EACH),
            connects: Admission::new("connections of agents", limits.connects_per_second),
            passwords,
            tokens,
            failures: Failures::default(),
            rates: {
                let rates = &security.policies.rate_limiting;
                let window = Duration::from_secs(u64::from(rates.window_seconds));
                RequestRates::new(rates.default_limit, window, rates.burst_limit)
            },
            suspicions,
            security,
            own_stream: OwnStream::default(),
            own_events,
            books: Books::default(),
            tasks: TaskTracker::new(),
            stop: stopped,
            wake,
            found: watch::channel(0).0,
            agent_changes: broadcast::channel(1024).0,
            viewers: Arc::default(),
            rules: RuleSet::new(rules_dir),
            judged: JudgeCounters::default(),
            replica: uuid::Uuid::now_v7(),
            replicas,
            relayed: RelayCounters::default(),
            watched: Watched::default(),
            listeners: Listeners::default(),
            database_folder: file_of(&database).and_then(|file| file.parent().map(std::path::Path::to_path_buf)),
            public_url,
            enrolment_networks,
            sealer,
            settings,
        },
        keys,
    ));
    hub.be_an_agent().await?;
    let speaking = tokio::spawn(replicas::speak(Arc::clone(&hub), to_say));
    let keeping = tokio::spawn(own_events::keep(Arc::clone(&hub), to_keep));
    Ok(Assembled { hub, stop, writing: vec![intake_task, heartbeat_task], telling: [keeping, speaking] })
}

/// The file of a database that is one.
fn file_of(database: &str) -> Option<std::path::PathBuf> {
    match DbLocation::parse(database) {
        Ok(DbLocation::Sqlite(file)) => Some(file),
        _ => None,
    }
}

/// Starts a hub. When it returns, both ports serve.
///
/// # Errors
/// What is missing, and what to do about it.
pub async fn start(options: Options) -> Result<Running, StartError> {
    let folder = options.keys.clone();
    let (agents_address, api_address) = (options.settings.agents_address()?, options.settings.api_address()?);
    let limits = options.settings.limits.clone();
    let Assembled { hub, stop, writing, telling } = assemble(options).await?;
    let (keys, stopped) = (hub.keys(), hub.stop.clone());
    let hot = Arc::new(HotCertificate::new(&keys.hub_chain(), &keys.hub.1)?);
    let verifier = Arc::new(AgentVerifier::new(&keys.roots)?);
    hub.put_files().await.map_err(StartError::Unready)?;
    hub.put_pack().await.map_err(StartError::Unready)?;
    hub.load_rules().await.map_err(StartError::Unready)?;
    let agents = Listener::bind(
        "agents",
        agents_address,
        agent_server(Arc::clone(&verifier), Arc::clone(&hot))?,
        crate::api::agent::router(Arc::clone(&hub)),
        {
            let hub = Arc::clone(&hub);
            let holder: Holder = Arc::new(move |certificate| hub.holder(certificate));
            let most = usize::try_from(limits.agents).unwrap_or(usize::MAX);
            Limit { most, each: EachAddress::new(limits.strangers_each, &[]), holder: Some(holder) }
        },
        Arc::clone(&hub.listeners.agents),
    )
    .await?;
    let api = Listener::bind(
        "api",
        api_address,
        people_server(Arc::clone(&hot))?,
        crate::api::people::router(&hub),
        {
            let most = usize::try_from(limits.api).unwrap_or(usize::MAX);
            let each = EachAddress::new(limits.api_each, &hub.security.trusted_proxies);
            Limit { most, each, holder: None }
        },
        Arc::clone(&hub.listeners.api),
    )
    .await?;
    let (agents_address, api_address) = (agents.address()?, api.address()?);
    hub.watched.register(&hub);
    let local = LocalServer::start(&hub, &hub.watched, &stopped)?;
    let drain = hub.settings.drain_limit.get();
    let mut serving = Vec::from(telling);
    serving.extend([
        tokio::spawn(replicas::listen(Arc::clone(&hub))),
        tokio::spawn(relayed::run(Arc::clone(&hub))),
        tokio::spawn(look_after_health(Arc::clone(&hub))),
        tokio::spawn(agents.serve(stopped.clone(), drain)),
        tokio::spawn(api.serve(stopped.clone(), drain)),
        tokio::spawn(upkeep::run(Arc::clone(&hub), folder, hot, verifier)),
        tokio::spawn(books::run(Arc::clone(&hub))),
        tokio::spawn(crate::app::deliveries::send::run(Arc::clone(&hub))),
    ]);
    serving.extend(Shard::ALL.map(|shard| tokio::spawn(judge::run(Arc::clone(&hub), shard))));
    hub.watched.readiness.ready();
    let health = hub.settings.listen.health.get();
    tracing::info!(agents = %agents_address, api = %api_address, %health, url = hub.public_url, "the hub serves");
    Ok(Running { hub, agents: agents_address, api: api_address, local, stop, serving, writing })
}

impl Running {
    /// What everything in the hub shares.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Where agents are heard.
    pub fn agents_address(&self) -> SocketAddr {
        self.agents
    }

    /// Where people and programs are answered.
    pub fn api_address(&self) -> SocketAddr {
        self.api
    }

    /// Where this machine asks for health and metrics, if the port could be had at once.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.local.address
    }

    /// Stops: tells agents and viewers goodbye, lets open requests finish, stores what was accepted, closes the database.
    pub async fn stop(self) {
        let limit = self.hub.settings.drain_limit.get();
        self.hub.watched.readiness.draining();
        let _ = self.stop.send(true);
        self.hub.tasks.close();
        let ended = async {
            for task in self.serving {
                let _ = task.await;
            }
            self.hub.tasks.wait().await;
            self.local.ended().await;
            self.hub.replicas.close().await;
        };
        if tokio::time::timeout(limit + Duration::from_secs(5), ended).await.is_err() {
            tracing::warn!(?limit, "connections were cut at the drain limit");
        }
        // What was accepted waits in the writers' queues; each writes until its queue is empty and nobody can fill it.
        let db = Arc::clone(&self.hub.db);
        drop(self.hub);
        for mut task in self.writing {
            if tokio::time::timeout(limit, &mut task).await.is_err() {
                task.abort();
            }
        }
        db.close().await;
        tracing::info!("stopped");
    }
}
