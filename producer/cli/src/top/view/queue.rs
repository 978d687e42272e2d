//! The queue: how much work there is of each priority, and whether it is paused.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Widget};
use turnmill_client::{Lag, PriorityLag};

use super::super::model::Pane;
use super::table::{Cell, Column, Selected, cell};
use super::text::{UNKNOWN, age, known};
use super::{View, table};

const COLUMNS: [Column; 6] = [
    Column::text("PRIORITY", 11),
    Column::number("RUNNABLE", 8),
    Column::number("LEASED", 6),
    Column::number("QUEUED", 6),
    Column::number("OLDEST", 9),
    Column::number("LAG", 7),
];

impl View<'_> {
    pub(super) fn queue(self, area: Rect, buffer: &mut Buffer) {
        let lag = self.state.snapshot().map(|snapshot| &snapshot.lag);
        let hint = match lag {
            Some(Ok(lag)) if lag.paused => "p resume",
            _ => "p pause",
        };
        let inner = self.pane(Pane::Queue, "Queue", hint, area, buffer);
        match lag {
            None => self.nothing(UNKNOWN, inner, buffer),
            Some(Err(why)) => self.unknown(why, inner, buffer),
            Some(Ok(lag)) => self.work(lag, inner, buffer),
        }
    }

    fn work(self, lag: &Lag, area: Rect, buffer: &mut Buffer) {
        let [rows, rest] = Layout::vertical([Constraint::Length(3), Constraint::Fill(1)]).areas(area);
        let priorities = lag.priorities.iter().map(row).collect();
        table::render(&COLUMNS, priorities, Selected::default(), self.theme, rows, buffer);
        let (paused, style) = if lag.paused {
            ("PAUSED: nothing is leased", self.theme.warn())
        } else {
            ("not paused", Style::new())
        };
        let kept = lag.retained_bytes as f64 / f64::from(1 << 20);
        let lines = vec![
            Line::raw(format!("  {}", summary(lag))),
            Line::styled(format!("  {paused}; {kept:.1} MiB kept of ended turns"), style),
        ];
        Paragraph::new(lines).render(rest, buffer);
    }
}

fn row(row: &PriorityLag) -> Vec<Cell> {
    vec![
        cell(row.priority.as_str()),
        cell(row.runnable.to_string()),
        cell(row.leased.to_string()),
        cell(row.queued.to_string()),
        cell(row.oldest_ms.map_or_else(|| "-".to_owned(), age)),
        cell(known(row.lag)),
    ]
}

fn summary(lag: &Lag) -> String {
    let mut text = format!("{} open turns", lag.open_turns);
    if let Some(ms) = lag.oldest_ms {
        text += &format!(", oldest {}", age(ms));
    }
    text + &format!(", {} delayed", lag.delayed)
}
