//! An agent's history, as it is stored.

use redis::Value;
use turnmill_schema::AgentId;
use turnmill_schema::keys::{FIELD_MANIFEST, Keys};

use crate::fault::Fault;
use crate::hash::Hash;
use crate::server::{Server, unreadable};

/// What errors call this.
const STEP: &str = "reading a history";
/// Bytes of entries in one answer, about: Redis serves nobody else while it copies them.
const PAGE_BYTES: usize = 1 << 20;
/// Entries in one answer at most.
const PAGE_ENTRIES: usize = 1000;
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
    /// The agent's history, as of one moment; none if there is no such agent. A long one is read in pages.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn history(&self, keys: &Keys, agent: &AgentId) -> Result<Option<HistoryRecord>, Fault> {
        // Every round but the last met somebody who changed the history, so this comes to an end.
        loop {
            let mut look = redis::pipe();
            look.atomic();
            look.add_command(Hash::command(keys.agent(agent), &FIELDS));
            look.cmd("LLEN").arg(keys.transcript(agent));
            look.cmd("LINDEX").arg(keys.transcript(agent)).arg(-1);
            let (hash, length, last): (Value, usize, Option<Vec<u8>>) = self.ask_all(STEP, &look).await?;
            let mut hash = Hash::read(&FIELDS, hash).map_err(|error| unreadable(STEP, &error.into()))?;
            if hash.take("state").is_none() {
                return Ok(None);
            }
            let entries = match &last {
                Some(last) => self.transcript(keys, agent, length, last).await?,
                None => Some(Vec::new()),
            };
            if let Some(entries) = entries {
                let halts = hash.text("on_dead").as_deref() == Some("halt");
                return Ok(Some(HistoryRecord { halts, manifest: hash.take(FIELD_MANIFEST), entries }));
            }
        }
    }

    /// The first `length` entries of a transcript, the last of which is `last`; none if it was changed meanwhile.
    ///
    /// Transcripts grow at their end and are cut there; each entry names another turn. So if the last entry is the same before
    /// and after, those in front of it are, too.
    async fn transcript(
        &self,
        keys: &Keys,
        agent: &AgentId,
        length: usize,
        last: &[u8],
    ) -> Result<Option<Vec<Vec<u8>>>, Fault> {
        let mut entries: Vec<Vec<u8>> = Vec::new();
        let mut bytes = last.len();
        while entries.len() < length {
            let count = page(bytes, entries.len() + 1).min(length - entries.len());
            let mut range = redis::cmd("LRANGE");
            range.arg(keys.transcript(agent)).arg(entries.len()).arg(entries.len() + count - 1);
            let found: Vec<Vec<u8>> = self.ask(STEP, &range).await?;
            if found.len() < count {
                return Ok(None);
            }
            bytes += found.iter().map(Vec::len).sum::<usize>();
            entries.extend(found);
        }
        Ok((entries.last().map(Vec::as_slice) == Some(last)).then_some(entries))
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

/// How many entries to ask for next, if `entries` entries took `bytes` bytes.
fn page(bytes: usize, entries: usize) -> usize {
    let of_one = (bytes / entries.max(1)).max(1);
    (PAGE_BYTES / of_one).clamp(1, PAGE_ENTRIES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_large_entries_hold_few() {
        for (bytes, entries, expected) in [
            (0, 0, PAGE_ENTRIES),
            (100, 1, PAGE_ENTRIES),
            (4096, 1, 256),
            (40 * 4096, 40, 256),
            (PAGE_BYTES, 1, 1),
            (100 * PAGE_BYTES, 1, 1),
        ] {
            assert_eq!(page(bytes, entries), expected, "{bytes} bytes of {entries}");
        }
    }
}
