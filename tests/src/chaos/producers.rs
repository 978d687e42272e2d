//! Producers that enqueue all the time, repeat when unsure, and read what comes back.
//!
//! Invariant: a turn stands in the ledger exactly when its producer was told that it is in the queue. Until it is told,
//! a producer asks again: with a new turn id and under the same idempotency key.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use turnmill_client::{Advice, Client, ClientError, NewTurn};
use turnmill_schema::{Name, TenantName, TurnId};

use super::ChaosError;
use super::ledger::{Acknowledged, Ledger, Words};
use super::workload::session;

/// How many sessions run at once.
const PRODUCERS: usize = 6;
/// After a session: so that a run of some minutes does not take many more minutes to compare.
const BETWEEN_SESSIONS: Duration = Duration::from_millis(500);
/// Before asking again.
const PAUSE: Duration = Duration::from_millis(50);

/// Producers at work.
pub struct Producers {
    tasks: JoinSet<Result<(), ChaosError>>,
    enough: CancellationToken,
    asking: Asking,
}

/// What producers share.
#[derive(Clone)]
struct Asking {
    producer: Client,
    tenant: TenantName,
    ledger: Arc<Ledger>,
    /// Redis may forget what it acknowledged: then it is enqueued again.
    forgetful: bool,
}

impl Producers {
    /// Starts them on the queue `name` at `url`, with the sessions of `seed`.
    pub async fn start(
        url: &str,
        name: &Name,
        seed: u64,
        ledger: Arc<Ledger>,
        forgetful: bool,
    ) -> Result<Self, ChaosError> {
        let builder = Client::builder(url).queue(name.clone().into()).tenant(name.clone().into());
        // Impatient, so that it is the producers here that have to ask again.
        let builder = builder.response_timeout(Duration::from_secs(1)).retry_for(Duration::from_millis(300));
        let producer = builder.connect().await?;
        let asking = Asking { producer, tenant: name.clone().into(), ledger, forgetful };
        let enough = CancellationToken::new();
        let next = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..PRODUCERS {
            let (asking, enough, next) = (asking.clone(), enough.clone(), next.clone());
            tasks.spawn(async move {
                while !enough.is_cancelled() {
                    asking.hold_session(seed, next.fetch_add(1, Ordering::Relaxed), &enough).await?;
                    tokio::time::sleep(BETWEEN_SESSIONS).await;
                }
                Ok(())
            });
        }
        Ok(Self { tasks, enough, asking })
    }

    /// From now on nothing new is asked for.
    pub fn enough(&self) {
        self.enough.cancel();
    }

    /// True once every turn has ended; the error of a producer that could not go on.
    pub fn ended(&mut self) -> Result<bool, ChaosError> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|_| ChaosError::Panicked)??;
        }
        Ok(self.tasks.is_empty())
    }

    /// Looks for every turn once more: the last thing that Redis forgot may be one whose end was read.
    pub async fn look_again(&self) -> Result<(), ChaosError> {
        if self.asking.forgetful {
            for known in self.asking.ledger.turns() {
                self.asking.see_end(known.turn, &known.request).await?;
            }
        }
        Ok(())
    }
}

impl Asking {
    async fn hold_session(
        &self,
        seed: u64,
        number: u32,
        enough: &CancellationToken,
    ) -> Result<(), ChaosError> {
        let mut open = Vec::new();
        for turn in session(seed, number).turns {
            if enough.is_cancelled() {
                break;
            }
            let id = self.enqueue(&turn.request).await?;
            self.ledger.acknowledge(Acknowledged::new(&self.tenant, id, turn.request.clone()));
            open.push((id, turn.request));
            if turn.waits {
                self.see_ends(&mut open).await?;
            }
        }
        self.see_ends(&mut open).await
    }

    /// Asks until the queue has the turn.
    async fn enqueue(&self, request: &NewTurn) -> Result<TurnId, ChaosError> {
        loop {
            match self.producer.enqueue(request.clone()).await {
                Err(error) if error.advice() == Advice::Retry => tokio::time::sleep(PAUSE).await,
                result => return Ok(result?.turn),
            }
        }
    }

    async fn see_ends(&self, open: &mut Vec<(TurnId, NewTurn)>) -> Result<(), ChaosError> {
        for (turn, request) in open.drain(..) {
            self.see_end(turn, &request).await?;
        }
        Ok(())
    }

    /// Reads a turn's result to its end. What cannot be read is left to the audit.
    async fn see_end(&self, mut turn: TurnId, request: &NewTurn) -> Result<(), ChaosError> {
        loop {
            match self.producer.wait(turn).await {
                Ok(result) => {
                    if let Some(text) = result.text {
                        self.ledger.tell(turn, Words { tokens: result.tokens, text });
                    }
                    return Ok(());
                }
                Err(ClientError::UnknownTurn { .. }) if self.forgetful => {
                    let again = self.enqueue(request).await?;
                    let acknowledged = Acknowledged::new(&self.tenant, again, request.clone());
                    self.ledger.re_enqueue(turn, acknowledged);
                    turn = again;
                }
                Err(ClientError::Gap { .. }) if self.forgetful => tokio::time::sleep(PAUSE).await,
                Err(error) if error.advice() == Advice::Retry => tokio::time::sleep(PAUSE).await,
                Err(error @ (ClientError::UnknownTurn { .. } | ClientError::Gap { .. })) => {
                    eprintln!("a reader of {turn} was told: {error}");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
