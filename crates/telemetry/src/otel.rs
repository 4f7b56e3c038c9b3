//! Spans to a collector of `OpenTelemetry`, over OTLP/HTTP in protobuf; only in builds with the feature `otel`.
//!
//! The SDK makes batches on a thread of its own; they go out through `picket_transport`, so that there is one TLS stack and
//! one rule for addresses. Bounds: 2,048 spans wait, 512 go in one request, every five seconds or as soon as there are so
//! many (both can be set but the numbers); what does not fit is dropped by the SDK. What a collector does not take is told
//! once in the log until it takes again. Sent are our own spans of level info and above, and the events in them.

use crate::export::OtlpSettings;
use crate::operations::CORRELATION_ID;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use picket_protocol::TraceContext;
use picket_transport::{Client, Network, Post, SafeUrl, Timeouts, TransportError, UrlError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// The longest answer of a collector that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// How many spans wait at most.
const QUEUE: usize = 2_048;
/// How many go in one request.
const BATCH: usize = 512;
/// The largest file of headers, in bytes.
const MAX_HEADERS_BYTES: u64 = 8 << 10;
/// The most headers in it.
const MAX_HEADERS: usize = 16;

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
    /// A file of headers for each request, `Name: value` a line.
    pub headers_file: Option<PathBuf>,
    /// How long a span waits at most before it goes.
    pub interval: Duration,
    /// How long one request may take.
    pub timeout: Duration,
    /// How the collector is reached.
    pub network: Network,
}

impl OtlpOptions {
    /// What the settings ask for; `None` where nothing is to be sent.
    ///
    /// # Errors
    /// When the collector's address cannot be used.
    pub fn of(
        settings: &OtlpSettings,
        service: &str,
        version: &str,
        device_id: &str,
        network: Network,
    ) -> Result<Option<Self>, OtlpError> {
        let Some(endpoint) = &settings.endpoint else { return Ok(None) };
        Ok(Some(Self {
            endpoint: endpoint.parse()?,
            service: service.to_owned(),
            version: version.to_owned(),
            device_id: device_id.to_owned(),
            headers_file: settings.headers_file.as_ref().map(PathBuf::from),
            interval: settings.interval.get(),
            timeout: settings.timeout.get(),
            network,
        }))
    }
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
        let limit = options.timeout;
        let timeouts = Timeouts { connect: limit / 2, response: limit, stall: limit };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url.as_uri().to_string())
            .with_timeout(limit)
            .with_http_client(Collector {
                client: Client::new(&user_agent, timeouts, &options.network),
                url,
                headers_file: options.headers_file.clone(),
                limit,
                away: AtomicBool::new(false),
            })
            .build()?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(options.interval)
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
        let ours =
            |metadata: &Metadata<'_>| metadata.target().starts_with("picket") && *metadata.level() <= Level::INFO;
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
    headers_file: Option<PathBuf>,
    limit: Duration,
    /// Whether the log was told that it takes nothing.
    away: AtomicBool,
}

impl Collector {
    /// Sends one request. The file of headers is read anew: a token that was changed holds at once.
    fn send(&self, body: &[u8]) -> Result<Response<Bytes>, HttpError> {
        let headers = self.headers_file.as_deref().map(read_headers).transpose()?.unwrap_or_default();
        let post = Post {
            content_type: "application/x-protobuf",
            body,
            bearer: None,
            headers: &headers,
            trace: None,
            max_answer: MAX_ANSWER,
            limit: self.limit,
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

    /// Tells the log once that it takes nothing, and once that it takes again: the SDK tells nobody.
    fn tell(&self, answer: &Result<Response<Bytes>, HttpError>) {
        let why = match answer {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        let away = self.away.swap(why.is_some(), Ordering::Relaxed);
        match why {
            Some(why) if !away => tracing::warn!(collector = %self.url, why, "spans cannot be sent and are lost"),
            None if away => tracing::info!(collector = %self.url, "takes spans again"),
            _ => {}
        }
    }
}

/// The headers of a file. No error shows what is in it.
fn read_headers(path: &Path) -> Result<Vec<(String, String)>, HttpError> {
    let text = picket_durable::read_text(path, MAX_HEADERS_BYTES)?;
    parse_headers(&text).map_err(|line| format!("{}:{line}: expected `Name: value`", path.display()).into())
}

/// `Name: value` a line (RFC 9110 §5.1, §5.5: a token, and visible characters), empty lines left out, at most
/// [`MAX_HEADERS`]. The error is the number of the line that is none.
fn parse_headers(text: &str) -> Result<Vec<(String, String)>, usize> {
    let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
    let mut headers = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let header = line.split_once(':').map(|(name, value)| (name.trim(), value.trim()));
        let header = header.filter(|(name, value)| {
            let visible = value.bytes().all(|c| c == b' ' || c == b'\t' || c.is_ascii_graphic());
            !name.is_empty() && name.bytes().all(token) && visible && headers.len() < MAX_HEADERS
        });
        let (name, value) = header.ok_or(index + 1)?;
        headers.push((name.to_owned(), value.to_owned()));
    }
    Ok(headers)
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
        let answer = self.send(request.body());
        self.tell(&answer);
        answer
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

    /// A collector that answers each request with 200 and passes on its header and body.
    fn collector() -> (SafeUrl, Receiver<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(LONG)).unwrap();
                let mut stream = BufReader::new(stream);
                let (mut header, mut length) = (String::new(), 0);
                while !header.ends_with("\r\n\r\n") {
                    let from = header.len();
                    stream.read_line(&mut header).unwrap();
                    let line = header[from..].to_ascii_lowercase();
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.trim_end().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                stream.get_mut().write_all(answer).unwrap();
                sender.send((header, body)).unwrap();
            }
        });
        (url, requests)
    }

    #[test]
    fn a_collector_receives_our_spans_in_the_trace_of_their_cause() {
        let (endpoint, requests) = collector();
        let dir = tempfile::tempdir().unwrap();
        let headers_file = dir.path().join("headers");
        picket_durable::write_atomic(&headers_file, b"X-Api-Key: s3cret\n\n", 0o600).unwrap();
        let settings = OtlpSettings {
            endpoint: Some(endpoint.to_string()),
            headers_file: Some(headers_file.to_str().unwrap().to_owned()),
            ..OtlpSettings::default()
        };
        let options =
            OtlpOptions::of(&settings, "picket-agent", "1.0.0", "agent-123", Network::default()).unwrap().unwrap();
        let exporter = Exporter::new(&options).unwrap();
        let trace = TraceContext::start();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(exporter.layer()), || {
            let span = tracing::info_span!(target: "picket_agent", "heartbeat", operation = "heartbeat");
            adopt(&span, &trace);
            span.in_scope(|| tracing::error!(target: "picket_agent", "the hub is away"));
            tracing::info_span!(target: "hyper", "foreign").in_scope(|| ());
        });
        assert!(exporter.stop(LONG));
        let (header, body) = requests.recv_timeout(LONG).unwrap();
        assert!(header.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{header}");
        assert!(header.to_ascii_lowercase().contains("x-api-key: s3cret\r\n"), "{header}");
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

    #[test]
    fn headers_are_a_name_and_a_value_a_line_and_nothing_that_could_forge_another() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            parse_headers("Authorization: Bearer a:b\r\n\n x-scope:  team one \n"),
            Ok(vec![pair("Authorization", "Bearer a:b"), pair("x-scope", "team one")])
        );
        for (text, line) in [("no header", 1), ("a: b\n: c", 2), ("a b: c", 1), ("a: \u{7}", 1), ("a: ä", 1)] {
            assert_eq!(parse_headers(text), Err(line), "{text:?}");
        }
        assert_eq!(parse_headers(&"a: b\n".repeat(MAX_HEADERS + 1)), Err(MAX_HEADERS + 1));
        assert!(read_headers(Path::new("/nonexistent")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_of_headers_makes_it_panic(text in ".{0,200}") {
            let _ = parse_headers(&text);
        }
    }
}
