//! Puts agent turns into a Turnmill queue and reads what comes back.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use turnmill_client::schema::{Event, Name};
//! use turnmill_client::{Client, NewTurn};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("redis://127.0.0.1:6379").connect().await?;
//! let turn = client.enqueue(NewTurn::user("What is the capital of France?").agent(Name::new("a")?)).await?;
//! let mut events = std::pin::pin!(client.follow(turn, None));
//! while let Some(followed) = events.next().await {
//!     if let Event::Delta(delta) = followed?.event {
//!         print!("{}", delta.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Promises: a turn is checked before anything is written; [`Client::follow`] gives every token once, across dropped connections
//! and workers that died. After a lost reply a turn with an idempotency key may be enqueued again, and
//! [`Client::enqueue_prepared`] may be called again with the same turns: no turn is enqueued twice.

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
mod packed;
mod passed_by;
mod payload;
mod pieces;
mod settings;
mod store;
mod turn_result;
mod wait_many;

pub use turnmill_redis::{Advice, Fault, choose_cryptography};
pub use turnmill_schema as schema;
pub use turnmill_schema::{InvalidStreamId, StreamId};

pub use batch::{BatchError, Enqueued, Fate};
pub use builder::ClientBuilder;
pub use cancel::Cancelled;
pub use client::Client;
pub use enqueue::{BATCH_BYTES, BATCH_TURNS};
pub use error::ClientError;
pub use follow::{Follow, Followed};
pub use lag::{Lag, PriorityLag};
pub use new_turn::NewTurn;
pub use packed::PackedTurn;
pub use turn_result::TurnResult;
pub use wait_many::WaitMany;
