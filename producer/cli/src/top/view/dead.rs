//! Dead letters, the newest first: whose, when, and what was wrong.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use turnmill_client::operate::dead::DeadLetter;

use super::super::model::Pane;
use super::running::{ID_WIDTH, WIDE};
use super::table::{Cell, Column, Selected, cell};
use super::text::{UNKNOWN, age, known};
use super::{View, table};
use crate::text::agent_id;

const NARROW: [Column; 5] = [
    Column::number("AGE", 9),
    Column::text("REASON", 10),
    Column::number("TRY", 3),
    Column::text("AGENT", 18),
    Column::rest("ERROR"),
];
/// The narrow columns and a turn's whole id.
const WITH_ID: [Column; 6] =
    [NARROW[0], NARROW[1], NARROW[2], NARROW[3], NARROW[4], Column::text("TURN", ID_WIDTH)];

impl View<'_> {
    pub(super) fn dead(self, area: Rect, buffer: &mut Buffer) {
        let snapshot = self.state.snapshot();
        let letters = snapshot.map(|snapshot| &snapshot.dead);
        let all = snapshot.and_then(|snapshot| snapshot.lag.as_ref().ok()).map(|lag| lag.dead);
        let shown = match letters {
            Some(Ok(letters)) if all.is_none_or(|all| all > letters.len() as u64) && !letters.is_empty() => {
                format!(", the newest {} shown", letters.len())
            }
            _ => String::new(),
        };
        let title = format!("Dead letters: {}{shown}", known(all));
        let inner = self.pane(Pane::Dead, &title, "r replay", area, buffer);
        match letters {
            Some(Ok(letters)) if letters.is_empty() => self.nothing("no dead letters", inner, buffer),
            Some(Ok(letters)) => {
                let place = self.interactive.then(|| self.state.dead.place()).flatten();
                let selected = Selected { place, focused: self.focused(Pane::Dead) };
                let columns = if area.width >= WIDE { &WITH_ID[..] } else { &NARROW[..] };
                let rows = letters.iter().map(|letter| self.letter(letter)).collect();
                table::render(columns, rows, selected, self.theme, inner, buffer);
            }
            Some(Err(why)) => self.unknown(why, inner, buffer),
            None => {}
        }
    }

    /// A row of the wide table; the narrow one leaves the last cell out.
    fn letter(self, letter: &DeadLetter) -> Vec<Cell> {
        let failed_ago = self.state.server_ms().map(|now_ms| age(now_ms.saturating_sub(letter.failed_ms)));
        vec![
            cell(known(failed_ago)),
            cell(&letter.reason),
            cell(letter.attempts.to_string()),
            cell(agent_id(&letter.tenant, letter.agent.as_ref())),
            cell(letter.error.as_deref().unwrap_or(UNKNOWN)),
            cell(letter.turn.to_string()),
        ]
    }
}
