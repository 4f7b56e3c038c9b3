//! How long operations take and which fail: one layer under all of them, sync or async.
//!
//! An operation is a span with a field `operation`, whose value is its name. Spans without it are context for the log and
//! nothing else: every function that has a span is not something an operator wants to see a histogram of. Its time is from
//! the span's creation to its close, as a caller would measure it, waits included. It failed if an event of level error was
//! recorded in it, outside of any operation within it, or if its field `error` was set:
//!
//! ```
//! let span = tracing::info_span!("heartbeat", operation = "heartbeat", error = tracing::field::Empty);
//! let _entered = span.enter();
//! // … and when it did not work:
//! span.record("error", "the hub answered 503");
//! ```
//!
//! Operations are spans of level info: quieter ones could be filtered away before anybody measures them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The field that makes a span an operation.
pub const OPERATION: &str = "operation";
/// The field that makes an operation a failure.
pub const ERROR: &str = "error";
/// The field that correlates: see `picket_protocol::trace`.
pub const CORRELATION_ID: &str = "correlation_id";
/// The fields that are labels of well-known histograms.
const LABELS: [&str; 2] = ["type", "endpoint"];
/// The longest text of a field that is kept, in characters.
const MAX_TEXT: usize = 200;

/// One operation that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationRecord {
    /// Its name: the value of the field `operation`.
    pub name: String,
    /// How long it took, from the span's creation to its close.
    pub duration: Duration,
    /// Whether no error was recorded.
    pub success: bool,
    /// The first error that was recorded.
    pub error: Option<String>,
    /// Its fields `type` and `endpoint`, where it has them.
    pub labels: Vec<(&'static str, String)>,
    /// Its own correlation id, or that of the operation around it.
    pub correlation_id: Option<String>,
}

/// Where operations are told when they are over. It is called on the thread that closed the span, whatever locks that
/// holds: it should hand the record on and return.
pub type OperationSink = Arc<dyn Fn(&OperationRecord) + Send + Sync>;

/// The layer that measures; see the module.
struct OperationLayer {
    sink: OperationSink,
}

/// What is kept in a span while it is open.
struct Open {
    began: Instant,
    name: String,
    failed: bool,
    error: Option<String>,
    labels: Vec<(&'static str, String)>,
    correlation_id: Option<String>,
}

/// Whether a span has the field `operation` or `correlation_id`, so that logs must know it at every level.
pub(crate) fn is_context(metadata: &Metadata<'_>) -> bool {
    let fields = metadata.fields();
    metadata.is_span() && (fields.field(OPERATION).is_some() || fields.field(CORRELATION_ID).is_some())
}

/// The layer, with the filter that lets it see operations and errors and nothing else.
pub fn layer<S: Subscriber + for<'s> LookupSpan<'s>>(sink: OperationSink) -> impl Layer<S> {
    let concerns = |metadata: &Metadata<'_>| {
        if metadata.is_span() {
            metadata.fields().field(OPERATION).is_some()
        } else {
            *metadata.level() == Level::ERROR
        }
    };
    OperationLayer { sink }.with_filter(filter_fn(concerns).with_max_level_hint(LevelFilter::INFO))
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for OperationLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let around = span.parent().and_then(|parent| parent.extensions().get::<Open>()?.correlation_id.clone());
        let mut open = Open {
            began: Instant::now(),
            name: String::new(),
            failed: false,
            error: None,
            labels: Vec::new(),
            correlation_id: around,
        };
        attributes.record(&mut open);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(open);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // The filter shows this layer no other spans, so the innermost is the innermost operation.
        let Some(span) = context.event_span(event) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            open.failed = true;
            if open.error.is_none() {
                let mut message = Message(None);
                event.record(&mut message);
                open.error = message.0;
            }
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let open = context.span(&id).and_then(|span| span.extensions_mut().remove::<Open>());
        let Some(open) = open.filter(|open| !open.name.is_empty()) else { return };
        (self.sink)(&OperationRecord {
            name: open.name,
            duration: open.began.elapsed(),
            success: !open.failed,
            error: open.error,
            labels: open.labels,
            correlation_id: open.correlation_id,
        });
    }
}

fn text(value: &dyn fmt::Debug) -> String {
    format!("{value:?}").chars().take(MAX_TEXT).collect()
}

impl Open {
    fn set(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            OPERATION => self.name = text(value),
            CORRELATION_ID => self.correlation_id = Some(text(value)),
            ERROR => {
                self.failed = true;
                self.error.get_or_insert_with(|| text(value));
            }
            name => {
                if let Some(label) = LABELS.iter().find(|label| **label == name) {
                    self.labels.retain(|(known, _)| known != label);
                    self.labels.push((label, text(value)));
                }
            }
        }
    }
}

impl Visit for Open {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.set(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, value);
    }
}

/// The message of an event.
struct Message(Option<String>);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = Some(text(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::sync::Mutex;
    use std::task::{Poll, Waker};
    use tracing::Instrument;
    use tracing_subscriber::layer::SubscriberExt;

    /// What `work` reports.
    fn records(work: impl FnOnce()) -> Vec<OperationRecord> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let layer = layer(Arc::new(move |record| sink.lock().unwrap().push(record.clone())));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        seen.lock().unwrap().drain(..).collect()
    }

    #[test]
    fn an_operation_is_a_span_that_says_so_and_others_are_none() {
        let records = records(|| {
            let _plain = tracing::info_span!("function").entered();
            let _operation =
                tracing::info_span!("job", operation = "job_execution", r#type = "exec", secret = "x").entered();
            tracing::warn!("not nice, but no error");
        });
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].name.as_str(), records[0].success), ("job_execution", true));
        assert_eq!(records[0].labels, [("type", "exec".to_owned())]);
    }

    #[test]
    fn an_error_inside_fails_the_innermost_operation_only() {
        let records = records(|| {
            let outer = tracing::info_span!("outer", operation = "outer", correlation_id = "c-1").entered();
            {
                let _inner = tracing::info_span!("inner", operation = "inner").entered();
                let _function = tracing::info_span!("function").entered();
                tracing::error!(code = 7, "the disk is full");
                tracing::error!("and another");
            }
            drop(outer);
        });
        let told: Vec<_> = records.iter().map(|r| (r.name.as_str(), r.success, r.error.as_deref())).collect();
        assert_eq!(told, [("inner", false, Some("the disk is full")), ("outer", true, None)]);
        assert_eq!(records[0].correlation_id.as_deref(), Some("c-1"));
    }

    #[test]
    fn an_error_that_is_recorded_in_the_span_fails_it() {
        let records = records(|| {
            let span = tracing::info_span!("x", operation = "x", error = tracing::field::Empty);
            span.record("error", "refused");
        });
        assert_eq!((records[0].success, records[0].error.as_deref()), (false, Some("refused")));
    }

    #[test]
    fn an_async_operation_is_measured_with_its_waits() {
        let wait = Duration::from_millis(20);
        let records = records(|| {
            let span = tracing::info_span!("async", operation = "async");
            let began = Instant::now();
            // Ready once the time has passed, however often it is asked.
            let work = std::future::poll_fn(|_| if began.elapsed() >= wait { Poll::Ready(()) } else { Poll::Pending });
            let mut work = Box::pin(work.instrument(span));
            let mut context = std::task::Context::from_waker(Waker::noop());
            while work.as_mut().poll(&mut context).is_pending() {
                std::thread::yield_now();
            }
        });
        assert_eq!(records.len(), 1);
        assert!(records[0].duration >= wait, "{:?}", records[0].duration);
    }
}
