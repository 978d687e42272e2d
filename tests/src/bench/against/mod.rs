//! This tree beside a commit, both built and both measured in one run: what became slower?
//!
//! | file | owns |
//! |---|---|
//! | `part` | what is measured, and with which commands |
//! | `compare` | the ratio of a figure, and what is known of it |
//! | `table` | the result for people |
//!
//! Invariant: the two measurements of a pair directly follow each other, the commit first in one round and this tree first in
//! the next (A B B A), and ratios are those of pairs. A machine that gets slower within minutes does so for both.

mod compare;
mod part;
pub mod table;

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::build::Build;
use super::machine::{Machine, commit};
use super::{BenchError, say};
pub use compare::{Compared, Verdict};
use part::Figure;
pub use part::Part;

/// What a run is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model's file.
    pub model: PathBuf,
    /// The programs of the commit.
    pub old: Build,
    /// Times that both are measured.
    pub rounds: usize,
    /// Measure these parts alone; if it is empty, all.
    pub only: Vec<Part>,
}

/// Everything that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The commit.
    pub old: String,
    /// This tree: its commit, with `-dirty` if files differ from it.
    pub new: String,
    /// The model's file name.
    pub model: String,
    /// What the run ran on.
    pub machine: Machine,
    /// Times that both were measured.
    pub rounds: usize,
    /// How long the run took.
    pub seconds: u64,
    /// In the order they are measured.
    pub figures: Vec<Compared>,
    /// Names of the figures that are more than 3 % slower.
    pub slower: Vec<String>,
    /// Names of the figures that may be: the run cannot tell.
    pub unclear: Vec<String>,
}

/// Measures both.
pub async fn run(settings: &Settings) -> Result<Report, BenchError> {
    let began = Instant::now();
    let machine = Machine::look();
    let sides = [settings.old.clone(), Build::here()];
    let asked = |part: &Part| settings.only.is_empty() || settings.only.contains(part);
    let parts: Vec<Part> = Part::ALL.into_iter().filter(asked).collect();
    let mut pairs: Vec<Vec<[Vec<Figure>; 2]>> = vec![Vec::new(); parts.len()];
    for round in 1..=settings.rounds {
        for (part, pairs) in parts.iter().zip(&mut pairs) {
            let mut pair = [Vec::new(), Vec::new()];
            for side in order(round) {
                let name = &sides[side].name;
                say(began, &format!("round {round} of {}, {}: {name}", settings.rounds, part.name()));
                pair[side] = part.measure(&sides[side], &settings.model).await?;
            }
            pairs.push(pair);
        }
    }
    let figures: Vec<Compared> = pairs.iter().flat_map(|pairs| compare::figures(pairs)).collect();
    let named = |verdict: Verdict| {
        let is = |figure: &&Compared| figure.verdict == verdict;
        figures.iter().filter(is).map(|figure| figure.name.clone()).collect()
    };
    let (slower, unclear) = (named(Verdict::Slower), named(Verdict::Unclear));
    Ok(Report {
        old: settings.old.name.clone(),
        new: commit().unwrap_or_else(|| "unknown".to_owned()),
        model: settings.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        machine,
        rounds: settings.rounds,
        seconds: began.elapsed().as_secs(),
        figures,
        slower,
        unclear,
    })
}

/// Who is measured first and second: 0 is the commit, 1 this tree.
fn order(round: usize) -> [usize; 2] {
    if round % 2 == 1 { [0, 1] } else { [1, 0] }
}
