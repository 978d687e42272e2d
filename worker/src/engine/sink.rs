//! The port through which runs of blocks leave the engine for good.

use crate::kv::{Run, RunData, RunId};

/// Takes runs of blocks to be kept. No call waits: the engine's thread makes them between two steps.
pub trait RunSink: Send + Sync {
    /// Says that a run comes. False: it is kept, or on its way, and need not come. After true exactly one of
    /// [`Self::save`] and [`Self::withdraw`] follows.
    fn announce(&self, id: &RunId) -> bool;

    /// Whether there is room for the run now. While there is none it waits in the pool, where it may be evicted. True of one
    /// that can never fit.
    fn has_room(&self, run: &Run) -> bool;

    /// The announced run. Where there is no room for it, it is dropped and counted.
    fn save(&self, data: RunData);

    /// The announced run does not come: its blocks are gone.
    fn withdraw(&self, id: &RunId);
}
