//! Ids of spans: chosen ones, if the next attempt has to find them again, and random ones otherwise.

use std::cell::Cell;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

thread_local! {
    /// What the span that is being made on this thread is given. The SDK asks its generator, and a builder cannot say.
    static CHOSEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Makes a span with the ids given.
pub(super) fn with<T>(ids: (TraceId, SpanId), make: impl FnOnce() -> T) -> T {
    CHOSEN.set(Some(ids));
    let made = make();
    CHOSEN.set(None);
    made
}

/// Gives out the chosen ids, or random ones.
#[derive(Debug, Default)]
pub(super) struct ChosenIds(RandomIdGenerator);

impl IdGenerator for ChosenIds {
    fn new_trace_id(&self) -> TraceId {
        CHOSEN.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        CHOSEN.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}
