//! What stands in for a worker: it takes turns from the real queue in Redis and says the same few words to each. It is a task of the
//! test, without tokenizer, engine or leases that are renewed. For tests of clients and the command line, to which it does not matter
//! what a reply says or how it came about; [`crate::scripted_worker`] is for all others.

use tokio::task::JoinHandle;
use turnmill_schema::{
    Delta, End, FinishReason, Message, Outcome, Role, StoredTurn, Timing, TranscriptEntry, Turn, Usage,
};
use turnmill_worker::broker::redis::{BrokerSettings, RedisBroker};
use turnmill_worker::broker::{Broker, BrokerError, Claim, Ending};

use crate::broker_conformance::promote;

/// What it says, as far as the turn lets it: a token a word.
const WORDS: [&str; 3] = ["said", " by", " rote"];
/// Tickets that it takes at once.
const ROOM: usize = 16;

/// A running stand-in; gone when dropped.
pub struct StandIn(JoinHandle<()>);

impl StandIn {
    /// One of the queue that `settings` name; their lease must outlast the test, because nothing is renewed.
    pub async fn start(settings: BrokerSettings) -> Self {
        let broker = RedisBroker::connect(settings).await.expect("the server is suitable");
        Self(tokio::spawn(async move {
            tokio::join!(serve(&broker), promote(&broker));
        }))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(broker: &RedisBroker) {
    loop {
        for ticket in broker.read(ROOM).await.expect("the read is answered") {
            if let Some(claim) = broker.lease(&ticket).await.expect("the lease is answered") {
                match run(broker, &claim).await {
                    // Cancelled meanwhile.
                    Ok(()) | Err(BrokerError::Fenced { .. }) => {}
                    Err(error) => panic!("a turn cannot be ended: {error}"),
                }
            }
        }
    }
}

async fn run(broker: &RedisBroker, claim: &Claim) -> Result<(), BrokerError> {
    let Ok(StoredTurn::Inline(turn)) = &claim.turn else { panic!("no turn to be read: {:?}", claim.turn) };
    let published = claim.published.last().map_or(0, Delta::published);
    let mut reply = Delta { index: published, ..Delta::default() };
    let words = WORDS.len().min(turn.sampling.max_tokens.map_or(WORDS.len(), |most| most as usize));
    for (token, word) in (0..).zip(&WORDS[..words]).skip(published as usize) {
        reply.push(token, word, None);
    }
    if !reply.tokens.is_empty() {
        broker.append(&claim.lease, &reply).await?;
    }
    let completion_tokens = reply.published();
    let end = End {
        outcome: Outcome::Completed,
        finish: Some(FinishReason::Stop),
        stop: None,
        error: None,
        usage: Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens, reasoning_tokens: 0 },
        timing: Timing { queued_ms: claim.queued_ms, first_token_ms: None, total_ms: claim.queued_ms },
        worker: Some("stand-in".to_owned()),
    };
    let entry = (!claim.lease.agent.is_lone()).then(|| entry(turn, words));
    let ending = Ending {
        published: completion_tokens,
        end,
        entry,
        reply: (published == 0).then_some(reply),
        reason: None,
        continues: false,
        manifest: None,
    };
    broker.finish(&claim.lease, &ending).await.map(|_| ())
}

/// What the turn adds to its agent's history.
fn entry(turn: &Turn, words: usize) -> TranscriptEntry {
    let mut messages = turn.messages.clone();
    messages.push(Message::new(Role::Assistant, WORDS[..words].concat()));
    TranscriptEntry { turn: turn.id, messages, keep: 0, tokens: (0..words as u32).collect(), rendering: None }
}

#[cfg(test)]
mod tests {
    use turnmill_client::NewTurn;

    use super::*;
    use crate::line::{Line, exactly, name};

    #[tokio::test]
    async fn it_ends_every_turn_and_keeps_agents_histories() {
        let line = Line::without_workers().await;
        let _worker = line.stand_in().await;
        for turn in 1..=2 {
            let said = line.run(NewTurn::user("hi").agent(name("a"))).await;
            assert_eq!((said.outcome, said.text.as_deref()), (Outcome::Completed, Some("said by rote")));
            assert_eq!(line.transcript("a").await.len(), turn);
        }
        let short = line.run(NewTurn::user("hi").sampling(exactly(1))).await;
        assert_eq!((short.outcome, short.text.as_deref()), (Outcome::Completed, Some("said")));
        assert_eq!(line.producer.lag().await.expect("counts").open_turns, 0);
    }
}
