//! What the worker answers to probes and scrapes.

use std::sync::Arc;
use std::time::Instant;

use turnmill_telemetry::probes::Probed;

use super::{QueueGauges, state};
use crate::lifecycle::{Degradation, DegradationCode, Lifecycle, Reason, ReasonCode};

/// The worker's answers.
#[derive(Debug)]
pub struct Probes {
    /// Phase, readiness, liveness.
    pub lifecycle: Arc<Lifecycle>,
    /// The queue's metrics.
    pub queue: Arc<QueueGauges>,
}

impl Probed for Probes {
    type Code = ReasonCode;
    type Degraded = DegradationCode;

    fn live(&self, now: Instant) -> Result<(), Reason> {
        self.lifecycle.live(now)
    }

    fn started(&self) -> Result<(), Reason> {
        self.lifecycle.started()
    }

    fn ready(&self, now: Instant) -> Result<(), Vec<Reason>> {
        self.lifecycle.ready(now)
    }

    fn degraded(&self) -> Vec<Degradation> {
        self.lifecycle.degraded()
    }

    fn scrape(&self, now: Instant) -> String {
        self.queue.render(now) + &state::render(&self.lifecycle, now)
    }
}
