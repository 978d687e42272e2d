//! What travels between Turnmill's producers, Redis and workers. No I/O happens here.
//!
//! * [`turn`]: an agent's next messages and how to sample.
//! * [`event`]: what a result stream says about a turn: Begin, Delta*, End.
//! * [`delta`]: some tokens of a reply, and where they can be cut.
//! * [`transcript`]: the exact history of an agent, one entry a completed turn.
//! * [`manifest`]: what is stored of an agent's K and V.
//! * [`kv_object`]: where those objects are, and how they name one another.
//! * [`agent_file`]: an agent as one file.
//! * [`envelope`]: version byte + MessagePack, the form in which all of the above are stored.
//! * [`payload`]: turns too large for Redis, and the references that stand in their place.
//! * [`trace_context`], [`request_id`]: what ties a turn to what happened before it, in traces and logs.
//! * [`environment`]: every variable that a program reads.
//! * [`masked`]: URLs without their passwords, as every program prints them.
//! * [`names`]: a name, by what it names.
//! * [`keys`]: every Redis key, stream, group and field name.
//! * [`stream_id`]: where an entry stands in a stream.
//! * [`worker_status`]: what a worker says of itself in the registry.

pub mod agent_file;
pub mod delta;
pub mod envelope;
pub mod environment;
pub mod event;
pub mod ids;
pub mod keys;
pub mod kv_object;
pub mod manifest;
pub mod masked;
pub mod message;
pub mod names;
pub mod payload;
pub mod request_id;
pub mod stream_id;
pub mod tool;
pub mod trace_context;
pub mod transcript;
pub mod turn;
pub mod worker_status;

pub use delta::{CutError, Delta, Part, Span, TokenBytes, TokenLogprobs};
pub use event::{Begin, DeadReason, End, Event, FinishReason, Outcome, StopRule, Timing, Usage};
pub use ids::{AgentId, InvalidName, Name, TurnId};
pub use manifest::{Digest, Manifest};
pub use message::{InvalidMessage, Message, Role, ToolCall, check_results};
pub use names::{AgentName, IdempotencyKey, QueueName, TenantName};
pub use payload::{EncodedTurn, PayloadError, PayloadReference, StoredTurn};
pub use request_id::RequestId;
pub use stream_id::{InvalidStreamId, StreamId};
pub use tool::{Effort, InvalidTools, Reasoning, ResponseFormat, Tool, ToolChoice, tool_name};
pub use trace_context::{TraceParent, TraceState};
pub use transcript::{History, MarkedEntry, TranscriptEntry, TurnEnd};
pub use turn::{END_OF_TIME_MS, InvalidTurn, Priority, Sampling, Turn};
pub use worker_status::WorkerStatus;
