//! Time, chance, and somebody to run tasks: what a worker takes from its machine besides its ports.
//!
//! The rooms that a simulation runs (`runner`, `store`, `engine`) have them from here alone, and `clippy.toml` refuses the direct
//! ones. On a machine a call costs a match more than tokio's own, and allocates nothing more. A simulation decides instead what time
//! it is and who goes on next ([`Simulation`]), so that a seed is a run.
//!
//! Channels, semaphores, notifications and cancellation tokens are tokio's: they need no runtime. `tokio::select!` begins at a branch
//! drawn by chance, so these rooms say `biased;` and put first what must not be overlooked.

mod running;
mod ticks;

use std::fmt::{Debug, Formatter};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

pub use running::{Failed, Running};
pub use ticks::Ticks;

/// A task of a simulation.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Decides everything that a machine would.
pub trait Simulation: Send + Sync + 'static {
    /// What time it is. Never goes back.
    fn now(&self) -> Instant;

    /// Ends when it is `at`.
    fn sleep_until(&self, at: Instant) -> Task;

    /// A number from 0 on and below 1.
    fn random(&self) -> f64;

    /// Runs `task` as one of the worker's.
    fn spawn(&self, task: Task);
}

/// Where a worker runs. Clones are the same place.
#[derive(Clone)]
pub struct Surroundings(Kind);

#[derive(Clone)]
enum Kind {
    /// With the runtime that tasks are started on; none: that of the caller who starts them.
    Machine(Option<Handle>),
    Simulated(Arc<dyn Simulation>),
}

/// The time was over before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

#[allow(clippy::disallowed_methods, reason = "the one place that asks the machine")]
impl Surroundings {
    /// The machine; tasks run on the runtime of the caller who starts them.
    pub fn machine() -> Self {
        Self(Kind::Machine(None))
    }

    /// The machine; tasks run on this runtime.
    pub fn on(runtime: Handle) -> Self {
        Self(Kind::Machine(Some(runtime)))
    }

    /// A simulation.
    pub fn simulated(simulation: Arc<dyn Simulation>) -> Self {
        Self(Kind::Simulated(simulation))
    }

    /// What time it is.
    pub fn now(&self) -> Instant {
        match &self.0 {
            Kind::Machine(_) => Instant::now(),
            Kind::Simulated(simulation) => simulation.now(),
        }
    }

    /// Time since `then`.
    pub fn since(&self, then: Instant) -> Duration {
        self.now().saturating_duration_since(then)
    }

    /// Waits until it is `at`.
    pub fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send + use<> {
        let simulated = match &self.0 {
            Kind::Machine(_) => None,
            Kind::Simulated(simulation) => Some(simulation.sleep_until(at)),
        };
        async move {
            match simulated {
                None => tokio::time::sleep_until(at.into()).await,
                Some(sleep) => sleep.await,
            }
        }
    }

    /// Waits for `time`.
    pub async fn sleep(&self, time: Duration) {
        match &self.0 {
            // Also of a time that no clock reaches.
            Kind::Machine(_) => tokio::time::sleep(time).await,
            Kind::Simulated(simulation) => match simulation.now().checked_add(time) {
                Some(at) => simulation.sleep_until(at).await,
                None => std::future::pending().await,
            },
        }
    }

    /// What comes of `work`, if it comes before `at`.
    ///
    /// # Errors
    /// It did not; the work was dropped.
    pub async fn timeout_at<F: Future>(&self, at: Instant, work: F) -> Result<F::Output, TimedOut> {
        match &self.0 {
            Kind::Machine(_) => tokio::time::timeout_at(at.into(), work).await.map_err(|_| TimedOut),
            Kind::Simulated(simulation) => before(simulation.sleep_until(at), work).await,
        }
    }

    /// What comes of `work`, if it comes within `time`.
    ///
    /// # Errors
    /// As [`Self::timeout_at`].
    pub async fn timeout<F: Future>(&self, time: Duration, work: F) -> Result<F::Output, TimedOut> {
        match &self.0 {
            Kind::Machine(_) => tokio::time::timeout(time, work).await.map_err(|_| TimedOut),
            Kind::Simulated(_) => before(self.sleep(time), work).await,
        }
    }

    /// Ticks now, and then after every `period`; after a late one, from when it came.
    pub fn ticks(&self, period: Duration) -> Ticks {
        Ticks::new(self.clone(), period)
    }

    /// A number from 0 on and below 1. Not for sampling.
    pub fn random(&self) -> f64 {
        match &self.0 {
            Kind::Machine(_) => fastrand::f64(),
            Kind::Simulated(simulation) => simulation.random(),
        }
    }

    /// Runs `task` to its end, whether or not anybody waits for it. Without a runtime it is dropped.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.0 {
            Kind::Machine(runtime) => {
                if let Some(runtime) = runtime.clone().or_else(|| Handle::try_current().ok()) {
                    drop(runtime.spawn(task));
                }
            }
            Kind::Simulated(simulation) => simulation.spawn(Box::pin(task)),
        }
    }

    /// Runs `task` on its own until it is done, or nobody waits for it any more.
    ///
    /// # Panics
    /// Where there is no runtime.
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Running<T> {
        match &self.0 {
            Kind::Machine(Some(runtime)) => Running::task(runtime.spawn(task)),
            Kind::Machine(None) => Running::task(tokio::spawn(task)),
            Kind::Simulated(simulation) => Running::simulated(&**simulation, task),
        }
    }

    /// Does `work`, which computes or waits for the system, on a thread that may block.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Running<T> {
        match &self.0 {
            Kind::Machine(Some(runtime)) => Running::task(runtime.spawn_blocking(work)),
            Kind::Machine(None) => Running::task(tokio::task::spawn_blocking(work)),
            Kind::Simulated(simulation) => Running::simulated(&**simulation, async move { work() }),
        }
    }
}

/// What comes of `work`, unless `end` comes before.
async fn before<F: Future>(end: impl Future<Output = ()>, work: F) -> Result<F::Output, TimedOut> {
    let (mut end, mut work) = (pin!(end), pin!(work));
    tokio::select! {
        biased;
        done = &mut work => Ok(done),
        () = &mut end => Err(TimedOut),
    }
}

impl Debug for Surroundings {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            Kind::Machine(_) => "Surroundings::Machine",
            Kind::Simulated(_) => "Surroundings::Simulated",
        })
    }
}
