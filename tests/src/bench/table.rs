//! All figures in one table.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};
use serde_json::Value;

use super::replies::Replies;
use super::report::{Figure, Report, Samples};

/// A report as a person reads it.
pub fn render(report: &Report) -> String {
    let mut rows = Rows::default();
    for figure in &report.engine {
        rows.figure("", figure);
    }
    for shape in &report.shapes {
        for figure in &shape.engine {
            rows.figure(&format!("{}: ", shape.shape), figure);
        }
    }
    if let Some(agents) = &report.agents {
        for side in &agents.sides {
            let ratio = if side.turns_per_s.side == "Turnmill" { agents.ratio() } else { None };
            rows.add("agents", &side.turns_per_s, "turns/s", 2, ratio);
        }
    }
    rows.memory(report);
    rows.parts(report);
    for replies in &report.replies {
        rows.replies(replies);
    }
    if let Some(overhead) = &report.overhead {
        let [watched, unwatched] = &overhead.tok_s;
        rows.add("16 turns at once, watched", watched, "tokens/s", 0, None);
        rows.add("16 turns at once, watched", unwatched, "tokens/s", 0, None);
        let cost = format!("{:.1}", 100.0 * (1.0 - overhead.ratio));
        rows.plain("what watching costs, by pairs", "Turnmill", cost, "%");
        let p95 = format!("{:.2}", overhead.probe_p95_ms);
        rows.plain("probe under load, p95", "Turnmill", p95, "ms");
    }
    format!("{}\n{}", heading(report), rows.table())
}

fn heading(report: &Report) -> String {
    let Report { version, model, machine, .. } = report;
    let commit = report.commit.as_ref().map(|commit| format!(" ({commit})")).unwrap_or_default();
    let peer = report.llama_cpp.as_ref().map(|peer| format!(", llama.cpp {peer}")).unwrap_or_default();
    format!("Turnmill {version}{commit}{peer}; {model}\n{}", machine.describe())
}

#[derive(Default)]
struct Rows(Vec<[String; 5]>);

impl Rows {
    fn figure(&mut self, prefix: &str, figure: &Figure) {
        let name = match figure.kind {
            "prefill" => format!("{prefix}prefill {}", figure.size),
            "decode" => format!("{prefix}decode x{}", figure.size),
            _ => format!("{prefix}decode x1 after {}", figure.size),
        };
        for (index, side) in figure.sides.iter().enumerate() {
            self.add(&name, side, "tokens/s", 0, figure.ratio().filter(|_| index == 0));
        }
        if figure.kind == "prefill" {
            for side in &figure.sides {
                self.plain("", &side.side, format!("{:.1}", ttft_ms(figure, side)), "ms to first token");
            }
        }
    }

    fn add(&mut self, name: &str, samples: &Samples, unit: &str, digits: usize, ratio: Option<f64>) {
        let value = format!("{:.digits$}", samples.median);
        let ratio = ratio.map(|ratio| format!("{ratio:.2}x")).unwrap_or_default();
        self.0.push([name.to_owned(), samples.side.clone(), value, unit.to_owned(), ratio]);
    }

    fn plain(&mut self, name: &str, side: &str, value: String, unit: &str) {
        self.0.push([name.to_owned(), side.to_owned(), value, unit.to_owned(), String::new()]);
    }

    fn memory(&mut self, report: &Report) {
        let Some(memory) = &report.memory else { return };
        if let Some(long) = &memory.long {
            let name = format!("read by a step after {}", long.context);
            self.plain(&name, "Turnmill", format!("{:.1}", long.read_bytes_per_s / 1e9), "GB/s");
        }
        if let Some(machine) = memory.machine_read_bytes_per_s {
            self.plain("read by as many threads", "the machine", format!("{:.1}", machine / 1e9), "GB/s");
        }
        let mega = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
        if let Some(peak) = memory.peak_bytes {
            self.plain("memory, pool included", "engine alone", mega(peak), "MB");
        }
        for side in report.agents.iter().flat_map(|agents| &agents.sides) {
            if let Some(peak) = side.peak_bytes {
                self.plain("memory, with agents", &side.turns_per_s.side, mega(peak), "MB");
            }
        }
    }

    fn parts(&mut self, report: &Report) {
        let parts = &report.parts;
        let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(f64::NAN);
        for row in parts.restore.as_array().into_iter().flatten() {
            for (key, what) in [("cold_ttft_ms", "computed"), ("warm_ttft_ms", "restored")] {
                let name = format!("first token of {} tokens, {what}", number(row, "context"));
                self.plain(&name, "Turnmill", format!("{:.1}", number(row, key)), "ms");
            }
        }
        if let Some(stall) = parts.stall.as_object() {
            let ratio = stall.get("p99_ratio").and_then(Value::as_f64).unwrap_or(f64::NAN);
            self.plain(
                "p99 between tokens, K and V moving",
                "Turnmill",
                format!("{ratio:.2}"),
                "of undisturbed",
            );
        }
        for row in parts.drift.as_array().into_iter().flatten() {
            let name = format!("drift, {}", row["codec"].as_str().unwrap_or_default());
            self.plain(&name, "Turnmill", format!("{:.5}", number(row, "mean_kl")), "nats");
        }
        let queue = &parts.queue;
        if queue.is_null() {
            return;
        }
        let cycle = format!("{:.0}", number(queue, "cycle_per_s"));
        self.plain("queue, full cycle", "Turnmill", cycle, "turns/s");
        let claim = format!("{:.1}", number(&queue["claim_latency_ms"], "p99"));
        self.plain("queue, p99 from enqueue to lease", "Turnmill", claim, "ms");
    }

    fn replies(&mut self, replies: &Replies) {
        let model = &replies.model;
        for (kind, samples) in &replies.tok_s {
            self.add(&format!("8 replies, {}, {model}", kind.name()), samples, "tokens/s", 0, None);
        }
        for (kind, ratio) in &replies.ratios {
            let without = kind.without().map_or("", |without| without.name());
            let name = format!("{}, {model}", kind.name());
            self.plain(&name, "Turnmill", format!("{ratio:.3}"), &format!("of {without}"));
        }
        let attacks = &replies.attacks;
        let ratio = attacks.attacked_p99_ms / attacks.ordinary_p99_ms;
        let name = format!("p99 between tokens beside attacks, {model}");
        self.plain(&name, "Turnmill", format!("{ratio:.2}"), "of beside plain schemas");
        self.plain("slowest attack", "Turnmill", format!("{:.2}", attacks.slowest_s), "s");
    }

    fn table(self) -> Table {
        let mut table = Table::new();
        let header = ["figure", "who", "median", "unit", "to the fastest other"];
        table.load_style(UTF8_FULL_CONDENSED).set_header(header);
        let mut last = String::new();
        for [name, side, value, unit, ratio] in self.0 {
            let shown = if name == last { String::new() } else { name.clone() };
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            table.add_row([Cell::new(shown), Cell::new(side), right(value), Cell::new(unit), right(ratio)]);
            if !name.is_empty() {
                last = name;
            }
        }
        table
    }
}

/// The time of a prompt.
pub(super) fn ttft_ms(figure: &Figure, side: &Samples) -> f64 {
    1e3 * figure.size as f64 / side.median
}
