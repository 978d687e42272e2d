//! Agents that wait for a time (a retry, a scheduled turn) or for a place among the running turns of their tenant. Every
//! worker's read cycle looks after them; so while one worker runs, none is forgotten.

use std::time::{Duration, Instant};

use turnmill_schema::AgentId;
use turnmill_schema::keys::Keys;
use turnmill_schema::scripts::Call;

use super::{BrokerError, RedisBroker};

/// How long a read waits on the server. A turn that another worker delays meanwhile may start late by as much.
pub(super) const BLOCK: Duration = Duration::from_millis(2000);
/// A read waits so long at most while agents wait for a place: ends of turns wake nobody.
const BLOCK_FOR_A_PLACE: Duration = Duration::from_millis(100);
/// Time between two looks; a busy worker reads more often than that.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Agents promoted in one look, of each kind.
const AGENTS_A_LOOK: usize = 64;
/// Tenants looked at in one look, drawn at random.
const TENANTS_A_LOOK: usize = 8;

/// What the last look showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// The queue is paused: nothing is to be read.
    pub(super) paused: bool,
    /// How long the read may wait.
    pub(super) block: Duration,
}

/// When the last look was, and what it showed.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    last: Option<(Instant, Outlook)>,
}

/// What a shard answers.
type Look = (bool, Vec<(String, f64)>, Vec<String>, (u64, u64));

impl RedisBroker {
    pub(super) async fn look_after_waiting(&self, waiting: &mut Waiting) -> Result<Outlook, BrokerError> {
        if let Some((at, outlook)) = waiting.last
            && at.elapsed() < LOOK_EVERY
        {
            return Ok(outlook);
        }
        let mut outlook = Outlook { paused: false, block: BLOCK };
        for keys in self.queue.all_keys() {
            let shard = self.look_after_shard(&keys).await?;
            outlook.paused |= shard.paused;
            outlook.block = outlook.block.min(shard.block);
        }
        waiting.last = Some((Instant::now(), outlook));
        Ok(outlook)
    }

    async fn look_after_shard(&self, keys: &Keys) -> Result<Outlook, BrokerError> {
        let error = |e| self.server.error("promote", &e);
        let mut look = redis::pipe();
        look.cmd("EXISTS").arg(keys.paused());
        look.cmd("ZRANGE").arg(keys.delayed()).arg(0).arg(AGENTS_A_LOOK).arg("WITHSCORES");
        look.cmd("SRANDMEMBER").arg(keys.capped()).arg(TENANTS_A_LOOK);
        // A worker that has leased nothing yet does not know the server's clock.
        look.cmd("TIME");
        let mut connection = self.server.connection().await?;
        let (paused, delayed, tenants, time): Look =
            look.query_async(&mut connection).await.map_err(error)?;
        self.held.clock().set_time(time);
        let mut block = BLOCK;
        let mut agents = Vec::new();
        let now_ms = self.held.clock().now_ms() as f64;
        for (agent, due_ms) in delayed {
            if due_ms <= now_ms {
                agents.push(AgentId::from_wire(agent));
            } else {
                block = block.min(Duration::from_secs_f64((due_ms - now_ms) / 1000.0));
            }
        }
        for tenant in &tenants {
            block = block.min(BLOCK_FOR_A_PLACE);
            let mut parked = redis::cmd("ZRANGE");
            parked.arg(keys.parked(tenant)).arg(0).arg(AGENTS_A_LOOK);
            let parked: Vec<String> = parked.query_async(&mut connection).await.map_err(error)?;
            agents.extend(parked.into_iter().map(AgentId::from_wire));
        }
        drop(connection);
        if !agents.is_empty() {
            self.promote(keys, &agents).await?;
        }
        // At least a millisecond: BLOCK 0 waits for ever.
        Ok(Outlook { paused, block: block.max(Duration::from_millis(1)) })
    }

    async fn promote(&self, keys: &Keys, agents: &[AgentId]) -> Result<(), BrokerError> {
        let mut call = Call::new(keys);
        call.text(self.settings.tenant_max_running);
        for agent in agents {
            call.keys([keys.agent(agent), keys.backlog(agent), keys.parked(agent.tenant())]).text(agent);
        }
        self.server.run::<u64>(&self.steps.promote, &call).await.map(|_| ())
    }
}
