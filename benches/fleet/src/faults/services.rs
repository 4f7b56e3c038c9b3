//! What the hub needs beside itself: PostgreSQL and NATS, killed and started again.

use super::{Nats, Plan};
use picket_testkit::NatsServer;
use picket_testkit::postgres::Postgres;
use std::time::Instant;

/// The name of the hub's database.
const DATABASE: &str = "picket";

/// The servers of a run.
pub struct Services {
    postgres: Option<Postgres>,
    postgres_due: Option<Instant>,
    nats: Option<NatsServer>,
    nats_due: Option<Instant>,
    relayed: bool,
}

impl Services {
    /// Starts those that the plan has.
    pub fn start(plan: &Plan) -> Self {
        let postgres = plan.postgres.then(|| {
            let postgres = Postgres::start_new(!plan.quick);
            postgres.create_database(DATABASE);
            postgres
        });
        let nats = (plan.nats != Nats::No).then(NatsServer::start);
        Self { postgres, postgres_due: None, nats, nats_due: None, relayed: plan.nats == Nats::Events }
    }

    /// The hub's database, where it is not its own file.
    pub fn database(&self) -> Option<String> {
        self.postgres.as_ref().map(|postgres| postgres.url(DATABASE))
    }

    /// The NATS server through which events go, if they do.
    pub fn relay(&self) -> Option<String> {
        self.nats.as_ref().filter(|_| self.relayed).map(NatsServer::url)
    }

    /// More lines for the hub's configuration.
    pub fn more(&self) -> String {
        let events = self.relayed;
        self.nats
            .as_ref()
            .map(|nats| format!("bus: {{nats: [\"{}\"], accept_unknown_sync: true, events: {events}}}\n", nats.url()))
            .unwrap_or_default()
    }

    /// Kills PostgreSQL, if there is one and it runs, to be started again at `due`. Says whether.
    pub fn kill_postgres(&mut self, due: Instant) -> bool {
        let Some(postgres) = self.postgres.as_mut().filter(|_| self.postgres_due.is_none()) else { return false };
        postgres.kill();
        self.postgres_due = Some(due);
        true
    }

    /// The same with NATS.
    pub fn kill_nats(&mut self, due: Instant) -> bool {
        let Some(nats) = self.nats.as_mut().filter(|_| self.nats_due.is_none()) else { return false };
        nats.kill();
        self.nats_due = Some(due);
        true
    }

    /// Starts what is due.
    pub fn start_due(&mut self, now: Instant) {
        if let Some(postgres) = self.postgres.as_mut().filter(|_| self.postgres_due.is_some_and(|due| due <= now)) {
            postgres.start();
            self.postgres_due = None;
        }
        if let Some(nats) = self.nats.as_mut().filter(|_| self.nats_due.is_some_and(|due| due <= now)) {
            nats.start_again();
            self.nats_due = None;
        }
    }

    /// Starts what does not run.
    pub fn start_all(&mut self) {
        let now = Instant::now();
        (self.postgres_due, self.nats_due) = (self.postgres_due.map(|_| now), self.nats_due.map(|_| now));
        self.start_due(now);
    }
}
