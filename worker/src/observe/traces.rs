//! Spans of turns, made by [`turnmill_telemetry::traces`], and the queue that they are about.

use std::sync::Arc;

use opentelemetry::Context;
use opentelemetry::trace::{SpanBuilder, SpanId, TraceId};
use opentelemetry_sdk::trace::Span;
use turnmill_telemetry::TelemetryError;
use turnmill_telemetry::traces::Traces as Spans;

use crate::config::Settings;
use crate::{PROGRAM, cryptography};

/// Makes spans of a queue's turns, or none if traces are off. Clones make the same.
#[derive(Clone, Debug)]
pub struct Traces {
    spans: Spans,
    queue: Arc<str>,
}

impl Traces {
    /// No spans.
    pub fn off() -> Self {
        Self::of(Spans::off(), "")
    }

    /// Spans go where `settings` or the environment say; off if neither does.
    ///
    /// # Errors
    /// They cannot be exported there.
    pub fn start(settings: &Settings) -> Result<Self, TelemetryError> {
        // The exporter's client may speak TLS.
        cryptography::choose();
        let instance = settings.worker_name.consumer_id();
        let spans = Spans::start(&PROGRAM, settings.otlp_endpoint.as_ref(), &instance)?;
        Ok(Self::of(spans, settings.queue.as_str()))
    }

    fn of(spans: Spans, queue: &str) -> Self {
        Self { spans, queue: queue.into() }
    }

    /// Exports what waits, for a second at most, and nothing after that. Blocks.
    pub fn shutdown(&self) {
        self.spans.shutdown();
    }

    /// The queue that spans are about; none if traces are off.
    pub(super) fn queue(&self) -> Option<&str> {
        self.spans.are_on().then_some(&self.queue)
    }

    /// Starts a span; none if traces are off. `ids`: those that it has to have; the trace's counts only if `parent` has none.
    pub(super) fn span(
        &self,
        span: SpanBuilder,
        parent: &Context,
        ids: Option<(TraceId, SpanId)>,
    ) -> Option<Span> {
        self.spans.span(span, parent, ids)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SpanData, SpanExporter};
    use std::sync::Mutex;

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
    pub fn recorded(record: impl FnOnce(&Traces)) -> Vec<SpanData> {
        let kept = Kept::default();
        let spans = Spans::with_exporter(kept.clone(), Resource::builder_empty().build(), 100);
        let traces = Traces::of(spans, "q");
        record(&traces);
        traces.shutdown();
        kept.0.lock().expect("no test panics while it writes").clone()
    }
}
