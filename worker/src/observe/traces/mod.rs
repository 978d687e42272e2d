//! Spans of turns, exported over OTLP to a collector of traces. Off unless a setting or the standard variables say where.
//!
//! Invariants: a receiver that is slow, dead or wrong costs no turn anything: spans wait in a bounded queue, what does not
//! fit or cannot be sent is dropped and counted, and the end of the worker waits for it `LAST_EXPORT` at most; it is
//! logged once an episode. `docs/adr/0018` says why the context travels as it does.
//!
//! | file | owns |
//! |---|---|
//! | `export` | the bound and the counts around the SDK's batches |
//! | `ids` | ids that a span has to have |

mod export;
mod ids;

use std::env;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{SpanBuilder, SpanId, TraceId, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span, SpanExporter,
};
use tracing::{info, warn};

use self::export::{Bounded, Counted, Room};
use self::ids::ChosenIds;
use super::ObserveError;
use crate::config::Settings;
use crate::cryptography;

/// How long the end of the worker waits for the last spans.
const LAST_EXPORT: Duration = Duration::from_secs(1);
/// Spans that wait at most, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise; the specification's number.
const QUEUE_SPANS: usize = 2048;
/// What the service is called unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says otherwise.
const SERVICE: &str = "turnmill-worker";

/// Makes spans, or none if traces are off. Clones make the same.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    room: Arc<Room>,
    queue: String,
}

impl Traces {
    /// No spans.
    pub fn off() -> Self {
        Self::default()
    }

    /// Spans go where `settings` or the environment say; off if neither does.
    pub fn start(settings: &Settings) -> Result<Self, ObserveError> {
        let Some(endpoint) = endpoint(settings) else { return Ok(Self::off()) };
        // The client may speak TLS.
        cryptography::choose();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_retry_policy(opentelemetry_otlp::RetryPolicy::recommended())
            .build()?;
        info!("spans are exported over OTLP");
        let resource = resource(&settings.worker_name.consumer_id());
        Ok(Self::with_exporter(exporter, resource, settings.queue.as_str(), queue_spans()))
    }

    /// Spans go to `exporter`; `limit` of them wait at most.
    fn with_exporter(
        exporter: impl SpanExporter + 'static,
        resource: Resource,
        queue: &str,
        limit: usize,
    ) -> Self {
        let room = Arc::new(Room::new(limit));
        // Its own queue is as long, so that it never drops what ours let in.
        let batches = BatchConfigBuilder::default().with_max_queue_size(limit).build();
        let counted = Counted::new(exporter, room.clone());
        let processor = BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded::new(processor, room.clone()))
            .with_id_generator(ChosenIds::default())
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("turnmill");
        Self(Some(Arc::new(Recorder { provider, tracer, room, queue: queue.to_owned() })))
    }

    /// Exports what waits, for `LAST_EXPORT` at most, and nothing after that. Blocks.
    pub fn shutdown(&self) {
        let Some(recorder) = &self.0 else { return };
        // An error says that the last batch was not sent, or not yet; it is counted like any other.
        let _ = recorder.provider.shutdown_with_timeout(LAST_EXPORT);
        recorder.room.abandon();
    }

    /// The queue that spans are about; none if traces are off.
    pub(super) fn queue(&self) -> Option<&str> {
        self.0.as_deref().map(|recorder| recorder.queue.as_str())
    }

    /// Starts a span; none if traces are off. `ids`: those that it has to have, of which the trace's counts where `parent`
    /// has none.
    pub(super) fn span(
        &self,
        span: SpanBuilder,
        parent: &Context,
        ids: Option<(TraceId, SpanId)>,
    ) -> Option<Span> {
        let tracer = &self.0.as_deref()?.tracer;
        let build = || tracer.build_with_context(span, parent);
        Some(match ids {
            Some(ids) => ids::with(ids, build),
            None => build(),
        })
    }
}

/// Where spans are posted; none if traces are off.
fn endpoint(settings: &Settings) -> Option<String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    if let Some(url) = &settings.otlp_endpoint {
        return Some(url.traces());
    }
    // A signal's own endpoint is used as it is; the common one is a base.
    let common = || {
        variable("OTEL_EXPORTER_OTLP_ENDPOINT").map(|url| format!("{}/v1/traces", url.trim_end_matches('/')))
    };
    let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(common)?;
    if variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter != "otlp") {
        return None;
    }
    let protocol =
        variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.filter(|protocol| protocol != "http/protobuf") {
        Some(protocol) => {
            warn!(
                protocol,
                "no spans are exported: of OTLP's protocols only http/protobuf is spoken here; set \
                 OTEL_EXPORTER_OTLP_TRACES_PROTOCOL and the port that goes with it"
            );
            None
        }
        None => Some(endpoint),
    }
}

fn queue_spans() -> usize {
    let given = env::var("OTEL_BSP_MAX_QUEUE_SIZE").ok().and_then(|size| size.parse().ok());
    given.filter(|size| *size > 0).unwrap_or(QUEUE_SPANS)
}

/// Who sends the spans.
fn resource(worker: &str) -> Resource {
    let given = env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || given.split(',').any(|attribute| attribute.trim_start().starts_with("service.name="));
    let resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", worker.to_owned()),
    ]);
    if is_named { resource.build() } else { resource.with_service_name(SERVICE).build() }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::SpanData;

    use super::*;

    /// Keeps what it is given.
    #[derive(Clone, Debug, Default)]
    pub struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().expect("no test panics while it writes").extend(batch);
            Ok(())
        }
    }

    /// The spans that `record` ends.
    pub fn recorded(record: impl FnOnce(&Traces)) -> Vec<SpanData> {
        let kept = Kept::default();
        let traces = Traces::with_exporter(kept.clone(), Resource::builder_empty().build(), "q", 100);
        record(&traces);
        traces.shutdown();
        kept.0.lock().expect("no test panics while it writes").clone()
    }

    #[test]
    fn spans_are_exported_until_the_end_and_dropped_after_it() {
        let spans = recorded(|traces| {
            drop(traces.span(SpanBuilder::from_name("one"), &Context::new(), None));
            traces.shutdown();
            drop(traces.span(SpanBuilder::from_name("late"), &Context::new(), None));
        });
        assert_eq!(spans.iter().map(|span| span.name.as_ref()).collect::<Vec<_>>(), ["one"]);
        assert!(Traces::off().span(SpanBuilder::from_name("x"), &Context::new(), None).is_none());
        Traces::off().shutdown();
    }
}
