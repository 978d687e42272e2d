//! An agent's history: reading it, going back in it, and giving it to another agent.
//!
//! Invariant: the agent that changes does so in one step. Where two are involved, the source is read first, whatever it
//! does meanwhile: what completed turns said does not change.

use turnmill_redis::steps::{AgentAction, Rollback, Seed, Seeded};
use turnmill_redis::{HistoryRecord, HistorySize};
use turnmill_schema::agent_file::OnDead;
use turnmill_schema::envelope::{decode, encode};
use turnmill_schema::{AgentName, Manifest, TranscriptEntry, TurnId};

use super::Operator;
use crate::client::Client;
use crate::error::ClientError;

/// What an agent heard and said, as it is stored.
#[derive(Clone, Debug)]
pub(super) struct StoredHistory {
    /// Each entry's turn, and the entry in its envelope.
    pub(super) entries: Vec<(TurnId, Vec<u8>)>,
    pub(super) on_dead: OnDead,
    pub(super) manifest: Option<Manifest>,
}

impl StoredHistory {
    /// How many entries there are up to that of `turn`, which is one of them.
    fn up_to(&self, agent: &AgentName, turn: TurnId) -> Result<usize, ClientError> {
        let found = self.entries.iter().position(|(entry, _)| *entry == turn);
        found.map(|index| index + 1).ok_or_else(|| ClientError::NotInHistory {
            turn,
            agent: agent.to_string(),
            history: self.entries.iter().map(|(turn, _)| *turn).collect(),
        })
    }
}

impl Client {
    /// What the agent heard and said, oldest first: an entry for each of its completed turns.
    pub async fn history(&self, agent: &AgentName) -> Result<Vec<TranscriptEntry>, ClientError> {
        let record = self.history_record(agent).await?;
        record.entries.iter().map(|entry| read(agent, entry)).collect()
    }

    async fn history_record(&self, agent: &AgentName) -> Result<HistoryRecord, ClientError> {
        let (keys, id) = self.agent_keys(agent);
        let found = self.connection.ask(|server| server.history(&keys, &id)).await?;
        found.ok_or_else(|| self.unknown_agent(agent))
    }
}

fn read(agent: &AgentName, entry: &[u8]) -> Result<TranscriptEntry, ClientError> {
    decode(entry).map_err(|error| ClientError::Unreadable {
        what: format!("the history of agent {agent}"),
        reason: error.to_string(),
    })
}

impl Operator {
    /// Forgets what the agent heard and said after `turn`; how many turns that were. Refused while a turn runs, or waits
    /// that has published tokens.
    pub async fn roll_back(&self, agent: &AgentName, turn: TurnId) -> Result<usize, ClientError> {
        let history = self.stored_history(agent).await?;
        let stay = history.up_to(agent, turn)?;
        let entries = history.entries.len();
        let last = history.entries.last().map_or(turn, |(turn, _)| *turn);
        let rollback = Rollback { stay, to: turn, entries, last };
        self.act_on_agent(agent, AgentAction::RollBack(rollback)).await?;
        Ok(entries - stay)
    }

    /// Makes the agent `target`, with the history of `source` up to and including `turn`, or all of it, and its policy; how
    /// many turns that are. What is stored of their K and V serves both. Refused where the target has a history or open
    /// turns.
    pub async fn fork(
        &self,
        source: &AgentName,
        target: &AgentName,
        turn: Option<TurnId>,
    ) -> Result<usize, ClientError> {
        let mut history = self.stored_history(source).await?;
        if let Some(turn) = turn {
            let stay = history.up_to(source, turn)?;
            history.entries.truncate(stay);
        }
        self.seed(target, &history).await?;
        Ok(history.entries.len())
    }

    pub(super) async fn stored_history(&self, agent: &AgentName) -> Result<StoredHistory, ClientError> {
        let HistoryRecord { halts, manifest, entries } = self.client.history_record(agent).await?;
        let read = |entry: Vec<u8>| Ok((read(agent, &entry)?.turn, entry));
        let entries = entries.into_iter().map(read).collect::<Result<_, ClientError>>()?;
        let on_dead = if halts { OnDead::Halt } else { OnDead::Skip };
        // One that cannot be read is none: it is only a hint.
        let manifest = manifest.and_then(|bytes| decode(&bytes).ok());
        Ok(StoredHistory { entries, on_dead, manifest })
    }

    /// Gives an agent that has none a history.
    ///
    /// In one call, however long the history is: a worker, or the same call again, would take the first part of one for the
    /// whole. Redis serves nobody else meanwhile; forks and imports are rare.
    pub(super) async fn seed(&self, agent: &AgentName, history: &StoredHistory) -> Result<(), ClientError> {
        let (keys, id) = self.agent_keys(agent);
        let step = Seed {
            agent: &id,
            // As unlike any other as a turn's id: a call repeated after a lost reply is known by it.
            seeding: TurnId::new(keys.shard()).to_string(),
            on_dead: match history.on_dead {
                OnDead::Halt => "halt",
                OnDead::Skip => "skip",
            },
            manifest: history.manifest.as_ref().map(encode).transpose()?.unwrap_or_default(),
            entries: history.entries.iter().map(|(_, entry)| entry.as_slice()).collect(),
        };
        match self.redis().run(&keys, &step).await? {
            Seeded::Done => Ok(()),
            Seeded::Taken { entries, open } => Err(taken(agent, entries, open)),
        }
    }

    /// Refuses an agent that has a history or open turns, before anything is made ready for it.
    pub(super) async fn check_free(&self, agent: &AgentName) -> Result<(), ClientError> {
        let (keys, id) = self.agent_keys(agent);
        match self.redis().ask(|server| server.history_size(&keys, &id)).await? {
            HistorySize { entries: 0, open: 0 } => Ok(()),
            HistorySize { entries, open } => Err(taken(agent, entries, open)),
        }
    }
}

fn taken(agent: &AgentName, entries: u64, open: u64) -> ClientError {
    ClientError::AgentTaken { agent: agent.to_string(), entries, open }
}
