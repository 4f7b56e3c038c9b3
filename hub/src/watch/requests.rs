//! How long answers take and how they end, by route.

use crate::refusal::Refusal;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use picket_telemetry::Metrics;
use picket_telemetry::histograms::durations;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;
use std::time::Instant;

type Labels = Vec<(&'static str, String)>;

/// What was counted of requests. A route is the pattern that it was found by, never a path: nobody who asks can make labels.
#[derive(Clone)]
pub struct Requests {
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    refusals: Family<Labels, Counter>,
}

impl Default for Requests {
    fn default() -> Self {
        Self { durations: Family::new_with_constructor(durations as fn() -> Histogram), refusals: Family::default() }
    }
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Requests")
    }
}

impl Requests {
    pub(super) fn register(&self, metrics: &Metrics) {
        let help = "Time until the answer to a request, by listener, route, method and class of the status";
        metrics.register_with_unit("http_request_duration", help, Unit::Seconds, self.durations.clone());
        let help = "Requests that were refused or failed, by listener and code";
        metrics.register("http_refusals", help, self.refusals.clone());
    }

    fn count(&self, listener: &'static str, route: &str, method: &Method, response: &Response, seconds: f64) {
        let class = format!("{}xx", response.status().as_u16() / 100);
        let labels = vec![
            ("listener", listener.to_owned()),
            ("route", route.to_owned()),
            ("method", known(method).to_owned()),
            ("status", class),
        ];
        self.durations.get_or_create(&labels).observe(seconds);
        if let Some(refusal) = response.extensions().get::<Refusal>() {
            let labels = vec![("listener", listener.to_owned()), ("code", refusal.code().as_str().to_owned())];
            self.refusals.get_or_create(&labels).inc();
        }
    }
}

/// A method that means something here; a client may invent others.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Measures an answer; for a connection that becomes a WebSocket, until it does.
pub(crate) async fn measured(
    State((requests, listener)): State<(Requests, &'static str)>,
    request: Request,
    next: Next,
) -> Response {
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let began = Instant::now();
    let response = next.run(request).await;
    requests.count(listener, &route, &method, &response, began.elapsed().as_secs_f64());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;
    use picket_protocol::hub::ProblemCode;

    #[test]
    fn nobody_who_asks_can_make_labels() {
        let requests = Requests::default();
        let metrics = Metrics::new("p");
        requests.register(&metrics);
        let refused = Refusal::new(ProblemCode::Overloaded, "busy").into_response();
        for n in 0..100 {
            let method = Method::from_bytes(format!("METHOD{n}").as_bytes()).unwrap();
            requests.count("api", "none", &method, &refused, 0.01);
        }
        let text = metrics.prometheus();
        let line =
            r#"p_http_request_duration_seconds_count{listener="api",route="none",method="other",status="5xx"} 100"#;
        assert!(text.lines().any(|found| found == line), "{text}");
        let line = r#"p_http_refusals_total{listener="api",code="overloaded"} 100"#;
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
