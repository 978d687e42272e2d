//! What is shown: the newest reading, what was made of those before it, and where the cursor is.
//!
//! Invariants: no clock and no I/O, moments come from the caller; a cursor stays on its turn, worker or letter while rows
//! come and go; a question holds what it is about, so the answer is about what was read, not about what moved there.

mod actions;
mod cursor;
mod ends;
mod questions;
mod rates;
mod snapshot;

use std::time::{Duration, Instant};

use turnmill_client::ClientError;
use turnmill_client::operate::dead::DeadLetter;
use turnmill_client::operate::running::RunningTurn;
use turnmill_client::operate::worker::WorkerView;
use turnmill_client::schema::TurnId;

pub use actions::{Action, Effect, Mode, Overlay, Pane};
pub use cursor::{Cursor, Step};
pub use ends::{ENDS_KEPT, Ends};
pub use questions::{Order, Question};
pub use rates::Rates;
pub use snapshot::{MAX_DEAD, MAX_RUNNING, Part, Snapshot, agent_of};

/// How long what was done is told.
const TOLD_FOR: Duration = Duration::from_secs(10);

/// What was done, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub text: String,
    pub failed: bool,
    until: Instant,
}

/// All of it.
#[derive(Debug)]
pub struct State {
    pub queue: String,
    /// Where its Redis is.
    pub address: String,
    /// The newest reading that succeeded, and when it was.
    pub shown: Option<(Snapshot, Instant)>,
    /// Why the newest reading failed; none where it did not.
    pub trouble: Option<String>,
    pub rates: Rates,
    pub ends: Ends,
    pub focus: Pane,
    pub overlay: Overlay,
    pub workers: Cursor<String>,
    pub running: Cursor<TurnId>,
    pub dead: Cursor<TurnId>,
    told: Option<Told>,
}

impl State {
    pub fn new(queue: String, address: String) -> Self {
        Self {
            queue,
            address,
            shown: None,
            trouble: None,
            rates: Rates::default(),
            ends: Ends::default(),
            focus: Pane::Running,
            overlay: Overlay::None,
            workers: Cursor::default(),
            running: Cursor::default(),
            dead: Cursor::default(),
            told: None,
        }
    }

    /// Takes what was read. After an error the reading before stays.
    pub fn take(&mut self, reading: Result<Snapshot, ClientError>, now: Instant) {
        let snapshot = match reading {
            Ok(snapshot) => snapshot,
            Err(error) => return self.trouble = Some(error.to_string()),
        };
        self.trouble = None;
        self.rates.add(snapshot.running.as_ref().ok());
        self.ends.add(snapshot.ends.as_ref().ok());
        self.shown = Some((snapshot, now));
        self.workers.follow(&self.worker_ids());
        self.running.follow(&self.running_ids());
        self.dead.follow(&self.dead_ids());
    }

    /// Tells what was done, or why not.
    pub fn tell(&mut self, done: Result<String, String>, now: Instant) {
        let failed = done.is_err();
        let (Ok(text) | Err(text)) = done;
        self.told = Some(Told { text, failed, until: now + TOLD_FOR });
    }

    /// What is to be told now.
    pub fn told(&self, now: Instant) -> Option<&Told> {
        self.told.as_ref().filter(|told| now < told.until)
    }

    /// What keys are about.
    pub fn mode(&self) -> Mode {
        match self.overlay {
            Overlay::None => Mode::Panes,
            Overlay::Help => Mode::Help,
            Overlay::Question(_) => Mode::Question,
        }
    }

    /// Whether a turn ran when it was last read.
    pub fn has_running(&self) -> bool {
        !self.turns().is_empty()
    }

    /// Does what somebody wants.
    pub fn apply(&mut self, action: Action, now: Instant) -> Effect {
        match action {
            Action::Quit => return Effect::Quit,
            Action::Focus(pane) => self.focus = pane,
            Action::NextPane(by) => self.focus = self.focus.step(by),
            Action::Move(step) => self.step(step),
            Action::Help if self.overlay == Overlay::Help => self.overlay = Overlay::None,
            Action::Help => self.overlay = Overlay::Help,
            Action::Cancel => self.ask(Pane::Running, Self::cancel_question, now),
            Action::Drain => self.ask(Pane::Workers, Self::drain_question, now),
            Action::Replay => self.ask(Pane::Dead, Self::replay_question, now),
            Action::Pause => self.ask(Pane::Queue, Self::pause_question, now),
            Action::Yes | Action::No => return self.answer(action == Action::Yes, now),
        }
        Effect::None
    }

    fn step(&mut self, step: Step) {
        match self.focus {
            Pane::Queue => {}
            Pane::Workers => self.workers.step(&self.worker_ids(), step),
            Pane::Running => self.running.step(&self.running_ids(), step),
            Pane::Dead => self.dead.step(&self.dead_ids(), step),
        }
    }

    /// Asks, in the pane that shows what it is about; or says why there is nothing to ask.
    fn ask(&mut self, pane: Pane, question: fn(&Self) -> Result<Question, String>, now: Instant) {
        self.focus = pane;
        match question(self) {
            Ok(question) => self.overlay = Overlay::Question(question),
            Err(why) => self.tell(Err(why), now),
        }
    }

    fn answer(&mut self, yes: bool, now: Instant) -> Effect {
        match std::mem::take(&mut self.overlay) {
            Overlay::Question(question) if yes => Effect::Do(question.order),
            Overlay::Question(_) => {
                self.tell(Ok("nothing was done".to_owned()), now);
                Effect::None
            }
            other => {
                self.overlay = other;
                Effect::None
            }
        }
    }

    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.shown.as_ref().map(|(snapshot, _)| snapshot)
    }

    /// The server's clock when the shown reading was made, in Unix milliseconds.
    pub fn server_ms(&self) -> Option<u64> {
        let Snapshot { running, ends, .. } = self.snapshot()?;
        ends.as_ref()
            .map(|ends| ends.read_ms)
            .or_else(|_| running.as_ref().map(|running| running.read_ms))
            .ok()
    }

    /// The name of a worker whose consumer id is `id`; the id where it is not listed.
    pub fn worker_name(&self, id: &str) -> String {
        let listed = self.worker_views().iter().find(|worker| worker.id == id);
        listed.map_or_else(|| id.to_owned(), |worker| worker.name.clone())
    }

    fn turns(&self) -> &[RunningTurn] {
        self.snapshot().and_then(|shown| shown.running.as_ref().ok()).map_or(&[], |running| &running.turns)
    }

    fn worker_views(&self) -> &[WorkerView] {
        self.snapshot().and_then(|shown| shown.workers.as_deref().ok()).unwrap_or_default()
    }

    fn letters(&self) -> &[DeadLetter] {
        self.snapshot().and_then(|shown| shown.dead.as_deref().ok()).unwrap_or_default()
    }

    fn worker_ids(&self) -> Vec<String> {
        self.worker_views().iter().map(|worker| worker.id.clone()).collect()
    }

    fn running_ids(&self) -> Vec<TurnId> {
        self.turns().iter().map(|turn| turn.turn).collect()
    }

    fn dead_ids(&self) -> Vec<TurnId> {
        self.letters().iter().map(|letter| letter.turn).collect()
    }
}

#[cfg(test)]
pub mod samples;
#[cfg(test)]
mod tests;
