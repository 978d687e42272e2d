//! How fast this machine is with Turnmill, and with llama.cpp beside it where its programs are given.
//!
//! | file | owns |
//! |---|---|
//! | `command` | a program run to its end, and what it printed |
//! | `build` | the two programs of Turnmill, built from one tree |
//! | `side` | who is measured: `turnmill-worker bench engine`, or llama.cpp with one model file |
//! | `rounds` | sides that take turns; medians and ratios |
//! | `agents` | the product's own workload: agents that share a system prompt and talk at once |
//! | `shape` | model files of a larger shape, with random weights |
//! | `parts` | the worker's other benches |
//! | `replies` | what it costs that replies are drawn and have a form, and what turns notice of grammars made to be slow |
//! | `overhead` | what metrics, logs and traces cost; probes under load |
//! | `machine` | what it all ran on |
//! | `report` | all of it as JSON |
//! | `table`, `picture` | the same for people |
//! | `against` | this tree beside a commit: `deploy/bench --against` |
//!
//! Invariant: two sides that are compared take turns in one run (A B A B A B), since machines get faster and slower by the
//! hour; a figure is the median of its rounds, and a ratio is one of medians.

pub mod against;
pub mod agents;
pub mod build;
mod command;
mod machine;
pub mod overhead;
mod parts;
pub mod picture;
pub mod replies;
pub mod report;
mod rounds;
pub mod shape;
mod side;
pub mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use turnmill_client::ClientError;

use build::Build;
use report::{Memory, Report, ShapeReport};
use rounds::measure;
use shape::Shape;
use side::{Point, Side};

/// What a run is told.
#[derive(Clone, Debug)]
pub struct BenchSettings {
    /// The model's file.
    pub model: PathBuf,
    /// A model with a large vocabulary, which sampling and forms are measured with, too.
    pub wide_model: Option<PathBuf>,
    /// A folder with llama.cpp's programs.
    pub llama_cpp: Option<PathBuf>,
    /// Fewer and smaller figures.
    pub quick: bool,
    /// These alone; none: all.
    pub only: Vec<Part>,
}

impl BenchSettings {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The engine alone, and its memory.
    Engine,
    /// The product's own workload.
    Agents,
    /// The engine with larger models; not with `quick`.
    Shapes,
    /// Stored K and V, codecs, the queue.
    Rest,
    /// What drawing tokens and forms of replies cost.
    Replies,
    /// What metrics, logs and traces cost.
    Overhead,
}

/// Why a run came to no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Ports, files, processes.
    #[error("the machine does not let the run go on: {0}")]
    Io(#[from] std::io::Error),
    /// A program that measures.
    #[error("{program} failed: {reason}")]
    Program {
        /// Which.
        program: String,
        /// The last thing it said.
        reason: String,
    },
    /// It printed something else than it should.
    #[error("what {program} printed cannot be read ({reason}); is it of another version?")]
    Unreadable {
        /// Which.
        program: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder of llama.cpp lacks a program.
    #[error("{} is missing; build llama.cpp's target of that name, or leave --llama-cpp out", .0.display())]
    Missing(PathBuf),
    /// A program of a commit.
    #[error("{} is missing; build both programs of the commit there, as deploy/bench --against does", .0.display())]
    NotBuilt(PathBuf),
    /// A producer of the agents' turns.
    #[error("a producer cannot go on: {0}")]
    Producer(#[from] ClientError),
    /// llama.cpp's server does not do as it is asked.
    #[error("llama-server does not answer as it should: {0}")]
    Server(#[from] reqwest::Error),
    /// A turn did not become what was asked for, so that sides cannot be compared.
    #[error("a turn was to make {wanted} tokens and made {made}: {reason}")]
    Turn {
        /// Tokens asked for.
        wanted: u32,
        /// Tokens made.
        made: u64,
        /// What is known of it.
        reason: String,
    },
    /// A model file could not be made.
    #[error("a model of the shape {shape} cannot be made: {reason}")]
    Shape {
        /// Which.
        shape: &'static str,
        /// Why.
        reason: String,
    },
}

/// How much of everything.
struct Extent {
    /// Times that each side has its turn.
    rounds: usize,
    /// Runs that a side's figure in a round is the median of.
    runs: usize,
    points: Vec<Point>,
    shape_points: Vec<Point>,
    shapes: bool,
    /// Prompt tokens of the step whose reading is measured.
    long_context: usize,
}

impl Extent {
    fn of(quick: bool) -> Self {
        let prefill = |tokens: &[usize]| tokens.iter().copied().map(Point::Prefill).collect::<Vec<_>>();
        let decode = |batches: &[usize]| batches.iter().copied().map(Point::Decode).collect::<Vec<_>>();
        if quick {
            let points = [prefill(&[128, 512, 2048]), decode(&[1, 8, 32])].concat();
            let shape_points = Vec::new();
            return Self { rounds: 1, runs: 1, points, shape_points, shapes: false, long_context: 2000 };
        }
        let points = [
            prefill(&[128, 512, 2048, 4096]),
            decode(&[1, 2, 4, 8, 16, 32]),
            vec![Point::Long(side::LONG_CONTEXT)],
        ];
        let shape_points = [prefill(&[128, 512]), decode(&[1, 8])].concat();
        let (points, long_context) = (points.concat(), side::LONG_CONTEXT);
        Self { rounds: 3, runs: 3, points, shape_points, shapes: true, long_context }
    }
}

/// Measures everything. `keep` is called with what there is after each part: a run takes long, and what it has found is found.
pub async fn run(
    settings: &BenchSettings,
    keep: impl Fn(&Report) -> std::io::Result<()>,
) -> Result<Report, BenchError> {
    let began = Instant::now();
    // On a disk, and gone at the end: model files are large.
    let scratch = tempfile::tempdir()?;
    let extent = Extent::of(settings.quick);
    let mut report = Report::new(settings, machine::Machine::look());
    if let Some(load) = report.machine.busy() {
        say(began, &format!("other programs run (load {load:.1}); figures are worth little"));
    }

    let mut sides = vec![Side::turnmill(&settings.model)];
    let mut server = None;
    if let Some(folder) = &settings.llama_cpp {
        let (peers, version) = side::peers(folder, &settings.model, scratch.path()).await?;
        report.llama_cpp = Some(version);
        server =
            peers.last().map(|best| agents::Server { folder: folder.clone(), model: best.model.clone() });
        sides.extend(peers);
    }
    if settings.has(Part::Engine) {
        report.engine = measure(&sides, &extent.points, &extent, began).await?;
        keep(&report)?;
        say(began, "memory");
        report.memory = Some(memory(&settings.model, extent.long_context).await?);
    }
    if settings.has(Part::Agents) {
        let agents = agents::measure(&settings.model, server.as_ref(), extent.rounds, began).await?;
        report.agents = Some(agents);
        keep(&report)?;
    }
    if settings.has(Part::Shapes) && extent.shapes {
        for shape in Shape::ALL {
            report.shapes.push(of_shape(&shape, settings, &extent, scratch.path(), began).await?);
            keep(&report)?;
        }
    }
    if settings.has(Part::Rest) {
        report.parts = parts::measure(&settings.model, scratch.path(), settings.quick, began).await?;
    }
    if settings.has(Part::Replies) {
        for model in [Some(&settings.model), settings.wide_model.as_ref()].into_iter().flatten() {
            report.replies.push(replies::measure(model, settings.quick, began).await?);
            keep(&report)?;
        }
    }
    if settings.has(Part::Overhead) {
        report.overhead = Some(overhead::measure(&settings.model, settings.quick, began).await?);
    }
    report.seconds = began.elapsed().as_secs();
    keep(&report)?;
    Ok(report)
}

/// What the engine reads and takes, in a process of its own.
async fn memory(model: &Path, context: usize) -> Result<Memory, BenchError> {
    let context = context.to_string();
    let flags = ["--prefill", "128", "--batch", "1", "--runs", "1", "--long-context", &context];
    Build::here().bench("engine", Some(model), &flags).await
}

async fn of_shape(
    shape: &Shape,
    settings: &BenchSettings,
    extent: &Extent,
    scratch: &Path,
    began: Instant,
) -> Result<ShapeReport, BenchError> {
    say(began, &format!("a model of the shape {}", shape.name));
    let path = scratch.join(format!("{}.gguf", shape.name));
    tokio::task::block_in_place(|| shape.write(&settings.model, &path))?;
    let mut sides = vec![Side::turnmill(&path)];
    sides.extend(settings.llama_cpp.iter().map(|folder| Side::llama_cpp("same file", folder, &path)));
    let engine = measure(&sides, &extent.shape_points, extent, began).await?;
    let bytes = std::fs::metadata(&path)?.len();
    // There may be no room for two.
    std::fs::remove_file(&path)?;
    Ok(ShapeReport { shape: shape.name, file_bytes: bytes, engine })
}

fn say(began: Instant, what: &str) {
    eprintln!("{:5} s  {what}", began.elapsed().as_secs());
}
