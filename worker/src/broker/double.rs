//! A queue for unit tests of what is above the port: it answers what they need, and nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use turnmill_schema::{
    AgentId, DeadReason, Delta, Manifest, Message, Priority, Role, StoredTurn, TenantName, Turn, TurnId,
    WorkerStatus,
};

use super::{
    Broker, BrokerError, Claim, Ending, Fence, Holdings, Lease, Orders, QueueCounts, Retry, Ticket, TicketId,
};

/// Takes what is published, and keeps everybody else waiting.
#[derive(Default)]
pub(crate) struct Double {
    holdings: Holdings,
    appended: Mutex<Vec<Delta>>,
    /// Told of each call that waits.
    pub(crate) asked: Arc<Notify>,
    /// Lets a call that waits be answered, if there is an answer.
    pub(crate) answer: Arc<Notify>,
}

impl Double {
    /// A ticket of this queue.
    pub(crate) fn ticket(&self) -> Ticket {
        let id = TicketId { shard: 0, priority: Priority::Interactive, entry: "1-0".to_owned() };
        let agent = AgentId::from_wire("t/a".to_owned());
        self.holdings.take(id, agent, None).expect("it is taken once")
    }

    /// The claim of a turn of which earlier attempts published `published`.
    pub(crate) fn claim(published: Vec<Delta>) -> Claim {
        let (turn, tenant) = (TurnId::new(0), TenantName::new("t").expect("a name"));
        Claim {
            lease: Arc::new(Lease::example(turn, AgentId::from_wire("t/a".to_owned()), 7)),
            turn: Ok(StoredTurn::Inline(Box::new(Turn::new(
                turn,
                tenant,
                vec![Message::new(Role::User, "hi")],
            )))),
            history: Arc::default(),
            manifest: None,
            published,
            queued_ms: 0,
            expires_in: None,
            first_token_ms: None,
            earlier_epoch: None,
            alone: false,
        }
    }

    /// What was published, in order.
    pub(crate) fn appended(&self) -> Vec<Delta> {
        self.appended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn answered(&self) {
        self.asked.notify_one();
        self.answer.notified().await;
    }

    async fn silence<T>(&self) -> T {
        self.asked.notify_one();
        std::future::pending().await
    }
}

impl Broker for Double {
    async fn read(&self, _: usize) -> Result<Vec<Ticket>, BrokerError> {
        self.silence().await
    }

    async fn lease(&self, _: &Ticket) -> Result<Option<Claim>, BrokerError> {
        self.answered().await;
        Ok(Some(Self::claim(Vec::new())))
    }

    async fn append(&self, _: &Lease, delta: &Delta) -> Result<(), BrokerError> {
        self.appended.lock().unwrap_or_else(PoisonError::into_inner).push(delta.clone());
        Ok(())
    }

    async fn finish(&self, _: &Lease, _: &Ending) -> Result<Option<Ticket>, BrokerError> {
        self.silence().await
    }

    async fn requeue(&self, _: &Lease, _: Option<&Manifest>) -> Result<(), BrokerError> {
        self.silence().await
    }

    async fn retry(&self, _: &Lease, _: Duration, _: DeadReason, _: &str) -> Result<Retry, BrokerError> {
        self.silence().await
    }

    async fn advance(&self, _: &Fence, _: &Manifest) -> Result<(), BrokerError> {
        self.silence().await
    }

    async fn return_ticket(&self, _: &Ticket) -> Result<(), BrokerError> {
        self.silence().await
    }

    fn leases(&self) -> usize {
        self.holdings.leases()
    }

    async fn counts(&self) -> Result<QueueCounts, BrokerError> {
        self.silence().await
    }

    async fn completed_by_others(&self, _: usize) -> Result<Vec<TurnId>, BrokerError> {
        self.silence().await
    }

    async fn register(&self, _: &WorkerStatus) -> Result<Orders, BrokerError> {
        self.silence().await
    }

    async fn leave(&self) -> Result<(), BrokerError> {
        self.silence().await
    }

    async fn renew(&self) -> Result<(), BrokerError> {
        self.silence().await
    }

    async fn hear(&self) -> Result<(), BrokerError> {
        self.silence().await
    }

    async fn promote(&self) -> Result<Duration, BrokerError> {
        self.silence().await
    }

    async fn reclaim(&self) -> Result<u64, BrokerError> {
        self.silence().await
    }

    async fn sweep(&self) -> Result<(), BrokerError> {
        self.silence().await
    }
}
