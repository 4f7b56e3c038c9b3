//! Alerts reach a real mail server over TLS and a real web server, or say why not.
#![expect(clippy::unwrap_used, reason = "a test's servers and helpers fail the test")]

mod smtp;
mod tls;
mod web;

use picket_monitor::channel::{Hear, Sender, plan};
use picket_monitor::{
    AlertingSettings, ChannelKind, ChannelLevel, ChannelSettings, ChannelStatus, Notifier, NotifierOptions,
    SmtpSettings, SmtpTls,
};
use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
use picket_transport::Network;
use smtp::{MailServer, Manner};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tls::Authority;
use uuid::Uuid;
use web::WebServer;

/// Longer than anything here takes; a test that waits for it has failed.
pub const LONG: Duration = Duration::from_secs(30);

const OPTIONS: NotifierOptions = NotifierOptions {
    queue: 64,
    attempts: 3,
    first_wait: Duration::from_millis(20),
    longest_wait: Duration::from_millis(50),
};

fn sender() -> Sender {
    Sender {
        device_id: "agent-123".into(),
        hostname: "web01".into(),
        user_agent: "picket/test".into(),
        network: Network::default(),
    }
}

fn event(level: AlertLevel, action: AlertAction) -> AlertEvent {
    AlertEvent {
        timestamp: "2026-11-21T12:34:56Z".parse().unwrap(),
        alert_id: Uuid::now_v7(),
        action,
        level,
        metric: "disk_usage".into(),
        tags: [("mount".to_owned(), "/srv/a\r\nBcc: eve@example.com".to_owned())].into(),
        value: 97.0,
        threshold: 95.0,
        message: "disk_usage{mount=\"/srv/a\r\nBcc: eve@example.com\"} is 97 percent".into(),
        by: None,
        note: None,
    }
}

fn critical() -> AlertEvent {
    event(AlertLevel::Critical, AlertAction::Raised)
}

/// Writes a file that only its owner reads, and returns its path.
fn file(dir: &Path, name: &str, text: &str) -> Option<String> {
    let path = dir.join(name);
    picket_durable::write_atomic(&path, text.as_bytes(), 0o600).unwrap();
    Some(path.to_str().unwrap().to_owned())
}

fn mail(to: &[&str]) -> ChannelSettings {
    let recipients = to.iter().map(|to| (*to).to_owned()).collect();
    ChannelSettings { r#type: ChannelKind::Email, recipients, ..ChannelSettings::default() }
}

/// Nobody hears of the attempts.
fn nobody() -> Hear {
    Arc::new(|_| {})
}

/// Sends `events` through one channel and stops.
fn send(channel: ChannelSettings, smtp: &SmtpSettings, events: &[AlertEvent]) -> ChannelStatus {
    let alerting = AlertingSettings { channels: vec![channel], ..AlertingSettings::default() };
    let (channels, errors) = plan(&alerting, smtp, &sender());
    assert_eq!(errors, []);
    let notifier = Notifier::spawn(channels, OPTIONS, &nobody()).unwrap();
    events.iter().for_each(|event| notifier.notify(event));
    let deadline = std::time::Instant::now() + LONG;
    let all = |status: &ChannelStatus| status.sent + status.failed + status.dropped >= events.len() as u64;
    while !all(&notifier.status()[0]) && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    notifier.stop(LONG).remove(0)
}

#[test]
fn a_mail_goes_over_tls_with_a_login_and_to_everybody() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    for (manner, tls) in [(Manner::Starttls, SmtpTls::Starttls), (Manner::Tls, SmtpTls::Tls)] {
        let server = MailServer::start(manner, Some(&authority));
        let smtp = SmtpSettings {
            host: "localhost".into(),
            port: Some(server.port.into()),
            tls,
            username: Some("picket".into()),
            password_file: file(dir.path(), "password", "s3cret word\n"),
            from: Some("Picket <alerts@example.com>".into()),
            ca_file: file(dir.path(), "ca.pem", &authority.pem()),
        };
        let status = send(mail(&["ann@example.com", "Bob <bob@example.com>"]), &smtp, &[critical()]);
        assert_eq!((status.sent, status.failed, &status.last_error), (1, 0, &None), "{manner:?}");
        let mail = server.mails.recv_timeout(LONG).unwrap();
        assert!(mail.encrypted);
        assert_eq!(mail.login.as_deref(), Some("\0picket\0s3cret word"));
        assert_eq!(mail.from, "alerts@example.com");
        assert_eq!(mail.to, ["ann@example.com", "bob@example.com"]);
        let subject = mail.text.lines().find(|line| line.starts_with("Subject: ")).unwrap();
        assert!(subject.contains("[web01] critical: disk_usage"), "{subject}");
        assert!(!mail.text.contains("\r\nBcc:"), "a mount point forged a header:\n{}", mail.text);
        assert!(mail.text.contains("agent-123"), "{}", mail.text);
    }
}

#[test]
fn a_mail_server_without_starttls_or_with_a_strange_certificate_gets_no_word() {
    let (authority, other, dir) = (Authority::new(), Authority::new(), tempfile::tempdir().unwrap());
    let smtp = |server: &MailServer, authority: &Authority| SmtpSettings {
        port: Some(server.port.into()),
        tls: SmtpTls::Starttls,
        ca_file: file(dir.path(), "ca.pem", &authority.pem()),
        ..SmtpSettings::default()
    };
    let plain = MailServer::start(Manner::Plain, None);
    let status = send(mail(&["ann@example.com"]), &smtp(&plain, &authority), &[critical()]);
    assert_eq!((status.sent, status.failed), (0, 1));
    assert!(plain.mails.try_recv().is_err());

    let strange = MailServer::start(Manner::Starttls, Some(&authority));
    let status = send(mail(&["ann@example.com"]), &smtp(&strange, &other), &[critical()]);
    assert_eq!((status.sent, status.failed), (0, 1));
    assert!(strange.mails.try_recv().is_err());
    let error = status.last_error.unwrap();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
}

#[test]
fn a_mail_that_is_put_off_is_sent_again_and_many_alerts_are_few_mails() {
    let server = MailServer::start(Manner::BusyAtFirst, None);
    let smtp = SmtpSettings { port: Some(server.port.into()), ..SmtpSettings::default() };
    let events: Vec<AlertEvent> = (0..20).map(|_| critical()).collect();
    let status = send(mail(&["ann@example.com"]), &smtp, &events);
    assert_eq!((status.sent, status.failed, status.dropped), (20, 0, 0), "{:?}", status.last_error);
    let mails: Vec<smtp::Mail> = server.mails.try_iter().collect();
    assert!(mails.len() <= 3, "{} mails", mails.len());
    assert!(mails.iter().all(|mail| !mail.encrypted), "auto to this machine needs no TLS");
}

#[test]
fn a_mail_that_is_refused_for_good_is_not_sent_again() {
    let server = MailServer::start(Manner::Refusing, None);
    let smtp = SmtpSettings { port: Some(server.port.into()), ..SmtpSettings::default() };
    let status = send(mail(&["nobody@example.com"]), &smtp, &[critical()]);
    assert_eq!((status.sent, status.failed), (0, 1));
    assert_eq!(server.connections(), 1);
    assert!(status.last_error.unwrap().contains("no such user"));
}

#[test]
fn a_password_that_was_changed_holds_from_the_next_attempt_on() {
    let (dir, server) = (tempfile::tempdir().unwrap(), MailServer::start(Manner::Guarded, None));
    let smtp = SmtpSettings {
        port: Some(server.port.into()),
        username: Some("picket".into()),
        password_file: file(dir.path(), "password", "old word\n"),
        ..SmtpSettings::default()
    };
    let alerting = AlertingSettings { channels: vec![mail(&["ann@example.com"])], ..AlertingSettings::default() };
    let patient = NotifierOptions { attempts: 1_000, ..OPTIONS };
    let notifier = Notifier::spawn(plan(&alerting, &smtp, &sender()).0, patient, &nobody()).unwrap();
    notifier.notify(&critical());
    let deadline = std::time::Instant::now() + LONG;
    while notifier.status()[0].failing < 2 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let status = notifier.status().remove(0);
    assert!(status.failing >= 2 && status.last_error.unwrap().contains("535"), "it goes on after a refused login");
    file(dir.path(), "password", "new word\n");
    assert_eq!(server.mails.recv_timeout(LONG).unwrap().login.as_deref(), Some("\0picket\0new word"));
    let status = notifier.stop(LONG).remove(0);
    assert_eq!((status.sent, status.failed, status.failing, status.last_error), (1, 0, 0, None));
}

#[test]
fn a_secret_that_cannot_be_read_is_told_and_its_channel_works_once_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let server = WebServer::start(None, &[401, 200]);
    let token = dir.path().join("token");
    let channel = ChannelSettings {
        r#type: ChannelKind::Webhook,
        url: Some(format!("http://127.0.0.1:{}/", server.port)),
        token_file: Some(token.to_str().unwrap().to_owned()),
        ..ChannelSettings::default()
    };
    let email = mail(&["ann@example.com"]);
    let alerting = AlertingSettings { channels: vec![channel, email], ..AlertingSettings::default() };
    let smtp = SmtpSettings {
        username: Some("picket".into()),
        password_file: Some(dir.path().join("none").to_str().unwrap().to_owned()),
        ..SmtpSettings::default()
    };
    let (mut channels, errors) = plan(&alerting, &smtp, &sender());
    let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!((keys, channels.len()), (vec!["alerting.channels[0].token_file", "smtp.password_file"], 2));
    channels.truncate(1);
    let notifier = Notifier::spawn(channels, NotifierOptions { attempts: 1_000, ..OPTIONS }, &nobody()).unwrap();
    notifier.notify(&critical());
    let deadline = std::time::Instant::now() + LONG;
    while notifier.status()[0].failing < 1 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(notifier.status()[0].last_error.as_ref().unwrap().contains("cannot read"));
    file(dir.path(), "token", "t0ken\n");
    for _ in 0..2 {
        let post = server.posts.recv_timeout(LONG).unwrap();
        assert_eq!(post.header("authorization"), Some("Bearer t0ken"), "and once more after 401");
    }
    assert_eq!(notifier.stop(LONG)[0].sent, 1);
}

#[test]
fn a_webhook_is_posted_over_https_with_its_token_and_the_alerts_id() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let server = WebServer::start(Some(&authority), &[200]);
    let channel = ChannelSettings {
        r#type: ChannelKind::Webhook,
        url: Some(format!("https://localhost:{}/hook?key=1", server.port)),
        token_file: file(dir.path(), "token", "t0ken\n"),
        ca_file: file(dir.path(), "ca.pem", &authority.pem()),
        ..ChannelSettings::default()
    };
    let event = critical();
    let status = send(channel, &SmtpSettings::default(), std::slice::from_ref(&event));
    assert_eq!((status.sent, &status.last_error), (1, &None));
    let post = server.posts.recv_timeout(LONG).unwrap();
    assert_eq!(post.line, "POST /hook?key=1 HTTP/1.1");
    assert_eq!(post.header("authorization"), Some("Bearer t0ken"));
    assert_eq!(post.header("x-correlation-id"), Some(event.alert_id.to_string().as_str()));
    assert!(post.header("traceparent").unwrap().parse::<picket_protocol::TraceParent>().is_ok());
    let body: serde_json::Value = serde_json::from_slice(&post.body).unwrap();
    assert_eq!((&body["device_id"], &body["type"]), (&"agent-123".into(), &"alert".into()));
    let details: AlertEvent = serde_json::from_value(body["details"].clone()).unwrap();
    assert_eq!(details, event);
}

#[test]
fn a_webhook_is_posted_again_after_a_server_error_and_not_after_a_refusal() {
    let server = WebServer::start(None, &[503, 429, 204, 410]);
    let channel = ChannelSettings {
        r#type: ChannelKind::Webhook,
        url: Some(format!("http://127.0.0.1:{}/", server.port)),
        ..ChannelSettings::default()
    };
    let status = send(channel, &SmtpSettings::default(), &[critical(), critical()]);
    assert_eq!((status.sent, status.failed), (1, 1));
    assert_eq!(server.posts.try_iter().count(), 4);
    assert!(status.last_error.unwrap().contains("410"));
}

#[test]
fn the_path_of_a_webhook_is_in_no_error() {
    let server = WebServer::start(None, &[410]);
    let hook = |url: String| ChannelSettings { r#type: ChannelKind::Webhook, url: Some(url), ..Default::default() };
    let path = "services/T0/s3cret?key=s3cret";
    let refused =
        send(hook(format!("http://127.0.0.1:{}/{path}", server.port)), &SmtpSettings::default(), &[critical()]);
    let error = refused.last_error.unwrap();
    assert!(error.contains("410") && error.contains("127.0.0.1") && !error.contains("s3cret"), "{error}");
    for url in [format!("http://hooks.example/{path}"), format!("https://hooks.example/a b/{path}")] {
        let alerting = AlertingSettings { channels: vec![hook(url)], ..AlertingSettings::default() };
        let (_, errors) = plan(&alerting, &SmtpSettings::default(), &sender());
        assert!(errors[0].reason.contains("hooks.example"), "{errors:?}");
        assert!(!errors[0].reason.contains("s3cret"), "{errors:?}");
    }
}

#[test]
fn channels_that_cannot_work_are_told_with_their_key_and_the_others_work() {
    let wrong = |change: fn(&mut ChannelSettings)| {
        let mut channel = ChannelSettings::default();
        change(&mut channel);
        channel
    };
    let channels = vec![
        wrong(|c| c.r#type = ChannelKind::Email),
        wrong(|c| c.r#type = ChannelKind::Webhook),
        wrong(|c| (c.r#type, c.url) = (ChannelKind::Webhook, Some("http://example.com/".into()))),
        wrong(|c| (c.r#type, c.recipients) = (ChannelKind::Email, vec!["not an address".into()])),
        wrong(|c| c.level = ChannelLevel::Critical),
    ];
    let alerting = AlertingSettings { channels, ..AlertingSettings::default() };
    let (good, errors) = plan(&alerting, &SmtpSettings::default(), &sender());
    let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "alerting.channels[0].recipients",
            "alerting.channels[1].url",
            "alerting.channels[2].url",
            "alerting.channels[3].recipients",
        ]
    );
    assert_eq!(good.len(), 1);
    let off = AlertingSettings { enabled: false, ..alerting };
    assert!(plan(&off, &SmtpSettings::default(), &sender()).0.is_empty());
}

#[test]
fn mail_to_another_machine_is_never_planned_without_tls_or_with_half_a_login() {
    let dir = tempfile::tempdir().unwrap();
    let alerting = AlertingSettings { channels: vec![mail(&["ann@example.com"])], ..AlertingSettings::default() };
    let remote = SmtpSettings { host: "mail.example.com".into(), ..SmtpSettings::default() };
    let (channels, errors) = plan(&alerting, &remote, &sender());
    assert_eq!((channels.len(), errors.len()), (1, 0), "auto is STARTTLS there");
    for (smtp, key) in [
        (SmtpSettings { tls: SmtpTls::None, ..remote.clone() }, "smtp.tls"),
        (SmtpSettings { username: Some("x".into()), ..remote.clone() }, "smtp.password_file"),
        (SmtpSettings { password_file: Some("/x".into()), ..remote.clone() }, "smtp.username"),
        (SmtpSettings { ca_file: file(dir.path(), "none.pem", "nothing"), ..remote.clone() }, "smtp.ca_file"),
        (SmtpSettings { port: Some(70_000), ..remote.clone() }, "smtp.port"),
        (SmtpSettings { from: Some("nobody".into()), ..remote }, "smtp.from"),
    ] {
        let (channels, errors) = plan(&alerting, &smtp, &sender());
        assert_eq!((channels.len(), errors[0].key.as_str()), (0, key));
    }
}
