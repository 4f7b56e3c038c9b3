//! Whether and where spans are sent: the settings of the export over OTLP, and what of them a build can use.
//!
//! The settings are there in every build, so that one which cannot send spans says so instead of not knowing the keys.

use picket_config::Interval;
use picket_protocol::TraceContext;
use std::time::Duration;
use tracing::Span;

picket_config::settings! {
    /// Spans of operations to a collector of OpenTelemetry, over OTLP/HTTP in protobuf.
    pub struct OtlpSettings {
        /// The collector, without `v1/traces`: https, or http to this machine. Absent, nothing is sent. Only builds with the feature `otel` can.
        pub endpoint: Option<String> = None,
        /// A file of headers for each request, `Name: value` a line, for example a token; it is read anew each time.
        pub headers_file: Option<String> = None,
        /// How long spans are gathered at most before they are sent.
        pub interval: Interval = Interval::seconds(5),
        /// How long one request may take.
        pub timeout: Interval = Interval::seconds(10),
    }
}

/// The shortest interval and timeout.
const SHORTEST: Duration = Duration::from_millis(100);

impl OtlpSettings {
    /// Why this build cannot do what is asked, with the key it is about; `None` if it can or nothing is asked.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let endpoint = self.endpoint.as_deref()?;
        if !cfg!(feature = "otel") {
            let reason =
                "this build cannot send spans; use one built with `cargo build --features otel`, or remove the key";
            return Some(("otlp.endpoint", reason.to_owned()));
        }
        for (key, length) in [("otlp.interval", self.interval), ("otlp.timeout", self.timeout)] {
            if length.get() < SHORTEST {
                return Some((key, "expected at least 100ms".to_owned()));
            }
        }
        unusable(endpoint).map(|reason| ("otlp.endpoint", reason))
    }
}

#[cfg(feature = "otel")]
fn unusable(endpoint: &str) -> Option<String> {
    endpoint.parse::<picket_transport::SafeUrl>().err().map(|error| error.to_string())
}

#[cfg(not(feature = "otel"))]
fn unusable(_: &str) -> Option<String> {
    None
}

/// Makes `span` part of the trace that `trace` names, where spans are sent; elsewhere it does nothing.
pub fn adopt(span: &Span, trace: &TraceContext) {
    #[cfg(feature = "otel")]
    crate::otel::adopt(span, trace);
    #[cfg(not(feature = "otel"))]
    let _ = (span, trace);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_says_what_of_the_export_it_cannot_do() {
        assert_eq!(OtlpSettings::default().problem(), None, "nothing is asked");
        let at = |endpoint: &str| OtlpSettings { endpoint: Some(endpoint.to_owned()), ..OtlpSettings::default() };
        let good = at("https://collector.example.com:4318");
        if cfg!(feature = "otel") {
            assert_eq!(good.problem(), None);
            assert_eq!(at("http://collector.example.com:4318").problem().unwrap().0, "otlp.endpoint");
            let hasty = OtlpSettings { interval: Interval::seconds(0), ..good };
            assert_eq!(hasty.problem().unwrap().0, "otlp.interval");
        } else {
            let (key, reason) = good.problem().unwrap();
            assert_eq!(key, "otlp.endpoint");
            assert!(reason.contains("--features otel"), "{reason}");
        }
    }
}
