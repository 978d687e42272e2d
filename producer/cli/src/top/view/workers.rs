//! Workers: what each runs, and when it was heard of.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use turnmill_client::operate::worker::WorkerView;

use super::super::model::{MAX_RUNNING, Pane, Snapshot};
use super::table::{Cell, Column, Selected, cell};
use super::text::{UNKNOWN, age, rate};
use super::{View, table};

const COLUMNS: [Column; 7] = [
    Column::rest("WORKER"),
    Column::text("STATE", 13),
    Column::number("RUNNING", 7),
    Column::number("HEADROOM", 8),
    Column::number("TOK/S", 7),
    Column::number("HEARD", 9),
    Column::rest("MODEL"),
];

/// A worker that said nothing for long: what it runs is not known.
const SILENT: &str = "silent";

impl View<'_> {
    pub(super) fn workers(self, area: Rect, buffer: &mut Buffer) {
        let snapshot = self.state.snapshot();
        let workers = snapshot.map(|snapshot| &snapshot.workers);
        let title = match workers {
            Some(Ok(workers)) => format!("Workers: {}", totals(workers)),
            _ => format!("Workers: {UNKNOWN}"),
        };
        let inner = self.pane(Pane::Workers, &title, "d drain", area, buffer);
        match (workers, snapshot) {
            (Some(Ok(workers)), Some(_)) if workers.is_empty() => {
                self.nothing("no worker was heard of: nothing runs until one is started", inner, buffer);
            }
            (Some(Ok(workers)), Some(snapshot)) => {
                let place = self.interactive.then(|| self.state.workers.place()).flatten();
                let selected = Selected { place, focused: self.focused(Pane::Workers) };
                let rows = workers.iter().map(|worker| self.worker(worker, snapshot)).collect();
                table::render(&COLUMNS, rows, selected, self.theme, inner, buffer);
            }
            (Some(Err(why)), _) => self.unknown(why, inner, buffer),
            _ => {}
        }
    }

    fn worker(self, worker: &WorkerView, snapshot: &Snapshot) -> Vec<Cell> {
        let silent = worker.state == SILENT;
        let told = |text: String| cell(if silent { UNKNOWN.to_owned() } else { text });
        let drains = worker.told_to_drain && worker.state != "draining";
        let state = if drains { "told to drain" } else { &worker.state };
        vec![
            cell(&worker.name),
            (state.to_owned(), self.state_style(worker)),
            told(format!("{}/{}", worker.running, worker.capacity)),
            told(format!("{} %", worker.headroom_percent)),
            cell(rate(self.speed(worker, snapshot))),
            cell(age(worker.heard_ms)),
            told(worker.model.clone()),
        ]
    }

    fn state_style(self, worker: &WorkerView) -> Style {
        match worker.state.as_str() {
            "ready" if !worker.told_to_drain => self.theme.good(),
            SILENT => self.theme.bad(),
            _ => self.theme.warn(),
        }
    }

    /// Tokens per second of what it runs; unknown where not all that runs was read.
    fn speed(self, worker: &WorkerView, snapshot: &Snapshot) -> Option<f64> {
        let turns = &snapshot.running.as_ref().ok()?.turns;
        let own = turns.iter().filter(|turn| turn.worker.as_ref() == Some(&worker.id));
        (turns.len() < MAX_RUNNING).then(|| self.state.rates.sum(own)).flatten()
    }
}

/// How many there are, and what they run of what they could.
fn totals(workers: &[WorkerView]) -> String {
    let heard = workers.iter().filter(|worker| worker.state != SILENT);
    let (running, capacity) = heard
        .fold((0, 0), |(running, capacity), worker| (running + worker.running, capacity + worker.capacity));
    let silent = workers.iter().filter(|worker| worker.state == SILENT).count();
    let silent = if silent > 0 { format!(", {silent} silent") } else { String::new() };
    format!("{}, running {running} of {capacity}{silent}", workers.len())
}
