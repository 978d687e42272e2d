//! What goes wrong between a worker and the queue: calls and answers that are late, doubled or lost; a server that is full, refuses,
//! or is not the primary any more.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use turnmill_redis::Fault;
use turnmill_worker::broker::BrokerError;

use super::executor::WORLD;
use super::ledger::Stage;
use crate::memory_broker::{Link, Passage};

/// Steps that workers take all the time; a trace tells those that go wrong.
const TIMERS: [&str; 6] = ["promote", "reclaim", "register", "renew", "sweep", "read"];

/// The way between a worker and the queue.
pub(super) struct Flawed {
    pub(super) stage: Arc<Stage>,
    pub(super) worker: String,
}

impl fmt::Debug for Flawed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flawed").field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl Flawed {
    /// Under way for a while; an error where it gets lost.
    fn pass<T: Send + 'static>(&self, step: &'static str, way: &'static str, answer: T) -> Passage<T> {
        let (stage, worker) = (Arc::clone(&self.stage), self.worker.clone());
        let faults = stage.world.faults;
        let usual_ms = stage.dice.below(3);
        // Late enough, at times, to arrive when the lease is another's.
        let late_ms = if stage.fails(faults.delay) { stage.dice.below(2 * stage.world.lease_ms) } else { 0 };
        let is_lost = stage.fails(faults.loss);
        Box::pin(async move {
            stage.clock.sleep(usual_ms + late_ms).await;
            let fault = stage.fault(step, is_lost);
            if fault.is_some() || !TIMERS.contains(&step) {
                stage.trace(|| {
                    let came = fault.as_ref().map_or("passes".to_owned(), ToString::to_string);
                    format!("{worker} {step} {way} {came}")
                });
            }
            fault.map_or(Ok(answer), |fault| Err(BrokerError::from(fault)))
        })
    }
}

impl Stage {
    /// Why a call does not arrive, or its answer.
    fn fault(&self, step: &'static str, is_lost: bool) -> Option<Fault> {
        let (address, now_ms) = ("sim".to_owned(), self.clock.elapsed_ms());
        if now_ms < self.away_until_ms.load(Ordering::Relaxed) {
            return Some(Fault::Stale { address, reason: "READONLY".to_owned() });
        }
        if is_lost {
            return Some(Fault::Unreachable { address, reason: "lost".to_owned() });
        }
        let is_full = now_ms < self.full_until_ms.load(Ordering::Relaxed);
        if is_full && self.fails(200) {
            return Some(Fault::Full { step, reason: "OOM".to_owned() });
        }
        let passing = self.dice.chance(500);
        self.fails(self.world.faults.refusal).then(|| Fault::Refused {
            step,
            passing,
            reason: "a flaw".to_owned(),
        })
    }
}

impl Link for Flawed {
    fn request(&self, step: &'static str) -> Passage<u32> {
        let is_doubled = step != "read" && self.stage.fails(self.stage.world.faults.repeat);
        self.pass(step, "call", if is_doubled { 2 } else { 1 })
    }

    fn reply(&self, step: &'static str) -> Passage<()> {
        self.pass(step, "answer", ())
    }

    fn is_repeated_late(&self, _step: &'static str) -> bool {
        self.stage.fails(self.stage.world.faults.repeat / 2)
    }

    fn later(&self, step: &'static str, call: Box<dyn FnOnce() + Send>) {
        let (stage, worker) = (Arc::clone(&self.stage), self.worker.clone());
        let late_ms = stage.dice.below(2 * stage.world.lease_ms);
        let repeated = async move {
            stage.clock.sleep(late_ms).await;
            stage.trace(|| format!("{worker} {step} arrives again"));
            call();
        };
        self.stage.executor.spawn(WORLD, Box::pin(repeated));
    }
}
