//! What travels between Turnmill's producers, Redis and workers. No I/O happens here.
//!
//! * [`turn`]: the job: an agent's next messages and how to sample.
//! * [`event`]: what a result stream says about a turn: Begin, Delta*, End.
//! * [`transcript`]: the exact history of an agent, one entry a completed turn.
//! * [`envelope`]: version byte + MessagePack, the form in which all of the above are stored.
//! * [`keys`]: every Redis key, stream, group and field name.
//! * [`scripts`]: the queue's atomic steps, in Lua.

pub mod envelope;
pub mod event;
pub mod ids;
pub mod keys;
pub mod scripts;
pub mod transcript;
pub mod turn;

pub use event::{Begin, Delta, End, Event, FinishReason, Outcome, Timing, TokenLogprobs, Usage};
pub use ids::{AgentId, InvalidName, Name, TurnId};
pub use transcript::{History, TranscriptEntry};
pub use turn::{InvalidTurn, Message, Priority, Role, Sampling, Turn};
