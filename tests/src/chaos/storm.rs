//! Makes the planned faults happen, when somebody qualifies for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ChaosError;
use super::failover::Failovers;
use super::fleet::Fleet;
use super::plan::{Fault, Planned};
use super::power::Unsynced;
use super::producers::Producers;
use super::store::{Holding, Store};
use crate::proxy::{Hold, Proxy};
use crate::redis_server::RedisServer;

/// Between looks at what is due.
const TICK: Duration = Duration::from_millis(15);

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Workers killed while they held a turn with a published token.
    pub kills: u32,
    /// Workers stopped past their lease and woken.
    pub stops: u32,
    /// Redis killed and started again.
    pub redis_restarts: u32,
    /// Workers drained.
    pub drains: u32,
    /// Everything that was done to connections.
    pub cuts: u32,
}

/// Everything that can be hurt.
pub struct Storm {
    /// The queue's home; of two servers the primary.
    pub redis: RedisServer,
    /// The other server; none where the queue has one only.
    pub failovers: Option<Failovers>,
    /// Its workers.
    pub fleet: Fleet,
    /// The producers' way to it.
    pub door: Arc<Proxy>,
    /// What to find victims by.
    pub store: Store,
    /// A crash of Redis takes this along; none where everything is synced.
    pub unsynced: Option<Unsynced>,
    /// What was done.
    pub tally: Tally,
    /// When all began.
    pub began: Instant,
    /// When Redis comes back, while it is gone.
    pub redis_back: Option<Instant>,
}

impl Storm {
    /// Lets `plan` happen, for as long as `run`.
    pub async fn rage(
        &mut self,
        plan: Vec<Planned>,
        run: Duration,
        producers: &mut Producers,
    ) -> Result<(), ChaosError> {
        let start = Instant::now();
        let mut planned = VecDeque::from(plan);
        let mut due = VecDeque::new();
        while start.elapsed() < run {
            while let Some(next) = planned.pop_front_if(|next| next.at <= start.elapsed()) {
                due.push_back(next.fault);
            }
            for _ in 0..due.len() {
                let Some(fault) = due.pop_front() else { break };
                if self.waits() || !self.strike(fault).await? {
                    due.push_back(fault);
                }
            }
            self.tend().await?;
            producers.ended()?;
            tokio::time::sleep(TICK).await;
        }
        if !due.is_empty() {
            self.say(format!("{} faults found nobody to happen to: {due:?}", due.len()));
        }
        Ok(())
    }

    /// Ends every fault, and waits until all turns have ended or `patience` is over.
    pub async fn settle(&mut self, patience: Duration, producers: &mut Producers) -> Result<(), ChaosError> {
        producers.enough();
        self.door.hold(Hold::Nothing);
        self.door.refuse(false);
        self.fleet.calm();
        let until = Instant::now() + patience;
        while !producers.ended()? {
            if Instant::now() > until {
                self.say(format!("some turns have not ended within {patience:?}"));
                return Ok(());
            }
            self.tend().await?;
            tokio::time::sleep(TICK).await;
        }
        self.tend().await?;
        producers.look_again().await
    }

    /// Says on standard error what happens.
    pub fn say(&self, what: impl std::fmt::Display) {
        eprintln!("{:7.2} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Whether new faults have to wait. While Redis is gone, nobody qualifies. After a failover the time until the first turn ends
    /// is to be that of the failover, and of what had begun before.
    fn waits(&self) -> bool {
        self.redis_back.is_some() || self.failovers.as_ref().is_some_and(Failovers::is_open)
    }

    async fn tend(&mut self) -> Result<(), ChaosError> {
        self.fleet.tend();
        if let Some(failovers) = &mut self.failovers
            && let Some(took) = failovers.look(&self.store).await?
        {
            self.say(format!("the first turn after it ended within {took:?}"));
        }
        if self.redis_back.is_some_and(|back| Instant::now() >= back) {
            tokio::task::block_in_place(|| self.redis.restart());
            self.redis_back = None;
        }
        if let (Some(unsynced), None) = (&mut self.unsynced, self.redis_back) {
            unsynced.note(self.redis.directory())?;
        }
        Ok(())
    }

    /// False where nobody qualifies just now.
    async fn strike(&mut self, fault: Fault) -> Result<bool, ChaosError> {
        match fault {
            Fault::Kill(choice) => {
                let Some((slot, holding)) = self.holder(choice).await? else { return Ok(false) };
                self.say(format!("kill -9 of {}, {holding}", self.fleet.name(slot)));
                self.fleet.kill(slot);
                self.tally.kills += 1;
            }
            Fault::Stop(choice, silence) => {
                let Some((slot, holding)) = self.holder(choice).await? else { return Ok(false) };
                self.say(format!("SIGSTOP of {} for {silence:?}, {holding}", self.fleet.name(slot)));
                self.fleet.stop(slot, silence);
                self.tally.stops += 1;
            }
            Fault::Drain(choice) => {
                let Some(slot) = self.fleet.choose(choice, |_| true) else { return Ok(false) };
                self.say(format!("SIGTERM of {}", self.fleet.name(slot)));
                self.fleet.drain(slot);
                self.tally.drains += 1;
            }
            Fault::RestartRedis(away) => self.crash_redis(away)?,
            Fault::FailOver => return self.fail_over().await,
            Fault::Cut(cut) => {
                let workers: Vec<_> = self.fleet.proxies().cloned().collect();
                self.say(cut.happen(&workers, &self.door));
                self.tally.cuts += 1;
            }
        }
        Ok(true)
    }

    /// A worker that holds a turn with a published token, and one such turn.
    async fn holder(&self, choice: u64) -> Result<Option<(usize, Holding)>, ChaosError> {
        let mut holdings = self.store.holdings().await?;
        holdings.retain(|holding| holding.published > 0);
        let slot = self.fleet.choose(choice, |name| holdings.iter().any(|holding| holding.is_of(name)));
        let found = |slot: usize| {
            let name = self.fleet.name(slot);
            holdings.into_iter().find(|holding| holding.is_of(&name)).map(|holding| (slot, holding))
        };
        Ok(slot.and_then(found))
    }

    /// The other server becomes the primary, and everybody who connects from now on gets there. False if the replica is not in sync,
    /// or if no turn runs whose end would show how long the failover alone takes.
    async fn fail_over(&mut self) -> Result<bool, ChaosError> {
        let Some(failovers) = &mut self.failovers else { return Ok(false) };
        let holdings = self.store.holdings().await?;
        let running: Vec<String> = self.fleet.running().collect();
        let ways = self.fleet.proxies().chain([&self.door]);
        if !is_timeable(&holdings, &running, ways) || !failovers.is_possible(&self.redis).await? {
            return Ok(false);
        }
        let began = Instant::now();
        if !failovers.fail_over(&mut self.redis).await? {
            self.say(format!(
                "no failover: the replica did not have everything within {:?}",
                began.elapsed()
            ));
            return Ok(false);
        }
        for proxy in self.fleet.proxies().chain([&self.door]) {
            proxy.lead_to(self.redis.address());
        }
        self.store = self.store.moved_to(&self.redis.url())?;
        self.say(format!("failover to {} in {:?}", self.redis.address(), began.elapsed()));
        Ok(true)
    }

    fn crash_redis(&mut self, away: Duration) -> Result<(), ChaosError> {
        self.redis.crash();
        let directory = self.redis.directory();
        let lost = self.unsynced.as_mut().map(|unsynced| unsynced.lose(directory)).transpose()?;
        self.say(format!("kill -9 of Redis, gone for {away:?}, {} bytes lost", lost.unwrap_or(0)));
        self.redis_back = Some(Instant::now() + away);
        self.tally.redis_restarts += 1;
        Ok(())
    }
}

/// Whether the time from a failover to the end of a turn would be the failover's: a worker that runs has a turn, and nobody's
/// connections are hurt already. A turn of a worker that is stopped or cut off ends late by itself.
fn is_timeable<'a>(
    holdings: &[Holding],
    running: &[String],
    mut ways: impl Iterator<Item = &'a Arc<Proxy>>,
) -> bool {
    let is_held = |name: &String| holdings.iter().any(|holding| holding.is_of(name));
    running.iter().any(is_held) && ways.all(|way| way.is_clear())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use turnmill_schema::TurnId;

    use super::*;

    #[tokio::test]
    async fn a_failover_waits_for_a_running_workers_turn_and_for_clear_connections() {
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut ways = Vec::new();
        for _ in 0..2 {
            ways.push(Arc::new(Proxy::start(nobody).await.expect("a local port is free")));
        }
        let holding = |owner: &str| Holding { turn: TurnId::new(0), owner: owner.into(), published: 0 };
        let timeable = |owners: &[&str], running: &[&str]| {
            let holdings: Vec<Holding> = owners.iter().map(|owner| holding(owner)).collect();
            let running: Vec<String> = running.iter().map(ToString::to_string).collect();
            is_timeable(&holdings, &running, ways.iter())
        };
        let held = || timeable(&["w0-1:x", "w1-1:x"], &["w1-1", "w2-1"]);
        assert!(held());
        assert!(!timeable(&[], &["w1-1"]), "no turn runs");
        // Its worker is stopped; or another process has the slot by now.
        assert!(!timeable(&["w0-1:x"], &["w1-1"]) && !timeable(&["w1-1:x"], &["w1-10", "w1-2"]));
        for hurt in [Hold::Replies, Hold::Everything] {
            ways[1].hold(hurt);
            assert!(!held(), "{hurt:?}");
            ways[1].hold(Hold::Nothing);
        }
        ways[0].refuse(true);
        assert!(!held(), "nobody is let in");
        ways[0].refuse(false);
        assert!(held());
    }
}
