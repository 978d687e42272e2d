//! All figures as one JSON object.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BenchSettings;
use super::agents::AgentsReport;
use super::machine::Machine;
use super::overhead::Overhead;
use super::replies::Replies;
use super::rounds::median;

/// Everything that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of Turnmill.
    pub version: &'static str,
    /// The commit that was built, where this is a checkout.
    pub commit: Option<String>,
    /// The commit of llama.cpp, where it was measured.
    pub llama_cpp: Option<String>,
    /// The model's file name.
    pub model: String,
    /// How long the run took.
    pub seconds: u64,
    /// What it ran on.
    pub machine: Machine,
    /// The engine alone.
    pub engine: Vec<Figure>,
    /// What the engine reads and takes.
    pub memory: Option<Memory>,
    /// The product's own workload.
    pub agents: Option<AgentsReport>,
    /// The engine alone with larger models.
    pub shapes: Vec<ShapeReport>,
    /// The worker's other benches, as they print their figures.
    pub parts: Parts,
    /// What drawing tokens and forms of replies cost, a model each.
    pub replies: Vec<Replies>,
    /// What watching costs.
    pub overhead: Option<Overhead>,
}

impl Report {
    /// One without figures yet.
    pub(super) fn new(settings: &BenchSettings, machine: Machine) -> Self {
        let name = settings.model.file_name().unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: super::machine::commit(),
            llama_cpp: None,
            model: name.to_string_lossy().into_owned(),
            seconds: 0,
            machine,
            engine: Vec::new(),
            memory: None,
            agents: None,
            shapes: Vec::new(),
            parts: Parts::default(),
            replies: Vec::new(),
            overhead: None,
        }
    }
}

/// One figure of all sides.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// `prefill`, `decode` or `decode_long`.
    pub kind: &'static str,
    /// Prompt tokens, or sequences that decode at once.
    pub size: usize,
    /// Tokens per second; Turnmill is first.
    pub sides: Vec<Samples>,
}

impl Figure {
    /// How many times as fast Turnmill is as the fastest other.
    pub fn ratio(&self) -> Option<f64> {
        ratio(&self.sides)
    }
}

/// The first one's median in those of the fastest other.
pub(super) fn ratio(sides: &[Samples]) -> Option<f64> {
    let (first, others) = sides.split_first()?;
    let best = others.iter().map(|side| side.median).max_by(f64::total_cmp)?;
    Some(first.median / best)
}

/// What one side showed, round by round.
#[derive(Clone, Debug, Serialize)]
pub struct Samples {
    /// Whose.
    pub side: String,
    /// Their median.
    pub median: f64,
    /// In the order they were measured.
    pub rounds: Vec<f64>,
}

impl Samples {
    /// Of one side.
    pub fn new(side: &str, rounds: Vec<f64>) -> Self {
        Self { side: side.to_owned(), median: median(&rounds), rounds }
    }
}

/// What `turnmill-worker bench engine` says of memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// One sequence over a long context.
    pub long: Option<Long>,
    /// Threads that computed.
    pub threads: usize,
    /// What as many threads read of memory in a second with nothing else to do.
    pub machine_read_bytes_per_s: Option<f64>,
    /// The block pool.
    pub pool_bytes: u64,
    /// The process's most, pool included.
    pub peak_bytes: Option<u64>,
}

/// One sequence that decodes over a long context.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Long {
    /// Prompt tokens.
    pub context: usize,
    /// Tokens per second.
    pub tok_s: f64,
    /// Weights a step, as the file holds them.
    pub weight_bytes: u64,
    /// K and V a step.
    pub kv_bytes: u64,
    /// Both in a second.
    pub read_bytes_per_s: f64,
}

/// A larger model.
#[derive(Clone, Debug, Serialize)]
pub struct ShapeReport {
    /// Which.
    pub shape: &'static str,
    /// Of the model file.
    pub file_bytes: u64,
    /// The engine alone.
    pub engine: Vec<Figure>,
}

/// What the worker's other benches print with `--json`; docs/CLI.md says what it means.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Parts {
    /// `bench restore`.
    pub restore: Value,
    /// `bench stall`.
    pub stall: Value,
    /// `bench drift`.
    pub drift: Value,
    /// `bench queue`.
    pub queue: Value,
}
