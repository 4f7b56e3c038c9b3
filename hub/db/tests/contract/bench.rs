//! What a test works on: a database of its own, and short ways to fill it.

use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{
    Agent, Database, Evidence, FindingChange, IngestBatch, NewAgent, NewCertificate, NewEvent, Options, Page,
    PageRequest, Position, Result, Severity, TenantId, open,
};
use picket_protocol::event::Priority;
use picket_testkit::postgres::Postgres;
use picket_testkit::wait_until;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use uuid::Uuid;

pub(crate) const T: TenantId = TenantId::DEFAULT;

/// A database of one test.
pub(crate) struct Bench {
    pub(crate) db: Arc<dyn Database>,
    place: Place,
}

enum Place {
    File(tempfile::TempDir),
    Server(String),
}

/// One server for all tests of this process; it ends with it.
pub(crate) fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start_new(false))
}

/// The time at which tests begin; they count seconds from it.
pub(crate) fn at(seconds: i64) -> Timestamp {
    let begin: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    begin + SignedDuration::from_secs(seconds)
}

pub(crate) fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

impl Bench {
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = open(&location(&folder), &Options::default()).await.unwrap();
        db.ensure_default_tenant(at(0)).await.unwrap();
        Self { db, place: Place::File(folder) }
    }

    pub(crate) async fn postgres() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let made = name.clone();
        let url = tokio::task::spawn_blocking(move || {
            server().create_database(&made);
            server().url(&made)
        });
        let url = url.await.unwrap();
        let db = open(&url, &Options::default()).await.unwrap();
        db.ensure_default_tenant(at(0)).await.unwrap();
        Self { db, place: Place::Server(url) }
    }

    /// Where the database is.
    pub(crate) fn location(&self) -> String {
        match &self.place {
            Place::File(folder) => location(folder),
            Place::Server(url) => url.clone(),
        }
    }

    /// The same database, opened once more.
    pub(crate) async fn again(&self) -> Arc<dyn Database> {
        open(&self.location(), &Options::default()).await.unwrap()
    }

    /// Waits until everything that was committed can be followed in the order of commits: PostgreSQL shows it once no
    /// transaction that began before runs any more, and the server is that of all tests.
    pub(crate) async fn settle(&self) {
        let Place::Server(url) = &self.place else { return };
        let database = url.rsplit('/').next().unwrap().to_owned();
        let settled = tokio::task::spawn_blocking(move || {
            let newest = server().sql(&database, "SELECT pg_snapshot_xmax(pg_current_snapshot())");
            let reached = format!("SELECT pg_snapshot_xmin(pg_current_snapshot()) >= '{newest}'::xid8");
            wait_until("all earlier transactions to end", || server().sql(&database, &reached) == "t");
        });
        settled.await.unwrap();
    }

    /// An agent.
    pub(crate) async fn agent(&self, number: u128) -> Agent {
        self.agent_of(T, number).await
    }

    pub(crate) async fn agent_of(&self, tenant: TenantId, number: u128) -> Agent {
        self.db.create_agent(tenant, &new_agent(number), at(0)).await.unwrap()
    }
}

fn location(folder: &tempfile::TempDir) -> String {
    format!("sqlite:{}/hub.db", folder.path().display())
}

pub(crate) fn new_agent(number: u128) -> NewAgent {
    NewAgent {
        id: id(number),
        name: format!("machine-{number:04}"),
        kind: "server".into(),
        tags: std::collections::BTreeSet::new(),
        config: serde_json::json!({}),
    }
}

pub(crate) fn certificate(agent: Uuid, serial: &str, key: u8) -> NewCertificate {
    NewCertificate {
        serial: serial.into(),
        agent,
        key_hash: [key; 32],
        issuer: "intermediate".into(),
        pem: format!("-----BEGIN CERTIFICATE-----\n{serial}\n-----END CERTIFICATE-----\n"),
        not_before: at(-86_400),
        not_after: at(90 * 86_400),
        issued_at: at(0),
    }
}

pub(crate) fn event(seq: u64) -> NewEvent {
    NewEvent {
        seq,
        kind: "file".into(),
        class: Priority::Normal,
        timestamp: at(1),
        weight: 1,
        gap: 0,
        data: format!(r#"{{"timestamp":"2026-11-21T12:00:01Z","action":"modified","path":"/etc/passwd","n":{seq}}}"#)
            .into(),
    }
}

pub(crate) fn batch(agent: u128, boot: u128, seqs: impl IntoIterator<Item = u64>) -> IngestBatch {
    IngestBatch {
        agent: id(agent),
        boot_id: id(boot),
        received_at: at(10),
        ledger: None,
        events: seqs.into_iter().map(event).collect(),
    }
}

/// A match of `rule` with these events.
pub(crate) fn matched(rule: &str, key: &str, events: &[u64]) -> FindingChange {
    FindingChange {
        rule: rule.into(),
        rule_version: 1,
        dedupe_key: key.into(),
        severity: Severity::Medium,
        title: "A watched file changed".into(),
        description: "Somebody changed /etc/passwd".into(),
        entity: None,
        agent: None,
        evidence: events.iter().map(|number| evidence(*number)).collect(),
        details: serde_json::json!({"path": "/etc/passwd"}),
        deliveries: Vec::new(),
    }
}

/// An event as evidence; its number is its place in the order of commits.
pub(crate) fn evidence(number: u64) -> Evidence {
    Evidence { event: id(u128::from(number)), position: position(number), at: at(i64::try_from(number).unwrap()) }
}

pub(crate) fn position(number: u64) -> Position {
    format!("0-{number}").parse().unwrap()
}

/// All pages of a list.
pub(crate) async fn all<T>(limit: u32, list: impl AsyncFn(PageRequest) -> Result<Page<T>>) -> Vec<T> {
    let (mut items, mut request) = (Vec::new(), PageRequest::first(limit));
    loop {
        let page = list(request).await.unwrap();
        assert!(page.items.len() <= limit as usize);
        items.extend(page.items);
        match page.next {
            Some(cursor) => request = PageRequest::after(cursor, limit),
            None => return items,
        }
    }
}
