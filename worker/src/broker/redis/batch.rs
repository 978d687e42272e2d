//! Steps that many turns take at about the same time, many to a call.
//!
//! While a call is under way the next one gathers: a quiet worker waits for nobody, a busy one pays for one script call
//! instead of for dozens. Each item has its own answer; one that cannot be read costs the others nothing.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use turnmill_redis::{Fault, ItemStep, Server};
use turnmill_schema::keys::Keys;

/// Items to a call at most: a call of this many keeps Redis from others for about two milliseconds.
const MAX_ITEMS: usize = 48;
/// Bytes of arguments to a call at most, unless one item has more.
const MAX_BYTES: usize = 1 << 20;

type Answer<S> = oneshot::Sender<Result<<S as ItemStep>::Answer, Fault>>;

/// Gathers the items of one step of one shard.
#[derive(Debug)]
pub(super) struct Batch<S: ItemStep> {
    items: mpsc::Sender<(S, Answer<S>)>,
}

impl<S: ItemStep + Sync + 'static> Batch<S> {
    /// Starts gathering; ends when the batch is dropped.
    pub(super) fn start(server: Arc<Server>, keys: Keys, common: S::Common) -> Self
    where
        S::Common: 'static,
    {
        let (items, inbox) = mpsc::channel(MAX_ITEMS);
        tokio::spawn(run(server, keys, common, inbox));
        Self { items }
    }

    /// The item's answer. A dropped future is a lost reply: the step may have been taken.
    pub(super) async fn call(&self, item: S) -> Result<S::Answer, Fault> {
        let (sender, answer) = oneshot::channel();
        // The task ends with `self` only, and answers whatever it took.
        self.items.send((item, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn gone() -> Fault {
    Fault::Unsuitable("the worker's batch of steps has ended: a bug; please report the log".to_owned())
}

async fn run<S: ItemStep + Sync>(
    server: Arc<Server>,
    keys: Keys,
    common: S::Common,
    mut inbox: mpsc::Receiver<(S, Answer<S>)>,
) {
    let mut gathered = Vec::with_capacity(MAX_ITEMS);
    // What a call before had no room for comes first.
    while !gathered.is_empty() || inbox.recv_many(&mut gathered, MAX_ITEMS).await > 0 {
        let (items, answers): (Vec<S>, Vec<Answer<S>>) = gathered.drain(..that_fit(&gathered)).unzip();
        match server.run_items(&keys, &common, &items).await {
            // Nobody waits for the answer of a dropped future.
            Ok(replies) => {
                answers.into_iter().zip(replies).for_each(|(answer, reply)| drop(answer.send(reply)))
            }
            Err(fault) => answers.into_iter().for_each(|answer| drop(answer.send(Err(fault.clone())))),
        }
    }
}

/// How many of the first items fit into one call; at least one.
fn that_fit<S: ItemStep>(items: &[(S, Answer<S>)]) -> usize {
    let mut bytes = 0;
    let fits = |(item, _): &&(S, Answer<S>)| {
        bytes += item.bytes();
        bytes <= MAX_BYTES
    };
    items.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use turnmill_redis::steps::{Finish, LeaseKey};
    use turnmill_schema::{AgentId, TurnId};

    use super::*;

    /// The end of a turn that takes `bytes` bytes.
    fn item(bytes: usize) -> (Finish, Answer<Finish>) {
        let agent = AgentId::from_wire("t/a".to_owned());
        let lease = LeaseKey { agent, turn: TurnId::new(0), idempotency: None, epoch: 1 };
        let (entry, reply, manifest) = Default::default();
        let (outcome, reason, end) = ("completed", "", vec![0; bytes]);
        let finish =
            Finish { lease, published: 0, outcome, reason, end, entry, reply, continues: 0, manifest };
        (finish, oneshot::channel().0)
    }

    #[test]
    fn large_items_share_a_call_with_few_others() {
        for (bytes, expected) in [
            (vec![300; MAX_ITEMS], MAX_ITEMS),
            (vec![400_000; 5], 2),
            (vec![300, 300, MAX_BYTES], 2),
            (vec![MAX_BYTES + 1, 300], 1),
        ] {
            let items: Vec<_> = bytes.into_iter().map(item).collect();
            assert_eq!(that_fit(&items), expected);
        }
    }
}
