//! Spans to a collector of `OpenTelemetry`, over OTLP/HTTP in protobuf; only in builds with the feature `otel`.
//!
//! The SDK makes batches on a thread of its own; they go out through `picket_transport`, so that there is one TLS stack and
//! one rule for addresses. Bounds: 2,048 spans wait, 512 go in one request, every five seconds or as soon as there are so
//! many; what does not fit is dropped by the SDK. Sent are our own spans of level info and above, and the events in them.

use crate::operations::CORRELATION_ID;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use picket_protocol::TraceContext;
use picket_transport::{Client, Post, SafeUrl, Timeouts, TransportError, UrlError};
use std::fmt;
use std::time::Duration;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// How long one request to the collector may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest answer of a collector that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// How many spans wait at most.
const QUEUE: usize = 2_048;
/// How many go in one request.
const BATCH: usize = 512;
/// How long a span waits at most before it goes.
const DELAY: Duration = Duration::from_secs(5);

/// Where spans go, and whose they are.
#[derive(Debug, Clone)]
pub struct OtlpOptions {
    /// The collector: `https://collector.example.com:4318`, without `v1/traces`.
    pub endpoint: SafeUrl,
    /// `service.name`, for example `picket-agent`.
    pub service: String,
    /// `service.version`.
    pub version: String,
    /// `service.instance.id`: the device's id.
    pub device_id: String,
}

/// The export could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The address does not take a path.
    #[error("cannot use the collector's address")]
    Address(#[from] UrlError),
    /// The exporter refused its options.
    #[error("cannot set up the export of spans")]
    Exporter(#[from] ExporterBuildError),
}

/// Sends spans. Whoever made it stops it.
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// An exporter whose thread runs from now on.
    pub fn new(options: &OtlpOptions) -> Result<Self, OtlpError> {
        let url = options.endpoint.join("v1/traces")?;
        let user_agent = format!("{}/{}", options.service, options.version);
        let timeouts = Timeouts { connect: LIMIT / 2, response: LIMIT, stall: LIMIT };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url.as_uri().to_string())
            .with_timeout(LIMIT)
            .with_http_client(Collector { client: Client::new(&user_agent, timeouts), url })
            .build()?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        // The environment's OTEL_* variables are not ours to read: everything they could set is set here.
        let resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", options.service.clone()),
                KeyValue::new("service.version", options.version.clone()),
                KeyValue::new("service.instance.id", options.device_id.clone()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .build();
        Ok(Self { provider })
    }

    /// The layer that gives it spans.
    pub fn layer<S: Subscriber + for<'s> LookupSpan<'s>>(&self) -> impl Layer<S> + use<S> {
        let ours = |metadata: &Metadata<'_>| metadata.target().starts_with("picket");
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("picket"))
            .with_threads(false)
            .with_location(false)
            .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::INFO))
    }

    /// Sends what waits, for at most `limit`, and ends the thread. Whether all was sent.
    pub fn stop(self, limit: Duration) -> bool {
        self.provider.shutdown_with_timeout(limit).is_ok()
    }
}

/// Makes `span` part of the trace that `trace` names, so that the ids in `traceparent` headers are those that the
/// collector sees.
pub fn adopt(span: &Span, trace: &TraceContext) {
    let context = SpanContext::new(
        TraceId::from(trace.parent.trace_id()),
        SpanId::from(trace.parent.span_id()),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    // It fails where nobody listens, and for a span that has begun: then it has a trace of its own.
    let _ = span.set_parent(Context::new().with_remote_span_context(context));
    span.set_attribute(CORRELATION_ID, trace.correlation_id.to_string());
}

/// The SDK's idea of an HTTP client, over ours.
struct Collector {
    client: Client,
    url: SafeUrl,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Collector({})", self.url)
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    /// Blocks: the SDK calls it on its own thread, which does nothing else.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let post = Post {
            content_type: "application/x-protobuf",
            body: request.body(),
            bearer: None,
            trace: None,
            max_answer: MAX_ANSWER,
            limit: LIMIT,
        };
        match self.client.post(&self.url, &post) {
            Ok(answer) => Ok(Response::new(answer.into())),
            Err(TransportError::Status { status, retry_after, .. }) => {
                let mut response = Response::builder().status(status);
                if let Some(wait) = retry_after {
                    response = response.header("retry-after", wait.as_secs());
                }
                Ok(response.body(Bytes::new())?)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};
    use tracing_subscriber::layer::SubscriberExt;

    const LONG: Duration = Duration::from_secs(30);

    /// A collector that answers each request with 200 and passes on its first line and body.
    fn collector() -> (SafeUrl, Receiver<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(LONG)).unwrap();
                let mut stream = BufReader::new(stream);
                let (mut first, mut length) = (String::new(), 0);
                stream.read_line(&mut first).unwrap();
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).unwrap();
                    let Some((name, value)) = line.trim_end().split_once(": ") else { break };
                    if name.eq_ignore_ascii_case("content-length") {
                        length = value.parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                stream.get_mut().write_all(answer).unwrap();
                sender.send((first.trim_end().to_owned(), body)).unwrap();
            }
        });
        (url, requests)
    }

    #[test]
    fn a_collector_receives_our_spans_in_the_trace_of_their_cause() {
        let (endpoint, requests) = collector();
        let options = OtlpOptions {
            endpoint,
            service: "picket-agent".into(),
            version: "1.0.0".into(),
            device_id: "agent-123".into(),
        };
        let exporter = Exporter::new(&options).unwrap();
        let trace = TraceContext::start();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(exporter.layer()), || {
            let span = tracing::info_span!(target: "picket_agent", "heartbeat", operation = "heartbeat");
            adopt(&span, &trace);
            span.in_scope(|| tracing::error!(target: "picket_agent", "the hub is away"));
            tracing::info_span!(target: "hyper", "foreign").in_scope(|| ());
        });
        assert!(exporter.stop(LONG));
        let (line, body) = requests.recv_timeout(LONG).unwrap();
        assert_eq!(line, "POST /v1/traces HTTP/1.1");
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let resource = &request.resource_spans[0];
        let attributes = format!("{:?}", resource.resource.as_ref().unwrap().attributes);
        assert!(attributes.contains("picket-agent") && attributes.contains("agent-123"), "{attributes}");
        let spans: Vec<_> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
        assert_eq!(spans.len(), 1, "{spans:?}");
        assert_eq!(spans[0].name, "heartbeat");
        assert_eq!(spans[0].trace_id, trace.parent.trace_id().to_be_bytes());
        assert_eq!(spans[0].parent_span_id, trace.parent.span_id().to_be_bytes());
        assert!(spans[0].start_time_unix_nano <= spans[0].end_time_unix_nano);
        let rest = format!("{:?}", spans[0]);
        assert!(rest.contains("the hub is away") && rest.contains(trace.correlation_id.as_str()), "{rest}");
    }
}
