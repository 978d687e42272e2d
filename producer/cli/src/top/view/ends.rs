//! How the newest turns ended, how much of their prompts was cached, and how many ended each second.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Sparkline, Widget};

use super::super::model::Ends;
use super::View;
use super::text::{UNKNOWN, percent, rate};

/// The shorter of the two spans that cached shares are of.
const LATELY_MS: u64 = 60_000;
/// Where a second is not known.
const NOT_WATCHED: &str = "·";
/// Columns from which on both shares are shown.
const WIDE: u16 = 48;

impl View<'_> {
    pub(super) fn ends(self, area: Rect, buffer: &mut Buffer) {
        let ends = &self.state.ends;
        let title = match ends.count() {
            Some(count) => format!("Newest {count} ends"),
            None => format!("Newest ends: {UNKNOWN}"),
        };
        let block = self.rule(&title, false);
        let inner = block.inner(area);
        block.render(area, buffer);
        if let Some(Err(why)) = self.state.snapshot().map(|snapshot| &snapshot.ends) {
            return self.unknown(why, inner, buffer);
        }
        let [texts, bars] = Layout::vertical([Constraint::Length(4), Constraint::Length(1)]).areas(inner);
        Paragraph::new(texts_of(ends, inner.width).map(Line::raw).to_vec()).render(texts, buffer);
        Sparkline::default()
            .data(ends.per_second(bars.width.into()))
            .absent_value_symbol(NOT_WATCHED)
            .style(self.theme.good())
            .absent_value_style(self.theme.dim())
            .render(bars, buffer);
    }
}

fn texts_of(ends: &Ends, width: u16) -> [String; 4] {
    let outcomes = ends.outcomes();
    let [first, second] = match outcomes {
        Some([completed, failed, cancelled, expired]) => [
            format!("{completed} completed, {failed} failed"),
            format!("{cancelled} cancelled, {expired} expired"),
        ],
        None => [UNKNOWN.to_owned(), String::new()],
    };
    let mut cached = format!("prompts cached: {}", percent(ends.cached_share(None)));
    if width >= WIDE {
        cached += &format!(", {} in the last minute", percent(ends.cached_share(Some(LATELY_MS))));
    }
    [first, second, cached, format!("ended/s: {}", rate(ends.pace()))]
}
