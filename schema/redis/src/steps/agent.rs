//! What an operator does to an agent.

use redis::{ParsingError, Value};
use turnmill_schema::keys::{BacklogEntry, Keys};
use turnmill_schema::{AgentId, TurnId};

use super::script;
use crate::call::{Call, Step};
use crate::reply::{Parts, unknown};

/// What an operator does to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentAction {
    /// No more of its turns are leased; one that runs goes on.
    Pause,
    /// Turns of a paused or halted agent are leased again.
    Resume,
    /// Its later turns wait for an operator when one becomes a dead letter.
    Halt,
    /// Its later turns go on when one becomes a dead letter.
    Skip,
    /// Its history and its manifest are forgotten. Refused while a turn runs, which would write to the history, or waits that
    /// has published tokens, which would go on after another history.
    Reset,
    /// The end of its history is forgotten; refused as [`Self::Reset`] is.
    RollBack(Rollback),
}

impl AgentAction {
    /// The name used on the wire.
    fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Halt => "halt",
            Self::Skip => "skip",
            Self::Reset => "reset",
            Self::RollBack(_) => "rollback",
        }
    }
}

/// Which end of an agent's history is to be forgotten, and what the caller knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// How many entries stay, at least one.
    pub stay: usize,
    /// The turn of the last entry that stays.
    pub to: TurnId,
    /// How many entries there are.
    pub entries: usize,
    /// The turn of the last one.
    pub last: TurnId,
}

/// Does it; see `agent.lua`.
#[derive(Clone, Debug)]
pub struct ActOnAgent<'a> {
    /// To whom.
    pub agent: &'a AgentId,
    /// What.
    pub action: AgentAction,
    /// The head of its backlog that the caller knows of.
    pub head: Option<&'a BacklogEntry>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentActed {
    /// It is done; the agent's state now.
    Done(String),
    /// There is no such agent.
    Unknown,
    /// Its head runs, or has published tokens.
    Busy,
    /// Its head is this one: call again with it.
    Head(Option<BacklogEntry>),
    /// Its history is not the one that the caller knows of. Nothing was written.
    Changed,
}

impl Step for ActOnAgent<'_> {
    const NAME: &'static str = "agent";
    const SCRIPT: &'static str = script!(" flags=allow-oom" "transcript.lua" "agent.lua");
    type Reply = AgentActed;

    fn call(&self, keys: &Keys) -> Call {
        let agent_key = keys.agent(self.agent);
        let result = self.head.map_or_else(|| agent_key.clone(), |head| keys.result(head.turn));
        let mut call = Call::new(keys);
        call.keys([
            agent_key,
            keys.backlog(self.agent),
            keys.parked(self.agent.tenant()),
            keys.transcript(self.agent),
            result,
        ]);
        call.text(self.agent).text(self.action.as_str());
        call.text(self.head.map(ToString::to_string).unwrap_or_default());
        if let AgentAction::RollBack(Rollback { stay, to, entries, last }) = self.action {
            call.text(stay).text(to).text(entries).text(last);
        }
        call
    }

    fn read(reply: Value) -> Result<AgentActed, ParsingError> {
        let mut parts = Parts::of(reply)?;
        match parts.next::<String>()?.as_str() {
            "ok" => parts.next().map(AgentActed::Done),
            "unknown" => Ok(AgentActed::Unknown),
            "busy" => Ok(AgentActed::Busy),
            "changed" => Ok(AgentActed::Changed),
            "head" => Ok(AgentActed::Head(parts.text()?.and_then(|text| BacklogEntry::parse(&text)))),
            kind => unknown(kind),
        }
    }
}
