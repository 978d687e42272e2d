//! A task that waits for many turns on one connection.
//!
//! Each read waits for a short while, because a turn that arrives meanwhile is waited for with the next one.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use turnmill_redis::steps::ResultEntry;
use turnmill_redis::{Blocking, Fault, ReadUpTo};
use turnmill_schema::TurnId;
use turnmill_schema::keys::Keys;

use super::source::News;
use super::waiters::{Registry, Waiter};
use crate::connection::{Connection, Pauses, passes, unless_passing};

/// How long one read waits.
const BLOCK: Duration = Duration::from_millis(100);
/// Entries of one stream in one reply at most.
const COUNT: usize = 64;
/// Entries in one reply at most: Redis serves nobody else while it gathers them. With more than a thousand streams it is more,
/// because each stream gives at least [`LEAST`].
const ENTRIES: usize = 4096;
/// Entries of one stream that are always asked for.
const LEAST: usize = 4;
/// Turns that are looked at in one call.
const LOOKS: usize = 100;
/// Turns for each millisecond that is left between two reads that find something: each read costs Redis work for all of them,
/// so the more turns are followed, the more milliseconds' entries one read takes.
const TURNS_A_MILLISECOND: usize = 16;
/// How long a task stays that has no turn.
const IDLE: Duration = Duration::from_secs(5);

/// The task; see the module.
pub(super) struct Watch {
    connection: Connection,
    keys: Keys,
    arriving: mpsc::UnboundedReceiver<Waiter>,
    registry: Registry,
    waiters: Vec<Waiter>,
    reader: Option<Blocking>,
    /// Set while Redis is away.
    lost: Option<Pauses>,
}

impl Watch {
    pub(super) fn new(
        connection: Connection,
        keys: Keys,
        arriving: mpsc::UnboundedReceiver<Waiter>,
        registry: Registry,
    ) -> Self {
        Self { connection, keys, arriving, registry, waiters: Vec::new(), reader: None, lost: None }
    }

    /// Waits until there is nothing to wait for any more.
    pub(super) async fn run(mut self) {
        while self.gather().await {
            match self.round().await {
                Ok(found) => {
                    self.found();
                    if found {
                        tokio::time::sleep(self.pace()).await;
                    }
                }
                Err(fault) => {
                    let pause = self.lose(fault);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Takes in turns that arrived and lets go those that are over; waits if there is none. False: there will be none.
    async fn gather(&mut self) -> bool {
        while let Ok(waiter) = self.arriving.try_recv() {
            self.waiters.push(waiter);
        }
        self.waiters.retain(|waiter| !waiter.is_over());
        if !self.waiters.is_empty() {
            return true;
        }
        match tokio::time::timeout(IDLE, self.arriving.recv()).await {
            Ok(Some(waiter)) => self.waiters.push(waiter),
            Ok(None) => return false,
            Err(_) => return !self.registry.retire(&mut self.arriving),
        }
        true
    }

    /// One read for all turns whose followers take more; whether it found something.
    async fn round(&mut self) -> Result<bool, Fault> {
        self.look().await?;
        let places: Vec<usize> =
            (0..self.waiters.len()).filter(|place| self.waiters[*place].has_room()).collect();
        let read: Vec<ReadUpTo> = places.iter().map(|place| self.waiters[*place].read).collect();
        if read.is_empty() {
            tokio::time::sleep(BLOCK).await;
            return Ok(false);
        }
        let found = self.read(&read).await?;
        let found_something = !found.is_empty();
        for (place, entries) in found {
            let waiter = &mut self.waiters[places[place]];
            match entries {
                Ok(entries) => waiter.tell_entries(entries),
                Err(fault) => waiter.fail(fault.into()),
            }
        }
        Ok(found_something)
    }

    /// Looks at turns of which nothing was told for a while: they may have ended where the stream cannot tell.
    async fn look(&mut self) -> Result<(), Fault> {
        let block = self.connection.block();
        let is_due = |waiter: &&mut Waiter| {
            waiter.has_room() && waiter.told.is_none_or(|told| told.elapsed() >= block)
        };
        let mut due: Vec<&mut Waiter> = self.waiters.iter_mut().filter(is_due).collect();
        for page in due.chunks_mut(LOOKS) {
            let turns: Vec<TurnId> = page.iter().map(|waiter| waiter.read.turn).collect();
            let states = self.connection.server().turn_states(&self.keys, &turns).await?;
            let states = unless_passing(states)?;
            self.connection.end_overdue(&self.keys, states.iter().flatten()).await;
            for (waiter, state) in page.iter_mut().zip(states) {
                match state {
                    Ok(state) => waiter.tell(News::State(state)),
                    Err(fault) => waiter.fail(fault.into()),
                }
            }
        }
        Ok(())
    }

    /// What streams hold that was not read; pairs of a place in `read` and what is there.
    async fn read(
        &mut self,
        read: &[ReadUpTo],
    ) -> Result<Vec<(usize, Result<Vec<ResultEntry>, Fault>)>, Fault> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => none.insert(self.connection.blocking(BLOCK).await?),
        };
        match reader.wait_for_results(&self.keys, read, entries_of_each(read.len()), BLOCK).await {
            Ok(found) => Ok(found.into_iter().map(|(place, entries)| (place, Ok(entries))).collect()),
            Err(fault) if !passes(&fault) => self.read_one_by_one(read, fault).await,
            Err(fault) => Err(fault),
        }
    }

    /// One broken stream fails a read of many: finds it, so that the others go on.
    async fn read_one_by_one(
        &mut self,
        read: &[ReadUpTo],
        fault: Fault,
    ) -> Result<Vec<(usize, Result<Vec<ResultEntry>, Fault>)>, Fault> {
        self.reader = None;
        let count = entries_of_each(read.len());
        let found = self.connection.server().results_after(&self.keys, read, count).await?;
        let found = unless_passing(found)?;
        if found.iter().all(Result::is_ok) {
            // It is not one of the streams.
            return Err(fault);
        }
        let has_news =
            |found: &Result<Vec<ResultEntry>, _>| found.as_ref().map_or(true, |entries| !entries.is_empty());
        Ok(found.into_iter().enumerate().filter(|(_, found)| has_news(found)).collect())
    }

    /// Redis answers.
    fn found(&mut self) {
        if self.lost.take().is_some() {
            tracing::info!(turns = self.waiters.len(), "reached Redis again; reading on");
            self.waiters.iter_mut().for_each(|waiter| waiter.lost = None);
        }
    }

    /// Gives up those turns that waited long enough, or all if waiting is of no use; how long to wait before the next try.
    fn lose(&mut self, fault: Fault) -> Duration {
        self.reader = None;
        let passes = passes(&fault);
        if passes && self.lost.is_none() {
            tracing::warn!(turns = self.waiters.len(), "{fault}; trying again");
        }
        let pause = self.lost.get_or_insert_default().next();
        let (now, retry_for) = (Instant::now(), self.connection.retry_for());
        for waiter in &mut self.waiters {
            waiter.told = None;
            let since = *waiter.lost.get_or_insert(now);
            if !passes || now + pause > since + retry_for {
                waiter.fail(fault.clone().into());
            }
        }
        pause
    }

    fn pace(&self) -> Duration {
        Duration::from_millis((self.waiters.len() / TURNS_A_MILLISECOND) as u64).min(BLOCK)
    }
}

/// How many entries of each stream go into one reply, if this many streams are read.
fn entries_of_each(streams: usize) -> usize {
    (ENTRIES / streams.max(1)).clamp(LEAST, COUNT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_streams_give_few_entries_each() {
        for (streams, each) in [(0, COUNT), (1, COUNT), (64, COUNT), (128, 32), (1024, LEAST), (5000, LEAST)]
        {
            assert_eq!(entries_of_each(streams), each, "{streams}");
        }
    }
}
