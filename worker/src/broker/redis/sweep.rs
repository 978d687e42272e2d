//! Work that keeps the queue whole, and counting it.

use turnmill_schema::keys::Keys;
use turnmill_schema::{AgentId, scripts};

use super::{BrokerError, QueueCounts, RedisBroker, steps};

/// Agents looked at in one sweep of a shard. Those with the oldest heads come first, and an agent whose token
/// was lost only grows older, so none is passed over for ever.
const AGENTS_A_SWEEP: usize = 256;
/// A consumer is taken for gone after this many leases of silence.
const CONSUMER_LEASES: u64 = 20;

impl RedisBroker {
    pub(super) async fn sweep_shards(&self) -> Result<(), BrokerError> {
        for keys in self.queue.all_keys() {
            let Some(agents) = self.begin_sweep(&keys).await? else { continue };
            if !agents.is_empty() {
                let repaired = self.repair(&keys, &agents).await?;
                if repaired > 0 {
                    tracing::warn!(
                        shard = keys.shard(),
                        agents = repaired,
                        "gave agents without a token new ones"
                    );
                }
            }
            for ready in scripts::ready_keys(&keys) {
                let mut call = steps::CONSUMERS.script.prepare_invoke();
                call.key(ready).arg(self.settings.lease_ms.saturating_mul(CONSUMER_LEASES));
                let _: u64 = self.server.run(&steps::CONSUMERS, &call).await?;
            }
        }
        Ok(())
    }

    /// The agents to look at; none where another worker sweeps the shard just now.
    async fn begin_sweep(&self, keys: &Keys) -> Result<Option<Vec<AgentId>>, BrokerError> {
        let error = |e| self.server.error("sweep", &e);
        let mut connection = self.server.connection().await?;
        let mut begin = redis::pipe();
        begin.cmd("SET").arg(keys.sweeper()).arg(&self.settings.worker).arg("NX");
        begin.arg("PX").arg(self.settings.lease_ms);
        begin.cmd("TIME");
        let (ours, (seconds, _micros)): (Option<String>, (u64, u64)) =
            begin.query_async(&mut connection).await.map_err(error)?;
        if ours.is_none() {
            return Ok(None);
        }
        // A head younger than a lease has hardly lost its token.
        let before_ms = (seconds * 1000).saturating_sub(self.settings.lease_ms);
        let mut list = redis::cmd("ZRANGE");
        list.arg(keys.open())
            .arg("-inf")
            .arg(before_ms)
            .arg("BYSCORE")
            .arg("LIMIT")
            .arg(0)
            .arg(AGENTS_A_SWEEP);
        let agents: Vec<String> = list.query_async(&mut connection).await.map_err(error)?;
        Ok(Some(agents.into_iter().map(AgentId::from_wire).collect()))
    }

    async fn repair(&self, keys: &Keys, agents: &[AgentId]) -> Result<u64, BrokerError> {
        let mut call = steps::REPAIR.script.prepare_invoke();
        call.key(&scripts::ready_keys(keys)).key(keys.open());
        for agent in agents {
            call.key(keys.agent(agent)).key(keys.backlog(agent)).arg(agent.as_str());
        }
        self.server.run(&steps::REPAIR, &call).await
    }

    pub(super) async fn count_work(&self) -> Result<QueueCounts, BrokerError> {
        let mut total = QueueCounts::default();
        for keys in self.queue.all_keys() {
            let mut call = steps::COUNTS.script.prepare_invoke();
            call.key(&scripts::ready_keys(&keys)).key(keys.open()).key(keys.depth());
            let (runnable, leased, turns, oldest, now_ms): (u64, u64, u64, String, u64) =
                self.server.run(&steps::COUNTS, &call).await?;
            total.runnable += runnable;
            total.leased += leased;
            total.turns += turns;
            let age_ms = oldest.parse::<u64>().ok().map(|enqueued_ms| now_ms.saturating_sub(enqueued_ms));
            total.oldest_ms = total.oldest_ms.max(age_ms);
        }
        Ok(total)
    }
}
