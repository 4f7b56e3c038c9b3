//! A mail to each recipient, through the mail server of the configuration.

use super::{Deliver, Failure, Sender, Wrong, certificates, chain, plain, secret};
use crate::alert::word;
use crate::settings::{ChannelSettings, SmtpSettings, SmtpTls};
use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Message, SmtpTransport, Transport};
use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

/// How long the mail server may take for each command.
const LIMIT: Duration = Duration::from_secs(20);
/// How many events one mail tells: whoever has many alerts at once wants one mail, not many.
const BATCH: usize = 50;
/// The most recipients.
const MAX_RECIPIENTS: usize = 50;

/// How the connection is protected once `auto` is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    Starttls,
    Tls,
    /// Only to this machine.
    Plain,
}

pub(super) struct Email {
    host: String,
    port: u16,
    protection: Protection,
    /// Who logs in, and the file of the password.
    login: Option<(String, String)>,
    authorities: Option<Vec<u8>>,
    from: Mailbox,
    to: Vec<Mailbox>,
    sender: Sender,
}

/// Whether `host` can be nothing but this machine.
fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The protection and port, or why there is none.
fn protection(smtp: &SmtpSettings) -> Result<(Protection, u16), Wrong> {
    let local = is_this_machine(&smtp.host);
    let (protection, port) = match smtp.tls {
        SmtpTls::None if !local => {
            let reason = "none is for localhost, 127.0.0.1 and ::1 only; use starttls or tls".to_owned();
            return Err(Wrong::Smtp("tls", reason));
        }
        SmtpTls::Auto if local => (Protection::Plain, 25),
        SmtpTls::None => (Protection::Plain, 25),
        SmtpTls::Auto | SmtpTls::Starttls => (Protection::Starttls, 587),
        SmtpTls::Tls => (Protection::Tls, 465),
    };
    let port = smtp.port.map_or(Ok(port), u16::try_from).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Wrong::Smtp("port", "expected a port from 1 to 65535".to_owned()))?;
    Ok((protection, port))
}

fn mailbox(text: &str) -> Result<Mailbox, String> {
    text.parse().map_err(|e| format!("{:?} is no mail address ({e})", plain(text, 100)))
}

impl Email {
    pub fn new(settings: &ChannelSettings, smtp: &SmtpSettings, sender: &Sender) -> Result<Self, Wrong> {
        let count = settings.recipients.len();
        if count == 0 || count > MAX_RECIPIENTS {
            return Err(Wrong::Channel("recipients", format!("name 1 to {MAX_RECIPIENTS} mail addresses")));
        }
        let to = settings.recipients.iter().map(|text| mailbox(text)).collect::<Result<_, _>>();
        let from = smtp.from.clone().unwrap_or_else(|| format!("picket@{}", sender.hostname));
        let (protection, port) = protection(smtp)?;
        let login = match (&smtp.username, &smtp.password_file) {
            (Some(name), Some(file)) => Some((name.clone(), file.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(Wrong::Smtp("password_file", "is missing beside smtp.username".to_owned())),
            (None, Some(_)) => return Err(Wrong::Smtp("username", "is missing beside smtp.password_file".to_owned())),
        };
        let authorities = smtp.ca_file.as_deref().map(certificates).transpose();
        Ok(Self {
            host: smtp.host.clone(),
            port,
            protection,
            login,
            authorities: authorities.map_err(|reason| Wrong::Smtp("ca_file", reason))?,
            from: mailbox(&from).map_err(|reason| Wrong::Smtp("from", reason))?,
            to: to.map_err(|reason| Wrong::Channel("recipients", reason))?,
            sender: sender.clone(),
        })
    }

    /// Who logs in and with what, as the file has it now.
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        let login = self.login.as_ref();
        login.map(|(name, file)| Ok(Credentials::new(name.clone(), secret(file)?))).transpose()
    }

    /// The connection of one delivery; TLS, where asked for, is required and never merely tried.
    fn transport(&self, login: Option<Credentials>) -> Result<SmtpTransport, lettre::transport::smtp::Error> {
        let tls = match self.protection {
            Protection::Plain => Tls::None,
            Protection::Starttls => Tls::Required(self.tls()?),
            Protection::Tls => Tls::Wrapper(self.tls()?),
        };
        let hostname = &self.sender.hostname;
        let named = !hostname.is_empty() && hostname.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c));
        let hello = if named { ClientId::Domain(hostname.clone()) } else { ClientId::default() };
        let builder = SmtpTransport::builder_dangerous(&self.host).port(self.port).tls(tls).timeout(Some(LIMIT));
        let builder = builder.hello_name(hello);
        Ok(match login {
            Some(login) => builder.credentials(login).build(),
            None => builder.build(),
        })
    }

    fn tls(&self) -> Result<TlsParameters, lettre::transport::smtp::Error> {
        // lettre takes the process' provider if one is installed, else ring: the one of `picket_transport::provider`.
        let mut builder = TlsParameters::builder(self.host.clone());
        if let Some(pem) = &self.authorities {
            builder = builder.add_root_certificate(Certificate::from_pem(pem)?);
        }
        builder.build_rustls()
    }

    fn message(&self, events: &[AlertEvent]) -> Result<Message, lettre::error::Error> {
        let mut builder = Message::builder().from(self.from.clone()).subject(self.subject(events));
        for recipient in &self.to {
            builder = builder.to(recipient.clone());
        }
        builder.header(ContentType::TEXT_PLAIN).body(self.text(events))
    }

    fn subject(&self, events: &[AlertEvent]) -> String {
        let host = &self.sender.hostname;
        let subject = match events {
            [event] => format!("[{host}] {}: {}", verdict(event), event.message),
            _ => {
                let worst = events.iter().map(|event| event.level).max().unwrap_or(AlertLevel::Warning);
                format!("[{host}] {} alert events, up to {}", events.len(), word(worst))
            }
        };
        plain(&subject, 200)
    }

    fn text(&self, events: &[AlertEvent]) -> String {
        let mut text = String::new();
        for event in events {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}: {}", verdict(event), plain(&event.message, 2_000));
            let _ = writeln!(text, "  at      {}", event.timestamp);
            let _ = writeln!(text, "  device  {} ({})", plain(&self.sender.device_id, 200), self.sender.hostname);
            let _ = writeln!(text, "  alert   {}\n", event.alert_id);
        }
        text
    }
}

/// Whether it was the login that the server refused: RFC 4954 §6.
fn is_login(error: &lettre::transport::smtp::Error) -> bool {
    error.status().is_some_and(|code| matches!(u16::from(code), 530 | 534 | 535 | 538))
}

/// What happened, in one or two words.
fn verdict(event: &AlertEvent) -> String {
    match event.action {
        AlertAction::Raised => word(event.level).to_owned(),
        AlertAction::Lowered => format!("down to {}", word(event.level)),
        AlertAction::Acknowledged => format!("acknowledged by {}", event.by.as_deref().unwrap_or("somebody")),
        AlertAction::Cleared => "cleared".to_owned(),
    }
}

impl Deliver for Email {
    fn batch(&self) -> usize {
        BATCH
    }

    fn obstacle(&self) -> Option<Wrong> {
        self.credentials().err().map(|reason| Wrong::Smtp("password_file", reason))
    }

    fn deliver(&mut self, events: &[AlertEvent]) -> Result<(), Failure> {
        let message = self.message(events).map_err(|e| Failure { reason: chain(&e), retry: false, wait: None })?;
        // Read anew: a password that was changed holds from the next attempt on.
        let login = self.credentials();
        let login = login.map_err(|reason| Failure {
            reason: format!("smtp.password_file: {reason}"),
            retry: true,
            wait: None,
        })?;
        let sent = self.transport(login).and_then(|transport| transport.send(&message));
        // What the server refuses for good (5xx, RFC 5321 §4.2.1) and what it cannot do, it will refuse again; but not a
        // login (RFC 4954 §6), for the file of the password may be one change behind the server.
        let failed = |e: lettre::transport::smtp::Error| Failure {
            reason: chain(&e),
            retry: is_login(&e) || !e.is_permanent() && !e.is_client(),
            wait: None,
        };
        sent.map(drop).map_err(failed)
    }
}
