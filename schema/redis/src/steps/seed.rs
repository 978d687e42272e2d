//! Giving an agent that has no history one.

use redis::{ParsingError, Value};
use turnmill_schema::AgentId;
use turnmill_schema::keys::Keys;

use super::script;
use crate::call::{Call, Step};
use crate::reply::{Parts, unknown};

/// Gives an agent a history: a copy of another's, or what was exported. See `seed.lua`.
#[derive(Clone, Debug)]
pub struct Seed<'a> {
    /// To whom.
    pub agent: &'a AgentId,
    /// Unlike that of any other seeding: a call that is repeated after a lost reply is known by it.
    pub seeding: String,
    /// What a dead letter does to the agent's later turns: `halt` or `skip`.
    pub on_dead: &'static str,
    /// The manifest in its envelope; empty: none.
    pub manifest: Vec<u8>,
    /// Transcript entries in their envelopes, oldest first.
    pub entries: Vec<&'a [u8]>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seeded {
    /// It is done, now or by the same call before.
    Done,
    /// The agent has a history, or turns that would run on this one. Nothing was written.
    Taken {
        /// Entries of its history.
        entries: u64,
        /// Turns that have not ended.
        open: u64,
    },
}

impl Step for Seed<'_> {
    const NAME: &'static str = "seed";
    const SCRIPT: &'static str = script!("" "seed.lua");
    type Reply = Seeded;

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::new(keys);
        call.keys([keys.agent(self.agent), keys.backlog(self.agent), keys.transcript(self.agent)]);
        call.text(&self.seeding).text(self.on_dead).arg(self.manifest.as_slice());
        for entry in &self.entries {
            call.arg(*entry);
        }
        call
    }

    fn read(reply: Value) -> Result<Seeded, ParsingError> {
        let mut parts = Parts::of(reply)?;
        match parts.next::<String>()?.as_str() {
            "ok" => Ok(Seeded::Done),
            "taken" => Ok(Seeded::Taken { entries: parts.next()?, open: parts.next()? }),
            kind => unknown(kind),
        }
    }
}
