//! Turnmill's queue on Redis, written once.
//!
//! * [`Server`]: connecting (TCP, TLS, unix sockets; one server), whether the server may carry a queue, and what happens when
//!   another one takes its place.
//! * [`Fault`]: the one classification of errors: retry, reject or stop.
//! * [`steps`]: the queue's atomic steps. Each module holds a script, its typed arguments and its typed reply.
//! * The other modules: single commands, with typed answers too.
//!
//! Invariant: nothing outside this crate knows a command of Redis, or the position of an argument.

mod agents;
mod append;
mod blocking;
mod call;
mod clock;
mod cryptography;
mod dead;
mod entries;
mod events;
mod facts;
mod fault;
mod hash;
mod history;
mod link;
mod published;
mod raw;
mod reply;
mod report;
mod results;
mod running;
mod scan;
mod server;
mod shared_keys;
pub mod steps;
mod tickets;
mod turns;
mod url;
mod waiting;
mod workers;

pub use agents::{AgentFound, AgentRecord, WorkPlace};
pub use append::{AppendLink, Appended, Top};
pub use blocking::{Blocking, Subscription};
pub use call::{Call, ItemStep, Step};
pub use clock::ServerClock;
pub use cryptography::choose as choose_cryptography;
pub use dead::DeadRecord;
pub use entries::{Entry, Found};
pub use events::{Claimed, Consumer, EndedRecord};
pub use facts::ServerFacts;
pub use fault::{Advice, Fault};
pub use history::{HistoryRecord, HistorySize};
pub use report::{ServerReport, type_of_name};
pub use results::{ReadUpTo, TurnState};
pub use running::RunningRecord;
pub use scan::Scan;
pub use server::{RESPONSE_TIMEOUT, Server};
pub use shared_keys::ready_keys;
pub use tickets::{Delivered, ReadyStream, Share};
pub use turns::{TurnPlace, TurnRecord, TurnWait};
pub use url::{Endpoint, RedisUrl};
pub use waiting::{CappedTenant, WaitingAgents};
pub use workers::WorkerRecord;
