//! Chaos: a real queue under load, hurt for some minutes, and then held against what was promised.
//!
//! | file | owns |
//! |---|---|
//! | `dice` | seeded randomness |
//! | `plan` | which faults come when |
//! | `workload`, `producers` | what is asked for, and who asks |
//! | `ledger` | what was acknowledged |
//! | `fleet` | worker processes and their proxies |
//! | `storm`, `cut`, `power`, `failover` | makes the faults happen: to processes, connections, Redis's disk, its role |
//! | `store`, `stored` | what Redis holds: the only place that knows its keys; the same as plain values |
//! | `kept` | what the object store holds, as plain values |
//! | `undisturbed` | the same turns with nothing in their way |
//! | `leaks` | what workers and Redis hold that belongs to nobody |
//! | `audit`, `report` | what is broken, and how it is told |
//!
//! Of a seed, the plan and the turns are always the same. When a turn meets a fault is not: that is real time.

pub mod audit;
pub mod cut;
pub mod dice;
pub mod failover;
pub mod fleet;
pub mod kept;
pub mod leaks;
pub mod ledger;
pub mod plan;
pub mod power;
pub mod producers;
pub mod report;
pub mod store;
pub mod stored;
pub mod storm;
pub mod undisturbed;
pub mod workload;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use turnmill_client::ClientError;
use turnmill_schema::Name;
use turnmill_worker::store::StoreError;

use crate::proxy::Proxy;
use crate::redis_server::RedisServer;
use audit::Finding;
use failover::Failovers;
use fleet::Fleet;
use kept::Kept;
use ledger::Ledger;
use power::Unsynced;
use producers::Producers;
use report::Report;
use store::Store;
use stored::Stored;
use storm::{Storm, Tally};

/// How long turns may take to end after the last fault.
const SETTLE_PATIENCE: Duration = Duration::from_secs(240);

/// How long workers may take to let go of what they hold once every turn has ended. It is more than a lease, because a worker may
/// learn only by then that it has lost a turn.
const REST_PATIENCE: Duration = Duration::from_secs(20);

/// Where the queue lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Home {
    /// In one Redis, which is killed with 9 and started again.
    Single,
    /// In one of two Redis servers behind a TCP proxy. Now and then the other one becomes the primary: new connections go to it,
    /// and old ones stay open.
    Proxy,
}

/// When Redis syncs its append-only file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AppendFsync {
    /// Before it answers: nothing that was acknowledged may be lost.
    Always,
    /// Once a second: a crash takes the last second, as a power cut would, and producers enqueue again.
    Everysec,
}

/// What a run is told.
#[derive(Clone, Copy, Debug)]
pub struct ChaosSettings {
    /// Of faults and turns.
    pub seed: u64,
    /// How long faults come.
    pub run: Duration,
    /// Worker processes.
    pub workers: usize,
    /// Where the queue lives.
    pub home: Home,
    /// What a crash of Redis takes.
    pub appendfsync: AppendFsync,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// In numbers.
    pub report: Report,
    /// Every broken promise.
    pub findings: Vec<Finding>,
    /// The log of every worker there was, by its name.
    pub logs: Vec<(String, String)>,
}

/// Why a run came to no result.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// Redis itself, past every proxy.
    #[error("Redis does not answer as it should: {0}")]
    Redis(#[from] redis::RedisError),
    /// Something that asking again does not mend.
    #[error("a producer cannot go on: {0}")]
    Producer(#[from] ClientError),
    /// The two servers do not change roles.
    #[error("Redis does not fail over: {0}")]
    Failover(String),
    /// Ports or files.
    #[error("the machine does not let the run go on: {0}")]
    Io(#[from] std::io::Error),
    /// The folder with K and V.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The same, while it is read.
    #[error("the folder with K and V cannot be read: {0}")]
    Objects(#[from] object_store::Error),
    /// What Redis holds is not what this version writes.
    #[error("{what} cannot be read ({reason}); are all parts of one version?")]
    Unreadable {
        /// Which key or entry.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A bug here.
    #[error("a producer panicked; its message is above")]
    Panicked,
}

impl ChaosError {
    fn unreadable(what: String, reason: impl fmt::Display) -> Self {
        Self::Unreadable { what, reason: reason.to_string() }
    }
}

/// Hurts a queue as `settings` say, and audits what is left of it.
pub async fn run(settings: ChaosSettings) -> Result<Outcome, ChaosError> {
    let began = Instant::now();
    let queue = Name::new(fleet::QUEUE).expect("letters make a name");
    let ledger = Arc::new(Ledger::default());
    // Before the workers, so that it goes after them.
    let folder = tempfile::tempdir()?;
    let mut storm = gather(settings, &queue, folder.path(), began).await?;
    let forgetful = storm.unsynced.is_some();
    let url = storm.door.url();
    let mut producers = Producers::start(&url, &queue, settings.seed, ledger.clone(), forgetful).await?;

    storm.say(format!("{} workers are ready; faults come for {:?}", settings.workers, settings.run));
    let plan = plan::plan(settings.seed, settings.run, fleet::LEASE, settings.home);
    storm.rage(plan, settings.run, &mut producers).await?;
    storm.say("no more faults; waiting for the turns that are open");
    storm.settle(SETTLE_PATIENCE, &mut producers).await?;
    let mut leaked = tokio::task::block_in_place(|| storm.fleet.held(REST_PATIENCE));
    storm.say(format!("{:?}; the same {} turns undisturbed", storm.tally, ledger.len()));

    let Storm { redis, failovers, fleet, store, tally, .. } = storm;
    let logs = tokio::task::block_in_place(|| fleet.end());
    leaked.extend(tokio::task::block_in_place(|| leaks::of_queue(&redis.url(), &queue))?);
    let (stored, kept) = left(&store, folder.path(), &queue).await?;
    let turns = ledger.turns();
    let undisturbed = undisturbed::undisturbed(&turns, &queue).await?;

    let mut findings = audit::audit(&turns, &stored, &kept, &undisturbed);
    findings.extend(leaked);
    let resumed = audit::resumed(&turns, &stored);
    let mut report =
        Report::new(settings.seed, turns.len(), resumed, kept.objects.len(), tally).with(&findings);
    report.re_enqueued = forgetful.then(|| ledger.re_enqueued());
    report.failover = failovers.map(|failovers| failovers.report());
    report.seconds = began.elapsed().as_secs();
    Ok(Outcome { report, findings, logs })
}

/// What Redis and the object store hold. How many manifests there are is said: an agent may have none.
async fn left(store: &Store, folder: &Path, queue: &Name) -> Result<(Stored, Kept), ChaosError> {
    let (stored, kept) = (store.snapshot().await?, Kept::read(folder, queue).await?);
    let manifests = stored.agents.values().filter(|agent| agent.manifest.is_some()).count();
    eprintln!("{manifests} of {} agents have a manifest", stored.agents.len());
    Ok((stored, kept))
}

/// Redis, workers and proxies, all ready.
async fn gather(
    settings: ChaosSettings,
    queue: &Name,
    folder: &Path,
    began: Instant,
) -> Result<Storm, ChaosError> {
    let (appendfsync, unsynced) = match settings.appendfsync {
        AppendFsync::Always => ("always", None),
        AppendFsync::Everysec => ("everysec", Some(Unsynced::default())),
    };
    let options = ["--appendonly", "yes", "--appendfsync", appendfsync];
    let (redis, failovers) = match settings.home {
        Home::Single => (RedisServer::start_with(&options), None),
        Home::Proxy => {
            let (primary, failovers) = Failovers::pair(&options).await?;
            (primary, Some(failovers))
        }
    };
    let fleet = Fleet::start(redis.address(), settings.workers, folder).await?;
    let door = Arc::new(Proxy::start(redis.address()).await?);
    let store = Store::open(&redis.url(), queue)?;
    let tally = Tally::default();
    Ok(Storm { redis, failovers, fleet, door, store, unsynced, tally, began, redis_back: None })
}
