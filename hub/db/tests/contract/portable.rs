//! Backups and restores.

use crate::bench::{Bench, T, at, batch, certificate, id, new_agent};
use crate::contract;
use picket_hub_db::{
    AgentStatus, ApiToken, BackupHeader, BackupWriter, Database, DbError, Evidence, FindingChange, Hidden, JudgeCommit,
    NewAuditEntry, NewEnrolToken, NewUser, OnRows, Options, Permission, Position, Restore, Restored, Result,
    Revocation, RevocationRecord, RevokedWhat, Sink, Source, StoredEvent, UserStatus, open, restore, verify,
};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) fn quiet() -> OnRows {
    Arc::new(|_, _| {})
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A backup, and the hash over what is in it.
pub(crate) async fn backup(db: &Arc<dyn Database>) -> (Vec<u8>, [u8; 32]) {
    let header = BackupHeader {
        created_at: at(1000),
        version: "1.0.0".into(),
        backend: "either".into(),
        schema: 1,
        command_key: "key".into(),
    };
    let kept = Kept::default();
    let writer = BackupWriter::new(Box::new(kept.clone()) as Sink, &header).unwrap();
    let (writer, totals) = db.export(writer, quiet()).await.unwrap();
    assert_eq!(totals.tables.len(), 30, "one for each table");
    let digest = writer.digest();
    writer.finish("signed").unwrap();
    let bytes = kept.0.lock().unwrap().clone();
    (bytes, digest)
}

fn source(bytes: &[u8]) -> Source {
    let bytes: Arc<[u8]> = bytes.into();
    Arc::new(move || Ok(Box::new(std::io::Cursor::new(Arc::clone(&bytes)))))
}

pub(crate) fn wish(replace: bool) -> Restore {
    Restore { replace, now: at(2000), taken: at(1000), days: [].into(), revoked: Vec::new(), adopted: None }
}

pub(crate) async fn put(location: &str, bytes: &[u8], wish: Restore) -> Result<Restored> {
    let source = source(bytes);
    let verified = verify(&source)?;
    let wish = Restore { days: verified.totals.days.clone(), ..wish };
    restore(location, &Options::default(), source, verified.digest, wish, quiet()).await
}

/// A database with nothing in it, of the kind that is asked for: its folder, if it has one, and its address.
pub(crate) async fn empty(postgres: bool) -> (Option<tempfile::TempDir>, String) {
    if postgres {
        let bench = Bench::postgres().await;
        bench.db.close().await;
        return (None, bench.location());
    }
    let folder = tempfile::tempdir().unwrap();
    let location = format!("sqlite:{}/hub.db", folder.path().display());
    (Some(folder), location)
}

/// Events in their order behind a position, with the positions.
pub(crate) async fn tail(db: &Arc<dyn Database>, mut position: Position) -> (Vec<StoredEvent>, Position) {
    let mut events = Vec::new();
    loop {
        let tail = db.events_after(T, position, &[], 500).await.unwrap();
        events.extend(tail.events);
        position = tail.next;
        if tail.at_end {
            return (events, position);
        }
    }
}

fn token(number: u128) -> ApiToken {
    ApiToken {
        id: id(number),
        hash: Hidden([u8::try_from(number).unwrap(); 32]),
        name: "ci".into(),
        principal: "user:1".into(),
        created_at: at(0),
        created_by: "ada".into(),
        expires_at: None,
        last_used: None,
        revoked_at: None,
    }
}

pub(crate) fn permission() -> Permission {
    Permission { principal: format!("user:{}", id(50)), action: "agents.read".into(), tag: None }
}

/// Something in most tables; events are judged up to the 30th.
pub(crate) async fn fill(bench: &Bench) {
    let db = &bench.db;
    for number in 1..=3 {
        let mut agent = new_agent(number);
        agent.tags = ["web".to_owned(), "eu\u{fffd}".to_owned()].into();
        db.create_agent(T, &agent, at(0)).await.unwrap();
        db.insert_certificate(T, &certificate(id(number), &format!("0{number}"), u8::try_from(number).unwrap()))
            .await
            .unwrap();
    }
    let user = NewUser {
        id: id(50),
        name: "ada".into(),
        display_name: "Ada".into(),
        password: Some(Hidden("$argon2id$".into())),
        must_change: false,
    };
    db.create_user(T, &user, at(0)).await.unwrap();
    db.grant(T, &permission(), "root", at(0)).await.unwrap();
    db.create_api_token(T, &token(60)).await.unwrap();
    let enrol = NewEnrolToken {
        id: id(70),
        secret_hash: Hidden([7; 32]),
        label: "rack".into(),
        tags: [].into(),
        max_uses: 1,
        needs_approval: false,
        allowed: Vec::new(),
        created_by: "ada".into(),
        expires_at: at(100_000),
    };
    db.create_enrol_token(T, &enrol, at(0)).await.unwrap();
    db.put_setting(T, "setup/abc", b"once", None, at(0)).await.unwrap();
    db.put_setting(T, "color", &[0, 255, 7], None, at(0)).await.unwrap();
    for round in 0..4_u64 {
        for agent in 1..=3 {
            let first = round * 5 + 1;
            db.ingest(T, &[batch(agent, 100 + agent, first..first + 5)]).await.unwrap();
        }
    }
    bench.settle().await;
    let page = db.events_after(T, Position::START, &[], 30).await.unwrap();
    let lease = db.acquire_lease(T, "judge/file", "a", at(0), at(30)).await.unwrap().unwrap();
    let change = FindingChange {
        evidence: page.events.iter().map(|e| Evidence { event: e.id, position: e.position, at: at(1) }).collect(),
        ..crate::bench::matched("rule", "key", &[1])
    };
    let from = Position::START;
    let state = Some(vec![1, 2, 3]);
    let commit = JudgeCommit { from, to: page.next, state, now: at(100), changes: vec![change] };
    db.commit_findings(T, &lease, &commit).await.unwrap();
    db.release_lease(T, &lease).await.unwrap();
    let entry = |number: u8| NewAuditEntry {
        at: at(0),
        actor: "ada".into(),
        action: "x".into(),
        object: "y".into(),
        record: "{ \"kept\":  \"to the byte\" }".into(),
        hash: [number; 32],
    };
    let head = db.audit_head(T).await.unwrap();
    db.audit_append(T, &head, &[entry(1), entry(2)]).await.unwrap();
}

contract! {
    async fn a_backup_of_either_restores_into_both_and_nothing_is_lost(bench) {
        fill(&bench).await;
        bench.db.revoke_enrol_token(T, id(70), at(500)).await.unwrap();
        bench.db.delete_setting(T, "setup/abc").await.unwrap();
        let (bytes, digest) = backup(&bench.db).await;
        for postgres in [false, true] {
            let (_folder, location) = empty(postgres).await;
            let restored = put(&location, &bytes, wish(false)).await.unwrap();
            assert_eq!(restored.totals.tables["events"], 60);
            let db = open(&location, &Options::default()).await.unwrap();
            let (_, again) = backup(&db).await;
            assert_eq!(again, digest, "what is there now makes the same backup");
            assert_eq!(db.audit_scan(T, 0, 10).await.unwrap(), bench.db.audit_scan(T, 0, 10).await.unwrap());
            db.close().await;
        }
    }

    async fn after_a_restore_the_judge_goes_on_where_it_was_and_new_events_come_behind(bench) {
        fill(&bench).await;
        let (all, _) = tail(&bench.db, Position::START).await;
        let (bytes, _) = backup(&bench.db).await;
        for postgres in [false, true] {
            let (_folder, location) = empty(postgres).await;
            put(&location, &bytes, wish(false)).await.unwrap();
            let db = open(&location, &Options::default()).await.unwrap();
            let progress = db.progress(T, "judge/file").await.unwrap();
            assert_eq!(progress.state, Some(vec![1, 2, 3]));
            db.ingest(T, &[batch(1, 101, 21..=25), batch(2, 102, 1..=20)]).await.unwrap();
            let rest = loop {
                // The server is that of all tests: what is new shows when older transactions are over.
                let (rest, _) = tail(&db, progress.position).await;
                if rest.len() >= 35 {
                    break rest;
                }
                tokio::task::yield_now().await;
            };
            let ids: Vec<_> = rest.iter().map(|event| event.id).collect();
            let expected: Vec<_> = all[30..].iter().map(|event| event.id).collect();
            assert_eq!(ids[..30], expected, "the same events, in the same order, and those that are judged no more");
            assert_eq!(ids.len(), 35, "what came twice is not there twice");
            let lease = db.acquire_lease(T, "judge/file", "b", at(0), at(30)).await.unwrap().unwrap();
            let again = FindingChange {
                evidence: all[..30].iter().zip(0..).map(|(e, _)| Evidence { event: e.id, position: progress.position, at: at(1) }).collect(),
                ..crate::bench::matched("rule", "key", &[1])
            };
            let to = rest[0].position;
            let commit = JudgeCommit { from: progress.position, to, state: None, now: at(200), changes: vec![again] };
            let judged = db.commit_findings(T, &lease, &commit).await.unwrap();
            assert_eq!(judged.outcomes[0].added, 0, "evidence that was counted is known");
            db.close().await;
        }
    }

    async fn what_was_revoked_since_the_backup_stays_revoked_and_what_was_issued_stays_known(bench) {
        fill(&bench).await;
        let (bytes, _) = backup(&bench.db).await;
        let why = Revocation { at: at(1100), reason: "keyCompromise".into(), by: "ada".into() };
        bench.db.revoke_certificate(T, "01", &why).await.unwrap();
        bench.db.retire_agent(T, id(2), "ada", at(1100)).await.unwrap();
        bench.db.revoke_api_token(T, id(60), at(1100)).await.unwrap();
        bench.db.create_agent(T, &new_agent(9), at(1200)).await.unwrap();
        let late = picket_hub_db::NewCertificate { issued_at: at(1200), ..certificate(id(9), "09", 9) };
        bench.db.insert_certificate(T, &late).await.unwrap();
        bench.db.close().await;
        let told = put(&bench.location(), &bytes, wish(false)).await.unwrap_err();
        assert!(told.to_string().contains("--replace"), "{told}");
        put(&bench.location(), &bytes, wish(true)).await.unwrap();
        let db = bench.again().await;
        assert_eq!(db.certificate(T, "01").await.unwrap().unwrap().revoked.unwrap(), why);
        assert!(db.certificate(T, "02").await.unwrap().unwrap().revoked.is_some());
        assert_eq!(db.agent(T, id(2)).await.unwrap().unwrap().status, AgentStatus::Retired);
        assert!(db.certificate(T, "03").await.unwrap().unwrap().revoked.is_none());
        assert!(db.api_tokens(T, None, &picket_hub_db::PageRequest::default()).await.unwrap().items[0].revoked_at.is_some());
        assert!(db.agent(T, id(9)).await.unwrap().is_some(), "who enrolled since needs not enrol again");
        assert!(db.certificate(T, "09").await.unwrap().unwrap().revoked.is_none());
        assert_eq!(db.enrol_token(T, id(70)).await.unwrap().unwrap().revoked_at, Some(at(2000)), "it may have been used");
        assert_eq!(db.setting(T, "setup/abc").await.unwrap(), None);
        assert!(db.setting(T, "color").await.unwrap().is_some());
    }

    async fn the_record_beside_the_keys_speaks_where_the_database_is_gone(bench) {
        fill(&bench).await;
        let (bytes, _) = backup(&bench.db).await;
        let record = |seconds, what| RevocationRecord { tenant: T.0, at: at(seconds), by: "ada".into(), what };
        let grant = permission();
        let revoked = vec![
            record(1, RevokedWhat::Certificate { serial: "01".into(), reason: "keyCompromise".into() }),
            record(1100, RevokedWhat::Agent { id: id(2) }),
            record(1100, RevokedWhat::ApiToken { id: id(60) }),
            // Before the backup, and let in again since: the backup is right.
            record(900, RevokedWhat::User { id: id(50) }),
            record(1100, RevokedWhat::Password { user: id(50) }),
            record(1100, RevokedWhat::Grant { principal: grant.principal.clone(), action: grant.action.clone(), tag: None }),
        ];
        let (_folder, location) = empty(bench.db.backend() == picket_hub_db::Backend::Postgres).await;
        put(&location, &bytes, Restore { revoked, ..wish(false) }).await.unwrap();
        let db = open(&location, &Options::default()).await.unwrap();
        assert!(db.certificate(T, "01").await.unwrap().unwrap().revoked.is_some());
        assert!(db.certificate(T, "02").await.unwrap().unwrap().revoked.is_some());
        assert_eq!(db.agent(T, id(2)).await.unwrap().unwrap().status, AgentStatus::Retired);
        let user = db.user(T, id(50)).await.unwrap().unwrap();
        assert_eq!((user.status, user.password.is_some()), (UserStatus::Active, false));
        assert!(db.permissions_of(T, &grant.principal).await.unwrap().is_empty());
        db.close().await;
    }

    async fn a_restore_is_refused_while_a_hub_runs_and_with_a_damaged_backup_and_changes_nothing(bench) {
        fill(&bench).await;
        let (mut bytes, digest) = backup(&bench.db).await;
        bench.db.acquire_lease(T, "judge/file", "hub", at(1990), at(2005)).await.unwrap().unwrap();
        let told = put(&bench.location(), &bytes, wish(true)).await.unwrap_err();
        assert!(told.to_string().contains("a hub runs on it"), "{told}");
        assert!(put(&bench.location(), &bytes, Restore { now: at(2006), ..wish(false) }).await.is_err());
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        assert!(matches!(put(&bench.location(), &bytes, Restore { now: at(2006), ..wish(true) }).await, Err(DbError::Backup { .. })));
        // One that became another one between the look and the deed.
        let (good, _) = backup(&bench.db).await;
        let wish = Restore { now: at(2006), ..wish(true) };
        let told = restore(&bench.location(), &Options::default(), source(&good), [1; 32], wish, quiet()).await.unwrap_err();
        assert!(told.to_string().contains("changed while it was read"), "{told}");
        let db = bench.again().await;
        assert_eq!(backup(&db).await.1, digest);
        db.ingest(T, &[batch(1, 999, 1..3)]).await.unwrap();
    }

    async fn a_backup_is_one_moment_while_the_hub_stores(bench) {
        bench.agent(1).await;
        let (db, stop) = (Arc::clone(&bench.db), Arc::new(AtomicBool::new(false)));
        let writer = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut seq = 1;
                while !stop.load(Ordering::Acquire) {
                    db.ingest(T, &[batch(1, 100, seq..seq + 3)]).await.unwrap();
                    seq += 3;
                }
            }
        });
        for _ in 0..5 {
            let (bytes, _) = backup(&bench.db).await;
            let (_folder, location) = empty(false).await;
            put(&location, &bytes, wish(false)).await.unwrap();
            let restored = open(&location, &Options::default()).await.unwrap();
            let events = tail(&restored, Position::START).await.0.len() as u64;
            let books = restored.agent_book(T, id(1)).await.unwrap().map_or(0, |book| book.totals.records);
            assert_eq!(events, books, "events and books are of the same moment");
            restored.close().await;
        }
        stop.store(true, Ordering::Release);
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn the_file_that_a_restore_replaced_is_kept_and_takes_nothing_any_more() {
    let bench = Bench::sqlite().await;
    fill(&bench).await;
    let (bytes, _) = backup(&bench.db).await;
    // A hub that was overlooked: it has the file open.
    let overlooked = Arc::clone(&bench.db);
    let restored = put(&bench.location(), &bytes, wish(true)).await.unwrap();
    let told = overlooked.ingest(T, &[batch(1, 999, 1..3)]).await.unwrap_err();
    assert!(matches!(told, DbError::Shut { .. }), "{told}");
    let kept = format!("sqlite:{}", restored.kept.unwrap().display());
    assert!(matches!(open(&kept, &Options::default()).await, Err(DbError::Shut { .. })));
    let even = Options { even_closed: true, ..Options::default() };
    let db = open(&kept, &even).await.unwrap();
    assert_eq!(tail(&db, Position::START).await.0.len(), 60);
}
