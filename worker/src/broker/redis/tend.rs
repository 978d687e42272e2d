//! Work on timers: agents that wait for a time or a place, workers that fell silent, lost tickets, results past their time.

use std::time::Duration;

use turnmill_redis::steps::{
    BeginSweep, ConsumerGroup, Expire, Letter, Promote, Purge, Reclaim, RemoveConsumers, Repair,
    SilentTicket, Trim, Unrun, UnrunLimits,
};
use turnmill_redis::{DeadRecord, Entry, Fault, Found, ReadyStream};
use turnmill_schema::keys::{DeadlineEntry, Keys};
use turnmill_schema::{StreamId, TurnId};

use super::{BrokerSettings, FirstFault, RedisBroker};

/// Look again after this time, if nobody waits. A turn that another worker delays meanwhile may start late by as much.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The same while agents wait for a place: ends of turns wake nobody.
const LOOK_FOR_A_PLACE: Duration = Duration::from_millis(100);
/// Never more often than this.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(5);
/// Agents promoted in one look, of each kind.
const AGENTS_A_LOOK: usize = 64;
/// Tenants looked at in one look, drawn at random.
const TENANTS_A_LOOK: usize = 8;
/// Tickets of silent workers dealt with in one call.
const TICKETS_A_RECLAIM: usize = 128;
/// Agents looked at in one call of a sweep.
const AGENTS_A_SWEEP: usize = 256;
/// A consumer is taken for gone after this many leases of silence.
const CONSUMER_LEASES: u64 = 20;
/// Ended turns forgotten in one call.
const TURNS_A_TRIM: usize = 128;
/// Dead letters looked at in one call.
const LETTERS_A_TRIM: usize = 32;
/// Such calls in one sweep of a shard at most: what is left waits for the next one.
const TRIMS_A_SWEEP: usize = 1000;

impl RedisBroker {
    /// Promotes who is due in one shard; how long until somebody else may be.
    pub(super) async fn promote_shard(&self, keys: &Keys) -> Result<Duration, Fault> {
        let waiting = self.server.waiting_agents(keys, AGENTS_A_LOOK, TENANTS_A_LOOK).await?;
        let are_more_overdue = self.expire(keys, waiting.overdue).await?;
        let (mut agents, mut look_again) = (waiting.due, LOOK_EVERY);
        if let Some(due_ms) = waiting.next_due_ms {
            look_again = look_again.min(Duration::from_millis(due_ms.saturating_sub(waiting.now_ms)));
        }
        let cap = self.settings.tenant_max_running;
        for tenant in &waiting.capped {
            look_again = look_again.min(LOOK_FOR_A_PLACE);
            // Without a limit (any more) they all go.
            let places = match cap {
                0 => AGENTS_A_LOOK,
                cap => cap.saturating_sub(tenant.leased).min(AGENTS_A_LOOK as u64) as usize,
            };
            agents.extend(self.server.parked_agents(keys, &tenant.tenant, places).await?);
        }
        let mut promoted = 0;
        if !agents.is_empty() {
            let promote = Promote { tenant_max_running: cap, now: false, agents: &agents };
            let attended = self.server.run(keys, &promote).await?;
            promoted = attended.count;
            // A sweep says it louder, and less often.
            attended
                .errors
                .iter()
                .for_each(|error| tracing::debug!("an agent that is due is put off: {error}"));
        }
        self.set_paused(keys.shard(), waiting.paused);
        // A full look may have left some.
        let is_full = promoted >= AGENTS_A_LOOK as u64 || are_more_overdue;
        Ok(if is_full { LOOK_AT_MOST_EVERY } else { look_again.max(LOOK_AT_MOST_EVERY) })
    }

    /// Ends turns whose deadline passed while they waited. Whether there may be more of them: the look was full, and some of it
    /// is done. One of which nothing can be done (their workers see to turns that run) is no reason to look again at once.
    async fn expire(&self, keys: &Keys, overdue: Vec<DeadlineEntry>) -> Result<bool, Fault> {
        if overdue.is_empty() {
            return Ok(false);
        }
        let (is_full, mut ended) = (overdue.len() >= AGENTS_A_LOOK, 0);
        let BrokerSettings { result_ttl_ms, outcome_ttl_ms, .. } = self.settings;
        let items: Vec<Expire> =
            overdue.into_iter().map(|DeadlineEntry { agent, entry }| Expire { agent, entry }).collect();
        for answer in
            self.server.run_items(keys, &UnrunLimits { result_ttl_ms, outcome_ttl_ms }, &items).await?
        {
            match answer {
                Ok(Unrun::Done) => ended += 1,
                Ok(Unrun::Ended(_) | Unrun::Unknown | Unrun::Early) => {}
                Err(error) => tracing::warn!(%error, "a turn that is past its deadline could not be ended"),
            }
        }
        Ok(is_full && ended > 0)
    }

    /// Makes agents of silent workers in one shard runnable again.
    pub(super) async fn reclaim_shard(&self, keys: &Keys) -> Result<u64, Fault> {
        let (mut reclaimed, mut fault) = (0, FirstFault::default());
        for stream in self.streams.iter().filter(|stream| stream.shard == keys.shard()) {
            reclaimed += fault.keep(self.reclaim_stream(keys, stream).await)?.unwrap_or(0);
        }
        fault.or(reclaimed)
    }

    async fn reclaim_stream(&self, keys: &Keys, stream: &ReadyStream) -> Result<u64, Fault> {
        let lease_ms = self.settings.lease_ms;
        let (mut reclaimed, mut from) = (0, "-".to_owned());
        loop {
            let entries =
                self.server.pending_tickets(stream, lease_ms, &from, TICKETS_A_RECLAIM, None).await?;
            let Some(last) = entries.last() else { break };
            from = format!("({last}");
            let agents = self.server.agents_of_tickets(stream, &entries).await?;
            let is_last = entries.len() < TICKETS_A_RECLAIM;
            let silent = |(entry, agent)| SilentTicket { entry, priority: stream.priority, agent };
            let tickets = entries.into_iter().zip(agents).map(silent).collect();
            let (now_ms, attended) = self.server.run(keys, &Reclaim { lease_ms, tickets }).await?;
            self.server.note_now_ms(now_ms);
            for error in attended.errors {
                tracing::warn!(
                    stream = stream.key,
                    "the agent of a silent worker's ticket cannot be read: {error}"
                );
            }
            reclaimed += attended.count;
            if is_last {
                break;
            }
        }
        Ok(reclaimed)
    }

    /// What one kind of work cannot do costs the others nothing.
    pub(super) async fn sweep_shard(&self, keys: &Keys) -> Result<(), Fault> {
        let (worker, lease_ms) = (&*self.settings.worker, self.settings.lease_ms);
        let sweep = BeginSweep { worker, period_ms: lease_ms, agents: AGENTS_A_SWEEP };
        let Some(agents) = self.server.run(keys, &sweep).await? else { return Ok(()) };
        let mut fault = FirstFault::default();
        if !agents.is_empty() {
            let repaired = self.server.run(keys, &Repair { agents: &agents }).await;
            let repaired = fault.keep(repaired)?.unwrap_or_default();
            for error in repaired.errors {
                tracing::warn!(shard = keys.shard(), "an agent with work cannot be read: {error}");
            }
            if repaired.count > 0 {
                tracing::warn!(
                    shard = keys.shard(),
                    agents = repaired.count,
                    "gave agents without a ticket new ones"
                );
            }
        }
        let silent_ms = lease_ms.saturating_mul(CONSUMER_LEASES);
        let remove = RemoveConsumers { group: ConsumerGroup::Workers, silent_ms };
        fault.keep(self.server.run(keys, &remove).await)?;
        fault.keep(self.trim_ended(keys).await)?;
        fault.keep(self.trim_dead(keys).await)?;
        fault.or(())
    }

    /// Forgets ended turns that are past their time, or too many for the memory they may take.
    async fn trim_ended(&self, keys: &Keys) -> Result<(), Fault> {
        let (retained_bytes, outcome_ttl_ms) = (self.settings.retained_bytes, self.settings.outcome_ttl_ms);
        for _ in 0..TRIMS_A_SWEEP {
            let oldest = self.server.oldest_ended(keys, TURNS_A_TRIM).await?;
            let trim = Trim { retained_bytes, outcome_ttl_ms, oldest: &oldest };
            let trimmed = self.server.run(keys, &trim).await?;
            if trimmed.unreadable > 0 {
                tracing::warn!(
                    shard = keys.shard(),
                    entries = trimmed.unreadable,
                    "dropped entries of the list of ended turns that cannot be read: another program or version wrote them"
                );
            }
            if trimmed.forgotten + trimmed.unreadable < TURNS_A_TRIM as u64 && !trimmed.more_streams {
                break;
            }
        }
        Ok(())
    }

    /// Forgets the oldest dead letters while they take more than they may. Foreign entries among them stay.
    async fn trim_dead(&self, keys: &Keys) -> Result<(), Fault> {
        let over_bytes = Some(self.settings.dead_bytes);
        let mut after = StreamId::START;
        for _ in 0..TRIMS_A_SWEEP {
            let page = self.server.dead_letters(keys, after, LETTERS_A_TRIM).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            let is_last = page.len() < LETTERS_A_TRIM;
            let oldest: Vec<(String, TurnId)> = page.into_iter().filter_map(letter).collect();
            let letters: Vec<Letter<'_>> =
                oldest.iter().map(|(entry, turn)| Letter { entry, turn: *turn }).collect();
            let asked = letters.len() as u64;
            let purged = self.server.run(keys, &Purge { over_bytes, letters }).await?;
            if purged > 0 {
                tracing::warn!(
                    shard = keys.shard(),
                    purged,
                    dead_bytes = self.settings.dead_bytes,
                    "forgot the oldest dead letters, because they took more than dead_bytes"
                );
            }
            if is_last || purged < asked {
                break;
            }
        }
        Ok(())
    }
}

/// The entry's id and its turn; none if it is foreign.
fn letter(entry: Entry<DeadRecord>) -> Option<(String, TurnId)> {
    match entry.found {
        Found::Ours(letter) => Some((entry.id.to_string(), letter.turn)),
        Found::Trimmed | Found::Foreign(_) => None,
    }
}
