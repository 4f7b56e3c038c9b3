//! Logs as one JSON object a line: `timestamp`, `level`, `message`, `correlation_id`, `component`, `metadata`.
//!
//! The correlation id is that of the innermost span that has one; `null` where none has. The component is the place in the
//! code as `log_levels` names it (`agent.local_api`). Metadata holds the fields of the event and of the spans around it,
//! the inner over the outer.

use crate::operations::CORRELATION_ID;
use serde_json::{Map, Value};
use std::fmt;
use std::io::Write;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Writes events as JSON.
pub(crate) struct JsonLog<W> {
    writer: W,
}

impl<W> JsonLog<W> {
    pub fn new(writer: W) -> Self {
        Self { writer }
    }
}

/// The fields of a span or an event.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.insert(field.name().to_owned(), value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }
}

/// The word of a level: those of syslog-like logs, in small letters.
fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The component of a target: `picket_agent::local_api` is `agent.local_api`.
fn component(target: &str) -> String {
    target.strip_prefix("picket_").unwrap_or(target).replace("::", ".")
}

/// One line; the keys in the order people read them.
fn line(target: &str, level: Level, mut fields: Map<String, Value>) -> String {
    let message = fields.remove("message").unwrap_or_else(|| "".into());
    let correlation = fields.remove(CORRELATION_ID).unwrap_or_default();
    // Events of the crate `log` carry their origin in fields.
    let target =
        fields.remove("log.target").and_then(|v| v.as_str().map(component)).unwrap_or_else(|| component(target));
    fields.retain(|name, _| !name.starts_with("log."));
    format!(
        "{{\"timestamp\":\"{:.6}\",\"level\":\"{}\",\"message\":{message},\"correlation_id\":{correlation},\
         \"component\":{},\"metadata\":{}}}\n",
        jiff::Timestamp::now(),
        word(level),
        Value::from(target),
        Value::from(fields),
    )
}

impl<S, W> Layer<S> for JsonLog<W>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        // Where two logs are in this form, the other did the same.
        span.extensions_mut().replace(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flatten().collect::<Vec<_>>().into_iter().rev() {
            if let Some(around) = span.extensions().get::<Fields>() {
                fields.0.extend(around.0.clone());
            }
        }
        event.record(&mut fields);
        let line = line(event.metadata().target(), *event.metadata().level(), fields.0);
        // In one write, so that lines of several threads do not mix; whom could a log that cannot be written tell?
        let _ = self.writer.make_writer().write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(work: impl FnOnce()) -> Vec<Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = JsonLog::new(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let bytes = lines.0.lock().unwrap();
        String::from_utf8_lossy(&bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_has_the_fields_that_were_asked_for_and_no_others() {
        let lines =
            logged(|| tracing::warn!(target: "picket_agent::local_api", port = 9_091, ok = false, "took \"it\"\n"));
        let keys: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["component", "correlation_id", "level", "message", "metadata", "timestamp"]);
        assert_eq!((&lines[0]["level"], &lines[0]["component"]), (&"warning".into(), &"agent.local_api".into()));
        assert_eq!((&lines[0]["message"], &lines[0]["correlation_id"]), (&"took \"it\"\n".into(), &Value::Null));
        assert_eq!(lines[0]["metadata"], serde_json::json!({ "port": 9_091, "ok": false }));
        let timestamp = lines[0]["timestamp"].as_str().unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.parse::<jiff::Timestamp>().is_ok(), "{timestamp}");
    }

    #[test]
    fn a_correlation_id_flows_into_spans_within_and_the_inner_field_wins() {
        let lines = logged(|| {
            let id = "req-1";
            let _request = tracing::info_span!("request", correlation_id = %id, path = "/a", step = 1).entered();
            let inner = tracing::info_span!("inner", step = 2, late = tracing::field::Empty).entered();
            inner.record("late", "yes");
            tracing::info!("first");
            drop(inner);
            tracing::info!(step = 3, "second");
        });
        assert!(lines.iter().all(|line| line["correlation_id"] == "req-1"), "{lines:?}");
        assert_eq!(lines[0]["metadata"], serde_json::json!({ "path": "/a", "step": 2, "late": "yes" }));
        assert_eq!(lines[1]["metadata"], serde_json::json!({ "path": "/a", "step": 3 }));
    }
}
