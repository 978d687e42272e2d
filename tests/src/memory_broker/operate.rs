//! What operators and producers do to turns and agents.

use turnmill_redis::steps::AgentAction;
use turnmill_schema::{AgentId, Outcome, TurnId};

use super::conclude::{Conclusion, Retention};
use super::state::{Hold, Place, State};

/// What became of a turn that was to be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It has ended as cancelled.
    Now,
    /// It had ended before.
    Ended(Outcome),
    /// Nobody knows it.
    Unknown,
}

/// Where an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// Nothing to do.
    Idle,
    /// Its next turn may be leased.
    Ready,
    /// A worker runs its turn.
    Leased,
    /// Its next turn is not due yet.
    Delayed,
    /// Its tenant runs as many turns as it may.
    Parked,
    /// A turn of it became a dead letter; it waits for an operator.
    Halted,
    /// An operator paused it.
    Paused,
}

impl AgentState {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Idle, Self::Ready, Self::Leased, Self::Delayed, Self::Parked, Self::Halted, Self::Paused];

    /// The protocol's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Delayed => "delayed",
            Self::Parked => "parked",
            Self::Halted => "halted",
            Self::Paused => "paused",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// What became of an [`AgentAction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acted {
    /// Done; where the agent is now.
    State(AgentState),
    /// There is no such agent.
    Unknown,
    /// Refused, since one of its turns runs, or waits after it published tokens.
    Busy,
}

/// A turn that ended as failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The turn.
    pub turn: TurnId,
    /// Its agent.
    pub agent: AgentId,
    /// Why: a [`turnmill_schema::DeadReason`]'s name.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
}

impl Place {
    pub(super) fn state(&self) -> AgentState {
        match self {
            Self::Idle => AgentState::Idle,
            Self::Ready(_) => AgentState::Ready,
            Self::Leased { .. } => AgentState::Leased,
            Self::Delayed { .. } => AgentState::Delayed,
            Self::Parked { .. } => AgentState::Parked,
            Self::Held(Hold::Halted) => AgentState::Halted,
            Self::Held(Hold::Paused) => AgentState::Paused,
        }
    }
}

impl State {
    /// A running turn ends at once too: its worker is fenced, and told.
    pub(super) fn cancel(&mut self, id: TurnId, retention: Retention) -> Cancelled {
        let Some(turn) = self.turns.get(&id) else { return Cancelled::Unknown };
        if let Some(outcome) = turn.outcome() {
            return Cancelled::Ended(outcome);
        }
        self.end_unrun(id, (Outcome::Cancelled, "cancelled".to_owned()), retention);
        Cancelled::Now
    }

    /// Ends a turn that no worker ended, at the head of its agent's backlog or behind it.
    pub(super) fn end_unrun(&mut self, id: TurnId, how: (Outcome, String), retention: Retention) {
        let (turn, at) = (&self.turns[&id], (self.next_epoch(id), self.now_ms));
        let ending = Conclusion::without_worker((id, turn), at, how, retention);
        let agent = turn.agent.clone();
        if self.head(&agent) != Some(id) {
            self.end_turn(ending);
            self.agent_mut(&agent).backlog.retain(|turn| *turn != id);
            return;
        }
        let place = self.agent_mut(&agent).place.clone();
        if let Place::Held(hold) = place {
            self.agent_mut(&agent).hold = Some(hold);
        }
        // A ticket that no worker leased stands for the turn behind as well.
        self.conclude(ending, matches!(place, Place::Ready(_)));
        if matches!(place, Place::Leased { .. }) {
            // Nobody may be listening; renewals tell as well.
            let _ = self.notices.send(id);
        }
    }

    pub(super) fn act(&mut self, id: &AgentId, action: AgentAction) -> Acted {
        let now_ms = self.now_ms;
        let published = self.head(id).map_or(0, |head| self.turns[&head].top().1);
        let Some(agent) = self.agents.get_mut(id) else { return Acted::Unknown };
        let state = agent.place.state();
        match (action, state) {
            (AgentAction::Pause, AgentState::Leased) => agent.hold = Some(Hold::Paused),
            (AgentAction::Pause, AgentState::Halted) => {}
            (AgentAction::Pause, _) => self.pause_agent(id),
            (AgentAction::Resume, AgentState::Paused | AgentState::Halted) => self.make_runnable(id),
            (AgentAction::Resume, _) => agent.hold = None,
            (AgentAction::Halt, _) => agent.halts_on_dead = true,
            (AgentAction::Skip, _) => agent.halts_on_dead = false,
            (AgentAction::Reset | AgentAction::RollBack(_), AgentState::Leased) => return Acted::Busy,
            // It would go on after another history.
            (AgentAction::Reset | AgentAction::RollBack(_), _) if published > 0 => return Acted::Busy,
            (AgentAction::RollBack(rollback), _) => agent.transcript.truncate(rollback.stay),
            (AgentAction::Reset, _) => {
                agent.transcript.clear();
                // Above every lease there was, so that no late manifest of the forgotten history comes in.
                agent.set_manifest(None, now_ms.max(agent.epoch + 1));
            }
        }
        Acted::State(self.agents.get(id).map_or(AgentState::Idle, |agent| agent.place.state()))
    }

    fn pause_agent(&mut self, id: &AgentId) {
        self.stop_waiting(id);
        let paused = Place::Held(Hold::Paused);
        if let Place::Ready(ticket) = std::mem::replace(&mut self.agent_mut(id).place, paused) {
            self.drop_ticket(ticket);
        }
    }
}
