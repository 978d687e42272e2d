//! `bench`: measures this machine with Turnmill, beside llama.cpp where its programs are given; prints a table and writes
//! the figures and a picture. `deploy/bench` builds what it needs and runs it; docs/PERFORMANCE.md tells how to read it.
//!
//! Exit status: 0 measured, 2 not all of it; what was measured until then is written all the same.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use turnmill_tests::bench::report::Report;
use turnmill_tests::bench::{BenchSettings, Part, picture, run, table};
use turnmill_tests::until_signal::until_signal;

/// Measures everything that this machine does, and writes it down.
#[derive(Parser)]
#[command(name = "bench")]
struct Bench {
    /// The model, a GGUF file.
    #[arg(long, value_name = "FILE", env = "TURNMILL_TEST_MODEL")]
    model: PathBuf,
    /// A model with a large vocabulary, a GGUF file: sampling and forms of replies are measured with it, too.
    #[arg(long, value_name = "FILE", env = "TURNMILL_TEST_GEMMA")]
    wide_model: Option<PathBuf>,
    /// A folder with llama.cpp's programs (llama-bench, llama-batched-bench, llama-quantize, llama-server): it is measured
    /// in the same run.
    #[arg(long, value_name = "FOLDER")]
    llama_cpp: Option<PathBuf>,
    /// Where bench.json, bench.txt and bench.svg go.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
    /// One round, fewer figures, no larger models: a first look.
    #[arg(long)]
    quick: bool,
    /// Measure these parts alone.
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
}

fn main() -> ExitCode {
    let Bench { model, wide_model, llama_cpp, out, quick, only } = Bench::parse();
    let settings = BenchSettings { model, wide_model, llama_cpp, quick, only };
    match until_signal(run(&settings, |report| keep(report, &out))) {
        Ok(Some(report)) => {
            println!("{}", table::render(&report));
            println!("\nFigures, table and picture are in {}.", out.display());
            return ExitCode::SUCCESS;
        }
        Ok(None) => eprintln!("bench: interrupted"),
        Err(error) => eprintln!("bench: {error}"),
    }
    ExitCode::from(2)
}

/// Writes what there is of `report`.
fn keep(report: &Report, folder: &Path) -> io::Result<()> {
    let failed = |path: &Path, error: io::Error| {
        io::Error::new(error.kind(), format!("{} cannot be written: {error}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let json = serde_json::to_string_pretty(report)?;
    for (name, text) in [("bench.json", json), ("bench.txt", table::render(report))] {
        let path = folder.join(name);
        std::fs::write(&path, text + "\n").map_err(|error| failed(&path, error))?;
    }
    picture::draw(report, &folder.join("bench.svg")).map_err(io::Error::other)
}
