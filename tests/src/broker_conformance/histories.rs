//! What a lease says of the conversation so far, whichever workers had a part in it.

use std::time::Duration;

use turnmill_redis::steps::{AgentAction, Rollback};
use turnmill_schema::{DeadReason, History, Outcome, TranscriptEntry, Turn};
use turnmill_worker::broker::{Broker, Claim};

use super::{TestQueue, claim, ending, ending_with, enqueue, entry, take_over, turn, unheard};
use crate::simulation::Dice;

/// Turns of the agent in each of the random walks.
const TURNS: u64 = 60;

/// Turns that complete, fail, are tried again, cancelled or taken over, on workers that may remember what they saw before; answers
/// that get lost; new sessions; and an operator who forgets the history, or its end: each lease brings what the completed turns said.
pub async fn a_lease_brings_the_whole_history<Q: TestQueue>(queue: &Q) {
    let workers = [queue.worker("one").await, queue.worker("two").await];
    for seed in 0..3 {
        let mut walk = Walk { queue, dice: Dice::new(seed), agent: format!("a{seed}"), said: Vec::new() };
        for number in 0..TURNS {
            // Mostly one worker, which then knows most of it.
            let worker = &workers[usize::from(walk.dice.chance(250))];
            walk.turn(worker, &workers, number).await;
            walk.operate().await;
        }
    }
}

/// An agent's way through its turns.
struct Walk<'a, Q> {
    queue: &'a Q,
    dice: Dice,
    agent: String,
    /// What its history must be.
    said: Vec<TranscriptEntry>,
}

impl<Q: TestQueue> Walk<'_, Q> {
    async fn turn(&mut self, worker: &Q::Broker, workers: &[Q::Broker], number: u64) {
        let new_session = self.dice.chance(50);
        let next = Turn { new_session, ..turn(Some(&self.agent), "next") };
        let id = enqueue(self.queue, std::slice::from_ref(&next)).await[0];
        let begun = claim(worker).await;
        self.check(&begun, new_session);
        match self.dice.below(100) {
            0..10 => {
                worker.finish(&begun.lease, &ending(0, Outcome::Failed)).await.expect("ended");
            }
            10..20 => {
                self.queue.cancel(id).await;
            }
            20..30 => {
                worker.requeue(&begun.lease, None).await.expect("requeued");
                self.complete_elsewhere(workers, new_session, number).await;
            }
            30..40 => {
                let failed = worker.retry(&begun.lease, Duration::ZERO, DeadReason::Attempts, "a fault");
                failed.await.expect("answered");
                self.complete_elsewhere(workers, new_session, number).await;
            }
            40..43 => {
                drop(begun);
                let other = &workers[self.dice.below(2) as usize];
                let taken_over = take_over(other).await;
                self.check(&taken_over, new_session);
                self.complete(other, &taken_over, new_session, number).await;
            }
            _ => self.complete(worker, &begun, new_session, number).await,
        }
    }

    async fn complete_elsewhere(&mut self, workers: &[Q::Broker], new_session: bool, number: u64) {
        let worker = &workers[self.dice.below(2) as usize];
        let again = claim(worker).await;
        self.check(&again, new_session);
        self.complete(worker, &again, new_session, number).await;
    }

    async fn complete(&mut self, worker: &Q::Broker, claim: &Claim, new_session: bool, number: u64) {
        // A template may have rewritten what was said before.
        let tokens = claim.history.tokens.len() as u32;
        let keep = if self.dice.chance(100) { tokens / 2 } else { tokens };
        let added = entry(&claim.lease, &number.to_string(), keep, &[number as u32; 3]);
        let ending = ending_with(added.clone(), Outcome::Completed);
        if self.dice.chance(200) {
            unheard(worker.finish(&claim.lease, &ending)).await;
        }
        worker.finish(&claim.lease, &ending).await.expect("ended, now or before");
        if new_session {
            self.said.clear();
        }
        self.said.push(added);
    }

    /// What an operator does between two turns.
    async fn operate(&mut self) {
        let agent = turn(Some(&self.agent), "").agent_id();
        if self.dice.chance(30) {
            self.queue.act(&agent, AgentAction::Reset).await;
            self.said.clear();
        } else if let Some(last) = self.said.last()
            && self.dice.chance(60)
        {
            let stay = self.dice.between(1, self.said.len() as u64) as usize;
            let (to, entries, last) = (self.said[stay - 1].turn, self.said.len(), last.turn);
            self.queue.act(&agent, AgentAction::RollBack(Rollback { stay, to, entries, last })).await;
            self.said.truncate(stay);
        }
    }

    fn check(&self, claim: &Claim, new_session: bool) {
        let said = self.said.iter().filter(|_| !new_session).cloned();
        assert_eq!(*claim.history, said.collect::<History>(), "the history is another one");
    }
}
