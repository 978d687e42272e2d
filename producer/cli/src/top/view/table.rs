//! Rows under a header, with a cursor that stays in sight.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::Line;
use ratatui::widgets::{HighlightSpacing, Row, StatefulWidget, Table, TableState};

use super::text::fit;
use super::theme::Theme;

/// The selected row's mark.
const MARK: &str = "> ";

/// A column.
#[derive(Clone, Copy)]
pub struct Column {
    name: &'static str,
    /// 0: what the others leave.
    width: u16,
    right: bool,
}

impl Column {
    /// Text, so wide.
    pub const fn text(name: &'static str, width: u16) -> Self {
        Self { name, width, right: false }
    }

    /// Text that takes what the others leave.
    pub const fn rest(name: &'static str) -> Self {
        Self { name, width: 0, right: false }
    }

    /// Numbers, so wide.
    pub const fn number(name: &'static str, width: u16) -> Self {
        Self { name, width, right: true }
    }

    fn cell(self, text: &str, width: u16, style: Style) -> Line<'static> {
        let line = Line::styled(fit(text, width), style);
        if self.right { line.right_aligned() } else { line }
    }
}

/// A value, and how it looks.
pub type Cell = (String, Style);

/// A value that looks like any other.
pub fn cell(text: impl Into<String>) -> Cell {
    (text.into(), Style::new())
}

/// What the cursor is on.
#[derive(Clone, Copy, Default)]
pub struct Selected {
    pub place: Option<usize>,
    /// Keys are about it.
    pub focused: bool,
}

/// Draws them, as many as fit.
pub fn render(
    columns: &[Column],
    rows: Vec<Vec<Cell>>,
    selected: Selected,
    theme: Theme,
    area: Rect,
    buffer: &mut Buffer,
) {
    let widths = widths(columns, area.width.saturating_sub(MARK.len() as u16));
    let header =
        columns.iter().zip(&widths).map(|(column, width)| column.cell(column.name, *width, theme.dim()));
    let header: Row = header.collect();
    let offset = offset(selected.place, rows.len(), area.height.saturating_sub(1).into());
    let rows = rows.into_iter().map(|cells| -> Row {
        let cells = cells.into_iter().zip(columns.iter().zip(&widths));
        cells.map(|((text, style), (column, width))| column.cell(&text, *width, style)).collect()
    });
    let style = if selected.focused { theme.selected() } else { Style::new() };
    let table = Table::new(rows, widths.iter().map(|width| Constraint::Length(*width)))
        .header(header)
        .column_spacing(1)
        .highlight_symbol(MARK)
        .highlight_spacing(HighlightSpacing::Always)
        .row_highlight_style(style);
    let mut state = TableState::new().with_offset(offset).with_selected(selected.place);
    StatefulWidget::render(table, area, buffer, &mut state);
}

/// What each column gets.
fn widths(columns: &[Column], room: u16) -> Vec<u16> {
    let gaps = columns.len().saturating_sub(1) as u16;
    let fixed: u16 = columns.iter().map(|column| column.width).sum();
    let flexible = columns.iter().filter(|column| column.width == 0).count() as u16;
    let rest = room.saturating_sub(fixed + gaps) / flexible.max(1);
    columns.iter().map(|column| if column.width == 0 { rest } else { column.width }).collect()
}

/// The first row that is shown: the selected one is in the middle where there are more on both sides.
fn offset(place: Option<usize>, rows: usize, visible: usize) -> usize {
    place.unwrap_or(0).saturating_sub(visible / 2).min(rows.saturating_sub(visible))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_row_is_in_sight() {
        for (place, rows, visible, expected) in [
            (None, 10, 4, 0),
            (Some(0), 10, 4, 0),
            (Some(2), 10, 4, 0),
            (Some(5), 10, 4, 3),
            (Some(9), 10, 4, 6),
            (Some(2), 3, 4, 0),
            (Some(2), 3, 0, 2),
        ] {
            assert_eq!(offset(place, rows, visible), expected, "{place:?} of {rows}, {visible} visible");
        }
    }

    #[test]
    fn columns_share_what_is_left() {
        let columns = [Column::rest("A"), Column::number("B", 5), Column::rest("C")];
        assert_eq!(widths(&columns, 27), [10, 5, 10]);
        assert_eq!(widths(&columns, 3), [0, 5, 0], "too narrow");
    }
}
