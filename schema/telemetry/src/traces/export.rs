//! Around the SDK's batches: a bound whose overflow is counted, and failures that are counted and told once.
//!
//! The SDK's own processor drops spans without telling how many until its end, and says of a dead receiver something at
//! every batch. So what it may hold is decided before it ([`Bounded`]), and what came of it is noted behind it
//! ([`Counted`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tracing::{info, warn};

use super::dropped::{EXPORT_FAILED, QUEUE_FULL, spans_dropped};

/// Spans between their end and their export.
#[derive(Debug)]
pub(super) struct Room {
    waiting: AtomicUsize,
    limit: usize,
    /// The last export failed.
    fails: AtomicBool,
}

impl Room {
    pub fn new(limit: usize) -> Self {
        Self { waiting: AtomicUsize::new(0), limit, fails: AtomicBool::new(false) }
    }

    /// A place for a span. False: there is none, and the span is counted as dropped.
    fn take(&self) -> bool {
        let fits = |waiting: usize| (waiting < self.limit).then_some(waiting + 1);
        let taken = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if !taken {
            spans_dropped(QUEUE_FULL, 1);
        }
        taken
    }

    /// `count` spans were exported, or not.
    fn exported(&self, count: usize, result: &OTelSdkResult) {
        // After `abandon` they are counted already.
        let left = |waiting: usize| waiting.checked_sub(count);
        let ours = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok();
        match result {
            Ok(()) if self.fails.swap(false, Ordering::Relaxed) => info!("spans are exported again"),
            Ok(()) => {}
            Err(error) => {
                if ours {
                    spans_dropped(EXPORT_FAILED, count);
                }
                if !self.fails.swap(true, Ordering::Relaxed) {
                    warn!(%error, "spans cannot be exported; they are dropped and counted until they can");
                }
            }
        }
    }

    /// Nothing is exported any more.
    pub fn abandon(&self) {
        match self.waiting.swap(0, Ordering::Relaxed) {
            0 => {}
            left => spans_dropped(EXPORT_FAILED, left),
        }
    }
}

/// Lets a span through to `inner` if there is room for it.
#[derive(Debug)]
pub(super) struct Bounded<P> {
    inner: P,
    room: Arc<Room>,
}

impl<P> Bounded<P> {
    pub fn new(inner: P, room: Arc<Room>) -> Self {
        Self { inner, room }
    }
}

impl<P: SpanProcessor> SpanProcessor for Bounded<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.inner.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.room.take() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Exports, and notes what came of it.
#[derive(Debug)]
pub(super) struct Counted<E> {
    inner: E,
    room: Arc<Room>,
}

impl<E> Counted<E> {
    pub fn new(inner: E, room: Arc<Room>) -> Self {
        Self { inner, room }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.inner.export(batch).await;
        self.room.exported(count, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;
    use crate::logs::LogFormat;
    use crate::logs::tests::written;
    use crate::metrics::tests::recorded;

    /// Keeps nothing and never exports: what was let through stays waiting.
    #[derive(Debug)]
    struct Stuck;

    impl SpanProcessor for Stuck {
        fn on_start(&self, _: &mut Span, _: &Context) {}
        fn on_end(&self, _: SpanData) {}
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    fn dropped(text: &str, reason: &str) -> String {
        let start = format!("turnmill_spans_dropped_total{{reason=\"{reason}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).expect("it is announced").to_owned()
    }

    #[test]
    fn what_does_not_fit_is_counted_and_what_never_left_too() {
        let room = Arc::new(Room::new(2));
        let text = recorded(|| {
            let bounded = Bounded::new(Stuck, room.clone());
            let provider = SdkTracerProvider::builder().with_span_processor(bounded).build();
            (0..5).for_each(|_| drop(provider.tracer("t").start("s")));
            room.abandon();
            room.exported(2, &Err(OTelSdkError::AlreadyShutdown));
        })
        .render();
        assert_eq!((dropped(&text, QUEUE_FULL), dropped(&text, EXPORT_FAILED)), ("3".into(), "2".into()));
    }

    #[test]
    fn failures_are_counted_each_and_told_once_an_episode() {
        let room = Room::new(100);
        let failed = || Err(OTelSdkError::InternalFailure("refused".into()));
        let mut text = String::new();
        let lines = written(LogFormat::Json, "info", false, |_| {
            text = recorded(|| {
                (0..20).for_each(|_| assert!(room.take()));
                for result in [failed(), failed(), Ok(()), Ok(()), failed()] {
                    room.exported(3, &result);
                }
            })
            .render();
        });
        assert_eq!(dropped(&text, EXPORT_FAILED), "9");
        let levels: Vec<_> = lines.json().iter().map(|line| line["level"].clone()).collect();
        assert_eq!(levels, ["WARN", "INFO", "WARN"], "{}", lines.text());
    }
}
