//! Every name in Redis: keys, consumer groups, stream fields.
//!
//! Invariant: all keys of an agent and of its turns carry the hash tag `{queue.shard}`, so they are in one
//! slot and one script may touch them all. Ids have no `{`, `}`, `:` or blank ([`crate::ids`]), so two ids
//! never make the same key.

use std::fmt;
use std::num::NonZeroU16;

use crate::ids::{AgentId, Name, TurnId};
use crate::names::{AgentName, IdempotencyKey, TenantName};
use crate::turn::Priority;

/// The consumer group of every ready stream.
pub const GROUP: &str = "workers";
/// Field of result and `events` streams that holds an [`crate::Event`] in its envelope.
pub const FIELD_EVENT: &str = "event";
/// Field of result streams that holds when the entry was made, in Unix milliseconds by Redis's clock.
pub const FIELD_AT: &str = "at";
/// Field of ready streams that holds the runnable agent's id.
pub const FIELD_AGENT: &str = "agent";
/// Field of ready streams that holds the head of the agent's backlog, as a [`BacklogEntry`]: which turn the ticket was
/// made for. The head may be another by the time the ticket is read.
pub const FIELD_HEAD: &str = "head";
/// Field of a turn's hash that holds the whole reply as one [`crate::Delta`] in its envelope, if it is short: then the
/// result stream goes soon after the end.
pub const FIELD_REPLY: &str = "reply";
/// Field of a turn's hash that holds the turn, or a reference to it; empty once it ended, but for dead letters.
pub const FIELD_ENVELOPE: &str = "envelope";
/// Field of an agent's hash that holds its [`crate::Manifest`] in its envelope; empty is none.
pub const FIELD_MANIFEST: &str = "manifest";
/// Field of a turn's hash that holds the [`crate::Event::End`] once the turn ended, in its envelope.
pub const FIELD_END: &str = "end";

/// Value of [`Keys::order`]: finish what runs and stop.
pub const ORDER_DRAIN: &str = "drain";

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
    pub fn shard_of(&self, tenant: &TenantName, agent: &AgentName) -> u16 {
        let hash = fnv1a(AgentId::named(tenant, agent).as_str().as_bytes());
        (hash % u64::from(self.shards.get())) as u16
    }

    /// A new turn's id, in its agent's shard; turns without an agent are spread at random.
    pub fn new_turn_id(&self, tenant: &TenantName, agent: Option<&AgentName>) -> TurnId {
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

    /// Stream of tickets: one entry for each agent that may be leased. Group [`GROUP`].
    pub fn ready(&self, priority: Priority) -> String {
        format!("{}:ready:{}", self.prefix, priority.as_str())
    }

    /// Hash: the agent's state, ticket, epoch and owner.
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

    /// Hash of counters; see [`counter`] for its fields.
    pub fn counters(&self) -> String {
        format!("{}:counters", self.prefix)
    }

    /// Sorted set: agents whose head is not due yet, a retry or a scheduled turn, by due time in Unix milliseconds.
    pub fn delayed(&self) -> String {
        format!("{}:delayed", self.prefix)
    }

    /// Sorted set: agents of `tenant` that wait for one of its turns to end, by when their head was enqueued.
    pub fn parked(&self, tenant: &str) -> String {
        format!("{}:parked:{tenant}", self.prefix)
    }

    /// Set: tenants that have parked agents.
    pub fn capped(&self) -> String {
        format!("{}:capped", self.prefix)
    }

    /// Stream: dead letters, one entry for each turn that ended as failed, until it is replayed, purged, or
    /// forgotten as the oldest because dead letters take too much.
    pub fn dead(&self) -> String {
        format!("{}:dead", self.prefix)
    }

    /// List: ended turns as [`EndedEntry`], oldest first; the index for forgetting them.
    pub fn ended(&self) -> String {
        format!("{}:ended", self.prefix)
    }

    /// String: exists while the queue is paused.
    pub fn paused(&self) -> String {
        format!("{}:paused", self.prefix)
    }

    /// Sorted set, in shard 0 only: ids of the queue's workers, by when they were last heard of, in Unix milliseconds.
    pub fn workers(&self) -> String {
        format!("{}:workers", self.prefix)
    }

    /// Hash, in shard 0 only: what the worker `id` says of itself ([`crate::WorkerStatus`]); expires when it falls silent.
    pub fn worker(&self, id: &str) -> String {
        format!("{}:worker:{id}", self.prefix)
    }

    /// String, in shard 0 only: what the worker `id` is told to do ([`ORDER_DRAIN`]); expires.
    pub fn order(&self, id: &str) -> String {
        format!("{}:order:{id}", self.prefix)
    }

    /// Channel: ids of running turns that were cancelled.
    pub fn notices(&self) -> String {
        format!("{}:notices", self.prefix)
    }

    /// Stream: one entry for each ended turn, the newest ten thousand or so.
    pub fn events(&self) -> String {
        format!("{}:events", self.prefix)
    }

    /// String: which worker sweeps just now; expires.
    pub fn sweeper(&self) -> String {
        format!("{}:sweeper", self.prefix)
    }

    /// String: how many of the agents with work the sweeps of this round have looked at.
    pub fn sweep_cursor(&self) -> String {
        format!("{}:sweep-cursor", self.prefix)
    }

    /// Sorted set: result streams of ended turns that Redis still keeps, each with its bytes, by when they go.
    pub fn streams(&self) -> String {
        format!("{}:streams", self.prefix)
    }

    /// Sorted set: turns with a deadline that have not ended, each with its agent and its [`BacklogEntry`], by their deadlines
    /// in Unix milliseconds. See [`DeadlineEntry`].
    pub fn deadlines(&self) -> String {
        format!("{}:deadlines", self.prefix)
    }

    /// String, in shard 0 only: who removes garbage from the object store just now; expires.
    pub fn collector(&self) -> String {
        format!("{}:collector", self.prefix)
    }
}

/// What the key of every agent of `queue` matches, whichever its shard; see [`agent_shard`].
pub fn agents_pattern(queue: &Name) -> String {
    format!("tm:{{{queue}.*}}:agent:*")
}

/// What the key of every turn's hash of `queue` matches, whichever its shard; see [`turn_of`].
pub fn turns_pattern(queue: &Name) -> String {
    format!("tm:{{{queue}.*}}:turn:*")
}

/// The shard of the agent's hash whose key `key` is; none if it is another key, or another queue's, whose name may
/// start like this one's.
pub fn agent_shard(queue: &Name, key: &str) -> Option<u16> {
    own_key(queue, key, ":agent:").map(|(shard, _)| shard)
}

/// The turn whose hash `key` is; none if it is another key, or another queue's.
pub fn turn_of(queue: &Name, key: &str) -> Option<TurnId> {
    own_key(queue, key, ":turn:")?.1.parse().ok()
}

/// Shard and rest of a key of `queue`.
fn own_key<'a>(queue: &Name, key: &'a str, kind: &str) -> Option<(u16, &'a str)> {
    let own = key.strip_prefix("tm:{")?.strip_prefix(queue.as_str())?.strip_prefix('.')?;
    let (shard, rest) = own.split_once('}')?;
    Some((shard.parse().ok()?, rest.strip_prefix(kind)?))
}

/// A consumer group of [`Keys::events`] as Redis knows it: `<tenant>/<group>`, because two tenants whose groups have the same name
/// must not take each other's ends. The group of that name that reads the ends of all tenants is `*/<group>`.
///
/// A [`Name`] holds neither `/` nor `*`, so two different groups never have the same name in Redis.
pub fn events_group(tenant: Option<&TenantName>, group: &Name) -> String {
    format!("{}/{group}", tenant.map_or("*", TenantName::as_str))
}

/// An idempotency key as it stands in key names: qualified by its tenant.
pub fn idempotency_name(tenant: &TenantName, key: &IdempotencyKey) -> String {
    format!("{tenant}/{key}")
}

/// Fields of the hash of [`Keys::counters`].
pub mod counter {
    use crate::turn::Priority;

    /// What the outcomes and results of ended turns take, in bytes: their keys as measured, and their entries in indexes estimated.
    pub const RETAINED_BYTES: &str = "retained_bytes";
    /// Turns ever enqueued.
    pub const ENQUEUED: &str = "enqueued";

    /// Turns of a priority that have not ended.
    pub fn open(priority: Priority) -> String {
        format!("open:{}", priority.as_str())
    }

    /// Turns of a tenant that run.
    pub fn tenant_leased(tenant: &str) -> String {
        format!("{tenant}:leased")
    }
}

/// An entry of a backlog: what a script's caller must know to declare the keys of a turn it is about to touch.
/// Written `<turn> <priority> <enqueued_ms> <not_before_ms> <idempotency name or ->`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BacklogEntry {
    /// The turn.
    pub turn: TurnId,
    /// Its priority.
    pub priority: Priority,
    /// When it was enqueued, in Unix milliseconds by Redis's clock.
    pub enqueued_ms: u64,
    /// Not to be run before, in Unix milliseconds; 0: at once.
    pub not_before_ms: u64,
    /// Its idempotency key with its tenant (see [`idempotency_name`]), if it has one.
    pub idempotency: Option<String>,
}

impl BacklogEntry {
    /// Reads an entry; none if `text` is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let entry = Self {
            turn: parts.next()?.parse().ok()?,
            priority: Priority::from_name(parts.next()?)?,
            enqueued_ms: parts.next()?.parse().ok()?,
            not_before_ms: parts.next()?.parse().ok()?,
            idempotency: Some(parts.next()?).filter(|name| *name != "-").map(str::to_owned),
        };
        parts.next().is_none().then_some(entry)
    }
}

impl fmt::Display for BacklogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { turn, priority, enqueued_ms, not_before_ms, idempotency } = self;
        let idempotency = idempotency.as_deref().unwrap_or("-");
        write!(f, "{turn} {} {enqueued_ms} {not_before_ms} {idempotency}", priority.as_str())
    }
}

/// A turn with a deadline: its agent, and its place in the backlog. Written `<agent> <backlog entry>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadlineEntry {
    /// Whose turn it is.
    pub agent: AgentId,
    /// Its place.
    pub entry: BacklogEntry,
}

impl DeadlineEntry {
    /// Reads an entry; none if `text` is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (agent, entry) = text.split_once(' ')?;
        Some(Self { agent: AgentId::from_wire(agent.to_owned()), entry: BacklogEntry::parse(entry)? })
    }
}

/// An entry of the list of ended turns. Written `<turn> <ended_ms> <bytes of its hash> <bytes of its results>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedEntry {
    /// The turn.
    pub turn: TurnId,
    /// When it ended, in Unix milliseconds by Redis's clock.
    pub ended_ms: u64,
    /// What its outcome takes, in bytes.
    pub turn_bytes: u64,
    /// What its result stream takes until that goes, in bytes.
    pub stream_bytes: u64,
}

impl EndedEntry {
    /// Reads an entry; none if `text` is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let entry = Self {
            turn: parts.next()?.parse().ok()?,
            ended_ms: parts.next()?.parse().ok()?,
            turn_bytes: parts.next()?.parse().ok()?,
            stream_bytes: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a name")
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
        assert_eq!(keys.parked("acme"), "tm:{qwen.2}:parked:acme");
        assert_eq!(keys.worker("w:1"), "tm:{qwen.2}:worker:w:1");
        let rest = [keys.open(), keys.counters(), keys.delayed(), keys.dead(), keys.ended(), keys.capped()];
        let names = ["open", "counters", "delayed", "dead", "ended", "capped"];
        assert_eq!(rest, names.map(|key| format!("tm:{{qwen.2}}:{key}")));
        let rest =
            [keys.events(), keys.sweeper(), keys.paused(), keys.workers(), keys.notices(), keys.collector()];
        let names = ["events", "sweeper", "paused", "workers", "notices", "collector"];
        assert_eq!(rest, names.map(|key| format!("tm:{{qwen.2}}:{key}")));
    }

    #[test]
    fn groups_of_tenants_are_different_groups() {
        let names = ["a", "b", "a.b", "a-b", "a@", "@a", "+", "_"];
        let mut groups = std::collections::BTreeSet::new();
        for group in &names.map(name) {
            assert!(groups.insert(events_group(None, group)), "{group} of all tenants");
            for tenant in &names.map(name) {
                assert!(groups.insert(events_group(Some(tenant), group)), "{group} of {tenant}");
            }
        }
        assert_eq!(events_group(Some(&name("acme")), &name("billing")), "acme/billing");
        assert_eq!(events_group(None, &name("billing")), "*/billing");
        for separator in ["/", "*"] {
            assert!(Name::new(separator).is_err(), "{separator} would join two names to a third");
        }
    }

    #[test]
    fn keys_of_a_queue_are_told_from_those_of_queues_whose_names_start_alike() {
        let queue: Name = name("q");
        let turn: TurnId = "01980000-0000-7000-8000-000000000000.2".parse().expect("a turn id");
        let agent = AgentId::named(&name("acme"), &name("a"));
        let (own, other) = (Keys::new(&queue, 2), Keys::new(&name("q.1"), 2));
        assert_eq!(agents_pattern(&queue), "tm:{q.*}:agent:*");
        assert_eq!(turns_pattern(&queue), "tm:{q.*}:turn:*");
        assert_eq!(agent_shard(&queue, &own.agent(&agent)), Some(2));
        assert_eq!(turn_of(&queue, &own.turn(turn)), Some(turn));
        for key in [own.backlog(&agent), own.turn(turn), other.agent(&agent), "tm:{q.x}:agent:a/b".into()] {
            assert_eq!(agent_shard(&queue, &key), None, "{key}");
        }
        for key in [own.result(turn), own.agent(&agent), other.turn(turn), "tm:{q.2}:turn:x".into()] {
            assert_eq!(turn_of(&queue, &key), None, "{key}");
        }
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
    fn entries_are_read_or_refused() {
        let id = "01980000-0000-7000-8000-000000000000.0";
        let turn: TurnId = id.parse().expect("a turn id");
        for (text, idempotency) in [("batch 5 0 -", None), ("batch 5 0 t/k", Some("t/k".to_owned()))] {
            let text = format!("{id} {text}");
            let entry = BacklogEntry::parse(&text).expect("an entry");
            let priority = Priority::Batch;
            let expected = BacklogEntry { turn, priority, enqueued_ms: 5, not_before_ms: 0, idempotency };
            assert_eq!((entry.to_string(), entry), (text, expected));
        }
        for text in ["batch 5 0", "batch 5 0 - more", "urgent 5 0 -", "batch x 0 -"] {
            assert_eq!(BacklogEntry::parse(&format!("{id} {text}")), None);
        }
        assert_eq!(BacklogEntry::parse("nonsense batch 5 0 -"), None);
        let ended = EndedEntry { turn, ended_ms: 7, turn_bytes: 900, stream_bytes: 4000 };
        assert_eq!(EndedEntry::parse(&format!("{id} 7 900 4000")), Some(ended));
        assert_eq!(EndedEntry::parse(&format!("{id} 7 900")), None);
        let deadline = DeadlineEntry::parse(&format!("t/a {id} batch 5 0 -")).expect("an entry");
        assert_eq!((deadline.agent.as_str(), deadline.entry.turn), ("t/a", turn));
        assert_eq!(DeadlineEntry::parse("t/a nonsense"), None);
    }
}
