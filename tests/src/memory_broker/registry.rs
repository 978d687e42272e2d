//! Who works on the queue, and what an operator tells them.

use std::collections::{BTreeMap, BTreeSet};

use turnmill_schema::WorkerStatus;
use turnmill_worker::broker::Orders;

/// The queue's workers.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry {
    /// Each with what it last said, and until when that holds.
    workers: BTreeMap<String, (u64, WorkerStatus)>,
    draining: BTreeSet<String>,
}

impl Registry {
    pub(super) fn enter(&mut self, worker: &str, status: &WorkerStatus, until_ms: u64) -> Orders {
        self.workers.insert(worker.to_owned(), (until_ms, status.clone()));
        Orders { drain: self.draining.contains(worker) }
    }

    pub(super) fn leave(&mut self, worker: &str) {
        self.workers.remove(worker);
        self.draining.remove(worker);
    }

    pub(super) fn drain(&mut self, worker: &str) {
        self.draining.insert(worker.to_owned());
    }

    pub(super) fn list(&self, now_ms: u64) -> Vec<(String, WorkerStatus)> {
        let heard = self.workers.iter().filter(|(_, (until_ms, _))| *until_ms > now_ms);
        heard.map(|(name, (_, status))| (name.clone(), status.clone())).collect()
    }

    /// Forgets workers that fell silent, and what they were told.
    pub(super) fn forget_silent(&mut self, now_ms: u64) {
        self.workers.retain(|_, (until_ms, _)| *until_ms > now_ms);
        self.draining.retain(|worker| self.workers.contains_key(worker));
    }
}
