//! Whether everything that agents saw is accounted for: what an agent says that happened, beside what the hub stored.
//!
//! The hub's books are read after the agent's were: whatever came in between makes the sum smaller, never larger. So what is
//! unaccounted for is missing, however busy the agent is.

use crate::refusal::{Outcome, storage};
use crate::server::told_to_stop;
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Agent, AgentFilter, AgentStatus, PAGE_MAX, PageRequest, Totals};
use picket_protocol::hub::StreamLedger;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// All agents are looked at once in a heartbeat's time, within these bounds.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// For how many heartbeats books may disagree.
const HEARTBEATS: i32 = 2;
/// How many agents are looked at without a rest, and how long that is: others use the database, too.
const AT_A_TIME: u32 = 100;
const REST: Duration = Duration::from_millis(20);

/// What was found when all agents were last looked at.
#[derive(Debug, Default)]
pub struct Books {
    seen: Mutex<Seen>,
}

/// Agents whose books do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// How many.
    pub agents: u64,
    /// How many events they miss.
    pub events: u64,
    /// One of them.
    pub one: Option<Uuid>,
}

impl Books {
    /// What was last seen.
    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }
}

/// The streams that an agent told of, from what is kept of its last heartbeat.
pub fn told(ledger: Option<&Value>) -> Vec<StreamLedger> {
    ledger.and_then(|told| serde_json::from_value(told.clone()).ok()).unwrap_or_default()
}

/// What an agent says of a stream: emitted, and waiting on the machine, with gaps that it has not told yet.
pub fn sums(ledger: &StreamLedger) -> (u64, u64) {
    let (emitted, _, queued, _) = ledger.total();
    (emitted, queued.saturating_add(ledger.untold))
}

/// `emitted - stored - gaps - waiting`: 0 when all is accounted for; below 0 for what was stored after the agent counted;
/// above 0, events are lost.
pub fn unaccounted(ledger: &StreamLedger, totals: &Totals) -> i64 {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let (emitted, waiting) = sums(ledger);
    signed(emitted)
        .saturating_sub(signed(totals.stored))
        .saturating_sub(signed(totals.gaps))
        .saturating_sub(signed(waiting))
}

/// How many events an agent misses. Its streams count together: a gap is told in the present one, whichever it is of.
fn missing(told: &[StreamLedger], totals: &HashMap<Uuid, Totals>) -> u64 {
    let each = told.iter().map(|ledger| unaccounted(ledger, &totals.get(&ledger.boot_id).copied().unwrap_or_default()));
    u64::try_from(each.fold(0_i64, i64::saturating_add)).unwrap_or(0)
}

impl Hub {
    /// What the hub counted of these streams of an agent; nothing of one of which nothing came.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn totals_of(&self, agent: Uuid, told: &[StreamLedger]) -> Outcome<HashMap<Uuid, Totals>> {
        let mut wanted: HashSet<Uuid> = told.iter().map(|ledger| ledger.boot_id).collect();
        let (mut found, mut request) = (HashMap::new(), PageRequest::first(PAGE_MAX));
        while !wanted.is_empty() {
            let page = self.db.stream_books(self.tenant, agent, &request).await.map_err(storage)?;
            for book in page.items {
                if wanted.remove(&book.boot_id) {
                    found.insert(book.boot_id, book.totals);
                }
            }
            match page.next {
                Some(next) => request = PageRequest::after(next, PAGE_MAX),
                None => break,
            }
        }
        Ok(found)
    }
}

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
struct Memory {
    /// Agents whose books agreed, and which books those were: they cannot disagree later.
    agreed: HashMap<Uuid, u64>,
    /// Agents whose books do not agree: since when, and by how much.
    wrong: HashMap<Uuid, (Timestamp, u64)>,
}

impl Memory {
    /// Those whose books have not agreed for so long.
    fn seen(&self, now: Timestamp, allowed: SignedDuration) -> Seen {
        let long = self.wrong.iter().filter(|(_, (since, _))| now.duration_since(*since) > allowed);
        long.fold(Seen::default(), |seen, (agent, (_, events))| Seen {
            agents: seen.agents + 1,
            events: seen.events.saturating_add(*events),
            one: seen.one.max(Some(*agent)),
        })
    }

    /// Takes what was found of an agent.
    fn note(&mut self, agent: Uuid, books: u64, missing: u64, now: Timestamp) {
        if missing == 0 {
            self.wrong.remove(&agent);
            self.agreed.insert(agent, books);
        } else {
            self.agreed.remove(&agent);
            self.wrong.entry(agent).or_insert((now, missing)).1 = missing;
        }
    }

    fn keep(&mut self, present: &HashSet<Uuid>) {
        self.agreed.retain(|agent, _| present.contains(agent));
        self.wrong.retain(|agent, _| present.contains(agent));
    }
}

/// Looks at the books of all agents, again and again, until the hub stops.
pub async fn run(hub: Arc<Hub>) {
    let mut stop = hub.stop.clone();
    let heartbeat = hub.settings.heartbeat.get();
    let allowed = SignedDuration::try_from(heartbeat).unwrap_or(SignedDuration::from_secs(30)) * HEARTBEATS;
    let mut memory = Memory::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(heartbeat.clamp(EVERY.0, EVERY.1)) => {}
            () = told_to_stop(&mut stop) => return,
        }
        let looked = tokio::select! {
            looked = look(&hub, &mut memory) => looked,
            () = told_to_stop(&mut stop) => return,
        };
        match looked {
            Ok(()) => hub.books.set(memory.seen(hub.clock.now(), allowed)),
            Err(refusal) => tracing::debug!(%refusal, "the books of agents are not looked at"),
        }
    }
}

async fn look(hub: &Hub, memory: &mut Memory) -> Outcome<()> {
    let mut present = HashSet::new();
    let mut request = PageRequest::first(AT_A_TIME);
    loop {
        let page = hub.db.agents(hub.tenant, &AgentFilter::default(), &request).await.map_err(storage)?;
        for agent in page.items.iter().filter(|agent| agent.status != AgentStatus::Retired) {
            present.insert(agent.id);
            look_at(hub, memory, agent).await?;
        }
        match page.next {
            Some(next) => request = PageRequest::after(next, AT_A_TIME),
            None => break,
        }
        tokio::time::sleep(REST).await;
    }
    memory.keep(&present);
    Ok(())
}

async fn look_at(hub: &Hub, memory: &mut Memory, agent: &Agent) -> Outcome<()> {
    let Some(ledger) = &agent.report.ledger else { return Ok(()) };
    let books = {
        let mut hasher = DefaultHasher::new();
        ledger.to_string().hash(&mut hasher);
        hasher.finish()
    };
    if memory.agreed.get(&agent.id) == Some(&books) {
        return Ok(());
    }
    let told = told(Some(ledger));
    let missing = missing(&told, &hub.totals_of(agent.id, &told).await?);
    if missing > 0 && !memory.wrong.contains_key(&agent.id) {
        tracing::warn!(agent = %agent.id, missing, "events of an agent are not accounted for");
    }
    memory.note(agent.id, books, missing, hub.clock.now());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ledger(boot: Uuid, emitted: u64, queued: u64, untold: u64) -> StreamLedger {
        let class = json!({"emitted": emitted, "acknowledged": 0, "queued": queued});
        serde_json::from_value(json!({"boot_id": boot, "classes": {"normal": class}, "untold": untold})).unwrap()
    }

    #[test]
    fn a_gap_that_is_told_in_a_later_stream_accounts_for_an_earlier_one() {
        let (before, present) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let told = [ledger(before, 100, 0, 0), ledger(present, 50, 5, 0)];
        let totals = |stored, gaps| Totals { stored, gaps, ..Totals::default() };
        let books = HashMap::from([(before, totals(90, 0)), (present, totals(45, 10))]);
        assert_eq!(missing(&told, &books), 0);
        let books = HashMap::from([(before, totals(90, 0)), (present, totals(45, 9))]);
        assert_eq!(missing(&told, &books), 1);
        assert_eq!(missing(&told, &HashMap::new()), 145, "of these streams nothing came");
        assert_eq!(missing(&[ledger(before, 7, 7, 0)], &HashMap::new()), 0, "it waits on the machine");
        assert_eq!(missing(&[], &books), 0);
    }

    #[test]
    fn books_that_disagree_for_longer_than_two_heartbeats_are_counted() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let allowed = SignedDuration::from_secs(60);
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut memory = Memory::default();
        memory.note(one, 1, 3, at(0));
        memory.note(other, 1, 0, at(0));
        memory.note(one, 2, 4, at(50));
        assert_eq!(memory.seen(at(60), allowed), Seen::default());
        assert_eq!(memory.seen(at(61), allowed), Seen { agents: 1, events: 4, one: Some(one) });
        memory.note(one, 3, 0, at(62));
        assert_eq!(memory.seen(at(200), allowed), Seen::default());
        memory.note(one, 4, 1, at(63));
        memory.keep(&HashSet::from([other]));
        assert_eq!(memory.seen(at(200), allowed), Seen::default(), "it is gone");
    }
}
