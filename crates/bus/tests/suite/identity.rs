//! As whom, and over which connection.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use picket_bus::{Bus, BusError, NatsAuth, NatsBus, NatsSettings, NatsTls, Secret, Subject};
use picket_testkit::NatsServer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sha2::{Digest, Sha512_256};
use std::fs;
use std::path::Path;

use crate::support::{TENANT, item, settings, spec};

async fn works(settings: NatsSettings) {
    let bus = NatsBus::connect(settings).await.unwrap();
    bus.publish(&Subject::stored(TENANT), bytes::Bytes::new()).await.unwrap();
    bus.queue(&spec()).await.unwrap().enqueue(item("a")).await.unwrap();
}

async fn is_refused(settings: NatsSettings, secret: &str) {
    let error = NatsBus::connect(settings).await.unwrap_err();
    assert!(matches!(error, BusError::Connect { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains(secret), "a secret is in {error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_known_by_its_password() {
    let server = NatsServer::start_with(|_| "authorization { user: hub, password: \"correct horse\" }".into());
    let with = |password: &str| NatsSettings {
        auth: NatsAuth::Password { user: "hub".into(), password: Secret::new(password) },
        ..settings(&server)
    };
    works(with("correct horse")).await;
    is_refused(with("wrong-staple"), "wrong-staple").await;
    is_refused(settings(&server), "correct horse").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens() {
    let server = NatsServer::start_with(|_| "authorization { token: \"s3cr3t-token\" }".into());
    let with = |token: &str| NatsSettings { auth: NatsAuth::Token(Secret::new(token)), ..settings(&server) };
    works(with("s3cr3t-token")).await;
    is_refused(with("another-token"), "another-token").await;
}

// === NKeys and credentials ===

/// Base32 and CRC-16 of NATS' keys, written a second time, so that the package under test is not its own judge.
fn encoded(prefix: &[u8], key: &[u8]) -> String {
    let mut bytes = [prefix, key].concat();
    let mut crc: u16 = 0;
    for byte in &bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc >> 15 == 1 { (crc << 1) ^ 0x1021 } else { crc << 1 };
        }
    }
    bytes.extend(crc.to_le_bytes());
    base32(&bytes)
}

fn base32(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)).collect();
    let value = |five: &[u8]| (0..5).fold(0, |sum, n| sum * 2 + usize::from(five.get(n).copied().unwrap_or(0)));
    bits.chunks(5).map(|five| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[value(five)])).collect()
}

/// A seed of a kind (`O`, `A`, `U` by their number in the alphabet) and its key.
fn key(kind: u8, secret: u8) -> (String, nkeys::KeyPair) {
    let kind = kind << 3;
    let seed = encoded(&[(18 << 3) | (kind >> 5), kind << 3], &[secret; 32]);
    let pair = nkeys::KeyPair::from_seed(&seed).unwrap();
    (seed, pair)
}

const OPERATOR: u8 = 14;
const ACCOUNT: u8 = 0;
const USER: u8 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nkey_signs_the_servers_challenge() {
    let (seed, pair) = key(USER, 7);
    let server =
        NatsServer::start_with(|_| format!("authorization {{ users: [ {{ nkey: {} }} ] }}", pair.public_key()));
    let with = |seed: &str| NatsSettings { auth: NatsAuth::NKey(Secret::new(seed)), ..settings(&server) };
    works(with(&seed)).await;
    works(with(&format!("{seed}\n"))).await;
    let (other, _) = key(USER, 8);
    is_refused(with(&other), &other).await;
}

/// A JWT as NATS signs them (<https://github.com/nats-io/jwt>, version 2).
fn jwt(issuer: &nkeys::KeyPair, subject: &str, name: &str, nats: &str) -> String {
    let claims = |id: &str| {
        format!(
            r#"{{"jti":"{id}","iat":1700000000,"iss":"{}","name":"{name}","sub":"{subject}","nats":{nats}}}"#,
            issuer.public_key()
        )
    };
    let id = base32(&Sha512_256::digest(claims("")));
    let head = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let body = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims(&id)));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(body.as_bytes()).unwrap());
    format!("{body}.{signature}")
}

fn account(jetstream: i64) -> String {
    format!(
        r#"{{"limits":{{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1,"mem_storage":{jetstream},"disk_storage":{jetstream},"streams":-1,"consumer":-1}},"default_permissions":{{"pub":{{}},"sub":{{}}}},"type":"account","version":2}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_opens_and_is_read_again_for_every_connection() {
    let ((_, operator), (_, system), (_, hub), (seed, user)) =
        (key(OPERATOR, 1), key(ACCOUNT, 2), key(ACCOUNT, 3), key(USER, 4));
    let mut server = NatsServer::start_with(|_| {
        let own = jwt(&operator, &operator.public_key(), "op", r#"{"type":"operator","version":2}"#);
        let preload = [(&system, account(0), "SYS"), (&hub, account(-1), "HUB")].map(|(pair, claims, name)| {
            format!("{}: {}", pair.public_key(), jwt(&operator, &pair.public_key(), name, &claims))
        });
        format!(
            "operator: {own}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n{}\n}}",
            system.public_key(),
            preload.join("\n")
        )
    });
    let claims = r#"{"pub":{},"sub":{},"subs":-1,"data":-1,"payload":-1,"type":"user","version":2}"#;
    let creds = |seed: &str| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n",
            jwt(&hub, &user.public_key(), "hub", claims)
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.creds");
    let with = || NatsSettings { auth: NatsAuth::Credentials(path.clone()), ..settings(&server) };
    let missing = NatsBus::connect(with()).await.unwrap_err().to_string();
    assert!(missing.contains("hub.creds"), "{missing}");
    fs::write(&path, creds(&key(USER, 5).0)).unwrap();
    is_refused(with(), &seed).await;
    fs::write(&path, creds(&seed)).unwrap();
    works(with()).await;
    let bus = NatsBus::connect(with()).await.unwrap();
    fs::write(&path, "not credentials any more").unwrap();
    server.kill();
    server.start_again();
    tokio::time::timeout(crate::support::PATIENCE, async {
        while bus.health().connected {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        fs::write(&path, creds(&seed)).unwrap();
        while !bus.health().connected {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the renewed file was not read");
}

// === TLS ===

/// An authority, the server's certificate and a client's, as files in a folder.
fn certificates(folder: &Path) {
    let issue = |name: &str, issuer: &Issuer<KeyPair>| {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.into(), "127.0.0.1".into()]).unwrap().signed_by(&key, issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let (server, client) = (issue("localhost", &issuer), issue("hub", &issuer));
    for (name, text) in [
        ("ca.pem", &pem),
        ("server.pem", &server.0),
        ("server.key", &server.1),
        ("client.pem", &client.0),
        ("client.key", &client.1),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_kept_secret_and_both_sides_are_known_by_their_certificates() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name);
    let server = NatsServer::start_with(|_| {
        format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
            file("server.pem"),
            file("server.key"),
            file("ca.pem")
        )
    });
    let with = |authorities: Option<&str>, identity: bool| NatsSettings {
        tls: NatsTls {
            required: true,
            authorities: authorities.map(file),
            identity: identity.then(|| (file("client.pem"), file("client.key"))),
        },
        ..settings(&server)
    };
    works(with(Some("ca.pem"), true)).await;
    is_refused(with(None, true), "KEY").await;
    is_refused(with(Some("ca.pem"), false), "KEY").await;
    let mut swapped = with(Some("ca.pem"), true);
    swapped.tls.identity = Some((file("client.pem"), file("server.key")));
    assert!(NatsBus::connect(swapped).await.is_err(), "a key of another certificate");
    let mut none = with(Some("server.key"), true);
    none.tls.identity = None;
    assert!(NatsBus::connect(none).await.unwrap_err().to_string().contains("no certificate"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_where_it_is_required() {
    let server = NatsServer::start();
    let required = NatsSettings { tls: NatsTls { required: true, ..NatsTls::default() }, ..settings(&server) };
    is_refused(required, "KEY").await;
}
