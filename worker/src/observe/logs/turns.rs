//! Which spans and events are looked at.
//!
//! Invariant: turns' spans are, whatever the filter in force says. They say whose a line is; a filter that hid them would
//! leave warnings that nobody can assign, and one that is opened while a turn runs would show its lines without its fields.

use tracing::subscriber::Interest;
use tracing::{Event, Metadata, level_filters::LevelFilter, span};
use tracing_subscriber::layer::{Context, Filter};

/// The name of a turn's span.
const TURN: &str = "turn";

/// A filter, and turns' spans besides what it lets through. They are at error, the level that a filter hides last.
pub(super) struct AlwaysTurns<F>(pub F);

fn is_turn(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.name() == TURN && metadata.target().starts_with("turnmill_worker")
}

impl<S, F: Filter<S>> Filter<S> for AlwaysTurns<F> {
    fn enabled(&self, metadata: &Metadata<'_>, cx: &Context<'_, S>) -> bool {
        is_turn(metadata) || self.0.enabled(metadata, cx)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_turn(metadata) { Interest::always() } else { self.0.callsite_enabled(metadata) }
    }

    fn event_enabled(&self, event: &Event<'_>, cx: &Context<'_, S>) -> bool {
        self.0.event_enabled(event, cx)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.0.max_level_hint().map(|level| level.max(LevelFilter::ERROR))
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, cx: Context<'_, S>) {
        self.0.on_new_span(attributes, id, cx);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, cx: Context<'_, S>) {
        self.0.on_record(id, values, cx);
    }

    fn on_enter(&self, id: &span::Id, cx: Context<'_, S>) {
        self.0.on_enter(id, cx);
    }

    fn on_exit(&self, id: &span::Id, cx: Context<'_, S>) {
        self.0.on_exit(id, cx);
    }

    fn on_close(&self, id: span::Id, cx: Context<'_, S>) {
        self.0.on_close(id, cx);
    }
}
