//! From the queue to the engine and back: claiming turns, running them, keeping their leases.
//!
//! | file | owns |
//! |---|---|
//! | `intake` | reads, reclaims and leases while there is room |
//! | `turn` | one turn's life: engine, publishing |
//! | `prepare` | its prompt, and what earlier attempts published |
//! | `conversation` | its tokens as the object store knows them |
//! | `restore` | its stored K and V come back before it runs |
//! | `keep` | what is stored of it when it leaves, and who is told |
//! | `leave` | its end: the terminal result, or requeueing it |
//! | `payload` | the turn's own text, where it is too large for Redis |
//! | `publish` | a result stream's next deltas, through outages |
//! | `renew` | what is held stays held, unless the engine hangs |
//! | `retries` | pauses before another attempt |
//! | `notices` | cancelled turns stop at once |
//! | `registry` | who this worker is, and what it is told |
//! | `trim` | the folder with K and V keeps to its limit |
//! | `held` | the list of what is held |
//! | `link` | whether Redis answers, said once |
//!
//! Invariant: whatever this worker holds is in [`held::Held`] from the moment it is read until it is
//! ended, requeued or lost, so that renewals cover exactly that; a task that dies drops its entry, and after
//! a lease another worker takes the turn.

mod conversation;
mod held;
mod intake;
mod keep;
mod leave;
mod link;
mod notices;
mod payload;
mod prepare;
mod publish;
mod registry;
mod renew;
mod restore;
mod retries;
mod trim;
mod turn;

pub use conversation::Conversation;
pub use held::Held;
pub use intake::Intake;
pub use keep::Keeper;
pub use link::Link;
pub use notices::notices;
pub use prepare::Prompting;
pub use registry::Registry;
pub use renew::renew;
pub use restore::{RestoreSettings, Restored, Restorer};
pub use retries::Retries;
pub use trim::trim;
pub use turn::{Runner, RunnerSettings};
