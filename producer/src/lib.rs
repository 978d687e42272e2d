//! Puts agents' turns into a Turnmill queue on Redis, and reads what comes back.
//!
//! ```no_run
//! use turnmill_client::{Client, NewTurn};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("redis://127.0.0.1:6379").connect().await?;
//! let turn = NewTurn::user("What is the capital of France?").agent("ada".parse()?);
//! let enqueued = client.enqueue(turn).await?;
//! let result = client.wait(enqueued.turn).await?;
//! println!("{}", result.text.unwrap_or_default());
//! # Ok(())
//! # }
//! ```
//!
//! A **turn** is what an agent hears next, and how to sample its answer: [`NewTurn`]. An **agent** is a name. Its turns run one at a
//! time, in the order in which they were enqueued, and each goes on from the history that those before it left. Agents do not wait
//! for each other. **Tenants** share nothing.
//!
//! | to | call |
//! |---|---|
//! | enqueue one turn, or many | [`Client::enqueue`], [`Client::enqueue_batch`] |
//! | enqueue a turn only if it follows the one that the program knows | [`NewTurn::after`] |
//! | read a reply while it is made | [`Client::follow`], [`Client::follow_many`] |
//! | wait for the end of one turn, or of many | [`Client::wait`], [`Client::wait_many`] |
//! | hear of every turn that ends, as one of several consumers | [`Client::events`] |
//! | cancel a turn | [`Client::cancel`] |
//! | read what an agent heard and said | [`Client::history`] |
//! | let the model call tools | [`NewTurn::tools`], [`TurnResult::tool_calls`], [`Message::tool_result`] |
//! | have the answer fit a JSON Schema | [`NewTurn::response_format`] |
//! | know how much work there is | [`Client::lag`] |
//! | look at turns, agents and workers, and look after them | [`Client::operate`] |
//!
//! # Tools
//!
//! A model that is given tools can answer with calls of them. It waits for their results, which are the agent's next turn:
//!
//! ```no_run
//! use turnmill_client::{Client, ClientError, FinishReason, Message, NewTurn, Tool, ToolCall, ToolChoice};
//!
//! # fn run(call: &ToolCall) -> String { call.arguments.clone() }
//! # async fn example(client: Client, ada: turnmill_client::AgentName, tools: Vec<Tool>) -> Result<(), ClientError> {
//! let ask = NewTurn::user("What is 17 + 25?").agent(ada.clone()).tools(tools.clone(), ToolChoice::Auto);
//! let mut result = client.wait(client.enqueue(ask).await?.turn).await?;
//! while result.finish == Some(FinishReason::ToolCalls) {
//!     let results = result.tool_calls.iter().map(|call| Message::tool_result(&call.id, run(call)));
//!     let next = NewTurn { messages: results.collect(), ..NewTurn::default() };
//!     let next = next.agent(ada.clone()).tools(tools.clone(), ToolChoice::Auto);
//!     result = client.wait(client.enqueue(next).await?.turn).await?;
//! }
//! println!("{}", result.text.unwrap_or_default());
//! # Ok(())
//! # }
//! ```
//!
//! The example `tool_loop` is the whole of it, with a limit of rounds.
//!
//! # Promises
//!
//! - A turn is checked before anything is written.
//! - A follower gets every token once, across dropped connections and workers that died.
//! - After a lost reply a turn with an [idempotency key](NewTurn::idempotency_key) may be enqueued again, and
//!   [`Client::enqueue_prepared`] may be called again with the same turns: no turn is enqueued twice.
//! - A connection that broke, or that leads to a server which lost its place in a failover, is made anew behind each call, for
//!   [`ClientBuilder::retry_for`].
//!
//! # Errors
//!
//! [`ClientError::advice`] says whether to try again, to give up on the turn, or to stop. A call for several turns says what became
//! of each of them:
//!
//! ```no_run
//! use turnmill_client::{Client, Fate, NewTurn};
//!
//! # async fn example(client: Client, turns: Vec<NewTurn>) {
//! if let Err(error) = client.enqueue_batch(turns).await {
//!     eprintln!("{error}"); // 200 of 450 turns are in the queue; the others are not: queue full; …
//!     for (place, fate) in error.fates.iter().enumerate() {
//!         match fate {
//!             Fate::Enqueued(enqueued) => println!("{place} is turn {}", enqueued.turn),
//!             Fate::Unknown => println!("{place} may be in the queue"),
//!             Fate::NotEnqueued => println!("{place} is not in the queue"),
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! # Features
//!
//! `store`: turns too large for Redis (256 KiB) go through an object store, and exported agents take their K and V along. Without it,
//! such turns are refused.

mod batch;
mod builder;
mod cancel;
mod claims;
mod client;
mod connection;
mod enqueue;
mod error;
pub mod events;
mod follow;
mod lag;
mod new_turn;
pub mod operate;
mod overdue;
mod passed_by;
mod payload;
mod pieces;
mod prepared;
mod settings;
mod store;
mod turn_result;
mod wait_many;

pub use turnmill_redis::{Advice, Fault, choose_cryptography};
pub use turnmill_schema as schema;
pub use turnmill_schema::{
    AgentName, Delta, Effort, End, Event, FinishReason, IdempotencyKey, InvalidName, InvalidStreamId,
    InvalidTurn, Message, Name, Outcome, Part, Priority, QueueName, Reasoning, ResponseFormat, Role,
    Sampling, StopRule, StreamId, TenantName, Tool, ToolCall, ToolChoice, TurnId, Usage, tool_name,
};

pub use batch::{BatchError, Enqueued, Fate};
pub use builder::ClientBuilder;
pub use cancel::Cancelled;
pub use client::Client;
pub use enqueue::{BATCH_BYTES, BATCH_TURNS};
pub use error::ClientError;
pub use follow::{Follow, Followed};
pub use lag::{Lag, PriorityLag};
pub use new_turn::NewTurn;
pub use prepared::PreparedTurn;
pub use turn_result::TurnResult;
pub use wait_many::WaitMany;
