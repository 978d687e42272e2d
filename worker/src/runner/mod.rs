//! From the queue to the engine and back: claiming turns, running them, keeping their leases.
//!
//! | file | owns |
//! |---|---|
//! | `intake` | reads and leases while there is room |
//! | `tend` | what goes on beside the turns: renewals, cancellations, who waits or fell silent, the registry |
//! | `turn` | one turn's life: engine, publishing |
//! | `prepare` | its prompt, and what earlier attempts published |
//! | `form` | what its reply has to look like: parts, grammar |
//! | `conversation` | its tokens as the object store knows them |
//! | `restore` | its stored K and V are restored before it runs |
//! | `keep` | what is stored of it when it leaves, and who is told |
//! | `leave` | its end: the terminal result, or requeueing it |
//! | `payload` | the turn's own text, if it is too large for Redis |
//! | `publish` | a result stream's next deltas, through outages |
//! | `coalesce` | how long tokens wait for others that are published with them |
//! | `retries` | pauses before another attempt |
//! | `service` | all of it, from the first claim to the end of a drain |
//! | `trim` | the folder with K and V keeps to its limit |
//! | `fitness` | whether turns fail here that other workers complete |
//! | `health` | whether Redis serves the queue, said once; calls through outages |
//! | `alarm` | a part of the worker ended that should go on |
//!
//! Invariant: what this worker has in its hands are [`crate::broker::Ticket`]s and [`crate::broker::Lease`]s, which the broker
//! renews for as long as they live; a task that dies drops its own, and after a lease another worker takes the turn.

mod alarm;
mod coalesce;
mod conversation;
mod fitness;
mod form;
mod health;
mod intake;
mod keep;
mod leave;
mod payload;
mod prepare;
mod publish;
mod restore;
mod retries;
mod service;
mod tend;
mod trim;
mod turn;

pub use alarm::Alarm;
pub use coalesce::Coalescing;
pub use conversation::Conversation;
pub use form::Forms;
pub use health::{Backoff, QueueHealth};
pub use intake::Intake;
pub use keep::Keeper;
pub use prepare::Prompting;
pub use restore::{RestoreSettings, Restored, Restorer};
pub use retries::Retries;
pub use service::{Over, Parts, REQUEUE_PERSIST, Service};
pub use tend::Tender;
pub use trim::trim;
pub use turn::{Runner, RunnerSettings};
