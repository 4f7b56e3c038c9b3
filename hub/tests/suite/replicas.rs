//! Several hubs on one PostgreSQL, which hear each other over NATS.

use crate::fleet::{Fleet, eventually};
use crate::judge::{changed, findings};
use crate::sockets::{connected, hello, next_frame};
use picket_bus::{Bus as _, NatsBus, NatsSettings, Subject};
use picket_hub::app::replicas::bus_tenant;
use picket_hub_db::{Assignment, ConfigTarget, ConfigVersion, TenantId};
use picket_hub_rules::{RuleState, Suspension};
use picket_protocol::hub::{ByeReason, EventsAnswer, Frame, ProblemCode, WHOAMI_PATH, WhoAmI};
use picket_testkit::NatsServer;
use picket_testkit::postgres::Postgres;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

fn database() -> (Postgres, String) {
    let postgres = Postgres::start_new(false);
    postgres.create_database("hub");
    let url = postgres.url("hub");
    (postgres, url)
}

/// Two hubs, and what is between them.
struct Pair {
    one: Fleet,
    two: Fleet,
    nats: NatsServer,
    _postgres: Postgres,
}

impl Pair {
    async fn start() -> Self {
        let ((postgres, url), nats) = (database(), NatsServer::start());
        let one = Fleet::start_shared(url, nats.url()).await;
        let two = one.replica().await;
        Self { one, two, nats, _postgres: postgres }
    }

    /// Until both hear.
    async fn hear(&self) {
        for hub in [&self.one, &self.two] {
            eventually(async || hub.running.hub().replicas.health().connected.then_some(())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_at_one_replica_ends_the_connection_at_another() {
    let pair = Pair::start().await;
    pair.hear().await;
    let machine = pair.one.machine().await;
    let mut socket = connected(&pair.two, &machine, hello(machine.boot, "abc")).await;
    machine.send(&pair.two, &changed(&machine, 1, "/tmp/x")).await.ok::<EventsAnswer>();
    pair.one.running.hub().retire(machine.id, "test").await.unwrap();
    let said = tokio::time::timeout(Duration::from_secs(10), next_frame(&mut socket)).await.unwrap();
    let Frame::Bye(bye) = said else { panic!("{said:?}") };
    assert_eq!(bye.reason, ByeReason::Revoked);
    // What the other one remembered of the certificate would hold for half a minute. Asked without the database: that one
    // knows, too.
    let refused = eventually(async || machine.get(&pair.two, WHOAMI_PATH).await.ok::<WhoAmI>().refusal).await;
    assert!(matches!(refused.code, ProblemCode::Revoked | ProblemCode::UnknownAgent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_word_on_nats_costs_an_agent_nothing() {
    let pair = Pair::start().await;
    pair.hear().await;
    let machine = pair.one.machine().await;
    let mut socket = connected(&pair.two, &machine, hello(machine.boot, "abc")).await;
    let settings =
        NatsSettings { servers: vec![pair.nats.url()], accept_unknown_sync: true, ..NatsSettings::default() };
    let stranger = NatsBus::connect(settings).await.unwrap();
    let say = async |mut word: Value| {
        word["from"] = json!(Uuid::now_v7());
        word["agent"] = json!(machine.id);
        let subject = Subject::control(bus_tenant(TenantId::DEFAULT), machine.id);
        stranger.publish(&subject, word.to_string().into()).await.unwrap();
    };
    let bye = |reason: &str| json!({"kind": "bye", "reason": reason, "detail": "", "retry_after_ms": 3_600_000});
    for reason in ["revoked", "unknown_agent", "overloaded"] {
        say(json!({"what": "frame", "frame": bye(reason)})).await;
    }
    for what in ["retired", "renewal", "certificates"] {
        say(json!({"what": what})).await;
    }
    // What the database says, on the other hand, the agent hears: as the first thing, so there was nothing before.
    let db = &pair.one.running.hub().db;
    let (by, now) = ("test".to_owned(), jiff::Timestamp::now());
    let (document, sha256, comment) = (json!({"log_level": "debug"}), String::new(), String::new());
    let new = ConfigVersion { version: 0, document, sha256, comment, created_at: now, created_by: by.clone() };
    let version = db.create_config(TenantId::DEFAULT, &new).await.unwrap().version;
    let target = ConfigTarget::Agent(machine.id);
    let assignment = Assignment { target, version, priority: 0, updated_at: now, updated_by: by };
    db.assign_config(TenantId::DEFAULT, &assignment).await.unwrap();
    say(json!({"what": "configs"})).await;
    let said = next_frame(&mut socket).await;
    assert!(matches!(said, Frame::Config(_)), "{said:?}");
    assert!(!pair.one.running.hub().ask_for_renewal(machine.id).await.unwrap(), "it is connected elsewhere");
    // The same configuration once more, if the hint from before was followed only now.
    let said = loop {
        match next_frame(&mut socket).await {
            Frame::Config(_) => {}
            said => break said,
        }
    };
    assert!(matches!(said, Frame::RenewCertificate { .. }), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_all_replicas_are_judged_once_whoever_leaves() {
    let pair = Pair::start().await;
    pair.hear().await;
    let machine = pair.one.machine().await;
    let count = async |fleet: &Fleet| findings(fleet).await.iter().map(|finding| finding.event_count).sum::<u64>();
    for seq in 1..=20 {
        let to = if seq % 2 == 0 { &pair.one } else { &pair.two };
        machine.send(to, &changed(&machine, seq, &format!("/etc/cron.d/job-{seq}"))).await.ok::<EventsAnswer>();
    }
    eventually(async || (count(&pair.one).await == 20).then_some(())).await;
    let Pair { one, two, .. } = pair;
    one.running.stop().await;
    for seq in 21..=30 {
        machine.send(&two, &changed(&machine, seq, &format!("/etc/cron.d/job-{seq}"))).await.ok::<EventsAnswer>();
    }
    eventually(async || (count(&two).await >= 30).then_some(())).await;
    assert_eq!(count(&two).await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_one_replica_suspends_is_suspended_at_the_other_and_resumed_through_either() {
    let pair = Pair::start().await;
    pair.hear().await;
    let (one, two) = (pair.one.running.hub(), pair.two.running.hub());
    let health = |fleet: &Fleet| fleet.running.hub().rules.health();
    let rule = health(&pair.one).into_iter().find(|rule| rule.state == RuleState::Active).unwrap().rule;
    let is = |fleet: &Fleet, suspended: bool| {
        let found = health(fleet).into_iter().find(|health| health.rule.id == rule.id).unwrap();
        (matches!(found.state, RuleState::Suspended { .. }) == suspended).then_some(())
    };
    let why = Suspension::Exploding { matches: 7000, budget: 6000 };
    one.rules.engine().suspend(rule);
    one.note_suspension(rule, &why).await;
    eventually(async || is(&pair.two, true)).await;
    let id = rule.id.to_string();
    assert_eq!(two.rules.suspended_because(&id), Some(why.to_string()));
    // A load of all rules at either changes nothing of it.
    let kept = two.db.rule(two.tenant, &id).await.unwrap().unwrap();
    two.db.enable_rule(two.tenant, &id, true, None, "ada", pair.two.now()).await.unwrap();
    two.rules_changed().await.unwrap();
    one.load_rules().await.unwrap();
    assert!(is(&pair.one, true).is_some() && is(&pair.two, true).is_some());
    assert!(two.resume_rule(&kept).await.unwrap());
    assert!(is(&pair.two, false).is_some());
    eventually(async || is(&pair.one, false)).await;
    // Without a word from anybody, too: each looks now and then.
    let key = format!("{}{id}", picket_hub_db::SUSPENDED_RULES);
    two.db.put_setting(two.tenant, &key, b"by hand", None, pair.two.now()).await.unwrap();
    eventually(async || is(&pair.one, true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_outlives_a_restart_and_goes_with_its_rule() {
    let fleet = Fleet::start().await;
    let rule =
        fleet.running.hub().rules.health().into_iter().find(|rule| rule.state == RuleState::Active).unwrap().rule;
    fleet.running.hub().note_suspension(rule, &Suspension::Held).await;
    let fleet = fleet.restart().await;
    let hub = fleet.running.hub();
    let state = || hub.rules.health().into_iter().find(|health| health.rule.id == rule.id).unwrap().state;
    assert!(matches!(state(), RuleState::Suspended { .. }));
    let id = rule.id.to_string();
    hub.db.delete_rule(hub.tenant, &id).await.unwrap();
    assert!(hub.db.settings(hub.tenant, picket_hub_db::SUSPENDED_RULES).await.unwrap().is_empty());
    hub.put_pack().await.unwrap();
    hub.load_rules().await.unwrap();
    assert_eq!(state(), RuleState::Active, "a rule that comes back under the id is another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_that_is_stuck_says_how_late_it_is_until_it_judges_again() {
    let ((postgres, url), nats) = (database(), NatsServer::start());
    let fleet = Fleet::start_shared(url, nats.url()).await;
    let machine = fleet.machine().await;
    let lag = || fleet.running.hub().judged.longest_lag();
    eventually(async || lag().is_zero().then_some(())).await;
    // Nobody can take or keep a shard, nor commit a judgement.
    postgres.sql("hub", "ALTER TABLE leases RENAME TO away");
    machine.send(&fleet, &changed(&machine, 1, "/root/.ssh/authorized_keys")).await.ok::<EventsAnswer>();
    eventually(async || (!lag().is_zero()).then_some(())).await;
    fleet.forward(Duration::from_secs(120));
    eventually(async || (lag() > Duration::from_secs(60)).then_some(())).await;
    let before = lag();
    assert!(eventually(async || Some(lag()).filter(|lag| *lag > before)).await > before, "it grows");
    postgres.sql("hub", "ALTER TABLE away RENAME TO leases");
    eventually(async || (findings(&fleet).await.len() == 1 && lag().is_zero()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_nats_costs_time_and_nothing_else() {
    let mut pair = Pair::start().await;
    pair.hear().await;
    pair.nats.kill();
    eventually(async || (!pair.two.running.hub().replicas.health().connected).then_some(())).await;
    let machine = pair.one.machine().await;
    machine.send(&pair.two, &changed(&machine, 1, "/root/.ssh/authorized_keys")).await.ok::<EventsAnswer>();
    eventually(async || (findings(&pair.one).await.len() == 1).then_some(())).await;
    pair.nats.start_again();
    pair.hear().await;
    machine.send(&pair.one, &changed(&machine, 2, "/root/.ssh/authorized_keys")).await.ok::<EventsAnswer>();
    eventually(async || (findings(&pair.two).await.first()?.event_count == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_starts_while_nats_is_away_serves_and_hears_later() {
    let ((_postgres, url), mut nats) = (database(), NatsServer::start());
    nats.kill();
    let one = Fleet::start_shared(url, nats.url()).await;
    let machine = one.machine().await;
    machine.send(&one, &changed(&machine, 1, "/tmp/x")).await.ok::<EventsAnswer>();
    assert!(!one.running.hub().replicas.health().connected);
    nats.start_again();
    eventually(async || one.running.hub().replicas.health().connected.then_some(())).await;
}
