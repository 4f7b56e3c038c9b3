//! What the agent answers on this machine.
//!
//! | server | route | answer |
//! |---|---|---|
//! | health (127.0.0.1:9091) | `GET /livez` | the process lives: version, pid, uptime; always 200 |
//! | | `GET /readyz` | 200 once it serves, 503 while it drains |
//! | | `GET /health` | every check; 200 healthy, 503 unhealthy |
//! | metrics (127.0.0.1:9090) | `GET /metrics` | Prometheus text; OpenMetrics or JSON by `Accept` |
//! | | `GET /metrics.json` | the JSON form, whatever `Accept` says |
//! | | `GET /system` | facts of the machine, JSON |
//! | | `GET /alerts` | alerts that are open or were lately, and what the channels did |
//! | | `GET /summaries` | every series in short: count, min, max, avg, latest, percentiles |
//! | | `GET /queue` | the event queue, its books and its delivery |
//! | | `GET /health` | as on the health server |
//!
//! Both listen on this machine only, and refuse a request whose `Host` is not this machine: a web page that makes a
//! browser talk to 127.0.0.1 under a name of its own (DNS rebinding) learns nothing.

mod alert_metrics;
mod correlation;
mod health;
mod hub_metrics;
mod ledger_metrics;
mod metrics;
mod records;
mod server;
mod system_metrics;
mod update_metrics;
mod watch_metrics;

pub(crate) use alert_metrics::AlertCollector;
pub(crate) use correlation::header as correlation_header;
pub(crate) use health::{HealthApi, Readiness};
pub(crate) use hub_metrics::HubCollector;
pub(crate) use ledger_metrics::LedgerCollector;
pub(crate) use metrics::MetricsApi;
pub(crate) use records::RecordsApi;
pub(crate) use server::{Server, told_to_stop};
pub(crate) use system_metrics::SystemCollector;
pub(crate) use update_metrics::UpdateCollector;
pub(crate) use watch_metrics::WatchCollector;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Refuses requests under a foreign host name.
pub(crate) async fn only_this_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_this_host(host) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "this server answers only to localhost, 127.0.0.1 and [::1]\n").into_response()
    }
}

fn is_this_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A JSON answer that ends with a newline, for the people who look at it with curl.
pub(crate) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for host in ["localhost", "localhost:9091", "127.0.0.1:9091", "[::1]:9091", "[::1]"] {
            assert!(is_this_host(host), "{host}");
        }
        for host in
            ["evil.example", "127.0.0.1.evil.example:9091", "10.0.0.5:9091", "", "[fe80::1]:9091", "localhost.evil"]
        {
            assert!(!is_this_host(host), "{host}");
        }
    }
}
