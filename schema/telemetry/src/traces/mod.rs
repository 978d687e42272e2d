//! Spans, exported over OTLP to a collector of traces. Off unless a setting or the standard variables say where.
//!
//! Invariants: a receiver that is slow, dead or wrong costs the program's work nothing: spans wait in a bounded queue, what does
//! not fit or cannot be sent is dropped and counted, and the end of the program waits for it `LAST_EXPORT` at most; it is
//! logged once an episode. `docs/adr/0018` says why the context travels as it does.
//!
//! | file | owns |
//! |---|---|
//! | `otlp_url` | the setting: where spans go |
//! | `dropped` | the metric of spans that were not exported |
//! | `export` | the bound and the counts around the SDK's batches |
//! | `ids` | ids that a span has to have |

mod dropped;
mod export;
mod ids;
mod otlp_url;

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

pub use self::dropped::METRICS;
use self::export::{Bounded, Counted, Room};
use self::ids::ChosenIds;
pub use self::otlp_url::OtlpUrl;
use crate::{Program, TelemetryError};

/// How long the end of the program waits for the last spans.
const LAST_EXPORT: Duration = Duration::from_secs(1);
/// Spans that wait at most, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise; the specification's number.
const QUEUE_SPANS: usize = 2048;

/// Makes spans, or none if traces are off. Clones make the same.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    room: Arc<Room>,
}

impl Traces {
    /// No spans.
    pub fn off() -> Self {
        Self::default()
    }

    /// Spans go where `endpoint`, a setting, or the environment says; off if neither does. `instance` is this process among
    /// others of the program: `service.instance.id`.
    ///
    /// The exporter's client may speak TLS, which comes without cryptography: choose one for the process before (rustls'
    /// `CryptoProvider::install_default`).
    ///
    /// # Errors
    /// The endpoint or one of the standard variables cannot be used.
    ///
    /// # Panics
    /// No cryptography was chosen, and spans are on.
    pub fn start(
        program: &Program,
        endpoint: Option<&OtlpUrl>,
        instance: &str,
    ) -> Result<Self, TelemetryError> {
        let Some(endpoint) = where_to(endpoint) else { return Ok(Self::off()) };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_retry_policy(opentelemetry_otlp::RetryPolicy::recommended())
            .build()?;
        info!("spans are exported over OTLP");
        Ok(Self::with_exporter(exporter, resource(program, instance), queue_spans()))
    }

    /// Spans of `resource` go to `exporter`; `limit` of them wait at most.
    pub fn with_exporter(exporter: impl SpanExporter + 'static, resource: Resource, limit: usize) -> Self {
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
        Self(Some(Arc::new(Recorder { provider, tracer, room })))
    }

    /// Exports what waits, for `LAST_EXPORT` at most, and nothing after that. Blocks.
    pub fn shutdown(&self) {
        let Some(recorder) = &self.0 else { return };
        // An error says that the last batch was not sent, or not yet; it is counted like any other.
        let _ = recorder.provider.shutdown_with_timeout(LAST_EXPORT);
        recorder.room.abandon();
    }

    /// Whether spans are made.
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Starts a span; none if traces are off. `ids`: those that it has to have; the trace's counts only if `parent` has
    /// none.
    pub fn span(&self, span: SpanBuilder, parent: &Context, ids: Option<(TraceId, SpanId)>) -> Option<Span> {
        let tracer = &self.0.as_deref()?.tracer;
        let build = || tracer.build_with_context(span, parent);
        Some(match ids {
            Some(ids) => ids::with(ids, build),
            None => build(),
        })
    }
}

/// Where spans are posted; none if traces are off.
fn where_to(setting: Option<&OtlpUrl>) -> Option<String> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    if let Some(url) = setting {
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

/// Who sends the spans: the program, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` names another service.
fn resource(program: &Program, instance: &str) -> Resource {
    let given = env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || given.split(',').any(|attribute| attribute.trim_start().starts_with("service.name="));
    let resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", program.version),
        KeyValue::new("service.instance.id", instance.to_owned()),
    ]);
    if is_named { resource.build() } else { resource.with_service_name(program.name).build() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::SpanData;

    use super::*;

    /// Keeps what it is given.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().expect("no test panics while it writes").extend(batch);
            Ok(())
        }
    }

    /// The spans that `record` ends.
    fn recorded(record: impl FnOnce(&Traces)) -> Vec<SpanData> {
        let kept = Kept::default();
        let traces = Traces::with_exporter(kept.clone(), Resource::builder_empty().build(), 100);
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
        assert!(!Traces::off().are_on());
        assert!(Traces::off().span(SpanBuilder::from_name("x"), &Context::new(), None).is_none());
        Traces::off().shutdown();
    }
}
