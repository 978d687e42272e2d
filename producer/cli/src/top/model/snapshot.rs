//! What one reading of Redis brings.

use turnmill_client::Lag;
use turnmill_client::operate::dead::DeadLetter;
use turnmill_client::operate::ends::EndsRead;
use turnmill_client::operate::running::{Running, RunningTurn};
use turnmill_client::operate::worker::WorkerView;

use crate::text::agent_id;

/// Running turns that are read; more are counted only.
pub const MAX_RUNNING: usize = 200;
/// Dead letters that are read, the newest; more are counted only.
pub const MAX_DEAD: usize = 50;

/// A part of a reading; an error says in a sentence why it is unknown.
pub type Part<T> = Result<T, String>;

/// What one reading brought. Parts fail by themselves: a user may be kept from one command.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub lag: Part<Lag>,
    pub workers: Part<Vec<WorkerView>>,
    pub running: Part<Running>,
    /// Ends since the reading before.
    pub ends: Part<EndsRead>,
    /// The newest.
    pub dead: Part<Vec<DeadLetter>>,
}

/// The agent of a turn.
pub fn agent_of(turn: &RunningTurn) -> String {
    agent_id(&turn.tenant, turn.agent.as_ref())
}
