//! Work that keeps the queue whole and small, and counting it.

use turnmill_schema::AgentId;
use turnmill_schema::keys::{EndedEntry, Keys};
use turnmill_schema::scripts::Call;

use super::{BrokerError, PriorityCounts, QueueCounts, RedisBroker};

/// Agents looked at in one sweep of a shard. Those with the oldest heads come first, and an agent whose ticket
/// was lost only grows older, so none is passed over for ever.
const AGENTS_A_SWEEP: usize = 256;
/// A consumer is taken for gone after this many leases of silence.
const CONSUMER_LEASES: u64 = 20;
/// Ended turns forgotten in one call.
const TURNS_A_TRIM: usize = 128;
/// Such calls in one sweep of a shard at most: what is left waits for the next one.
const TRIMS_A_SWEEP: usize = 1000;

/// What the script says of one priority: runnable, leased, open, when the oldest was enqueued (or nothing), Redis's own count of
/// the runnable (or nothing).
type Work = (u64, u64, u64, String, String);
/// The script's whole reply.
type Counts = (u64, Work, Work, String, u64, u64, u64, bool, u64, [u64; 4]);

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
                        "gave agents without a ticket new ones"
                    );
                }
            }
            let mut call = Call::new(&keys);
            call.text(self.settings.lease_ms.saturating_mul(CONSUMER_LEASES));
            let _: u64 = self.server.run(&self.steps.consumers, &call).await?;
            self.trim(&keys).await?;
        }
        Ok(())
    }

    /// Forgets ended turns that are past their time, or too many for the memory they may take.
    async fn trim(&self, keys: &Keys) -> Result<(), BrokerError> {
        for _ in 0..TRIMS_A_SWEEP {
            let mut oldest = redis::cmd("LRANGE");
            oldest.arg(keys.ended()).arg(0).arg(TURNS_A_TRIM - 1);
            let mut connection = self.server.connection().await?;
            let oldest: Vec<String> =
                oldest.query_async(&mut connection).await.map_err(|e| self.server.error("trim", &e))?;
            drop(connection);
            let mut call = Call::new(keys);
            call.text(self.settings.retained_bytes).text(self.settings.outcome_ttl_ms);
            for text in &oldest {
                let Some(entry) = EndedEntry::parse(text) else { break };
                let turn = keys.turn(entry.turn);
                let idempotency = entry.idempotency.map_or(turn.clone(), |name| keys.idempotency(&name));
                call.keys([turn, keys.result(entry.turn), idempotency]).text(text);
            }
            let forgotten: u64 = self.server.run(&self.steps.trim, &call).await?;
            if forgotten < TURNS_A_TRIM as u64 {
                break;
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
        // A head younger than a lease has hardly lost its ticket.
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
        let mut call = Call::new(keys);
        for agent in agents {
            call.keys([keys.agent(agent), keys.backlog(agent), keys.parked(agent.tenant())]).text(agent);
        }
        self.server.run(&self.steps.repair, &call).await
    }

    pub(super) async fn count_work(&self) -> Result<QueueCounts, BrokerError> {
        let mut total = QueueCounts { lag: Some(0), ..QueueCounts::default() };
        for keys in self.queue.all_keys() {
            let counts: Counts = self.server.run(&self.steps.counts, &Call::new(&keys)).await?;
            let (now_ms, interactive, batch, oldest, delayed, dead, retained_bytes, paused, enqueued, ended) =
                counts;
            for (sum, (runnable, leased, open, _oldest, lag)) in
                total.priorities.iter_mut().zip([interactive, batch])
            {
                let PriorityCounts { runnable: r, leased: l, open: o } = *sum;
                *sum = PriorityCounts { runnable: r + runnable, leased: l + leased, open: o + open };
                total.lag = total.lag.zip(lag.parse().ok()).map(|(so_far, here): (u64, u64)| so_far + here);
            }
            total.delayed += delayed;
            total.dead += dead;
            total.retained_bytes += retained_bytes;
            total.enqueued += enqueued;
            total.ended.iter_mut().zip(ended).for_each(|(so_far, here)| *so_far += here);
            total.paused |= paused;
            let age_ms = oldest.parse::<u64>().ok().map(|enqueued_ms| now_ms.saturating_sub(enqueued_ms));
            total.oldest_ms = total.oldest_ms.max(age_ms);
        }
        Ok(total)
    }
}
