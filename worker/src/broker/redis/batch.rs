//! Steps that many turns take at about the same time, many to a call.
//!
//! While a call is under way the next one gathers: a quiet worker waits for nobody, a busy one pays for one script call
//! where it would have paid for dozens. Each item has its own answer; one that cannot be read costs the others nothing.

use std::sync::Arc;

use redis::Value;
use tokio::sync::{mpsc, oneshot};
use turnmill_schema::keys::Keys;
use turnmill_schema::scripts::Call;

use super::held::Held;
use super::steps::{Step, Steps};
use super::{BrokerError, connect::Server};

/// Items to a call at most: a call of so many keeps Redis from others for about two milliseconds.
const MAX_ITEMS: usize = 48;

/// Keys and arguments of one item.
pub(super) struct Item {
    pub(super) keys: [String; 7],
    pub(super) args: Vec<Vec<u8>>,
}

type Answer = oneshot::Sender<Result<Value, BrokerError>>;

/// Gathers the items of one step of one shard.
#[derive(Debug)]
pub(super) struct Batch {
    items: mpsc::Sender<(Item, Answer)>,
}

/// What every call of a batch needs.
pub(super) struct BatchContext {
    pub(super) server: Arc<Server>,
    pub(super) held: Arc<Held>,
    pub(super) steps: Arc<Steps>,
    pub(super) keys: Keys,
    /// ARGV before those of the items.
    pub(super) args: Vec<Vec<u8>>,
    pub(super) step: fn(&Steps) -> &Step,
}

impl Batch {
    /// Starts gathering; ends when the batch is dropped.
    pub(super) fn start(context: BatchContext) -> Self {
        let (items, inbox) = mpsc::channel(MAX_ITEMS);
        tokio::spawn(context.run(inbox));
        Self { items }
    }

    /// The item's answer. A dropped future is a lost reply: the step may have been taken.
    pub(super) async fn call(&self, item: Item) -> Result<Value, BrokerError> {
        let (sender, answer) = oneshot::channel();
        // The task ends with `self` only, and answers whatever it took.
        self.items.send((item, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn gone() -> BrokerError {
    BrokerError::Unsuitable("the worker's batch of steps has ended: a bug; please report the log".to_owned())
}

impl BatchContext {
    async fn run(self, mut inbox: mpsc::Receiver<(Item, Answer)>) {
        let mut gathered = Vec::with_capacity(MAX_ITEMS);
        while inbox.recv_many(&mut gathered, MAX_ITEMS).await > 0 {
            let mut call = Call::new(&self.keys);
            call.args.clone_from(&self.args);
            let mut answers = Vec::with_capacity(gathered.len());
            for (item, answer) in gathered.drain(..) {
                call.keys.extend(item.keys);
                call.args.extend(item.args);
                answers.push(answer);
            }
            let replies = self.call(&call, answers.len()).await;
            for (answer, reply) in answers.into_iter().zip(replies) {
                // Nobody waits for the answer of a dropped future.
                let _ = answer.send(reply);
            }
        }
    }

    async fn call(&self, call: &Call, items: usize) -> Vec<Result<Value, BrokerError>> {
        let step = (self.step)(&self.steps);
        match self.server.run_shared(step, call).await.and_then(|reply| self.read(step, reply, items)) {
            Ok(replies) => replies.into_iter().map(|reply| self.answer(step, reply)).collect(),
            Err(error) => (0..items).map(|_| Err(error.clone())).collect(),
        }
    }

    /// The answers of a reply: what the server's clock says, then one for each item.
    fn read(&self, step: &Step, reply: Value, items: usize) -> Result<Vec<Value>, BrokerError> {
        let read: Result<(u64, Vec<Value>), _> = redis::from_redis_value(reply);
        let (now_ms, replies) = read.map_err(|e| self.server.error(step.name, &e.into()))?;
        self.held.clock().set(now_ms);
        if replies.len() == items {
            return Ok(replies);
        }
        let reason = format!("the script answered {} of {items} items", replies.len());
        Err(BrokerError::Refused { step: step.name, passing: false, reason })
    }

    /// An item's answer; `error` and a reason are the script's way to say that it could not be read.
    fn answer(&self, step: &Step, reply: Value) -> Result<Value, BrokerError> {
        if let Value::Array(parts) = &reply
            && let [Value::BulkString(status), Value::BulkString(reason)] = &parts[..]
            && status == b"error"
        {
            let reason = String::from_utf8_lossy(reason).into_owned();
            return Err(self.server.item_error(step.name, reason));
        }
        Ok(reply)
    }
}
