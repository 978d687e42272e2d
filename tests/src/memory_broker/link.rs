//! The way between a worker and the queue. In one process nothing gets lost on it; a simulation puts one here that
//! delays, repeats and loses what goes over it.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use turnmill_worker::broker::BrokerError;

/// What [`Link`] answers with, later.
pub type Passage<T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send>>;

/// What happens to calls on their way. A call is taken whole or not at all, between the two methods.
pub trait Link: Debug + Send + Sync + 'static {
    /// Before the queue takes the call of `step`: how often it does. An error: never.
    fn request(&self, step: &'static str) -> Passage<u32>;

    /// After that. An error: the worker does not learn the answer.
    fn reply(&self, step: &'static str) -> Passage<()>;

    /// Whether the call arrives once more, after it was answered: a client that gave up and asked again, and whose first request was
    /// on its way still.
    fn is_repeated_late(&self, _step: &'static str) -> bool {
        false
    }

    /// To do `call` once more, later.
    fn later(&self, _step: &'static str, _call: Box<dyn FnOnce() + Send>) {}
}

/// Nothing happens on the way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Link for Direct {
    fn request(&self, _step: &'static str) -> Passage<u32> {
        Box::pin(std::future::ready(Ok(1)))
    }

    fn reply(&self, _step: &'static str) -> Passage<()> {
        Box::pin(std::future::ready(Ok(())))
    }
}
