//! Every name in Redis: keys, consumer group, stream fields.
//!
//! Invariant: all keys of an agent and of its turns carry the hash tag `{queue.shard}`, so they are in one
//! slot and one script may touch them all. Ids have no `{`, `}`, `:` or blank ([`crate::ids`]), so two ids
//! never make the same key.

use std::num::NonZeroU16;

use crate::ids::{AgentId, Name, TurnId};
use crate::turn::Priority;

/// The consumer group of every ready stream.
pub const GROUP: &str = "workers";
/// Field of result and `events` streams that holds an [`crate::Event`] in its envelope.
pub const FIELD_EVENT: &str = "event";
/// Field of result streams that holds when the entry was made, in Unix milliseconds by Redis's clock.
pub const FIELD_AT: &str = "at";
/// Field of ready streams that holds the runnable agent's id.
pub const FIELD_AGENT: &str = "agent";
/// Field of a turn's hash that holds the [`crate::Event::End`] once the turn ended, in its envelope.
pub const FIELD_END: &str = "end";

/// A queue: serves one model; its agents are spread over `shards` slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: Name,
    /// How many slots its keys use; fixed when the queue is created. 1 unless on Redis Cluster.
    pub shards: NonZeroU16,
}

impl Queue {
    /// A queue of one shard.
    pub fn single(name: Name) -> Self {
        Self { name, shards: NonZeroU16::MIN }
    }

    /// The shard of a named agent: FNV-1a (64 bit) of `tenant/agent`, modulo the number of shards.
    pub fn shard_of(&self, tenant: &Name, agent: &Name) -> u16 {
        let hash = fnv1a(AgentId::named(tenant, agent).as_str().as_bytes());
        (hash % u64::from(self.shards.get())) as u16
    }

    /// A new turn's id, in its agent's shard; turns without an agent are spread at random.
    pub fn new_turn_id(&self, tenant: &Name, agent: Option<&Name>) -> TurnId {
        let shard = match agent {
            Some(agent) => self.shard_of(tenant, agent),
            None => (TurnId::new(0).seed() % u64::from(self.shards.get())) as u16,
        };
        TurnId::new(shard)
    }

    /// The key names of one shard.
    pub fn keys(&self, shard: u16) -> Keys {
        Keys::new(&self.name, shard)
    }

    /// The key names of every shard, in order.
    pub fn all_keys(&self) -> impl Iterator<Item = Keys> + '_ {
        (0..self.shards.get()).map(|shard| self.keys(shard))
    }
}

/// FNV-1a, 64 bit (Fowler, Noll, Vo): a dozen lines in any language, and stable for ever.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The key names of one shard of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
    shard: u16,
}

impl Keys {
    /// Names for `shard` of `queue`.
    pub fn new(queue: &Name, shard: u16) -> Self {
        Self { prefix: format!("tm:{{{queue}.{shard}}}"), shard }
    }

    /// Which shard.
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// Stream of tokens: one entry for each agent that may be leased. Group [`GROUP`].
    pub fn ready(&self, priority: Priority) -> String {
        format!("{}:ready:{}", self.prefix, priority.as_str())
    }

    /// Hash: the agent's state, token, epoch and owner.
    pub fn agent(&self, agent: &AgentId) -> String {
        format!("{}:agent:{agent}", self.prefix)
    }

    /// List: the agent's turns that have not ended, in order, as [`BacklogEntry`].
    pub fn backlog(&self, agent: &AgentId) -> String {
        format!("{}:backlog:{agent}", self.prefix)
    }

    /// List: one [`crate::TranscriptEntry`] for each completed turn of the agent.
    pub fn transcript(&self, agent: &AgentId) -> String {
        format!("{}:transcript:{agent}", self.prefix)
    }

    /// Hash: the turn's envelope, state, attempts and outcome.
    pub fn turn(&self, turn: TurnId) -> String {
        format!("{}:turn:{turn}", self.prefix)
    }

    /// Stream: Begin, Delta*, End.
    pub fn result(&self, turn: TurnId) -> String {
        format!("{}:result:{turn}", self.prefix)
    }

    /// String: the turn that was enqueued under the idempotency key `name` (see [`idempotency_name`]).
    pub fn idempotency(&self, name: &str) -> String {
        format!("{}:idem:{name}", self.prefix)
    }

    /// Sorted set: every agent with work, by when its head was enqueued.
    pub fn open(&self) -> String {
        format!("{}:open", self.prefix)
    }

    /// String: how many turns have not ended.
    pub fn depth(&self) -> String {
        format!("{}:depth", self.prefix)
    }

    /// Stream: one entry for each ended turn, the newest ten thousand or so.
    pub fn events(&self) -> String {
        format!("{}:events", self.prefix)
    }

    /// String: which worker sweeps just now; expires.
    pub fn sweeper(&self) -> String {
        format!("{}:sweeper", self.prefix)
    }
}

/// An idempotency key as it stands in key names: qualified by its tenant.
pub fn idempotency_name(tenant: &Name, key: &Name) -> String {
    format!("{tenant}/{key}")
}

/// An entry of a backlog: what a script's caller must know to declare the keys of a head it is about to touch.
/// Written `<turn> <priority> <enqueued_ms> <idempotency name or ->`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogEntry {
    /// The turn.
    pub turn: TurnId,
    /// Its idempotency key with its tenant (see [`idempotency_name`]), where it has one.
    pub idempotency: Option<String>,
}

impl BacklogEntry {
    /// Reads an entry; none where `text` is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let turn = parts.next()?.parse().ok()?;
        let (_priority, _enqueued_ms, idempotency) = (parts.next()?, parts.next()?, parts.next()?);
        let idempotency = (idempotency != "-").then(|| idempotency.to_owned());
        parts.next().is_none().then_some(Self { turn, idempotency })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    #[test]
    fn keys_share_the_hash_tag_of_queue_and_shard() {
        let keys = Queue::single(name("qwen")).keys(2);
        let turn: TurnId = "01980000-0000-7000-8000-000000000000.2".parse().expect("a turn id");
        let agent = AgentId::named(&name("acme"), &name("a"));
        assert_eq!(keys.ready(Priority::Batch), "tm:{qwen.2}:ready:batch");
        assert_eq!(keys.agent(&agent), "tm:{qwen.2}:agent:acme/a");
        assert_eq!(keys.backlog(&agent), "tm:{qwen.2}:backlog:acme/a");
        assert_eq!(keys.transcript(&agent), "tm:{qwen.2}:transcript:acme/a");
        assert_eq!(keys.turn(turn), "tm:{qwen.2}:turn:01980000-0000-7000-8000-000000000000.2");
        assert_eq!(keys.result(turn), "tm:{qwen.2}:result:01980000-0000-7000-8000-000000000000.2");
        let idempotency = idempotency_name(&name("acme"), &name("k"));
        assert_eq!(keys.idempotency(&idempotency), "tm:{qwen.2}:idem:acme/k");
        let rest = [keys.open(), keys.depth(), keys.events(), keys.sweeper()];
        assert_eq!(rest, ["open", "depth", "events", "sweeper"].map(|key| format!("tm:{{qwen.2}}:{key}")));
    }

    #[test]
    fn agents_keep_their_shard_and_spread() {
        // Published test vectors of FNV-1a, 64 bit.
        assert_eq!((fnv1a(b""), fnv1a(b"foobar")), (0xcbf2_9ce4_8422_2325, 0x8594_4171_f739_67e8));
        let queue = Queue { name: name("q"), shards: NonZeroU16::new(4).expect("not zero") };
        let mut agents = [0; 4];
        let mut lone = [0; 4];
        for i in 0..400 {
            let agent = name(&format!("agent-{i}"));
            let id = queue.new_turn_id(&name("t"), Some(&agent));
            assert_eq!(id.shard(), queue.shard_of(&name("t"), &agent));
            agents[usize::from(id.shard())] += 1;
            lone[usize::from(queue.new_turn_id(&name("t"), None).shard())] += 1;
        }
        assert!(agents.iter().chain(&lone).all(|count| *count > 50), "{agents:?} {lone:?}");
    }

    #[test]
    fn backlog_entries_are_read_or_refused() {
        let id = "01980000-0000-7000-8000-000000000000.0";
        let turn: TurnId = id.parse().expect("a turn id");
        let read = |text: &str| BacklogEntry::parse(&format!("{id} {text}"));
        assert_eq!(read("batch 5 -"), Some(BacklogEntry { turn, idempotency: None }));
        assert_eq!(read("batch 5 t/k"), Some(BacklogEntry { turn, idempotency: Some("t/k".into()) }));
        assert_eq!(read("batch 5"), None);
        assert_eq!(read("batch 5 - more"), None);
        assert_eq!(BacklogEntry::parse("nonsense batch 5 -"), None);
    }
}
