//! The result for people.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};

use super::{Compared, Report, Verdict};

/// A report as a person reads it.
pub fn render(report: &Report) -> String {
    let Report { old, new, model, machine, .. } = report;
    let mut text = format!("Turnmill {old} and this tree ({new}); {model}\n{}\n", machine.describe());
    let mut table = Table::new();
    let short: String = old.chars().take(10).collect();
    let header = ["figure", "unit", &short, "this tree", "ratio", "between", ""];
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for figure in &report.figures {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let digits = if figure.old < 100.0 { 2 } else { 0 };
        table.add_row([
            Cell::new(&figure.name),
            Cell::new(<&str>::from(figure.unit)),
            right(format!("{:.digits$}", figure.old)),
            right(format!("{:.digits$}", figure.new)),
            right(format!("{:.3}", figure.ratio)),
            right(between(figure)),
            Cell::new(mark(figure.verdict)),
        ]);
    }
    text += &format!("{table}\n{}", verdict(report));
    text
}

fn between(figure: &Compared) -> String {
    figure.interval.map_or_else(String::new, |[low, high]| format!("{low:.3} to {high:.3}"))
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Slower => "slower",
        Verdict::Unclear => "unclear",
        Verdict::Fine => "",
    }
}

/// What the table comes to.
fn verdict(report: &Report) -> String {
    let named = |verdict: Verdict| -> Vec<String> {
        let figures = report.figures.iter().filter(|figure| figure.verdict == verdict);
        figures.map(|figure| format!("{} ({:.3})", figure.name, figure.ratio)).collect()
    };
    let slower = named(Verdict::Slower);
    let first = if slower.is_empty() {
        "nothing slower than 3 %".to_owned()
    } else {
        format!("slower than 3 %: {}", slower.join(", "))
    };
    if report.unclear.is_empty() {
        return first;
    }
    format!(
        "{first}\nunclear, since rounds differ too much or are too few (--rounds): {}",
        report.unclear.join(", ")
    )
}
