//! The one place that knows under which keys and fields Redis holds a queue.
//!
//! Reads only, straight from Redis and past every proxy. [`Store::snapshot`] is for a queue at rest: it is not one
//! transaction.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply};
use redis::{AsyncCommands, AsyncConnectionConfig, RedisResult};
use turnmill_schema::envelope::decode;
use turnmill_schema::keys::{BacklogEntry, FIELD_EVENT, FIELD_MANIFEST, Keys};
use turnmill_schema::{AgentId, Name, TranscriptEntry, TurnId};

use super::ChaosError;
use super::stored::{Entry, Stored, StoredAgent, StoredTurn};

/// Reading a long stream from a Redis on a busy machine takes a while.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A queue of one shard, seen from outside.
#[derive(Clone, Debug)]
pub struct Store {
    client: redis::Client,
    keys: Keys,
}

/// A turn that a worker holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The turn.
    pub turn: TurnId,
    /// The worker's consumer id, which starts with its name.
    pub owner: String,
    /// How many of its tokens are published.
    pub published: u64,
}

impl Holding {
    /// Whether the worker called `name` holds it.
    pub fn is_of(&self, name: &str) -> bool {
        self.owner.split(':').next() == Some(name)
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after token {} of {}", self.published, self.turn)
    }
}

impl Store {
    /// The queue `queue` in the Redis at `url`.
    pub fn open(url: &str, queue: &Name) -> Result<Self, ChaosError> {
        Ok(Self { client: redis::Client::open(url)?, keys: Keys::new(queue, 0) })
    }

    /// The same queue after its Redis moved to `url`.
    pub fn moved_to(&self, url: &str) -> Result<Self, ChaosError> {
        Ok(Self { client: redis::Client::open(url)?, keys: self.keys.clone() })
    }

    /// When the first turn ended from `since_ms` on, both in Unix milliseconds by Redis's clock.
    pub async fn first_end(&self, since_ms: u64) -> Result<Option<u64>, ChaosError> {
        let mut redis = self.connection().await?;
        let ends: StreamRangeReply = redis.xrange_count(self.keys.events(), since_ms, "+", 1).await?;
        Ok(ends.ids.first().and_then(split_id).map(|(at_ms, _)| at_ms))
    }

    /// What workers hold just now.
    pub async fn holdings(&self) -> Result<Vec<Holding>, ChaosError> {
        let mut redis = self.connection().await?;
        let agents: Vec<String> = redis.zrange(self.keys.open(), 0, -1).await?;
        let mut holdings = Vec::new();
        for agent in agents.into_iter().map(AgentId::from_wire) {
            holdings.extend(self.holding(&mut redis, &agent).await?);
        }
        Ok(holdings)
    }

    async fn holding(
        &self,
        redis: &mut MultiplexedConnection,
        agent: &AgentId,
    ) -> Result<Option<Holding>, ChaosError> {
        let (state, owner, epoch): (Option<String>, Option<String>, Option<u64>) =
            redis.hmget(self.keys.agent(agent), &["state", "owner", "epoch"]).await?;
        let head: Option<String> = redis.lindex(self.keys.backlog(agent), 0).await?;
        let (Some("leased"), Some(owner), Some(head)) = (state.as_deref(), owner, head) else {
            return Ok(None);
        };
        let Some(BacklogEntry { turn, .. }) = BacklogEntry::parse(&head) else { return Ok(None) };
        let top: StreamRangeReply = redis.xrevrange_count(self.keys.result(turn), "+", "-", 1).await?;
        // Another epoch: the lease changed hands while we looked.
        let published = top.ids.first().and_then(split_id).filter(|(top, _)| Some(*top) == epoch);
        Ok(published.map(|(_, published)| Holding { turn, owner, published }))
    }

    /// Everything the queue holds.
    pub async fn snapshot(&self) -> Result<Stored, ChaosError> {
        let mut redis = self.connection().await?;
        let (turns, agents) = self.names(&mut redis).await?;
        let mut stored = Stored::default();
        for turn in turns {
            stored.turns.insert(turn, self.turn(&mut redis, turn).await?);
        }
        for agent in agents {
            let found = self.agent(&mut redis, &agent).await?;
            stored.agents.insert(agent, found);
        }
        Ok(stored)
    }

    /// Every turn and every agent that has a key of any kind.
    async fn names(
        &self,
        redis: &mut MultiplexedConnection,
    ) -> Result<(BTreeSet<TurnId>, BTreeSet<AgentId>), ChaosError> {
        let all: Vec<String> = redis.keys("*").await?;
        let nobody = AgentId::from_wire(String::new());
        let of_agents = [self.keys.agent(&nobody), self.keys.backlog(&nobody), self.keys.transcript(&nobody)];
        let any = TurnId::new(self.keys.shard());
        let of_turns = [self.keys.turn(any), self.keys.result(any)]
            .map(|key| key.strip_suffix(&any.to_string()).unwrap_or(&key).to_owned());
        let named = |prefixes: &[String], key: &str| -> Option<String> {
            prefixes.iter().find_map(|prefix| key.strip_prefix(prefix.as_str())).map(str::to_owned)
        };
        let turns = all.iter().filter_map(|key| named(&of_turns, key)?.parse().ok()).collect();
        let agents = all.iter().filter_map(|key| named(&of_agents, key)).map(AgentId::from_wire).collect();
        Ok((turns, agents))
    }

    async fn turn(&self, redis: &mut MultiplexedConnection, turn: TurnId) -> Result<StoredTurn, ChaosError> {
        let (state, outcome) = redis.hmget(self.keys.turn(turn), &["state", "outcome"]).await?;
        let stream: StreamRangeReply = redis.xrange_all(self.keys.result(turn)).await?;
        let entries = stream.ids.iter().map(|entry| read_entry(turn, entry)).collect::<Result<_, _>>()?;
        Ok(StoredTurn { state, outcome, entries })
    }

    async fn agent(
        &self,
        redis: &mut MultiplexedConnection,
        agent: &AgentId,
    ) -> Result<StoredAgent, ChaosError> {
        let fields: Vec<Option<String>> =
            redis.hmget(self.keys.agent(agent), &["state", "owner", "ticket"]).await?;
        // Empty is as good as missing.
        let mut fields = fields.into_iter().map(|value| value.filter(|value| !value.is_empty()));
        let mut next = || fields.next().flatten();
        let transcript: Vec<Vec<u8>> = redis.lrange(self.keys.transcript(agent), 0, -1).await?;
        let read = |entry: &Vec<u8>| {
            let unreadable = |error| ChaosError::unreadable(format!("the transcript of {agent}"), error);
            decode::<TranscriptEntry>(entry).map_err(unreadable)
        };
        let manifest: Option<Vec<u8>> = redis.hget(self.keys.agent(agent), FIELD_MANIFEST).await?;
        let manifest = manifest.filter(|manifest| !manifest.is_empty());
        let unreadable = |error| ChaosError::unreadable(format!("the manifest of {agent}"), error);
        Ok(StoredAgent {
            state: next(),
            owner: next(),
            ticket: next(),
            backlog: redis.llen(self.keys.backlog(agent)).await?,
            transcript: transcript.iter().map(read).collect::<Result<_, _>>()?,
            manifest: manifest.map(|manifest| decode(&manifest).map_err(unreadable)).transpose()?,
        })
    }

    async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

fn read_entry(turn: TurnId, entry: &StreamId) -> Result<Entry, ChaosError> {
    let what = || format!("entry {} of the result of {turn}", entry.id);
    let (epoch, _) = split_id(entry).ok_or_else(|| ChaosError::unreadable(what(), "its id"))?;
    let event: Vec<u8> = entry.get(FIELD_EVENT).unwrap_or_default();
    let event = decode(&event).map_err(|error| ChaosError::unreadable(what(), error))?;
    Ok(Entry { epoch, event })
}

/// Epoch and published tokens.
fn split_id(entry: &StreamId) -> Option<(u64, u64)> {
    let (epoch, published) = entry.id.split_once('-')?;
    Some((epoch.parse().ok()?, published.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use turnmill_schema::envelope::encode;
    use turnmill_schema::{Begin, Digest, Event, Manifest};

    use super::*;
    use crate::redis_server::RedisServer;

    /// A queue in which `w1` runs a turn and has published 7 tokens of it.
    async fn leased() -> (RedisServer, Store, AgentId, TurnId) {
        let redis = RedisServer::start();
        let store = Store::open(&redis.url(), &Name::new("q").expect("a name")).expect("a URL");
        let (agent, turn) = (AgentId::from_wire("t/a".into()), TurnId::new(0));
        let event = Event::Begin(Begin { epoch: 5, resume_from: 7, attempt: 2, worker: "w1:x".into() });
        let (keys, mut setup) = (&store.keys, redis::pipe());
        setup.hset_multiple(keys.agent(&agent), &[("state", "leased"), ("owner", "w1:x"), ("epoch", "5")]);
        setup.hset(keys.turn(turn), "state", "leased");
        setup.rpush(keys.backlog(&agent), format!("{turn} batch 1 0 -")).zadd(keys.open(), agent.as_str(), 1);
        setup.xadd(keys.result(turn), "5-7", &[(FIELD_EVENT, encode(&event).expect("encodes"))]);
        let mut connection = store.connection().await.expect("Redis answers");
        let () = setup.query_async(&mut connection).await.expect("it is written");
        (redis, store, agent, turn)
    }

    #[tokio::test]
    async fn a_leased_turn_is_held_and_one_that_changed_hands_is_not() {
        let (_redis, store, agent, turn) = leased().await;
        let expected = Holding { turn, owner: "w1:x".into(), published: 7 };
        assert_eq!(store.holdings().await.expect("answered"), [expected]);
        let mut redis = store.connection().await.expect("Redis answers");
        for (field, value) in [("epoch", "6"), ("state", "ready")] {
            let _new: u64 = redis.hset(store.keys.agent(&agent), field, value).await.expect("HSET");
            assert_eq!(store.holdings().await.expect("answered"), []);
        }
    }

    #[tokio::test]
    async fn a_snapshot_has_turns_and_agents_and_whoever_has_any_key() {
        let (_redis, store, agent, turn) = leased().await;
        let mut redis = store.connection().await.expect("Redis answers");
        let stray = AgentId::from_wire("t/stray".into());
        let _length: u64 = redis.rpush(store.keys.backlog(&stray), "x").await.expect("RPUSH");
        let (namespace, last) = (Digest([1; 32]), Digest([2; 32]));
        let manifest = Manifest { namespace, tokens: 16, shared_tokens: 0, last };
        let bytes = encode(&manifest).expect("encodes");
        let _new: u64 = redis.hset(store.keys.agent(&agent), FIELD_MANIFEST, bytes).await.expect("HSET");
        // Empty is none.
        let _new: u64 = redis.hset(store.keys.agent(&stray), FIELD_MANIFEST, "").await.expect("HSET");
        let stored = store.snapshot().await.expect("read");
        assert_eq!(stored.turns.keys().collect::<Vec<_>>(), [&turn]);
        assert_eq!(stored.turns[&turn].begins().next().map(|begin| begin.resume_from), Some(7));
        let (agent, stray) = (&stored.agents[&agent], &stored.agents[&stray]);
        assert_eq!((agent.owner.as_deref(), agent.backlog), (Some("w1:x"), 1));
        assert_eq!((stray.state.as_deref(), stray.backlog), (None, 1));
        assert_eq!((agent.manifest, stray.manifest), (Some(manifest), None));
    }
}
