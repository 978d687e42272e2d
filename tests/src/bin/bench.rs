//! `bench`: measures this machine with Turnmill, beside llama.cpp where its programs are given; prints a table and writes
//! the figures and a picture. `deploy/bench` builds what it needs and runs it; docs/PERFORMANCE.md tells how to read it.
//!
//! Exit status: 0 measured, 2 there is no result.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use turnmill_tests::bench::report::Report;
use turnmill_tests::bench::{BenchError, BenchSettings, picture, run, table};

/// Measures everything that this machine does, and writes it down.
#[derive(Parser)]
#[command(name = "bench")]
struct Bench {
    /// The model, a GGUF file.
    #[arg(long, value_name = "FILE", env = "TURNMILL_TEST_MODEL")]
    model: PathBuf,
    /// A folder with llama.cpp's programs (llama-bench, llama-batched-bench, llama-quantize, llama-server): it is measured
    /// in the same run.
    #[arg(long, value_name = "FOLDER")]
    llama_cpp: Option<PathBuf>,
    /// Where bench.json, bench.txt and bench.svg go.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
    /// One round, fewer figures, no larger models: whether all of it runs, not how fast it is.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let bench = Bench::parse();
    let settings =
        BenchSettings { model: bench.model.clone(), llama_cpp: bench.llama_cpp, quick: bench.quick };
    match measured(&settings) {
        Ok(Some(report)) => match keep(&report, &bench.out) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => eprintln!("bench: {error}"),
        },
        Ok(None) => eprintln!("bench: interrupted"),
        Err(error) => eprintln!("bench: {error}"),
    }
    ExitCode::from(2)
}

/// None where a signal ended it. Either way, processes are gone by then: they end with what is dropped here.
fn measured(settings: &BenchSettings) -> Result<Option<Report>, BenchError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            report = run(settings) => report.map(Some),
            _ = tokio::signal::ctrl_c() => Ok(None),
            _ = terminate.recv() => Ok(None),
        }
    })
}

fn keep(report: &Report, folder: &Path) -> Result<(), String> {
    let failed =
        |path: &Path, error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let table = table::render(report);
    println!("{table}");
    let json =
        serde_json::to_string_pretty(report).map_err(|error| format!("no JSON can be made: {error}"))?;
    for (name, text) in [("bench.json", json), ("bench.txt", table)] {
        let path = folder.join(name);
        std::fs::write(&path, text + "\n").map_err(|error| failed(&path, error))?;
    }
    picture::draw(report, &folder.join("bench.svg"))?;
    println!("\nFigures, table and picture are in {}.", folder.display());
    Ok(())
}
