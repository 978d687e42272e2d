//! What becomes of a turn's K and V when it leaves: the manifest that its end or its requeue commits, and the one that
//! follows if the store takes longer.
//!
//! Invariant: a manifest names only segments that the store has acknowledged, from the first one on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug};
use turnmill_schema::Manifest;

use super::Restorer;
use super::conversation::Conversation;
use crate::broker::{Broker, Fence};
use crate::engine::EngineHandle;
use crate::kv::{SegmentId, TokenChain};
use crate::store::BlockStore;
use crate::surroundings::Surroundings;

/// Turns whose manifest may still be waited for after they have left.
const LATE: usize = 256;
/// How long it is waited for.
const LATEST: Duration = Duration::from_secs(30);

/// A worker's side of what is kept outside its pool; shared by all turns.
pub struct Keeper<E> {
    /// Brings it back.
    pub restorer: Restorer<E>,
    /// How long an ended turn waits for its last segments.
    pub persist_wait: Duration,
    /// How long a turn that is requeued does: the next worker wants all of it.
    pub requeue_wait: Duration,
    /// Waits for what comes later.
    late: TaskTracker,
    places: Arc<Semaphore>,
    surroundings: Surroundings,
}

/// The segments of a conversation that the engine has announced, with the number of blocks up to each one's end.
struct Segments {
    conversation: Conversation,
    ids: Vec<SegmentId>,
    ends: Vec<usize>,
}

/// Segments of an ended turn that are still on their way, after the first `stored` ones.
pub(super) struct Late {
    segments: Segments,
    stored: usize,
}

impl Segments {
    fn new(conversation: &Conversation, chain: &TokenChain, computed: usize) -> Self {
        let blocks = computed / conversation.grid.block_tokens;
        let (ids, ends) = conversation.segments(chain, blocks).into_iter().unzip();
        Self { conversation: conversation.clone(), ids, ends }
    }

    /// What to say now that the first `stored` segments are stored; none if nothing new is to be said.
    fn manifest(&self, stored: usize) -> Option<Manifest> {
        let last = stored.checked_sub(1)?;
        let manifest = self.conversation.manifest_of(&self.ids[last], self.ends[last]);
        let longer = |said: Manifest| manifest.tokens > said.tokens;
        self.conversation.manifest.is_none_or(longer).then_some(manifest)
    }
}

impl<E: EngineHandle> Keeper<E> {
    /// A keeper over `restorer`'s store.
    pub fn new(
        restorer: Restorer<E>,
        persist_wait: Duration,
        requeue_wait: Duration,
        surroundings: Surroundings,
    ) -> Self {
        let places = Arc::new(Semaphore::new(LATE));
        Self { restorer, persist_wait, requeue_wait, late: TaskTracker::new(), places, surroundings }
    }

    /// Whether anything of this tenant is kept.
    pub(super) fn serves(&self, tenant: &str) -> bool {
        self.store().serves(tenant)
    }

    fn store(&self) -> &BlockStore {
        self.restorer.store()
    }

    /// The manifest of a turn that ends, of whose tokens the first `computed` have K and V and are its agent's history from now
    /// on; and what the store has not acknowledged in time, to be given to [`Self::later`] once the turn has ended.
    pub(super) async fn end(
        &self,
        conversation: &Conversation,
        (chain, computed): (&TokenChain, usize),
    ) -> (Option<Manifest>, Option<Late>) {
        let segments = Segments::new(conversation, chain, computed);
        let stored = self.store().saved(&segments.ids, self.persist_wait).await;
        let manifest = segments.manifest(stored);
        let comes = segments.ids.get(stored).is_some_and(|next| self.store().is_saved(next));
        (manifest, comes.then_some(Late { segments, stored }))
    }

    /// The manifest of a turn that is requeued.
    pub(super) async fn requeue(&self, conversation: &Conversation, chain: &TokenChain) -> Option<Manifest> {
        let segments = Segments::new(conversation, chain, chain.len().saturating_sub(1));
        let stored = self.store().saved(&segments.ids, self.requeue_wait).await;
        segments.manifest(stored)
    }

    /// No step runs any more: what is on its way is stored as fast as can be.
    pub fn hurry(&self) {
        self.store().hurry();
    }

    /// Waits until what is on its way is stored and noted, at most for `within`.
    pub async fn flush(&self, within: Duration) {
        self.late.close();
        let all = async {
            self.store().flush(within).await;
            self.late.wait().await;
        };
        if self.surroundings.timeout(within, all).await.is_err() {
            debug!("not everything that was stored late is noted");
        }
    }

    /// How many places are taken: of turns that have left and whose manifest is waited for, and of segments that come back.
    pub fn places_taken(&self) -> usize {
        LATE - self.places.available_permits() + self.restorer.places_taken()
    }

    /// Commits what the store acknowledges after the turn of `lease` has ended.
    pub(super) fn later<B: Broker>(&self, broker: Arc<B>, lease: Fence, late: Late) {
        let Late { segments, stored } = late;
        let Ok(place) = self.places.clone().try_acquire_owned() else { return };
        let store = self.store().clone();
        let note = async move {
            let now = store.saved(&segments.ids, LATEST).await;
            if let Some(manifest) = segments.manifest(now).filter(|_| now > stored)
                && let Err(error) = broker.advance(&lease, &manifest).await
            {
                debug!(%error, "what was stored late is not noted; it is computed again, or found by its name");
            }
            drop(place);
        };
        // The turn's span for log lines outlives the turn; its trace does not.
        self.surroundings.spawn(self.late.track_future(note.in_current_span()));
    }
}
