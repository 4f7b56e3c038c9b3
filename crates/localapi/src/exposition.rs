//! `/metrics` in the form that the client asks for.

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use picket_telemetry::Metrics;
use picket_telemetry::metrics::{OPENMETRICS_CONTENT_TYPE, PROMETHEUS_CONTENT_TYPE};

/// The metrics as the client wants them; `None` where it wants JSON.
pub fn exposition(metrics: &Metrics, headers: &HeaderMap) -> Option<Response> {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let (content_type, text) = match preferred_form(accept) {
        Form::Prometheus => (PROMETHEUS_CONTENT_TYPE, metrics.prometheus()),
        Form::OpenMetrics => (OPENMETRICS_CONTENT_TYPE, metrics.openmetrics()),
        Form::Json => return None,
    };
    Some(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// The forms of `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// JSON, which each process has in its own shape or not at all.
    Json,
}

/// The first of the known forms that the client names; quality values do not matter between forms that say the same.
pub fn preferred_form(accept: Option<&str>) -> Form {
    for range in accept.unwrap_or_default().split(',') {
        match range.split(';').next().unwrap_or_default().trim() {
            "application/openmetrics-text" => return Form::OpenMetrics,
            "application/json" => return Form::Json,
            "text/plain" | "text/*" => return Form::Prometheus,
            _ => {}
        }
    }
    Form::Prometheus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_what_the_client_accepts() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;q=0.3";
        assert_eq!(preferred_form(Some(prometheus_3)), Form::OpenMetrics);
        assert_eq!(preferred_form(Some("application/json")), Form::Json);
        assert_eq!(preferred_form(Some("text/html, */*")), Form::Prometheus);
        assert_eq!(preferred_form(None), Form::Prometheus);
    }
}
