//! Who is measured, and how one figure is asked of each.
//!
//! Both sides get the same questions: prompts of random tokens that share no prefix; replies of [`GENERATE`] tokens after
//! prompts of [`CONTEXT`], whose computing is not counted; all cores. llama.cpp does not sample, Turnmill does.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio::process::Command;

use super::BenchError;
use super::build::Build;
use super::command::{json, output};
use super::rounds::median;

/// Prompt tokens of each sequence that decodes.
const CONTEXT: usize = 128;
/// Tokens that each decodes.
const GENERATE: usize = 64;
/// Prompt tokens of the one that decodes over a long context.
pub(super) const LONG_CONTEXT: usize = 8000;
/// Tokens that it decodes.
const LONG_GENERATE: usize = 32;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    /// A prompt of this many tokens.
    Prefill(usize),
    /// This many sequences decode at once.
    Decode(usize),
    /// One sequence decodes after this many tokens.
    Long(usize),
}

impl Point {
    /// As tables have it.
    pub fn name(self) -> String {
        match self {
            Self::Prefill(tokens) => format!("prefill {tokens}"),
            Self::Decode(batch) => format!("decode x{batch}"),
            Self::Long(tokens) => format!("decode x1 after {tokens}"),
        }
    }
}

/// Prompt lengths and batches of `points`.
#[derive(Default)]
struct Asked {
    prefill: Vec<usize>,
    decode: Vec<usize>,
    long: Option<usize>,
}

impl Asked {
    fn of(points: &[Point]) -> Self {
        let mut asked = Self::default();
        for point in points {
            match *point {
                Point::Prefill(tokens) => asked.prefill.push(tokens),
                Point::Decode(batch) => asked.decode.push(batch),
                Point::Long(tokens) => asked.long = Some(tokens),
            }
        }
        asked
    }
}

/// One of those that are compared.
#[derive(Clone, Debug)]
pub(super) struct Side {
    /// How it is called in tables.
    pub name: String,
    /// The model's file.
    pub model: PathBuf,
    programs: Programs,
}

/// The programs of a side.
#[derive(Clone, Debug)]
enum Programs {
    Turnmill(Build),
    /// The folder they are in.
    LlamaCpp(PathBuf),
}

/// Tokens per second of each point that was asked.
pub(super) type Figures = Vec<(Point, f64)>;

impl Side {
    /// Turnmill's engine as it is by default, of this tree.
    pub fn turnmill(model: &Path) -> Self {
        Self { name: "Turnmill".to_owned(), ..Self::of(Build::here(), model) }
    }

    /// The engine of any build, as it is by default.
    pub fn of(build: Build, model: &Path) -> Self {
        Self { name: build.name.clone(), model: model.to_owned(), programs: Programs::Turnmill(build) }
    }

    /// llama.cpp in `folder`, with one model file.
    pub fn llama_cpp(what: &str, folder: &Path, model: &Path) -> Self {
        let name = format!("llama.cpp, {what}");
        Self { name, model: model.to_owned(), programs: Programs::LlamaCpp(folder.to_owned()) }
    }

    /// Measures each point once: the median of `runs` runs in one process.
    pub async fn figures(&self, points: &[Point], runs: usize) -> Result<Figures, BenchError> {
        let asked = Asked::of(points);
        match &self.programs {
            Programs::Turnmill(build) => turnmill(build, &self.model, &asked, runs).await,
            Programs::LlamaCpp(folder) => llama_cpp(folder, &self.model, &asked, runs).await,
        }
    }
}

/// llama.cpp with the same file and with that file as Q8_0, which it computes faster than most; and its version.
pub(super) async fn peers(
    folder: &Path,
    model: &Path,
    scratch: &Path,
) -> Result<(Vec<Side>, String), BenchError> {
    for program in ["llama-bench", "llama-batched-bench", "llama-quantize", "llama-server"] {
        in_folder(folder, program)?;
    }
    let q8_0 = scratch.join("q8_0.gguf");
    let mut quantize = Command::new(in_folder(folder, "llama-quantize")?);
    output(quantize.arg("--allow-requantize").arg(model).arg(&q8_0).arg("Q8_0")).await?;
    let mut bench = Command::new(in_folder(folder, "llama-bench")?);
    bench.arg("-m").arg(&q8_0).args(["-p", "1", "-n", "0", "-r", "1", "-o", "json"]);
    let runs: Vec<LlamaBench> = json("llama-bench", &output(&mut bench).await?)?;
    let version = runs.first().map_or_else(String::new, |run| run.build_commit.clone());
    let side = |what, model| Side::llama_cpp(what, folder, model);
    Ok((vec![side("same file", model), side("as Q8_0", &q8_0)], version))
}

/// The path of one of llama.cpp's programs.
pub(super) fn in_folder(folder: &Path, program: &str) -> Result<PathBuf, BenchError> {
    let path = folder.join(program);
    if path.is_file() { Ok(path) } else { Err(BenchError::Missing(path)) }
}

/// What `turnmill-worker bench engine` prints, as far as it is needed here.
#[derive(Deserialize)]
struct EngineReport {
    prefill: Vec<EnginePrefill>,
    decode: Vec<EngineDecode>,
    long: Option<EngineLong>,
}

#[derive(Deserialize)]
struct EnginePrefill {
    tokens: usize,
    tok_s: f64,
}

#[derive(Deserialize)]
struct EngineDecode {
    batch: usize,
    tok_s: f64,
}

#[derive(Deserialize)]
struct EngineLong {
    context: usize,
    tok_s: f64,
}

async fn turnmill(build: &Build, model: &Path, asked: &Asked, runs: usize) -> Result<Figures, BenchError> {
    let (prefill, batch) = (list_or_one(&asked.prefill), list_or_one(&asked.decode));
    let (context, generate, runs) = (CONTEXT.to_string(), GENERATE.to_string(), runs.to_string());
    let long = asked.long.unwrap_or(0).to_string();
    let flags = [
        ["--prefill", &prefill],
        ["--batch", &batch],
        ["--context", &context],
        ["--gen", &generate],
        ["--long-context", &long],
        ["--runs", &runs],
    ];
    let report: EngineReport = build.bench("engine", Some(model), flags.as_flattened()).await?;
    let prefill = report.prefill.iter().map(|figure| (Point::Prefill(figure.tokens), figure.tok_s));
    let decode = report.decode.iter().map(|figure| (Point::Decode(figure.batch), figure.tok_s));
    let long = report.long.iter().map(|figure| (Point::Long(figure.context), figure.tok_s));
    Ok(prefill.chain(decode).chain(long).collect())
}

/// What `llama-bench -o json` prints, an object a test.
#[derive(Deserialize)]
struct LlamaBench {
    build_commit: String,
    n_prompt: usize,
    n_depth: usize,
    samples_ts: Vec<f64>,
}

/// What `llama-batched-bench --output-format jsonl` prints, a line a test.
#[derive(Deserialize)]
struct BatchedBench {
    pl: usize,
    speed_tg: f64,
}

async fn llama_cpp(folder: &Path, model: &Path, asked: &Asked, runs: usize) -> Result<Figures, BenchError> {
    let threads = super::machine::cores().to_string();
    let program = |name: &str| -> Result<Command, BenchError> {
        let mut command = Command::new(in_folder(folder, name)?);
        command.arg("-m").arg(model).args(["-t", &threads, "-ngl", "0"]);
        Ok(command)
    };
    let mut figures = Vec::new();
    let mut bench = program("llama-bench")?;
    bench.args(["-p", &list(&asked.prefill), "-n", "0", "-r", &runs.to_string(), "-o", "json"]);
    let tests: Vec<LlamaBench> = json("llama-bench", &output(&mut bench).await?)?;
    figures.extend(tests.iter().map(|test| (Point::Prefill(test.n_prompt), median(&test.samples_ts))));

    let most = asked.decode.iter().copied().max().unwrap_or(0);
    let batches = list(&asked.decode.repeat(runs));
    let mut batched = program("llama-batched-bench")?;
    batched.args(["-c", &(most * (CONTEXT + GENERATE)).to_string(), "-npl", &batches]);
    batched.args(["-npp", &CONTEXT.to_string(), "-ntg", &GENERATE.to_string(), "--output-format", "jsonl"]);
    let lines = output(&mut batched).await?;
    figures.extend(batched_figures(&asked.decode, &lines)?);

    if let Some(context) = asked.long {
        // Computing the prompt again takes longer than all else together, so once a round.
        let mut bench = program("llama-bench")?;
        bench.args(["-p", "0", "-n", &LONG_GENERATE.to_string(), "-d", &context.to_string()]);
        let tests: Vec<LlamaBench> =
            json("llama-bench", &output(bench.args(["-r", "1", "-o", "json"])).await?)?;
        figures.extend(tests.iter().map(|test| (Point::Long(test.n_depth), median(&test.samples_ts))));
    }
    Ok(figures)
}

/// The median of each batch's lines.
fn batched_figures(batches: &[usize], lines: &str) -> Result<Figures, BenchError> {
    let tests = lines.lines().filter(|line| line.starts_with('{'));
    let tests: Vec<BatchedBench> =
        tests.map(|line| json("llama-batched-bench", line)).collect::<Result<_, _>>()?;
    let of = |batch: usize| {
        let speeds: Vec<f64> =
            tests.iter().filter(|test| test.pl == batch).map(|test| test.speed_tg).collect();
        (Point::Decode(batch), median(&speeds))
    };
    Ok(batches.iter().copied().map(of).collect())
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The worker accepts no empty list. Measuring 1 takes no time worth mentioning, and nobody looks for the figure.
fn list_or_one(numbers: &[usize]) -> String {
    if numbers.is_empty() { "1".to_owned() } else { list(numbers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_was_measured_three_times_has_one_figure() {
        let line = |pl: usize, speed: f64| format!("{{\"pl\": {pl}, \"pp\": 128, \"speed_tg\": {speed}}}\n");
        let lines =
            [line(1, 5.0), "some log line\n".to_owned(), line(8, 9.0), line(1, 7.0), line(1, 6.0)].concat();
        let figures = batched_figures(&[1, 8], &lines).expect("readable");
        assert_eq!(figures, [(Point::Decode(1), 6.0), (Point::Decode(8), 9.0)]);
    }
}
