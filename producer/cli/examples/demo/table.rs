//! What the turns cost, as a table.

use comfy_table::{CellAlignment, Table, presets};
use turnmill_client::schema::End;

/// One turn of one agent.
#[derive(Clone)]
pub struct Row {
    /// The agent's name.
    pub agent: &'static str,
    /// Which of its turns, from 1.
    pub turn: usize,
    /// How it ended.
    pub end: End,
}

impl Row {
    /// Tokens a second after the first one; none where there was no second.
    fn tokens_per_second(&self) -> Option<f64> {
        let timing = &self.end.timing;
        let ms = timing.total_ms.checked_sub(timing.first_token_ms?).filter(|ms| *ms > 0)?;
        let tokens = self.end.usage.completion_tokens.checked_sub(1).filter(|tokens| *tokens > 0)?;
        Some(f64::from(tokens) * 1000.0 / ms as f64)
    }

    fn cells(&self) -> [String; 7] {
        let usage = &self.end.usage;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        [
            self.agent.to_owned(),
            self.turn.to_string(),
            usage.prompt_tokens.to_string(),
            usage.cached_tokens.to_string(),
            usage.completion_tokens.to_string(),
            or_dash(self.end.timing.first_token_ms.map(|ms| format!("{ms} ms"))),
            or_dash(self.tokens_per_second().map(|rate| format!("{rate:.0}"))),
        ]
    }
}

/// The table.
pub fn render(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["AGENT", "TURN", "PROMPT", "CACHED", "MADE", "FIRST TOKEN", "TOKENS/S"]);
    table.add_rows(rows.iter().map(Row::cells));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// What the `CACHED` column means.
pub fn summary(rows: &[Row]) -> String {
    let sum = |field: fn(&Row) -> u32| rows.iter().map(field).sum::<u32>();
    let prompt = sum(|row| row.end.usage.prompt_tokens);
    let cached = sum(|row| row.end.usage.cached_tokens);
    format!("{cached} of {prompt} prompt tokens were in the KV cache already and were not computed again.")
}
