//! Tokens and who gets in with them.

use crate::bench::{Bench, T, all, at, certificate, id};
use crate::contract;
use picket_hub_db::{
    AgentFilter, AgentStatus, DbError, EnrolOutcome, EnrolRequest, EnrolmentState, Hidden, NewEnrolToken, PageRequest,
    Revocation,
};
use uuid::Uuid;

const SECRET: [u8; 32] = [9; 32];

pub(crate) fn token(max_uses: u32) -> NewEnrolToken {
    NewEnrolToken {
        id: id(1),
        secret_hash: Hidden(SECRET),
        label: "rack 7".into(),
        tags: ["rack-7".to_owned()].into(),
        max_uses,
        needs_approval: false,
        allowed: Vec::new(),
        created_by: "user:ada".into(),
        expires_at: at(1800),
    }
}

/// The request of a machine whose key and future agent have this number.
fn request(number: u8, seconds: i64) -> EnrolRequest {
    let agent = Uuid::from_u128(1000 + u128::from(number) + u128::try_from(seconds).unwrap() * 1000);
    EnrolRequest {
        token: id(1),
        secret_hash: Hidden(SECRET),
        now: at(seconds),
        address: "192.0.2.7".parse().unwrap(),
        name: format!("machine-{number}"),
        kind: "server".into(),
        csr: "csr".into(),
        certificate: certificate(agent, &format!("{number:02x}{seconds:04x}"), number),
    }
}

async fn make(bench: &Bench, new: NewEnrolToken) {
    bench.db.create_enrol_token(T, &new, at(0)).await.unwrap();
}

async fn ask(bench: &Bench, request: &EnrolRequest) -> EnrolOutcome {
    bench.db.consume_token(T, request).await.unwrap()
}

contract! {
    async fn a_token_lets_in_as_often_as_it_says(bench) {
        make(&bench, token(2)).await;
        let first = request(1, 1);
        assert_eq!(ask(&bench, &first).await, EnrolOutcome::New { agent: first.certificate.agent });
        assert!(matches!(ask(&bench, &request(2, 2)).await, EnrolOutcome::New { .. }));
        assert_eq!(ask(&bench, &request(3, 3)).await, EnrolOutcome::UsedUp);
        let agent = bench.db.agent(T, first.certificate.agent).await.unwrap().unwrap();
        assert_eq!((agent.name.as_str(), agent.status), ("machine-1", AgentStatus::Enrolled));
        assert!(agent.tags.contains("rack-7"));
        let stored = bench.db.certificate(T, &first.certificate.serial).await.unwrap().unwrap();
        assert_eq!(stored.issued, first.certificate);
        let tokens = bench.db.enrol_tokens(T, None, &PageRequest::default()).await.unwrap().items;
        assert_eq!((tokens.len(), tokens[0].uses, tokens[0].max_uses), (1, 2, 2));
        for (tag, count) in [("rack-7", 1), ("rack", 0)] {
            let within = [tag.to_owned(), "other".to_owned()].into();
            let page = bench.db.enrol_tokens(T, Some(&within), &PageRequest::default()).await.unwrap();
            assert_eq!(page.items.len(), count, "{tag}");
        }
        assert!(!format!("{tokens:?}").contains("9, 9"), "the hash of the secret is shown");
    }

    async fn fifty_at_once_with_a_token_for_one_let_exactly_one_in(bench) {
        make(&bench, token(1)).await;
        let tasks: Vec<_> = (1..=50)
            .map(|number| {
                let db = std::sync::Arc::clone(&bench.db);
                tokio::spawn(async move { db.consume_token(T, &request(number, 1)).await.unwrap() })
            })
            .collect();
        let mut outcomes = Vec::new();
        for task in tasks {
            outcomes.push(task.await.unwrap());
        }
        let new = outcomes.iter().filter(|outcome| matches!(outcome, EnrolOutcome::New { .. })).count();
        let used_up = outcomes.iter().filter(|outcome| **outcome == EnrolOutcome::UsedUp).count();
        assert_eq!((new, used_up), (1, 49));
        let agents = bench.db.agents(T, &AgentFilter::default(), &PageRequest::default()).await.unwrap();
        assert_eq!(agents.items.len(), 1);
    }

    async fn the_same_key_fifty_times_at_once_becomes_one_agent(bench) {
        make(&bench, token(50)).await;
        let tasks: Vec<_> = (0..50_i64)
            .map(|number| {
                let db = std::sync::Arc::clone(&bench.db);
                let mut request = request(7, 1);
                request.certificate = certificate(id(5000 + u128::from(number.unsigned_abs())), &format!("aa{number:02x}"), 7);
                tokio::spawn(async move { db.consume_token(T, &request).await.unwrap() })
            })
            .collect();
        let (mut new, mut replayed) = (Vec::new(), Vec::new());
        for task in tasks {
            match task.await.unwrap() {
                EnrolOutcome::New { agent } => new.push(agent),
                EnrolOutcome::Replay { agent, .. } => replayed.push(agent),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((new.len(), replayed.len()), (1, 49));
        assert!(replayed.iter().all(|agent| *agent == new[0]));
        assert_eq!(bench.db.enrol_token(T, id(1)).await.unwrap().unwrap().uses, 1);
    }

    async fn a_lost_answer_is_given_again_to_the_same_key_for_ten_minutes(bench) {
        make(&bench, token(1)).await;
        let first = request(1, 1);
        ask(&bench, &first).await;
        let again = EnrolOutcome::Replay {
            agent: first.certificate.agent,
            serial: first.certificate.serial.clone(),
            pem: first.certificate.pem.clone(),
        };
        assert_eq!(ask(&bench, &request(1, 600)).await, again, "the token is used up, by this very key");
        assert_eq!(ask(&bench, &request(2, 600)).await, EnrolOutcome::UsedUp);
        assert_eq!(ask(&bench, &request(1, 601)).await, EnrolOutcome::UsedUp, "ten minutes are over");
    }

    async fn what_a_token_may_not_do_is_told_only_to_who_has_its_secret(bench) {
        let mut new = token(1);
        new.allowed = vec!["198.51.100.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        make(&bench, new).await;
        let mut guess = request(1, 1);
        guess.secret_hash = Hidden([8; 32]);
        assert_eq!(ask(&bench, &guess).await, EnrolOutcome::Unknown);
        let mut nothing = request(1, 1);
        nothing.token = id(77);
        assert_eq!(ask(&bench, &nothing).await, EnrolOutcome::Unknown);
        assert_eq!(ask(&bench, &request(1, 1)).await, EnrolOutcome::AddressRefused);
        let mut late = request(1, 1800);
        late.address = "::ffff:198.51.100.9".parse().unwrap();
        assert_eq!(ask(&bench, &late).await, EnrolOutcome::Expired { at: at(1800) });
        assert!(bench.db.revoke_enrol_token(T, id(1), at(20)).await.unwrap());
        assert!(!bench.db.revoke_enrol_token(T, id(1), at(21)).await.unwrap());
        assert!(bench.db.revoke_enrol_token(T, id(2), at(21)).await.unwrap_err().is_not_found());
        assert_eq!(ask(&bench, &late).await, EnrolOutcome::Revoked);
    }

    async fn a_revoked_certificate_is_not_given_out_again(bench) {
        make(&bench, token(1)).await;
        let first = request(1, 1);
        ask(&bench, &first).await;
        let why = Revocation { at: at(5), reason: "keyCompromise".into(), by: "user:ada".into() };
        bench.db.revoke_certificates_of(T, first.certificate.agent, &why).await.unwrap();
        assert_eq!(ask(&bench, &request(1, 10)).await, EnrolOutcome::Revoked);
    }

    async fn who_needs_approval_waits_and_gets_the_certificate_when_asking_again(bench) {
        let mut new = token(3);
        new.needs_approval = true;
        make(&bench, new).await;
        let first = request(1, 1);
        let EnrolOutcome::PendingApproval { enrolment } = ask(&bench, &first).await else { panic!() };
        assert_eq!(ask(&bench, &request(1, 30)).await, EnrolOutcome::PendingApproval { enrolment });
        assert_eq!(bench.db.agent(T, first.certificate.agent).await.unwrap(), None);
        assert_eq!(bench.db.certificate(T, &first.certificate.serial).await.unwrap(), None);
        let waiting = bench.db.enrolment(T, enrolment).await.unwrap().unwrap();
        assert_eq!((waiting.state, waiting.csr.as_str(), waiting.agent), (EnrolmentState::Pending, "csr", None));
        let given = certificate(id(42), "42", 1);
        let other_key = bench.db.approve_enrolment(T, enrolment, &certificate(id(42), "42", 2), "user:ada", at(40)).await;
        assert!(matches!(other_key, Err(DbError::Invalid { .. })));
        bench.db.approve_enrolment(T, enrolment, &given, "user:ada", at(40)).await.unwrap();
        let twice = bench.db.approve_enrolment(T, enrolment, &given, "user:ada", at(41)).await;
        assert!(twice.unwrap_err().is_conflict());
        // However late it asks: the window begins when the answer is first given out.
        let answer = EnrolOutcome::Replay { agent: id(42), serial: "42".into(), pem: given.pem.clone() };
        assert_eq!(ask(&bench, &request(1, 1500)).await, answer);
        assert_eq!(ask(&bench, &request(1, 1600)).await, answer);
        assert_eq!(bench.db.enrol_token(T, id(1)).await.unwrap().unwrap().uses, 1);
    }

    async fn who_is_denied_stays_denied_and_who_nobody_decides_on_expires(bench) {
        let mut new = token(5);
        new.needs_approval = true;
        make(&bench, new).await;
        let EnrolOutcome::PendingApproval { enrolment } = ask(&bench, &request(1, 1)).await else { panic!() };
        bench.db.deny_enrolment(T, enrolment, "user:ada", at(5)).await.unwrap();
        assert_eq!(ask(&bench, &request(1, 6)).await, EnrolOutcome::Denied);
        ask(&bench, &request(2, 7)).await;
        ask(&bench, &request(3, 700)).await;
        assert_eq!(bench.db.expire_enrolments(T, at(500), at(800)).await.unwrap(), 1);
        let list = all(1, async |page| bench.db.enrolments(T, None, &page).await).await;
        let states: Vec<_> = list.iter().map(|one| (one.name.as_str(), one.state)).collect();
        let expected =
            [("machine-3", EnrolmentState::Pending), ("machine-2", EnrolmentState::Expired), ("machine-1", EnrolmentState::Denied)];
        assert_eq!(states, expected);
        let pending = bench.db.enrolments(T, Some(EnrolmentState::Pending), &PageRequest::default()).await.unwrap();
        assert_eq!(pending.items.len(), 1);
        assert!(bench.db.deny_enrolment(T, id(99), "user:ada", at(5)).await.unwrap_err().is_not_found());
    }

    async fn a_token_that_could_never_be_used_is_not_made(bench) {
        let mut over = token(1);
        over.expires_at = at(0);
        assert!(matches!(bench.db.create_enrol_token(T, &over, at(0)).await, Err(DbError::Invalid { .. })));
        assert!(matches!(bench.db.create_enrol_token(T, &token(0), at(0)).await, Err(DbError::Invalid { .. })));
        bench.db.create_enrol_token(T, &token(1), at(0)).await.unwrap();
        assert!(bench.db.create_enrol_token(T, &token(1), at(0)).await.unwrap_err().is_conflict());
    }
}
