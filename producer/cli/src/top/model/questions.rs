//! What is asked before anything changes the queue.
//!
//! Invariant: a question names everything that its order does, so who says yes knows to what.

use turnmill_client::operate::dead::DeadLetter;
use turnmill_client::schema::TurnId;

use super::{State, agent_of};
use crate::text::agent_id;

/// Something that changes the queue.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    Cancel(TurnId),
    /// A worker's id and its name.
    Drain(String, String),
    Replay(Box<DeadLetter>),
    Pause,
    Resume,
}

/// Whether to do something.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub title: String,
    /// What it is about.
    pub about: Vec<String>,
    pub order: Order,
}

impl State {
    pub(super) fn cancel_question(&self) -> Result<Question, String> {
        let turn =
            self.running.of(self.turns(), |turn| turn.turn).ok_or("no turn runs that could be cancelled")?;
        let worker = turn.worker.as_ref().map_or_else(|| "unknown".to_owned(), |id| self.worker_name(id));
        let tokens = turn.published.map_or_else(|| "unknown".to_owned(), |tokens| tokens.to_string());
        Ok(Question {
            title: "Cancel this turn?".to_owned(),
            about: vec![
                format!("turn    {}", turn.turn),
                format!("agent   {}", agent_of(turn)),
                format!("worker  {worker}"),
                format!("tokens  {tokens}"),
            ],
            order: Order::Cancel(turn.turn),
        })
    }

    pub(super) fn drain_question(&self) -> Result<Question, String> {
        let workers = self.worker_views();
        let worker =
            self.workers.of(workers, |worker| worker.id.clone()).ok_or("there is no worker to drain")?;
        if worker.told_to_drain {
            return Err(format!("worker {} is told to drain already", worker.name));
        }
        Ok(Question {
            title: "Drain this worker?".to_owned(),
            about: vec![
                format!("worker  {}", worker.name),
                format!("id      {}", worker.id),
                format!("state   {}", worker.state),
                "It takes no more turns, finishes what it runs, and stops.".to_owned(),
            ],
            order: Order::Drain(worker.id.clone(), worker.name.clone()),
        })
    }

    pub(super) fn replay_question(&self) -> Result<Question, String> {
        let letter =
            self.dead.of(self.letters(), |letter| letter.turn).ok_or("there is no dead letter to replay")?;
        Ok(Question {
            title: "Replay this dead letter?".to_owned(),
            about: vec![
                format!("turn    {}", letter.turn),
                format!("agent   {}", agent_id(&letter.tenant, letter.agent.as_ref())),
                format!("error   {}", letter.error.as_deref().unwrap_or("unknown")),
                "It becomes a new turn at the end of its agent's backlog.".to_owned(),
            ],
            order: Order::Replay(Box::new(letter.clone())),
        })
    }

    pub(super) fn pause_question(&self) -> Result<Question, String> {
        let lag = self.snapshot().and_then(|snapshot| snapshot.lag.as_ref().ok());
        let paused = lag.ok_or("whether the queue is paused is unknown: nothing is asked")?.paused;
        let (title, about, order) = if paused {
            ("Resume the queue?", "Turns are leased again.", Order::Resume)
        } else {
            (
                "Pause the queue?",
                "No more turns are leased; those that run go on, and enqueueing works.",
                Order::Pause,
            )
        };
        let about = vec![format!("queue   {}", self.queue), about.to_owned()];
        Ok(Question { title: title.to_owned(), about, order })
    }
}
