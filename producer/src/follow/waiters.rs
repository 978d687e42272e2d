//! Who waits for which turn: a few tasks share the turns of all followers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use turnmill_redis::ReadUpTo;
use turnmill_redis::steps::ResultEntry;
use turnmill_schema::keys::Keys;

use super::assembly::id_of;
use super::source::News;
use super::watch::Watch;
use crate::connection::Connection;
use crate::error::ClientError;

/// Tasks at most, for each shard; each has a connection.
const TASKS: usize = 4;
/// Turns of a task above which another one is started.
const TURNS_EACH: usize = 64;
/// Questions at once of those that catch up.
const CATCH_UPS: usize = 32;

/// The tasks of a client and its clones.
#[derive(Clone, Debug)]
pub(crate) struct Waiters {
    tasks: Arc<Mutex<Vec<Task>>>,
    catch_ups: Arc<Semaphore>,
}

/// A task that waits for many turns.
#[derive(Debug)]
struct Task {
    shard: u16,
    /// Held once by each of its turns.
    seats: Arc<()>,
    arrivals: mpsc::UnboundedSender<Waiter>,
}

/// A turn that is waited for.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) read: ReadUpTo,
    /// When something was last told; none: what is there is to be looked at, whatever the time.
    pub(super) told: Option<Instant>,
    /// Since when Redis is away, for this turn.
    pub(super) lost: Option<Instant>,
    news: mpsc::Sender<News>,
    failed: bool,
    _seat: Option<Arc<()>>,
}

impl Default for Waiters {
    fn default() -> Self {
        Self { tasks: Arc::default(), catch_ups: Arc::new(Semaphore::new(CATCH_UPS)) }
    }
}

impl Waiters {
    /// Leave for one question. Thousands of followers that start at once must not keep everybody else from Redis.
    pub(super) async fn catching_up(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.catch_ups.acquire().await.ok()
    }

    /// Waits for a turn from now on.
    pub(super) fn wait(&self, connection: &Connection, keys: &Keys, waiter: Waiter) {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.arrivals.is_closed());
        let here = || tasks.iter().filter(|task| task.shard == keys.shard());
        let emptiest = here().min_by_key(|task| task.turns());
        let task = emptiest.filter(|task| task.turns() < TURNS_EACH || here().count() >= TASKS);
        match task {
            Some(task) => task.take(waiter),
            None => {
                let task = self.start(connection, keys);
                task.take(waiter);
                tasks.push(task);
            }
        }
    }

    fn start(&self, connection: &Connection, keys: &Keys) -> Task {
        let (arrivals, arriving) = mpsc::unbounded_channel();
        let registry = Registry(Arc::downgrade(&self.tasks));
        tokio::spawn(Watch::new(connection.clone(), keys.clone(), arriving, registry).run());
        Task { shard: keys.shard(), seats: Arc::default(), arrivals }
    }
}

impl Task {
    fn turns(&self) -> usize {
        Arc::strong_count(&self.seats) - 1
    }

    fn take(&self, waiter: Waiter) {
        let waiter = Waiter { _seat: Some(Arc::clone(&self.seats)), ..waiter };
        // An error means that its runtime ended; then the follower's did, or it starts again.
        let _ = self.arrivals.send(waiter);
    }
}

/// Where a task that has nothing to do takes itself off.
pub(super) struct Registry(Weak<Mutex<Vec<Task>>>);

impl Registry {
    /// Ends the task unless a turn has arrived. Turns are handed over under the same lock, so none is forgotten.
    pub(super) fn retire(&self, arriving: &mut mpsc::UnboundedReceiver<Waiter>) -> bool {
        let tasks = self.0.upgrade();
        let _tasks = tasks.as_ref().map(|tasks| lock(tasks));
        let retires = arriving.is_empty();
        if retires {
            arriving.close();
        }
        retires
    }
}

fn lock(tasks: &Mutex<Vec<Task>>) -> MutexGuard<'_, Vec<Task>> {
    // A panic elsewhere left the list whole: every change is one push or one retain.
    tasks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiter {
    pub(super) fn new(read: ReadUpTo, news: mpsc::Sender<News>) -> Self {
        Self { read, told: Some(Instant::now()), lost: None, news, failed: false, _seat: None }
    }

    /// Its follower is gone, or has been told that it cannot go on.
    pub(super) fn is_over(&self) -> bool {
        self.failed || self.news.is_closed()
    }

    /// Whether its follower takes more just now.
    pub(super) fn has_room(&self) -> bool {
        !self.failed && self.news.capacity() > 0
    }

    pub(super) fn tell(&mut self, news: News) {
        self.told = Some(Instant::now());
        // Only this task sends, after it has seen that there is room.
        let _ = self.news.try_send(news);
    }

    pub(super) fn tell_entries(&mut self, entries: Vec<ResultEntry>) {
        let Some(last) = entries.last() else { return };
        match id_of(last) {
            Ok(last) => {
                self.read.last = last;
                self.tell(News::Entries(entries));
            }
            Err(error) => self.fail(error),
        }
    }

    /// Gives the turn up. A follower that has no room finds the telling ended, and starts again when it has taken everything.
    pub(super) fn fail(&mut self, error: ClientError) {
        let _ = self.news.try_send(News::Failed(error));
        self.failed = true;
    }
}
