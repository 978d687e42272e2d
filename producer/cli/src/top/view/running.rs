//! Turns that workers hold: whose, where, how far, how fast.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use turnmill_client::operate::running::{Running, RunningTurn};

use super::super::model::{Pane, Snapshot, agent_of};
use super::table::{Cell, Column, Selected, cell};
use super::text::{UNKNOWN, age, end_of, known, rate};
use super::{View, table};

/// Columns of a whole id of a turn.
pub(super) const ID_WIDTH: u16 = 38;
/// Columns of the end of one, where a turn is told from others by it.
const END_WIDTH: u16 = 11;
/// Columns from which on ids are whole.
pub(super) const WIDE: u16 = 118;
/// Attempts from which on a turn is in trouble: the first may fall to a worker that was restarted.
const MANY_ATTEMPTS: u64 = 3;

const fn columns(id_width: u16) -> [Column; 7] {
    [
        Column::rest("AGENT"),
        Column::text("WORKER", 14),
        Column::number("TOKENS", 7),
        Column::number("TOK/S", 7),
        Column::number("AGE", 9),
        Column::number("TRY", 7),
        Column::text("TURN", id_width),
    ]
}

impl View<'_> {
    pub(super) fn running(self, area: Rect, buffer: &mut Buffer) {
        let snapshot = self.state.snapshot();
        let running = snapshot.map(|snapshot| &snapshot.running);
        let title = match (running, snapshot) {
            (Some(Ok(running)), Some(snapshot)) => {
                format!("Running turns: {}", self.totals(running, snapshot))
            }
            _ => format!("Running turns: {UNKNOWN}"),
        };
        let inner = self.pane(Pane::Running, &title, "c cancel", area, buffer);
        match running {
            Some(Ok(Running { turns, .. })) if turns.is_empty() => {
                self.nothing("no turn runs", inner, buffer)
            }
            Some(Ok(Running { turns, .. })) => {
                let place = self.interactive.then(|| self.state.running.place()).flatten();
                let selected = Selected { place, focused: self.focused(Pane::Running) };
                let id_width = if area.width >= WIDE { ID_WIDTH } else { END_WIDTH };
                let rows = turns.iter().map(|turn| self.turn(turn, id_width)).collect();
                table::render(&columns(id_width), rows, selected, self.theme, inner, buffer);
            }
            Some(Err(why)) => self.unknown(why, inner, buffer),
            None => {}
        }
    }

    /// How many run, and how fast together; how many are shown, where those are not all.
    fn totals(self, Running { turns, .. }: &Running, snapshot: &Snapshot) -> String {
        let shown = turns.len();
        let leased =
            snapshot.lag.as_ref().ok().map(|lag| lag.priorities.iter().map(|row| row.leased).sum::<u64>());
        let speed = format!("{} tok/s", rate(self.state.rates.sum(turns)));
        match leased {
            Some(leased) if shown >= super::super::model::MAX_RUNNING && leased > shown as u64 => {
                format!("{leased}, {shown} shown with {speed}")
            }
            _ => format!("{shown}, {speed}"),
        }
    }

    fn turn(self, turn: &RunningTurn, id_width: u16) -> Vec<Cell> {
        let worker = turn.worker.as_ref().map(|id| self.state.worker_name(id));
        let tries = known(turn.attempts);
        let tries = match turn.attempts {
            Some(MANY_ATTEMPTS..) => (tries, self.theme.warn()),
            _ => cell(tries),
        };
        vec![
            cell(agent_of(turn)),
            cell(known(worker)),
            cell(known(turn.published)),
            cell(rate(self.state.rates.of(turn.turn))),
            cell(age(turn.age_ms)),
            tries,
            cell(end_of(&turn.turn.to_string(), id_width)),
        ]
    }
}
