//! The whole line for one test: a private Redis, a producer, workers, and a look at what is stored.
//!
//! A line has the machine to itself among the tests of its process: workers that share two cores would starve each
//! other, and waits would get long. A test starts its line before any other server. A line [without
//! workers](Line::without_workers) shares the machine.

use std::io::Write as _;
use std::num::NonZeroU16;
use std::process::{Output, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::time::timeout;
use turnmill_client::{Client, Enqueued, NewTurn, TurnResult};
use turnmill_redis::steps::{self, DepthLimits, Enqueue, EnqueueTurn};
use turnmill_redis::{RESPONSE_TIMEOUT, RedisUrl, Server};
use turnmill_schema::keys::{FIELD_MANIFEST, Keys};
use turnmill_schema::{AgentId, Event, InvalidName, Manifest, Sampling, Turn, TurnId, envelope};
use turnmill_worker::broker::redis::BrokerSettings;

use crate::machine::{self, Alone};
use crate::redis_link::RedisLink;
use crate::redis_queue::{RETAINED_BYTES, events_of};
use crate::redis_server::RedisServer;
use crate::stand_in::StandIn;
use crate::told::Told;
use crate::worker::Worker;
use crate::{PATIENCE, program};

/// A queue and the way into it.
pub struct Line {
    /// Where the queue lives.
    pub redis: RedisServer,
    /// Puts turns into it.
    pub producer: Client,
    keys: Keys,
    /// The test's own way to Redis.
    link: RedisLink,
    /// None: its server shares the machine.
    machine: Option<Alone>,
}

impl Line {
    /// An empty queue.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// An empty queue in a Redis with more command-line options.
    pub async fn start_with(options: &[&str]) -> Self {
        Self::on(Some(machine::alone()), options).await
    }

    /// An empty queue for a test that starts no worker with a model: it may run beside others.
    pub async fn without_workers() -> Self {
        Self::on(None, &[]).await
    }

    async fn on(machine: Option<Alone>, options: &[&str]) -> Self {
        let redis = RedisServer::start_with(options);
        let producer = Client::builder(redis.url()).connect().await.expect("Redis answers");
        let link = RedisLink::new(redis.url());
        Self { redis, producer, keys: Keys::new(&name("default"), 0), link, machine }
    }

    /// A worker of this queue, ready.
    pub fn worker(&self, flags: &[&str]) -> Worker {
        assert!(self.machine.is_some(), "this line is without workers, since it shares the machine");
        Worker::start(&self.redis, flags)
    }

    /// A worker of this queue that says what `script` says, ready. It computes next to nothing, so the line may share the machine.
    pub fn scripted_worker(&self, script: &str, flags: &[&str]) -> Worker {
        let mut file = NamedTempFile::new().expect("the temporary directory is writable");
        file.write_all(script.as_bytes()).expect("written");
        let path = file.path().to_string_lossy();
        let mut worker = Worker::launch_scripted(&self.redis.url(), &[&["--script", &*path], flags].concat());
        // It has read the script by then.
        worker.until_ready();
        worker
    }

    /// What takes this queue's turns in a worker's place, if it does not matter what it says.
    pub async fn stand_in(&self) -> StandIn {
        const HOUR_MS: u64 = 3_600_000;
        StandIn::start(BrokerSettings {
            redis: RedisUrl::from(self.redis.url()).into(),
            queue: name("default"),
            shards: NonZeroU16::MIN,
            worker: "stand-in".to_owned(),
            // Longer than any test, since it renews nothing.
            lease_ms: HOUR_MS,
            max_attempts: 3,
            tenant_max_running: 0,
            max_continues: 0,
            result_ttl_ms: HOUR_MS,
            outcome_ttl_ms: HOUR_MS,
            keep_stream_ms: HOUR_MS,
            retained_bytes: RETAINED_BYTES,
            dead_bytes: RETAINED_BYTES,
        })
        .await
    }

    /// Enqueues turns; ids in their order.
    pub async fn enqueue(&self, turns: Vec<NewTurn>) -> Vec<TurnId> {
        ids(self.producer.enqueue_batch(turns).await.expect("valid turns are enqueued"))
    }

    /// Enqueues as a producer would that checks nothing.
    pub async fn enqueue_unchecked(&self, turn: &Turn) {
        let stored = envelope::encode_turn(turn).expect("the turn can be encoded");
        let limits = DepthLimits { queue: 1000, tenant: 1000 };
        let endpoint = RedisUrl::from(self.redis.url()).into();
        let server = Server::new(&endpoint, RESPONSE_TIMEOUT).expect("a URL of ours is usable");
        let step = Enqueue { limits, turns: vec![EnqueueTurn::new(turn, stored)] };
        let enqueued = server.run(&self.keys, &step).await;
        assert_eq!(enqueued, Ok(steps::Enqueued::Done { known: vec![] }));
    }

    /// Replaces the stored envelope of a turn that waits.
    pub async fn overwrite(&self, turn: TurnId, envelope: &[u8]) {
        let mut command = redis::pipe();
        command.cmd("HSET").arg(self.keys.turn(turn)).arg("envelope").arg(envelope);
        let new: u64 = self.link.one(&command).await;
        assert_eq!(new, 0, "the turn had an envelope");
    }

    /// Waits for a turn's end.
    pub async fn wait(&self, turn: TurnId) -> TurnResult {
        let result = timeout(PATIENCE, self.producer.wait(turn)).await.expect("the turn ends");
        result.expect("the result can be read")
    }

    /// Enqueues a turn and waits for its end.
    pub async fn run(&self, turn: NewTurn) -> TurnResult {
        let turn = self.enqueue(vec![turn]).await[0];
        self.wait(turn).await
    }

    /// Waits for turns and reads their streams.
    pub async fn told(&self, turns: &[TurnId]) -> Vec<Told> {
        let mut told = Vec::new();
        for turn in turns {
            self.wait(*turn).await;
            told.push(Told::read(&self.events(*turn).await));
        }
        told
    }

    /// The raw entries of a result stream.
    pub async fn events(&self, turn: TurnId) -> Vec<Event> {
        events_of(self.link.command(&["XRANGE", &self.keys.result(turn), "-", "+"]).await)
    }

    /// Waits until the turns together have published `tokens` tokens, or all have ended.
    pub async fn until_tokens(&self, turns: &[TurnId], tokens: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (mut published, mut ended) = (0, 0);
            for turn in turns {
                let events = self.events(*turn).await;
                let last = events.iter().filter_map(|event| match event {
                    Event::Delta(delta) => Some(delta.published()),
                    Event::Begin(_) | Event::End(_) => None,
                });
                published += last.max().unwrap_or(0);
                ended += usize::from(matches!(events.last(), Some(Event::End(_))));
            }
            if published >= tokens || ended == turns.len() {
                return;
            }
            assert!(Instant::now() < deadline, "{published} of {tokens} tokens came");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until each of the turns has published tokens.
    pub async fn until_all_have_tokens(&self, turns: &[TurnId]) {
        let deadline = Instant::now() + PATIENCE;
        for turn in turns {
            while !self.events(*turn).await.iter().any(|event| matches!(event, Event::Delta(_))) {
                assert!(Instant::now() < deadline, "no token comes");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Entries of an agent's transcript, as stored.
    pub async fn transcript(&self, agent: &str) -> Vec<Vec<u8>> {
        let agent = AgentId::named(&name("default"), &name(agent));
        self.link.command(&["LRANGE", &self.keys.transcript(&agent), "0", "-1"]).await
    }

    /// What the agent's manifest says is stored.
    pub async fn manifest(&self, agent: &str) -> Option<Manifest> {
        let agent = AgentId::named(&name("default"), &name(agent));
        let bytes: Option<Vec<u8>> =
            self.link.command(&["HGET", &self.keys.agent(&agent), FIELD_MANIFEST]).await;
        let bytes = bytes.filter(|bytes| !bytes.is_empty());
        bytes.map(|bytes| envelope::decode(&bytes).expect("manifests can be read"))
    }

    /// Waits until the agent's manifest says that at least `tokens` are stored.
    pub async fn until_stored(&self, agent: &str, tokens: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stored = self.manifest(agent).await.map_or(0, |manifest| manifest.tokens);
            if stored >= tokens {
                return;
            }
            assert!(Instant::now() < deadline, "{stored} tokens of {agent} are stored, not {tokens}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every key of the queue.
    pub async fn all_keys(&self) -> Vec<String> {
        self.link.command(&["KEYS", "*"]).await
    }

    /// Runs `turnmill` on this queue to its end.
    pub async fn turnmill(&self, arguments: &[&str]) -> Output {
        self.turnmill_with(arguments, &[]).await
    }

    /// The same with more variables in its environment.
    pub async fn turnmill_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(program("turnmill"));
        command.envs(variables.iter().copied());
        command.args(arguments).env("TURNMILL_REDIS_URL", self.redis.url()).stdin(Stdio::null());
        let output = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        output.expect("the command ends").expect("the command can be run")
    }
}

/// The turns that were enqueued, in order.
pub fn ids(enqueued: Vec<Enqueued>) -> Vec<TurnId> {
    enqueued.into_iter().map(|enqueued| enqueued.turn).collect()
}

/// A valid name.
pub fn name<T: FromStr<Err = InvalidName>>(text: &str) -> T {
    text.parse().expect("a name")
}

/// Always the likeliest token, `max_tokens` of them whatever the model says.
pub fn exactly(max_tokens: u32) -> Sampling {
    Sampling { ignore_eos: true, ..greedy(max_tokens) }
}

/// Always the likeliest token, at most `max_tokens`.
pub fn greedy(max_tokens: u32) -> Sampling {
    Sampling { temperature: 0.0, max_tokens: Some(max_tokens), ..Sampling::default() }
}
