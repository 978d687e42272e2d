//! What goes wrong: calls and answers that are late, doubled or lost; processes that stop or die wherever they wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use turnmill_redis::Fault;

use super::ledger::Stage;
use crate::memory_broker::{Clock, Link, Passage};

/// The way between a worker and the queue.
#[derive(Debug)]
pub(super) struct FaultyLink(pub(super) Arc<Stage>);

impl FaultyLink {
    /// Under way for a while; an error where it gets lost.
    fn pass<T: Send + 'static>(&self, answer: T) -> Passage<T> {
        let stage = Arc::clone(&self.0);
        let faults = stage.world.faults;
        let usual_ms = stage.dice.below(3);
        // Late enough, at times, to arrive when the lease is another's.
        let late_ms = if stage.fails(faults.delay) { stage.dice.below(2 * stage.world.lease_ms) } else { 0 };
        let is_lost = stage.fails(faults.loss);
        Box::pin(async move {
            stage.sleep(usual_ms + late_ms).await;
            if is_lost {
                let (address, reason) = ("sim".to_owned(), "lost".to_owned());
                return Err(Fault::Unreachable { address, reason }.into());
            }
            Ok(answer)
        })
    }
}

impl Link for FaultyLink {
    fn request(&self, step: &'static str) -> Passage<u32> {
        let is_doubled = step != "read" && self.0.fails(self.0.world.faults.repeat);
        self.pass(if is_doubled { 2 } else { 1 })
    }

    fn reply(&self, _step: &'static str) -> Passage<()> {
        self.pass(())
    }
}

/// A process: dies or stops, now and then, when it could go on. Ends with true where it died.
pub(super) struct Mortal<F> {
    process: Option<Pin<Box<F>>>,
    stopped: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    stage: Arc<Stage>,
}

impl<F> Mortal<F> {
    pub(super) fn new(stage: &Arc<Stage>, process: F) -> Self {
        Self { process: Some(Box::pin(process)), stopped: None, stage: Arc::clone(stage) }
    }
}

impl<F: Future<Output = ()>> Future for Mortal<F> {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        if let Some(stopped) = &mut self.stopped {
            std::task::ready!(stopped.as_mut().poll(context));
            self.stopped = None;
        }
        let faults = self.stage.world.faults;
        if self.stage.fails(faults.crash) {
            self.process = None;
            return Poll::Ready(true);
        }
        if self.stage.fails(faults.stop) {
            let stop_ms = self.stage.dice.below(3 * self.stage.world.lease_ms);
            let mut stopped = self.stage.clock.until(self.stage.clock.now() + stop_ms);
            if stopped.as_mut().poll(context).is_pending() {
                self.stopped = Some(stopped);
                return Poll::Pending;
            }
        }
        let process = self.process.as_mut().expect("a process that ended is not polled");
        process.as_mut().poll(context).map(|()| false)
    }
}
