//! The hub's health checks, each declared once, and the task that looks.

use crate::app::books::Seen as Books;
use crate::app::judge;
use crate::server::told_to_stop;
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_durable::free_space;
use picket_hub_db::{AgentStatus, Backend, DbError, DbStats, Lease};
use picket_hub_rules::{RuleState, Shard};
use picket_pki::Certificate;
use picket_protocol::{CheckScope, Severity};
use picket_telemetry::{CheckSpec, Finding};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the hub is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// After how many looks the database is measured: counting its rows is not free.
const MEASURE_EVERY: u32 = 6;
/// How long the database may take to answer a probe.
const PING_LIMIT: Duration = Duration::from_secs(5);
/// How old the last turn of the event loop may be: several missed ones are no hiccup of a busy machine.
const TURN_LIMIT: Duration = Duration::from_secs(20);
/// Events that wait for their judgement for longer than this are worth a warning.
const LATE: Duration = Duration::from_secs(60);
/// Room on the disk: a warning below the first, a failure below the second. The second is the write-ahead log of one
/// large transaction, with room to spare.
const ROOM: (u64, u64) = (1 << 30, 64 << 20);
/// How long before their end certificates warn: an intermediate is replaced by itself then where the root's key is there, and
/// a root by people (`picket hub ca roll`); the hub's own is renewed by itself a third of its life before.
const AUTHORITY_WARNS: SignedDuration = SignedDuration::from_hours(24 * 120);
const OWN_WARNS: SignedDuration = SignedDuration::from_hours(24 * 7);

/// The event loop turns.
const EVENT_LOOP: CheckSpec =
    CheckSpec { code: "event_loop", title: "Event loop", severity: Severity::High, scope: CheckScope::Local };
/// The database of this machine answers.
const DATABASE: CheckSpec =
    CheckSpec { code: "database", title: "Database", severity: Severity::High, scope: CheckScope::Local };
/// A database elsewhere answers: not the fault of this hub's version.
const DATABASE_ELSEWHERE: CheckSpec = CheckSpec { scope: CheckScope::External, ..DATABASE };
/// There is room where the database is.
const DISK_SPACE: CheckSpec =
    CheckSpec { code: "disk_space", title: "Disk space", severity: Severity::High, scope: CheckScope::External };
/// Events are judged soon after they came.
const JUDGE: CheckSpec =
    CheckSpec { code: "judge", title: "Judging of events", severity: Severity::Medium, scope: CheckScope::External };
/// Every rule is in force.
const RULES: CheckSpec =
    CheckSpec { code: "rules", title: "Rules", severity: Severity::Low, scope: CheckScope::External };
/// The keys hold.
const CERTIFICATES: CheckSpec =
    CheckSpec { code: "certificates", title: "Certificates", severity: Severity::High, scope: CheckScope::External };
/// Nobody is sent away.
const LOAD: CheckSpec =
    CheckSpec { code: "load", title: "Load", severity: Severity::Medium, scope: CheckScope::External };
/// Everything that agents saw is accounted for.
const BOOKS: CheckSpec =
    CheckSpec { code: "books", title: "Books of agents", severity: Severity::Medium, scope: CheckScope::External };
/// Replicas hear each other.
const BUS: CheckSpec =
    CheckSpec { code: "bus", title: "Message bus", severity: Severity::Medium, scope: CheckScope::External };

/// What was measured of the database.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its size and its rows.
    pub stats: DbStats,
    /// Agents, by what is known of them.
    pub agents: BTreeMap<AgentStatus, u64>,
}

/// The last turn of the event loop, and what was last seen of the database.
#[derive(Debug, Default)]
pub struct Pulse {
    last: Mutex<Option<Instant>>,
    seen: Mutex<Option<Seen>>,
    shed: AtomicU64,
    /// Since when no replica holds a shard.
    unheld: Mutex<BTreeMap<&'static str, Instant>>,
}

impl Pulse {
    fn turn(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn age(&self) -> Option<Duration> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).map(|last| last.elapsed())
    }

    /// The shard that no replica has held for longest, and for how long.
    fn unjudged(&self, leases: &[Lease], now: Timestamp) -> Option<(&'static str, Duration)> {
        let held = |shard: Shard| {
            let name = judge::lease_name(shard);
            leases.iter().any(|lease| lease.name == name && !lease.holder.is_empty() && lease.expires_at > now)
        };
        let mut unheld = self.unheld.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in Shard::ALL {
            if held(shard) {
                unheld.remove(shard.as_str());
            } else {
                unheld.entry(shard.as_str()).or_insert_with(Instant::now);
            }
        }
        unheld.iter().map(|(shard, since)| (*shard, since.elapsed())).max_by_key(|(_, age)| *age)
    }

    /// What was last measured of the database.
    pub fn seen(&self) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Registers what is asked at the moment of a report.
pub(super) fn register(hub: &Arc<Hub>) {
    let pulse = Arc::clone(&hub.watched.pulse);
    hub.watched.health.probe(EVENT_LOOP, move || turning(pulse.age()));
}

/// Looks now and then, until the hub stops.
pub(crate) async fn run(hub: Arc<Hub>) {
    let mut stop = hub.stop.clone();
    let mut looks: u32 = 0;
    loop {
        hub.watched.pulse.turn();
        look(&hub, looks).await;
        looks = looks.wrapping_add(1);
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = told_to_stop(&mut stop) => return,
        }
    }
}

async fn look(hub: &Hub, looks: u32) {
    let health = &hub.watched.health;
    let ping = tokio::time::timeout(PING_LIMIT, hub.db.ping()).await;
    // Who cannot ask says so as the database's check.
    let leases = tokio::time::timeout(PING_LIMIT, hub.db.leases(hub.tenant)).await;
    let unheld = match leases {
        Ok(Ok(leases)) => hub.watched.pulse.unjudged(&leases, hub.clock.now()),
        _ => None,
    };
    let spec = if hub.db.backend() == Backend::Sqlite { DATABASE } else { DATABASE_ELSEWHERE };
    health.set(spec, database(ping.ok()));
    if let Some(folder) = hub.database_folder.as_deref() {
        health.set(DISK_SPACE, room(folder));
    }
    health.set(JUDGE, judging(hub.judged.longest_lag(), unheld));
    let suspended = hub.rules.health().iter().filter(|rule| matches!(rule.state, RuleState::Suspended { .. })).count();
    health.set(RULES, rules(hub.rules.refused().len(), suspended, &hub.rules.refused_files()));
    let keys = hub.keys();
    let authorities = keys.roots.iter().chain([keys.intermediate.certificate()]);
    health.set(CERTIFICATES, certificates(hub.clock.now(), authorities, &keys.hub.0));
    let shed = hub.shed().iter().map(|(_, count)| count).sum();
    let before = hub.watched.pulse.shed.swap(shed, Ordering::Relaxed);
    health.set(LOAD, load(shed - before.min(shed)));
    health.set(BOOKS, books(hub.books.seen()));
    if hub.replicas.is_shared() {
        health.set(BUS, bus(hub.replicas.health().connected));
    }
    if looks.is_multiple_of(MEASURE_EVERY)
        && let Ok(seen) = measure(hub).await
    {
        *hub.watched.pulse.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }
}

async fn measure(hub: &Hub) -> Result<Seen, DbError> {
    Ok(Seen { stats: hub.db.stats(hub.tenant).await?, agents: hub.db.agent_counts(hub.tenant).await? })
}

fn turning(age: Option<Duration>) -> Finding {
    match age {
        Some(age) if age > TURN_LIMIT => {
            Finding::fail(format!("the event loop has not turned for {} s", age.as_secs()))
                .figure("age_seconds", age.as_secs())
        }
        Some(_) => Finding::pass("turning"),
        None => Finding::pass("starting"),
    }
}

/// What came of a ping; `None` when nothing came in time.
fn database(ping: Option<Result<(), DbError>>) -> Finding {
    match ping {
        Some(Ok(())) => Finding::pass("answers"),
        // It may name files and hosts of this machine: /health is for who may know them.
        Some(Err(error)) => Finding::fail(format!("the database does not serve: {error}")),
        None => Finding::fail(format!("the database did not answer within {} s", PING_LIMIT.as_secs())),
    }
}

fn room(folder: &Path) -> Finding {
    match free_space(folder) {
        Ok(free) => roomy(free).figure("free_bytes", free),
        Err(error) => Finding::warn(format!("the room for the database is not known: {error}")),
    }
}

fn roomy(free: u64) -> Finding {
    let words = format!("{} MiB are free where the database is", free >> 20);
    if free < ROOM.1 {
        Finding::fail(format!("{words}: events can soon be no longer stored; free some, or shorten retention"))
    } else if free < ROOM.0 {
        Finding::warn(format!("{words}; free some, or shorten retention"))
    } else {
        Finding::pass(words)
    }
}

/// What is to be said of the judge: how long events wait here, and which shard nobody judges, for how long.
fn judging(lag: Duration, unheld: Option<(&str, Duration)>) -> Finding {
    let finding = if lag > LATE {
        Finding::warn(format!(
            "events wait {} s for their judgement; the hub's log says whether judging is interrupted, and \
             rule_cost_seconds in the metrics which rules take long",
            lag.as_secs()
        ))
    } else if let Some((shard, age)) = unheld.filter(|(_, age)| *age > LATE) {
        Finding::warn(format!(
            "no replica has judged events of the kind {shard} for {} s: none holds judge/{shard}; the hub's log says why",
            age.as_secs()
        ))
    } else {
        Finding::pass("up to date")
    };
    finding.figure("lag_seconds", lag.as_secs())
}

fn rules(refused: usize, suspended: usize, files: &[String]) -> Finding {
    let finding = match (refused, suspended) {
        (0, 0) => Finding::pass("all in force"),
        _ => {
            let mut words =
                format!("{refused} cannot be used and {suspended} are suspended; GET /api/v1/rules says which and why");
            if let Some(first) = files.first() {
                let _ = write!(words, "; {} files of rules.d are not in force: {first}", files.len());
            }
            Finding::warn(words)
        }
    };
    finding.figure("refused", refused).figure("suspended", suspended)
}

fn certificates<'a>(now: Timestamp, authorities: impl Iterator<Item = &'a Certificate>, own: &Certificate) -> Finding {
    let left = |certificate: &Certificate| certificate.not_after.duration_since(now);
    let authorities = authorities.map(|certificate| (certificate, left(certificate), AUTHORITY_WARNS));
    let all = authorities.chain([(own, left(own), OWN_WARNS)]);
    let Some((certificate, left, warns)) = all.min_by_key(|(_, left, warns)| *left - *warns) else {
        return Finding::fail("the hub has no certificates");
    };
    let days = left.as_hours() / 24;
    let words = format!("the certificate of {} ends in {days} days, at {}", certificate.subject, certificate.not_after);
    // The hub renews its own by itself.
    let way_out = match (certificate.pin == own.pin, certificate.subject == certificate.issuer) {
        (true, _) => "",
        (false, true) => "; put another root in its place: picket hub ca roll",
        (false, false) => "; put the root's key back as root.key and run: picket hub init",
    };
    if !left.is_positive() {
        Finding::fail(format!("the certificate of {} ended at {}{way_out}", certificate.subject, certificate.not_after))
    } else if left < warns {
        Finding::warn(format!("{words}{way_out}"))
    } else {
        Finding::pass(words)
    }
}

fn load(shed: u64) -> Finding {
    let finding = match shed {
        0 => Finding::pass("nobody is sent away"),
        shed => Finding::warn(format!(
            "{shed} requests were sent away within {} s; shed_total in the metrics says which",
            EVERY.as_secs()
        )),
    };
    finding.figure("shed", shed)
}

fn books(seen: Books) -> Finding {
    let finding = match seen.one {
        None => Finding::pass("all agree"),
        Some(one) => Finding::warn(format!(
            "of {} agents {} events are missing that no gap tells of; for one of them, GET /api/v1/agents/{one}/books says \
             in which streams",
            seen.agents, seen.events
        )),
    };
    finding.figure("agents", seen.agents).figure("events", seen.events)
}

fn bus(connected: bool) -> Finding {
    if connected {
        Finding::pass("connected")
    } else {
        Finding::warn("there is no connection to NATS: replicas find out from the database, which is later by seconds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_pki::Authority;
    use picket_protocol::CheckStatus;

    #[test]
    fn what_only_makes_it_later_warns_and_what_stops_it_fails() {
        let alone = |seconds| Some(("file", Duration::from_secs(seconds)));
        assert_eq!(judging(Duration::from_secs(59), alone(59)).status, CheckStatus::Pass);
        assert_eq!(judging(Duration::from_secs(61), None).status, CheckStatus::Warn);
        let nobody = judging(Duration::ZERO, alone(61));
        assert!(nobody.status == CheckStatus::Warn && nobody.message.contains("judge/file"), "{nobody:?}");
        assert_eq!(bus(false).status, CheckStatus::Warn);
        assert_eq!(load(3).status, CheckStatus::Warn);
        assert_eq!(rules(0, 1, &[]).status, CheckStatus::Warn);
        assert_eq!(books(Books::default()).status, CheckStatus::Pass);
        let wrong = books(Books { agents: 2, events: 7, one: Some(uuid::Uuid::nil()) });
        assert!(wrong.status == CheckStatus::Warn && wrong.message.contains("2 agents 7 events"), "{}", wrong.message);
        assert_eq!(database(None).status, CheckStatus::Fail);
        assert_eq!(turning(Some(Duration::from_secs(21))).status, CheckStatus::Fail);
        assert_eq!(turning(None).status, CheckStatus::Pass, "it has not begun");
        assert_eq!(
            [roomy(2 << 30), roomy(1 << 29), roomy(1 << 20)].map(|finding| finding.status),
            [CheckStatus::Pass, CheckStatus::Warn, CheckStatus::Fail]
        );
    }

    #[test]
    fn a_shard_that_nobody_holds_is_counted_from_when_it_was_first_seen() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let lease = |shard: Shard, ahead| Lease {
            name: judge::lease_name(shard),
            holder: "one".into(),
            epoch: 1,
            expires_at: now.checked_add(SignedDuration::from_secs(ahead)).unwrap(),
        };
        let pulse = Pulse::default();
        let all: Vec<Lease> = Shard::ALL.map(|shard| lease(shard, 10)).into();
        assert_eq!(pulse.unjudged(&all, now), None);
        let ended: Vec<Lease> = [lease(Shard::File, -1)].into_iter().chain(all[1..].iter().cloned()).collect();
        assert_eq!(pulse.unjudged(&ended, now).map(|(shard, _)| shard), Some(Shard::File.as_str()));
        assert_eq!(pulse.unjudged(&all, now), None, "somebody has it again");
    }

    #[test]
    fn the_certificate_that_is_due_first_is_named_with_what_to_do() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let root = Authority::root("test", now).unwrap();
        let intermediate = root.intermediate(now).unwrap();
        let names = picket_pki::HubNames::new(&["hub.example.com".to_owned()]).unwrap();
        let before = |certificate: &Certificate, days: i64| {
            certificate.not_after.checked_sub(SignedDuration::from_hours(24 * days)).unwrap()
        };
        let look = |at: Timestamp| {
            let (own, _) = intermediate.hub(&names, at).unwrap();
            certificates(at, [root.certificate(), intermediate.certificate()].into_iter(), &own)
        };
        assert_eq!(look(now).status, CheckStatus::Pass);
        let due = look(before(intermediate.certificate(), 119));
        assert!(due.status == CheckStatus::Warn && due.message.contains("ends in 119 days"), "{}", due.message);
        assert!(due.message.contains("root.key") && due.message.contains("picket hub init"), "{}", due.message);
        assert_eq!(look(before(intermediate.certificate(), -1)).status, CheckStatus::Fail);
        let later = root.intermediate(before(root.certificate(), 300)).unwrap();
        let (own, _) = later.hub(&names, before(root.certificate(), 119)).unwrap();
        let roots = [root.certificate()].into_iter();
        let due = certificates(before(root.certificate(), 119), roots, &own);
        assert!(due.status == CheckStatus::Warn && due.message.contains("picket hub ca roll"), "{}", due.message);
        // Its own it renews by itself, and says when it did not.
        let (own, _) = intermediate.hub(&names, now).unwrap();
        let late = certificates(before(&own, 6), [root.certificate()].into_iter(), &own);
        assert!(late.status == CheckStatus::Warn && !late.message.contains("picket"), "{}", late.message);
    }
}
