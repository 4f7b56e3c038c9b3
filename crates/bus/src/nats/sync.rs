//! Whether a server has a message on its disk when it acknowledges it.
//!
//! JetStream acknowledges a write before it is synced, and syncs every two minutes, unless its configuration says
//! `jetstream { sync_interval: always }` (since nats-server 2.10; what it loses otherwise: nats-server issue 7564). The
//! client protocol does not tell which it is. The monitoring port does: `/varz`, `jetstream.config.sync_always` (seen with
//! 2.15.1). Before 2.10 there is no such setting: 2.9.10 refuses a configuration that has it.

use serde::Deserialize;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::settings::NatsSettings;
use crate::error::{BusError, Result};

/// The longest answer of a monitoring port that is read.
const MAX_ANSWER: u64 = 1 << 20;

/// The first version that can sync every write.
const SYNC_SINCE: (u64, u64) = (2, 10);

/// What of `/varz` is looked at.
#[derive(Debug, Default, Deserialize)]
struct Varz {
    #[serde(default)]
    version: String,
    #[serde(default)]
    jetstream: JetStream,
}

#[derive(Debug, Default, Deserialize)]
struct JetStream {
    config: Option<Config>,
}

#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    sync_always: bool,
}

/// Refuses servers that are weaker than they must be, unless the settings take them.
///
/// # Errors
/// What is missing, and what to do.
pub(super) async fn require(settings: &NatsSettings, version: &str) -> Result<()> {
    if settings.accept_unknown_sync {
        return Ok(());
    }
    if !can_sync(version) {
        return Err(refused(format!("nats-server {version} cannot sync each write before it acknowledges it")));
    }
    if settings.monitoring.is_empty() {
        return Err(BusError::Settings {
            what: "nobody can tell whether NATS syncs each write before it acknowledges it".into(),
            help: format!("name the servers' monitoring ports in bus.monitoring (http://host:8222), {ALTERNATIVE}"),
        });
    }
    ask(&settings.monitoring, settings.timeout).await
}

/// Asks each server. One that is away acknowledges nothing: those that answer must do, and one must.
async fn ask(monitoring: &[String], timeout: Duration) -> Result<()> {
    let mut away = Vec::new();
    for address in monitoring {
        match get(address, timeout).await {
            Ok(answer) => judge(address, &answer)?,
            Err(NoAnswer::Away(reason)) => away.push(format!("{address}: {reason}")),
            Err(NoAnswer::Wrong(reason)) => {
                return Err(BusError::Settings {
                    what: format!("the monitoring port {address} does not tell how NATS syncs: {reason}"),
                    help: format!("correct bus.monitoring, {ALTERNATIVE}"),
                });
            }
        }
    }
    if away.len() == monitoring.len() {
        let reason = format!("no monitoring port of bus.monitoring answers, of which one must ({})", away.join("; "));
        return Err(BusError::Connect { servers: monitoring.join(", "), reason });
    }
    for server in away {
        tracing::warn!(
            server,
            "whether a NATS server syncs each write is not known: its monitoring port does not answer"
        );
    }
    Ok(())
}

/// Why a monitoring port told nothing.
enum NoAnswer {
    /// Nobody is there now.
    Away(String),
    /// Somebody is there, and it is no monitoring port.
    Wrong(String),
}

const ALTERNATIVE: &str = "or take the risk of losing acknowledged items in a power cut: bus.accept_unknown_sync: true";

fn refused(what: String) -> BusError {
    let help = format!(
        "use nats-server 2.10 or later with `jetstream {{ sync_interval: always }}` in its configuration, {ALTERNATIVE}"
    );
    BusError::Settings { what, help }
}

/// Judges what a monitoring port said.
fn judge(address: &str, answer: &[u8]) -> Result<()> {
    let varz: Varz = serde_json::from_slice(answer).map_err(|_| BusError::Settings {
        what: format!("{address} is not the monitoring port of a NATS server"),
        help: "correct bus.monitoring".into(),
    })?;
    match varz.jetstream.config {
        None => Err(refused(format!("the server at {address} has no JetStream"))),
        Some(Config { sync_always: true }) => Ok(()),
        Some(Config { sync_always: false }) => Err(refused(format!(
            "the server at {address} (nats-server {}) acknowledges writes before it syncs them",
            varz.version
        ))),
    }
}

/// Whether a version knows of syncing each write.
fn can_sync(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= SYNC_SINCE
}

/// `GET /varz` of a monitoring port over plain HTTP (RFC 9112): it is on loopback or a private network, and tells no secret.
async fn get(address: &str, timeout: Duration) -> Result<Vec<u8>, NoAnswer> {
    let wrong = |reason: &str| NoAnswer::Wrong(reason.to_owned());
    let host = address.strip_prefix("http://").ok_or_else(|| wrong("its address must begin with http://"))?;
    let host = host.trim_end_matches('/');
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:8222") };
    let work = async {
        let mut stream = TcpStream::connect(&with_port).await?;
        let request = format!("GET /varz HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(timeout, work)
        .await
        .map_err(|_| NoAnswer::Away("it does not answer in time".to_owned()))?
        .map_err(|error| NoAnswer::Away(error.to_string()))?;
    if answer.is_empty() {
        return Err(NoAnswer::Away("it hung up".to_owned()));
    }
    let split =
        answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(|| wrong("it does not speak HTTP"))?;
    let (head, body) = (&answer[..split], &answer[split + 4..]);
    let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    if status != b"200" {
        return Err(wrong(&format!(
            "it answers with status {}",
            String::from_utf8_lossy(&status[..status.len().min(3)])
        )));
    }
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    // As 2.15.1 and 2.9.10 say it, cut to what is looked at and its neighbours.
    const ALWAYS: &str = r#"{"version":"2.15.1","jetstream":{"config":{"max_memory":1,"store_dir":"/x","sync_interval":120000000000,"sync_always":true,"strict":true}}}"#;
    const LATER: &str = r#"{"version":"2.15.1","jetstream":{"config":{"max_memory":1,"store_dir":"/x","sync_interval":30000000000,"strict":true}}}"#;
    const OLD: &str =
        r#"{"version":"2.9.10","jetstream":{"config":{"max_memory":1,"max_storage":1,"store_dir":"/x"}}}"#;
    const NONE: &str = r#"{"version":"2.15.1","jetstream":{}}"#;

    #[test]
    fn a_server_that_syncs_each_write_is_taken_and_others_are_refused_with_what_to_do() {
        assert!(judge("http://x", ALWAYS.as_bytes()).is_ok());
        for answer in [LATER, OLD, NONE] {
            let error = judge("http://x", answer.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("sync_interval: always") && error.contains("accept_unknown_sync"), "{error}");
        }
        assert!(judge("http://x", b"<html>").unwrap_err().to_string().contains("monitoring"));
    }

    /// A monitoring port that says this.
    async fn says(varz: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{varz}").as_bytes()).await;
            }
        });
        format!("http://{address}")
    }

    /// A monitoring port at which nobody is.
    async fn away() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_for_time_to_mend_and_keeps_nobody_from_those_that_are_there() {
        let (strong, weak, gone) = (says(ALWAYS).await, says(LATER).await, away().await);
        let asked = async |ports: &[&String]| {
            let ports: Vec<String> = ports.iter().map(|port| (*port).clone()).collect();
            ask(&ports, Duration::from_secs(20)).await
        };
        asked(&[&gone, &strong, &gone]).await.unwrap();
        let all_gone = asked(&[&gone, &gone]).await.unwrap_err();
        assert!(all_gone.is_transient() && all_gone.to_string().contains("bus.monitoring"), "{all_gone}");
        for weaker in [&[&gone, &weak], &[&strong, &weak]] {
            let error = asked(weaker).await.unwrap_err();
            assert!(!error.is_transient() && error.to_string().contains("sync_interval: always"), "{error}");
        }
    }

    #[test]
    fn what_a_version_can_is_known_by_its_numbers() {
        for (version, can) in
            [("2.9.10", false), ("2.10.0", true), ("2.15.1", true), ("3.0.0", true), ("", false), ("x", false)]
        {
            assert_eq!(can_sync(version), can, "{version}");
        }
    }
}
