//! An agent's history: going back in it, and giving it to another agent.
//!
//! Invariant: the agent that changes does so in one step. Where two are involved, the source is read first, whatever it
//! does meanwhile: what completed turns said does not change.

use redis::Value;
use turnmill_schema::agent_file::OnDead;
use turnmill_schema::envelope::{decode, encode};
use turnmill_schema::scripts::{Call, Rollback, SEED, rollback_call};
use turnmill_schema::{Manifest, Name, TranscriptEntry, TurnId};

use super::Operator;
use super::hash::Hash;
use crate::error::ProducerError;

const FIELDS: [&str; 3] = ["state", "on_dead", "manifest"];

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
    fn up_to(&self, agent: &Name, turn: TurnId) -> Result<usize, ProducerError> {
        let found = self.entries.iter().position(|(entry, _)| *entry == turn);
        found.map(|index| index + 1).ok_or_else(|| ProducerError::NotInHistory {
            turn,
            agent: agent.to_string(),
            history: self.entries.iter().map(|(turn, _)| *turn).collect(),
        })
    }
}

impl Operator {
    /// Forgets what the agent heard and said after `turn`; how many turns that were. Refused while a turn runs, or waits
    /// that has published tokens.
    pub async fn roll_back(&self, agent: &Name, turn: TurnId) -> Result<usize, ProducerError> {
        let history = self.history(agent).await?;
        let stay = history.up_to(agent, turn)?;
        let entries = history.entries.len();
        let last = history.entries.last().map_or(turn, |(turn, _)| *turn);
        let (keys, id) = self.agent_keys(agent);
        let rollback = Rollback { stay, to: turn, entries, last };
        self.call_agent(agent, |head| rollback_call(&keys, &id, rollback, head)).await?;
        Ok(entries - stay)
    }

    /// Makes the agent `target`, with the history of `source` up to and including `turn`, or all of it, and its policy; how
    /// many turns that are. What is stored of their K and V serves both. Refused where the target has a history or open
    /// turns.
    pub async fn fork(
        &self,
        source: &Name,
        target: &Name,
        turn: Option<TurnId>,
    ) -> Result<usize, ProducerError> {
        let mut history = self.history(source).await?;
        if let Some(turn) = turn {
            let stay = history.up_to(source, turn)?;
            history.entries.truncate(stay);
        }
        self.seed(target, &history).await?;
        Ok(history.entries.len())
    }

    pub(super) async fn history(&self, agent: &Name) -> Result<StoredHistory, ProducerError> {
        let (keys, id) = self.agent_keys(agent);
        let mut pipeline = redis::pipe();
        // The manifest is that of the history, or a hint that costs a look.
        pipeline.atomic();
        pipeline.add_command(Hash::command(&keys.agent(&id), &FIELDS));
        pipeline.cmd("LRANGE").arg(keys.transcript(&id)).arg(0).arg(-1);
        let (hash, entries): (Value, Vec<Vec<u8>>) =
            self.producer.connection.ask_all("reading a history", &pipeline).await?;
        let hash = self.hash(format!("agent {agent}"), &FIELDS, hash)?;
        if hash.bytes("state").is_none() {
            return Err(self.unknown_agent(agent));
        }
        let read = |entry: Vec<u8>| {
            let what = || format!("the history of agent {agent}");
            let read = decode::<TranscriptEntry>(&entry);
            let read = read.map_err(|error| self.unreadable(what(), error.to_string()))?;
            Ok((read.turn, entry))
        };
        let entries = entries.into_iter().map(read).collect::<Result<_, ProducerError>>()?;
        let halts = hash.text("on_dead").as_deref() == Some("halt");
        let on_dead = if halts { OnDead::Halt } else { OnDead::Skip };
        // One that cannot be read is none: it is only a hint.
        let manifest = hash.bytes("manifest").and_then(|bytes| decode(bytes).ok());
        Ok(StoredHistory { entries, on_dead, manifest })
    }

    /// Gives an agent that has none a history.
    pub(super) async fn seed(&self, agent: &Name, history: &StoredHistory) -> Result<(), ProducerError> {
        let (keys, id) = self.agent_keys(agent);
        let mut call = Call::new(&keys);
        call.keys([keys.agent(&id), keys.backlog(&id), keys.transcript(&id)]);
        // As unlike any other as a turn's id: a call repeated after a lost reply is known by it.
        call.text(TurnId::new(keys.shard()));
        call.text(match history.on_dead {
            OnDead::Halt => "halt",
            OnDead::Skip => "skip",
        });
        call.arg(history.manifest.as_ref().map(encode).transpose()?.unwrap_or_default());
        for (_, entry) in &history.entries {
            call.arg(entry.as_slice());
        }
        let reply = self.producer.connection.script("seed", SEED, &call).await?;
        let reply: Vec<String> = self.producer.connection.read("seed", reply)?;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["ok"] => Ok(()),
            ["taken", entries, open] => {
                let (entries, open) = (entries.parse().unwrap_or(0), open.parse().unwrap_or(0));
                Err(ProducerError::AgentTaken { agent: agent.to_string(), entries, open })
            }
            _ => Err(self.unreadable("the answer to seed".into(), format!("{reply:?}"))),
        }
    }

    /// Refuses an agent that has a history or open turns, before anything is made ready for it.
    pub(super) async fn check_free(&self, agent: &Name) -> Result<(), ProducerError> {
        let (keys, id) = self.agent_keys(agent);
        let mut pipeline = redis::pipe();
        pipeline.cmd("LLEN").arg(keys.transcript(&id)).cmd("LLEN").arg(keys.backlog(&id));
        let (entries, open): (u64, u64) =
            self.producer.connection.ask_all("reading a history", &pipeline).await?;
        match (entries, open) {
            (0, 0) => Ok(()),
            _ => Err(ProducerError::AgentTaken { agent: agent.to_string(), entries, open }),
        }
    }
}
