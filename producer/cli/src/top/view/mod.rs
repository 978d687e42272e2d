//! Draws the model. Pure: the same model at the same moment gives the same frame.
//!
//! From top to bottom: a line that says how old all this is, queue beside newest ends, workers, running turns, dead
//! letters, and a line of keys or of what was done. One file a pane. Invariants: nothing of the model is hidden by colour
//! alone; text from outside is cut to its column, and control characters in it reach no terminal.

mod dead;
mod ends;
mod layout;
mod overlay;
mod queue;
mod running;
mod table;
mod text;
mod theme;
mod workers;

use std::time::Instant;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::symbols::border;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Widget, Wrap};

use super::model::{Overlay, Pane, Snapshot, State};
use layout::{MIN_HEIGHT, MIN_WIDTH, Places};
use text::{UNKNOWN, fit};
pub use theme::Theme;

/// The line of keys.
const FOOTER: &str = " Tab 1-4 pane  ↑↓ row  c cancel  d drain  r replay  p pause  ? keys  q quit";

/// What a pane needs to draw itself.
#[derive(Clone, Copy)]
struct View<'a> {
    state: &'a State,
    now: Instant,
    theme: Theme,
    /// Somebody may press keys: a cursor is shown, and what the keys are.
    interactive: bool,
}

/// Draws everything into a frame, whatever its size.
pub fn draw(frame: &mut Frame, state: &State, now: Instant, theme: Theme) {
    let view = View { state, now, theme, interactive: true };
    let area = frame.area();
    if area.width < MIN_WIDTH || area.height < MIN_HEIGHT {
        too_small(area, frame.buffer_mut());
    } else {
        view.render(area, frame.buffer_mut());
    }
}

/// The frame as text: as wide as given, as long as it takes, and without keys.
pub fn plain(state: &State, now: Instant, width: u16) -> String {
    let view = View { state, now, theme: Theme::plain(), interactive: false };
    let area = Rect::new(0, 0, width.max(MIN_WIDTH), layout::whole_height(view.wants()));
    let mut buffer = Buffer::empty(area);
    view.render(area, &mut buffer);
    text::lines(&buffer).join("\n").trim_end().to_owned() + "\n"
}

fn too_small(area: Rect, buffer: &mut Buffer) {
    let Rect { width, height, .. } = area;
    let says =
        format!("This terminal has {width} x {height} cells; top needs {MIN_WIDTH} x {MIN_HEIGHT}. q quits.");
    Paragraph::new(says).wrap(Wrap { trim: true }).render(area, buffer);
}

impl View<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let places = Places::of(area, self.wants());
        self.header(places.header, buffer);
        self.queue(places.queue, buffer);
        self.ends(places.ends, buffer);
        self.workers(places.workers, buffer);
        self.running(places.running, buffer);
        self.dead(places.dead, buffer);
        if self.interactive {
            self.footer(places.footer, buffer);
        }
        match &self.state.overlay {
            Overlay::None => {}
            Overlay::Help => overlay::help(self.theme, area, buffer),
            Overlay::Question(question) => overlay::question(question, self.theme, area, buffer),
        }
    }

    /// Rows that workers, running turns and dead letters have.
    fn wants(self) -> [usize; 3] {
        let Some(Snapshot { workers, running, dead, .. }) = self.state.snapshot() else { return [0; 3] };
        [
            workers.as_ref().map_or(0, Vec::len),
            running.as_ref().map_or(0, |running| running.turns.len()),
            dead.as_ref().map_or(0, Vec::len),
        ]
    }

    /// What is shown, of where, and how old it is.
    fn header(self, area: Rect, buffer: &mut Buffer) {
        let State { queue, address, shown, trouble, .. } = self.state;
        let age = shown.as_ref().map(|(_, at)| self.now.saturating_duration_since(*at));
        let age = age.map(|age| text::age(age.as_millis() as u64));
        let (right, style) = match (trouble, age) {
            (None, Some(age)) => (format!("read {age} ago "), self.theme.header()),
            (None, None) => ("reading ".to_owned(), self.theme.header()),
            (Some(_), Some(age)) => {
                (format!("REDIS DOES NOT ANSWER: this is {age} old "), self.theme.alarm())
            }
            (Some(_), None) => ("REDIS DOES NOT ANSWER ".to_owned(), self.theme.alarm()),
        };
        let room = area.width.saturating_sub(text::width(&right) + 1);
        let left = fit(&format!(" turnmill top: queue {queue} at {address}"), room);
        buffer.set_style(area, style);
        Line::styled(left, style).render(area, buffer);
        Line::styled(right, style).right_aligned().render(area, buffer);
    }

    /// What was done, what is wrong, or the keys.
    fn footer(self, area: Rect, buffer: &mut Buffer) {
        let (says, style) = match (self.state.told(self.now), &self.state.trouble) {
            (Some(told), _) if told.failed => (format!(" {}", told.text), self.theme.bad()),
            (Some(told), _) => (format!(" {}", told.text), self.theme.good()),
            (None, Some(trouble)) => (format!(" {trouble}"), self.theme.bad()),
            (None, None) => (FOOTER.to_owned(), self.theme.dim()),
        };
        Line::styled(fit(&says, area.width), style).render(area, buffer);
    }

    /// A pane's rule with its title; the room below it.
    fn pane(self, pane: Pane, title: &str, hint: &str, area: Rect, buffer: &mut Buffer) -> Rect {
        let focused = self.interactive && self.state.focus == pane;
        let place = Pane::ALL.iter().position(|other| *other == pane).unwrap_or_default() + 1;
        let hint = if self.interactive { format!(" {hint} ") } else { String::new() };
        let room = area.width.saturating_sub(text::width(&hint) + 6);
        let title = fit(&format!("{place} {title}"), room);
        let block = self.rule(&title, focused);
        let block =
            if hint.trim().is_empty() { block } else { block.title_top(Line::from(hint).right_aligned()) };
        let inner = block.inner(area);
        block.render(area, buffer);
        inner
    }

    /// A rule with a title: thick where it is focused, so that it is seen without colours.
    fn rule(self, title: &str, focused: bool) -> Block<'static> {
        let (set, style) =
            if focused { (border::THICK, self.theme.focus()) } else { (border::PLAIN, Style::new()) };
        let title = Line::from(vec![
            Span::styled(set.horizontal_top, style),
            Span::styled(format!(" {title} "), self.theme.title(focused)),
        ]);
        Block::new().borders(Borders::TOP).border_set(set).border_style(style).title_top(title)
    }

    /// Whether the pane's cursor is where keys go.
    fn focused(self, pane: Pane) -> bool {
        self.interactive && self.state.focus == pane
    }

    /// A part that cannot be read, and why.
    fn unknown(self, why: &str, area: Rect, buffer: &mut Buffer) {
        let says = format!("{UNKNOWN}: {why}");
        Paragraph::new(says).style(self.theme.bad()).wrap(Wrap { trim: true }).render(area, buffer);
    }

    /// A pane that has no rows.
    fn nothing(self, says: &str, area: Rect, buffer: &mut Buffer) {
        Line::styled(format!("  {says}"), self.theme.dim()).render(area, buffer);
    }
}

#[cfg(test)]
mod tests;
