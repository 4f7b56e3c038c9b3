//! One root in the place of another: who knows the new one already, and who is asked to fetch it.

use crate::refusal::Outcome;
use crate::state::Hub;
use jiff::Timestamp;
use picket_hub_db::{Cursor, PageRequest};
use picket_protocol::hub::Frame;
use serde::Serialize;
use uuid::Uuid;

/// How many agents are asked to renew at a time: those of one turn of the hub's upkeep.
const ASKED_AT_A_TIME: u32 = 100;
/// How many agents are named one by one.
const NAMED: u32 = 500;

/// How far a roll-over is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RollStatus {
    /// Whether one root replaces another at present.
    pub rolling: bool,
    /// By which keys machines know this hub; the present root first.
    pub pins: Vec<String>,
    /// How many agents depend on the old root. Without a roll-over: on an authority that is gone.
    pub waiting: u64,
    /// Who they are; the first whose certificate ends first, and no more than 500.
    pub agents: Vec<WaitingAgent>,
}

/// An agent that does not know the new root yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitingAgent {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// When it was last heard.
    pub last_seen: Option<Timestamp>,
    /// When its certificate ends.
    pub certificate_ends: Timestamp,
}

impl Hub {
    /// Since when a certificate may have ended and still be renewed.
    fn renewable_since(&self) -> Timestamp {
        self.clock.now().checked_sub(self.grace).unwrap_or(Timestamp::MIN)
    }

    /// How far the roll-over is.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn roll_status(&self) -> Outcome<RollStatus> {
        let keys = self.keys();
        let issuer = keys.intermediate.certificate().pin.to_hex();
        let since = self.renewable_since();
        let (mut waiting, mut agents) = (0, Vec::new());
        let mut request = PageRequest::first(NAMED);
        loop {
            let page = self.db.certificates_of_others(self.tenant, &issuer, since, &request).await?;
            waiting += page.items.len() as u64;
            if agents.is_empty() {
                for certificate in &page.items {
                    let Some(agent) = self.db.agent(self.tenant, certificate.issued.agent).await? else { continue };
                    agents.push(WaitingAgent {
                        id: agent.id,
                        name: agent.name,
                        last_seen: agent.report.last_seen,
                        certificate_ends: certificate.issued.not_after,
                    });
                }
            }
            match page.next {
                Some(next) => request = PageRequest::after(next, NAMED),
                None => break,
            }
        }
        let pins = keys.pins().iter().map(ToString::to_string).collect();
        Ok(RollStatus { rolling: keys.previous.is_some(), pins, waiting, agents })
    }

    /// Asks some of the agents that do not know the new root, and are connected here, to renew; to be called now and then
    /// with what it gave, for those that follow. Does nothing while no root replaces another.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn ask_to_renew(&self, after: Option<Cursor>) -> Outcome<Option<Cursor>> {
        let keys = self.keys();
        if keys.previous.is_none() {
            return Ok(None);
        }
        let issuer = keys.intermediate.certificate().pin.to_hex();
        let request = match after {
            Some(after) => PageRequest::after(after, ASKED_AT_A_TIME),
            None => PageRequest::first(ASKED_AT_A_TIME),
        };
        let page = self.db.certificates_of_others(self.tenant, &issuer, self.renewable_since(), &request).await?;
        for certificate in &page.items {
            let reason = "the hub's root is being replaced".to_owned();
            self.presence.send(certificate.issued.agent, Frame::RenewCertificate { reason });
        }
        Ok(page.next)
    }
}
