//! Spans of what is enqueued, exported over OTLP where the standard variables say where; none otherwise.
//!
//! Invariants: a turn carries the context of its own `enqueue` span, whose parent is the context that its caller gave; a
//! receiver that does not answer holds the program's end up by [`LAST_EXPORT`] at most, and never a turn.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as Exporter};
use turnmill_client::PreparedTurn;
use turnmill_client::schema::{QueueName, TraceParent, Turn, TurnId};

/// How long the program's end waits for the last spans.
const LAST_EXPORT: Duration = Duration::from_secs(1);
/// What the service is called unless the variables say otherwise.
const SERVICE: &str = "turnmill";

/// Makes spans, or none.
pub struct Traces(Option<Recorder>);

struct Recorder {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    queue: String,
}

/// The span of a turn on its way into the queue. Dropped before the turn is there, it says that it failed.
pub struct Enqueueing(Option<Span>);

impl Traces {
    /// As the standard variables say; none where they name no receiver, or one that cannot be spoken to.
    pub fn from_environment(queue: &QueueName) -> Self {
        if !is_on() {
            return Self(None);
        }
        // The client may speak TLS, which comes without cryptography.
        turnmill_client::choose_cryptography();
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build();
        let exporter = match exporter {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::warn!(%error, "no spans are exported: correct the OTEL_EXPORTER_OTLP_ variables, or unset them");
                return Self(None);
            }
        };
        let exporter = Telling { inner: exporter, told: AtomicBool::new(false) };
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
        let tracer = provider.tracer("turnmill");
        Self(Some(Recorder { provider, tracer, queue: queue.to_string() }))
    }

    /// Begins a span, whose context the turn carries from now on.
    pub fn enqueue(&self, turn: &mut PreparedTurn) -> Enqueueing {
        Enqueueing(self.0.as_ref().map(|recorder| recorder.begin(turn)))
    }
}

/// Exports, and says once that it cannot.
#[derive(Debug)]
struct Telling {
    inner: SpanExporter,
    told: AtomicBool,
}

impl Exporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.inner.export(batch).await;
        if let Err(error) = &result
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "spans cannot be exported");
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(recorder) = &self.0
            && let Err(error) = recorder.provider.shutdown_with_timeout(LAST_EXPORT)
        {
            tracing::warn!(%error, "spans were not exported");
        }
    }
}

impl Recorder {
    fn begin(&self, prepared: &mut PreparedTurn) -> Span {
        let turn = prepared.turn();
        let agent = turn.agent_id();
        let text = |key: &'static str, value: &dyn ToString| KeyValue::new(key, value.to_string());
        let builder = SpanBuilder::from_name("enqueue").with_kind(SpanKind::Producer).with_attributes([
            KeyValue::new("messaging.system", "turnmill"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("messaging.operation.name", "enqueue"),
            text("messaging.destination.name", &self.queue),
            text("messaging.message.id", &turn.id),
            text("turnmill.turn", &turn.id),
            text("turnmill.agent", &agent.own()),
            text("turnmill.tenant", &turn.tenant),
            text("turnmill.queue", &self.queue),
            text("turnmill.request_id", &turn.request_id()),
        ]);
        let span = self.tracer.build_with_context(builder, &parent(turn));
        let context = span.span_context();
        let (trace, id) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
        if let Some(own) = TraceParent::new(trace, id, context.is_sampled()) {
            prepared.set_trace(own, context.trace_state().header().parse().ok());
        }
        span
    }
}

impl Enqueueing {
    /// The turn is in the queue, under this id: its own, or that of the one enqueued before under its key.
    pub fn enqueued(mut self, turn: TurnId) {
        if let Some(mut span) = self.0.take() {
            span.set_attribute(KeyValue::new("turnmill.enqueued_as", turn.to_string()));
            span.end();
        }
    }
}

impl Drop for Enqueueing {
    fn drop(&mut self) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error("not enqueued"));
        }
    }
}

/// The caller's context; the root if there is none.
fn parent(turn: &Turn) -> Context {
    let Some(parent) = turn.traceparent else { return Context::new() };
    let state = turn.tracestate.as_ref().and_then(|state| state.as_str().parse().ok()).unwrap_or_default();
    let flags = TraceFlags::default().with_sampled(parent.is_sampled());
    let (trace, span) = (TraceId::from_bytes(parent.trace_id()), SpanId::from_bytes(parent.span_id()));
    Context::new().with_remote_span_context(SpanContext::new(trace, span, flags, true, state))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the variables name a receiver that is spoken to. They may be meant for other programs: what does not fit is
/// told and passed over.
fn is_on() -> bool {
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let named = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    let elsewhere = variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter != "otlp");
    if disabled || elsewhere || !named.iter().any(|name| variable(name).is_some()) {
        return false;
    }
    let protocol =
        variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.filter(|protocol| protocol != "http/protobuf") {
        Some(protocol) => {
            tracing::warn!(
                protocol,
                "no spans are exported: of OTLP's protocols only http/protobuf is spoken here"
            );
            false
        }
        None => true,
    }
}

fn resource() -> Resource {
    let given = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || given.split(',').any(|attribute| attribute.trim_start().starts_with("service.name="));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    if is_named { resource.build() } else { resource.with_service_name(SERVICE).build() }
}
