//! From the queue to the engine and back: claiming turns, running them, keeping their leases.
//!
//! | file | owns |
//! |---|---|
//! | `intake` | reads, reclaims and leases while there is room |
//! | `turn` | one turn's life: prompt, engine, publishing, the terminal result |
//! | `publish` | a result stream's next deltas, through outages |
//! | `heartbeat` | what is held stays held, unless the engine hangs |
//! | `held` | the list of what is held |
//! | `link` | whether Redis answers, said once |
//!
//! Invariant: whatever this worker holds is in [`held::Held`] from the moment it is handed out until it is
//! ended, released or lost, so that heartbeats cover exactly that; a task that dies drops its entry, and after
//! a lease another worker takes the turn.

mod heartbeat;
mod held;
mod intake;
mod link;
mod publish;
mod turn;

pub use heartbeat::heartbeat;
pub use held::Held;
pub use intake::Intake;
pub use link::Link;
pub use turn::{Prompting, Runner, RunnerSettings};
