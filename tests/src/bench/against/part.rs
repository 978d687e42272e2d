//! What is measured, and with which commands of a build.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::bench::BenchError;
use crate::bench::agents::submitted;
use crate::bench::build::Build;
use crate::bench::side::{Point, Side};
use crate::redis_server::RedisServer;

/// Runs within one process that an engine's figure is the median of.
const ENGINE_RUNS: usize = 3;
/// Turns of `bench queue`.
const QUEUE_TURNS: &str = "10000";
/// Tokens of the prompt that is restored.
const RESTORE_TOKENS: &str = "2048";

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The engine alone: cold prompts.
    Prefill,
    /// The engine alone: sequences that decode at once.
    Decode,
    /// Agents that talk at once, through queue and worker.
    Agents,
    /// The queue alone.
    Cycles,
    /// The first token of a prompt that is only in the store.
    Restore,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum Unit {
    /// More are faster.
    Tokens,
    /// More are faster.
    Turns,
    /// Fewer are faster.
    Milliseconds,
}

impl From<Unit> for &'static str {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Tokens => "tokens/s",
            Unit::Turns => "turns/s",
            Unit::Milliseconds => "ms",
        }
    }
}

impl Unit {
    /// How many times as fast `new` is as `old`.
    pub(super) fn ratio(self, old: f64, new: f64) -> f64 {
        match self {
            Self::Tokens | Self::Turns => new / old,
            Self::Milliseconds => old / new,
        }
    }
}

/// One figure of one side in one round.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub name: String,
    pub unit: Unit,
    pub value: f64,
}

impl Figure {
    /// Refuses what is no measurement, so that ratios are numbers.
    fn new(name: impl Into<String>, unit: Unit, value: f64) -> Result<Self, BenchError> {
        let name = name.into();
        if value.is_finite() && value > 0.0 {
            return Ok(Self { name, unit, value });
        }
        let reason = format!("{name} is {value}");
        Err(BenchError::Unreadable { program: "a bench".to_owned(), reason })
    }
}

impl Part {
    /// In the order they are measured.
    pub(super) const ALL: [Self; 5] =
        [Self::Prefill, Self::Decode, Self::Agents, Self::Cycles, Self::Restore];

    /// As `--only` has it.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Measures one side once: always the same figures in the same order.
    pub(super) async fn measure(self, build: &Build, model: &Path) -> Result<Vec<Figure>, BenchError> {
        match self {
            Self::Prefill => engine(build, model, &[512, 2048].map(Point::Prefill)).await,
            Self::Decode => engine(build, model, &[1, 8, 32].map(Point::Decode)).await,
            Self::Agents => {
                let turns_per_s = submitted::turns_per_s(build, model).await?;
                Ok(vec![Figure::new("8 agents", Unit::Turns, turns_per_s)?])
            }
            Self::Cycles => cycles(build).await,
            Self::Restore => restore(build, model).await,
        }
    }
}

async fn engine(build: &Build, model: &Path, points: &[Point]) -> Result<Vec<Figure>, BenchError> {
    let figures = Side::of(build.clone(), model).figures(points, ENGINE_RUNS).await?;
    let figure = |point: &Point| {
        let value =
            figures.iter().find(|(measured, _)| measured == point).map_or(f64::NAN, |(_, value)| *value);
        Figure::new(point.name(), Unit::Tokens, value)
    };
    points.iter().map(figure).collect()
}

/// What `turnmill-worker bench queue` prints, as far as it is needed here.
#[derive(Deserialize)]
struct Queue {
    cycle_per_s: f64,
}

async fn cycles(build: &Build) -> Result<Vec<Figure>, BenchError> {
    let redis = tokio::task::block_in_place(RedisServer::start);
    let flags = ["--redis-url", &redis.url(), "--turns", QUEUE_TURNS];
    let queue: Queue = build.bench("queue", None, &flags).await?;
    Ok(vec![Figure::new("cycles", Unit::Turns, queue.cycle_per_s)?])
}

/// What `turnmill-worker bench restore` prints, as far as it is needed here.
#[derive(Deserialize)]
struct Restore {
    warm_ttft_ms: f64,
}

async fn restore(build: &Build, model: &Path) -> Result<Vec<Figure>, BenchError> {
    let folder = TempDir::new()?;
    let store = format!("file://{}", folder.path().display());
    let flags = ["--store", &store, "--context", RESTORE_TOKENS, "--codec", "f16"];
    let restores: Vec<Restore> = build.bench("restore", Some(model), &flags).await?;
    let figure = |restore: Restore| {
        Figure::new(format!("restore {RESTORE_TOKENS}"), Unit::Milliseconds, restore.warm_ttft_ms)
    };
    restores.into_iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_faster_whatever_the_unit_and_what_is_no_number_is_refused() {
        assert_eq!(Unit::Tokens.ratio(100.0, 150.0), 1.5);
        assert_eq!(Unit::Milliseconds.ratio(150.0, 100.0), 1.5);
        assert!([f64::NAN, 0.0, -1.0].into_iter().all(|value| Figure::new("x", Unit::Turns, value).is_err()));
    }
}
