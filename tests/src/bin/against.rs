//! `against`: how fast this tree is beside a commit, both measured in one run. `deploy/bench --against COMMIT` builds both and
//! runs it; docs/PERFORMANCE.md tells how to read it.
//!
//! Exit status: 0 measured, whatever came of it; 2 there is no result.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use turnmill_tests::bench::BenchError;
use turnmill_tests::bench::against::{Part, Report, Settings, run, table};
use turnmill_tests::bench::build::Build;
use turnmill_tests::until_signal::until_signal;

/// Measures this tree and a commit in turns, and says which figures became slower.
#[derive(Parser)]
#[command(name = "against", bin_name = "deploy/bench --against COMMIT")]
struct Against {
    /// The model, a GGUF file.
    #[arg(long, value_name = "FILE", env = "TURNMILL_TEST_MODEL")]
    model: PathBuf,
    /// The folder with the commit's programs; the script gives it.
    #[arg(long, value_name = "FOLDER", hide = true)]
    old: PathBuf,
    /// The commit's name in the result; the script gives it.
    #[arg(long, value_name = "NAME", hide = true)]
    old_name: String,
    /// Times that both are measured; 5 are the fewest that tell how much a ratio is worth.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Measure these parts alone.
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let against = Against::parse();
    match measured(&against) {
        Ok(Some(report)) => return print(&report, against.json),
        Ok(None) => eprintln!("against: interrupted"),
        Err(error) => eprintln!("against: {error}"),
    }
    ExitCode::from(2)
}

fn measured(against: &Against) -> Result<Option<Report>, BenchError> {
    let settings = Settings {
        model: against.model.clone(),
        old: Build::at(&against.old_name, &against.old)?,
        rounds: against.rounds.into(),
        only: against.only.clone(),
    };
    until_signal(run(&settings))
}

fn print(report: &Report, json: bool) -> ExitCode {
    let text = if json { serde_json::to_string_pretty(report) } else { Ok(table::render(report)) };
    match text {
        Ok(text) => println!("{text}"),
        Err(error) => {
            eprintln!("against: the result cannot be printed: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
