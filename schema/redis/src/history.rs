//! An agent's history, as it is stored.

use redis::Value;
use turnmill_schema::AgentId;
use turnmill_schema::keys::{FIELD_MANIFEST, Keys};

use crate::fault::Fault;
use crate::hash::Hash;
use crate::server::{Server, unreadable};

/// What errors call this.
const STEP: &str = "reading a history";
const FIELDS: [&str; 3] = ["state", "on_dead", FIELD_MANIFEST];

/// What an agent heard and said, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryRecord {
    /// A dead letter halts the agent; otherwise its later turns go on.
    pub halts: bool,
    /// Its manifest in its envelope: that of this history, or a hint that costs a look.
    pub manifest: Option<Vec<u8>>,
    /// One entry for each completed turn, in its envelope, oldest first.
    pub entries: Vec<Vec<u8>>,
}

/// How much an agent has that another history would get in the way of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistorySize {
    /// Entries of its history.
    pub entries: u64,
    /// Turns that have not ended.
    pub open: u64,
}

impl Server {
    /// The agent's history, as of one moment; none if there is no such agent.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn history(&self, keys: &Keys, agent: &AgentId) -> Result<Option<HistoryRecord>, Fault> {
        let mut look = redis::pipe();
        look.atomic();
        look.add_command(Hash::command(keys.agent(agent), &FIELDS));
        look.cmd("LRANGE").arg(keys.transcript(agent)).arg(0).arg(-1);
        let (hash, entries): (Value, Vec<Vec<u8>>) = self.ask_all(STEP, &look).await?;
        let mut hash = Hash::read(&FIELDS, hash).map_err(|error| unreadable(STEP, &error.into()))?;
        Ok(hash.take("state").map(|_| HistoryRecord {
            halts: hash.text("on_dead").as_deref() == Some("halt"),
            manifest: hash.take(FIELD_MANIFEST),
            entries,
        }))
    }

    /// How much the agent has; nothing if there is no such agent.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn history_size(&self, keys: &Keys, agent: &AgentId) -> Result<HistorySize, Fault> {
        let mut look = redis::pipe();
        look.cmd("LLEN").arg(keys.transcript(agent)).cmd("LLEN").arg(keys.backlog(agent));
        let (entries, open) = self.ask_all(STEP, &look).await?;
        Ok(HistorySize { entries, open })
    }
}
