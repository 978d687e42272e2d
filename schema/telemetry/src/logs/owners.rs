//! Which spans and events are looked at.
//!
//! Invariant: our own spans at error are, whatever the filter in force says. They say whose a line is (a turn's, a request's); a
//! filter that hid them would leave warnings that nobody can assign, and one that is opened while a turn runs would show its
//! lines without its fields.

use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, level_filters::LevelFilter, span};
use tracing_subscriber::layer::{Context, Filter};

/// What the targets of our own programs and libraries begin with.
const OURS: &str = "turnmill";

/// A filter, and owners' spans besides what it lets through. They are at error, the level that a filter hides last.
pub(super) struct AlwaysOwners<F>(pub F);

fn is_owner(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() == Level::ERROR && metadata.target().starts_with(OURS)
}

impl<S, F: Filter<S>> Filter<S> for AlwaysOwners<F> {
    fn enabled(&self, metadata: &Metadata<'_>, cx: &Context<'_, S>) -> bool {
        is_owner(metadata) || self.0.enabled(metadata, cx)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_owner(metadata) { Interest::always() } else { self.0.callsite_enabled(metadata) }
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
