//! The product's own workload: agents that share a system prompt talk at once, each sending its next turn when its last one
//! has ended, with all that was said before.
//!
//! Turnmill is measured as it runs: Redis, the producer's library, `turnmill-worker serve`; llama.cpp as `llama-server` over
//! HTTP, with a slot an agent. Both are started afresh in every round and have answered one other turn when the clock starts;
//! both compute the system prompt within the measured time. Replies have a given length, so that both do the same work.

mod llama_server;
mod script;
pub(super) mod submitted;
mod turnmill;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::report::{Samples, ratio};
use super::rounds::median;
use super::{BenchError, say};

/// Agents at once.
pub const AGENTS: usize = 8;
/// Turns of each.
pub const TURNS: usize = 4;
/// Tokens of each reply.
pub const REPLY_TOKENS: u32 = 48;

/// A llama.cpp to compare with.
pub(super) struct Server {
    /// Its programs.
    pub folder: PathBuf,
    /// The model file that it serves.
    pub model: PathBuf,
}

/// One round of one side.
#[derive(Debug)]
struct Round {
    /// From the first turn's submission to the last one's end.
    elapsed: Duration,
    /// What each turn took.
    turns: Vec<Duration>,
    /// Prompt tokens that were computed, not found.
    computed: u64,
    /// Most memory of the server's process.
    peak_bytes: Option<u64>,
}

/// All rounds of all sides.
#[derive(Clone, Debug, Serialize)]
pub struct AgentsReport {
    /// Agents at once.
    pub agents: usize,
    /// Turns of each.
    pub turns: usize,
    /// Tokens of each reply.
    pub reply_tokens: u32,
    /// Turnmill's default is first.
    pub sides: Vec<AgentsSide>,
}

/// All rounds of one side.
#[derive(Clone, Debug, Serialize)]
pub struct AgentsSide {
    /// Turns per second of all agents together.
    pub turns_per_s: Samples,
    /// What half of the turns took at most, of all rounds.
    pub median_turn_ms: f64,
    /// Prompt tokens computed in a round, not found in a cache.
    pub computed_tokens: u64,
    /// Most memory of the server's process.
    pub peak_bytes: Option<u64>,
}

impl AgentsReport {
    /// How many times as many turns Turnmill's default makes in a second as llama.cpp.
    pub fn ratio(&self) -> Option<f64> {
        let speeds: Vec<Samples> = self.sides.iter().map(|side| side.turns_per_s.clone()).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) =
            speeds.into_iter().partition(|speed| speed.side.starts_with("Turnmill"));
        ratio(&[&ours[..1], &theirs].concat())
    }
}

/// Who serves the agents.
enum Host<'a> {
    /// A worker; K and V in a folder, as by default, or nowhere.
    Turnmill {
        model: &'a Path,
        keeps: bool,
    },
    LlamaServer(&'a Server),
}

impl Host<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Turnmill { keeps: true, .. } => "Turnmill",
            Self::Turnmill { keeps: false, .. } => "Turnmill, no store",
            Self::LlamaServer(_) => "llama-server",
        }
    }

    async fn round(&self) -> Result<Round, BenchError> {
        match self {
            Self::Turnmill { model, keeps } => turnmill::round(model, *keeps).await,
            Self::LlamaServer(server) => llama_server::round(server).await,
        }
    }
}

/// Measures all sides, in turns.
pub(super) async fn measure(
    model: &Path,
    server: Option<&Server>,
    rounds: usize,
    began: Instant,
) -> Result<AgentsReport, BenchError> {
    let mut hosts = vec![Host::Turnmill { model, keeps: true }];
    hosts.extend(server.map(Host::LlamaServer));
    hosts.push(Host::Turnmill { model, keeps: false });
    let mut all: Vec<Vec<Round>> = hosts.iter().map(|_| Vec::new()).collect();
    for number in 1..=rounds {
        for (host, rounds_of) in hosts.iter().zip(&mut all) {
            say(began, &format!("agents, round {number} of {rounds}: {}", host.name()));
            rounds_of.push(host.round().await?);
        }
    }
    let sides = hosts.iter().zip(all).map(|(host, rounds)| side(host.name(), &rounds)).collect();
    Ok(AgentsReport { agents: AGENTS, turns: TURNS, reply_tokens: REPLY_TOKENS, sides })
}

fn side(name: &str, rounds: &[Round]) -> AgentsSide {
    let turns = (AGENTS * TURNS) as f64;
    let speeds = rounds.iter().map(|round| turns / round.elapsed.as_secs_f64()).collect();
    let times: Vec<f64> =
        rounds.iter().flat_map(|round| &round.turns).map(|turn| 1e3 * turn.as_secs_f64()).collect();
    AgentsSide {
        turns_per_s: Samples::new(name, speeds),
        median_turn_ms: median(&times),
        computed_tokens: rounds.last().map_or(0, |round| round.computed),
        peak_bytes: rounds.iter().filter_map(|round| round.peak_bytes).max(),
    }
}

/// One turn, as its agent saw it.
#[derive(Clone, Copy, Debug)]
struct Heard {
    elapsed: Duration,
    computed: u64,
}

/// The agents' turns as a round.
fn round_of(began: Instant, heard: Vec<Vec<Heard>>, peak_bytes: Option<u64>) -> Round {
    let heard = heard.concat();
    Round {
        elapsed: began.elapsed(),
        turns: heard.iter().map(|heard| heard.elapsed).collect(),
        computed: heard.iter().map(|heard| heard.computed).sum(),
        peak_bytes,
    }
}

/// Refuses a turn of another length.
fn check(made: u64, reason: impl FnOnce() -> String) -> Result<(), BenchError> {
    if made == u64::from(REPLY_TOKENS) {
        return Ok(());
    }
    Err(BenchError::Turn { wanted: REPLY_TOKENS, made, reason: reason() })
}

/// Most memory that a process has had so far; Linux tells.
pub(super) fn peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_as_fast_as_its_median_round_and_compared_by_its_default() {
        let round = |seconds: u64| Round {
            elapsed: Duration::from_secs(seconds),
            turns: vec![Duration::from_millis(seconds); 3],
            computed: seconds,
            peak_bytes: Some(seconds),
        };
        let ours = side("Turnmill", &[round(8), round(2), round(4)]);
        assert_eq!(ours.turns_per_s.median, 8.0);
        assert_eq!((ours.median_turn_ms, ours.computed_tokens, ours.peak_bytes), (4.0, 4, Some(8)));
        let sides = vec![ours, side("llama-server", &[round(16)]), side("Turnmill, no store", &[round(1)])];
        let report = AgentsReport { agents: AGENTS, turns: TURNS, reply_tokens: REPLY_TOKENS, sides };
        assert_eq!(report.ratio(), Some(4.0));
    }

    #[test]
    fn a_turn_of_another_length_is_no_result() {
        assert!(check(u64::from(REPLY_TOKENS), String::new).is_ok());
        let error = check(7, || "it stopped".to_owned()).expect_err("too short").to_string();
        assert_eq!(error, "a turn was to make 48 tokens and made 7: it stopped");
    }
}
