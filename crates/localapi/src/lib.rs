//! What a process answers on its own machine, in clear: probes, health and metrics.
//!
//! A [`Server`] listens on a loopback address only, and refuses a request whose `Host` is not this machine: a web page that
//! makes a browser talk to 127.0.0.1 under a name of its own (DNS rebinding) learns nothing. It is bounded in connections,
//! in the size of a header and in time, and waits for a port that somebody holds instead of ending its process.

mod correlation;
mod exposition;
mod health;
mod port_holder;
mod server;

pub use correlation::header as correlation_header;
pub use exposition::{Form, exposition, preferred_form};
pub use health::{HealthApi, Readiness};
pub use port_holder::PortHolder;
pub use server::{BindError, BoundServer, Server, told_to_stop};

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
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
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
