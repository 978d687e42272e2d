//! What lies over the panes: a question, or the keys.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph, Widget};

use super::super::keys::KEYS;
use super::super::model::Question;
use super::text::fit;
use super::theme::Theme;

/// Columns of a box: a turn's id and what stands before it, and the longest line of the help.
const WIDTH: u16 = 76;

/// A question with its answers.
pub fn question(question: &Question, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut lines: Vec<String> = question.about.clone();
    lines.push(String::new());
    lines.push("y  yes      n  no".to_owned());
    boxed(&question.title, lines, theme, area, buffer);
}

/// The keys.
pub fn help(theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut lines: Vec<String> = KEYS.iter().map(|(key, does)| format!("{key:<25}{does}")).collect();
    lines.push(String::new());
    lines.push("Any key hides them.".to_owned());
    boxed("Keys", lines, theme, area, buffer);
}

fn boxed(title: &str, lines: Vec<String>, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let area =
        area.centered(Constraint::Length(WIDTH.min(area.width)), Constraint::Length(height.min(area.height)));
    let block = Block::bordered()
        .border_style(theme.focus())
        .title(Line::styled(format!(" {title} "), theme.focus()));
    let inner = block.inner(area);
    Clear.render(area, buffer);
    block.render(area, buffer);
    let room = inner.width.saturating_sub(2);
    let lines = lines.iter().map(|line| Line::raw(format!(" {}", fit(line, room))));
    Paragraph::new(lines.collect::<Vec<_>>()).render(inner, buffer);
}
