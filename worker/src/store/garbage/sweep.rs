//! Going through all objects, and removing those that are garbage, a batch at a time.
//!
//! Invariant: what is removed was neither marked nor referred to when that was last read, at most [`FRESH`] before.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::path::Path;
use turnmill_schema::{Digest, TurnId};

use super::{Collected, Found, GarbageError, LEAST_PAYLOAD_RETENTION, Marks, Options, mark};
use crate::broker::{PayloadsInUse, References};
use crate::store::inventory::{Folder, Inventory, Object};

/// Objects removed at once: as many as one request to S3 can name.
const BATCH: usize = 1000;
/// How old a reading of the manifests may be when something is removed.
const FRESH: Duration = Duration::from_secs(60);

pub(super) struct Sweep<'a, R, P> {
    pub collected: Collected,
    inventory: &'a Inventory,
    references: &'a R,
    options: Options,
    marks: &'a Marks,
    progress: P,
    /// When the manifests were last read again; not yet at first.
    read_at: Option<Instant>,
}

impl<'a, R: References, P: Fn(&Collected)> Sweep<'a, R, P> {
    pub fn new(
        inventory: &'a Inventory,
        references: &'a R,
        options: Options,
        marks: &'a Marks,
        progress: P,
    ) -> Self {
        let collected = Collected::default();
        Self { collected, inventory, references, options, marks, progress, read_at: None }
    }

    /// Segments that no manifest reaches.
    pub async fn segments(&mut self) -> Result<(), GarbageError> {
        let mut objects = self.inventory.list(Folder::Segments);
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(object) = objects.try_next().await? {
            match self.inventory.segment_at(&object.path) {
                None => self.collected.foreign += 1,
                Some(name) if self.marks.contains(&name.hash) || self.is_young(&object, Duration::ZERO) => {
                    self.collected.segments.kept += 1;
                }
                Some(name) => batch.push((object, name.hash)),
            }
            if batch.len() == BATCH {
                self.remove_segments(std::mem::take(&mut batch)).await?;
            }
        }
        self.remove_segments(batch).await
    }

    /// Damaged segments that were set aside, for people who looked at them by now.
    pub async fn damaged(&mut self) -> Result<(), GarbageError> {
        let mut objects = self.inventory.list(Folder::Damaged);
        let mut batch = Vec::new();
        while let Some(object) = objects.try_next().await? {
            if self.is_young(&object, Duration::ZERO) {
                self.collected.damaged.kept += 1;
                continue;
            }
            batch.push(object);
            if batch.len() == BATCH {
                self.remove(std::mem::take(&mut batch), |collected| &mut collected.damaged).await;
            }
        }
        self.remove(batch, |collected| &mut collected.damaged).await;
        Ok(())
    }

    /// Payloads that no turn refers to.
    pub async fn payloads(&mut self) -> Result<(), GarbageError> {
        let mut objects = self.inventory.list(Folder::Payloads);
        let (mut batch, mut in_use) = (Vec::new(), None);
        while let Some(object) = objects.try_next().await? {
            let Some(turn) = self.inventory.payload_at(&object.path) else {
                self.collected.foreign += 1;
                continue;
            };
            if self.is_young(&object, LEAST_PAYLOAD_RETENTION) {
                self.collected.payloads.kept += 1;
                continue;
            }
            // All turns are read only if it matters.
            let in_use = match &mut in_use {
                Some(in_use) => in_use,
                none => none.insert(self.payloads_in_use().await?),
            };
            if is_used(in_use, &object, &turn) {
                self.collected.payloads.kept += 1;
                continue;
            }
            batch.push(object);
            if batch.len() == BATCH {
                self.remove(std::mem::take(&mut batch), |collected| &mut collected.payloads).await;
            }
        }
        self.remove(batch, |collected| &mut collected.payloads).await;
        Ok(())
    }

    /// Reads all turns twice; see the module's documentation.
    async fn payloads_in_use(&self) -> Result<PayloadsInUse, GarbageError> {
        let mut in_use = self.references.payloads().await?;
        let again = self.references.payloads().await?;
        in_use.turns.extend(again.turns);
        // As the store spells them.
        let paths = in_use.paths.into_iter().chain(again.paths);
        let paths = paths.map(|path| Path::from(path).into()).collect();
        Ok(PayloadsInUse { paths, ..in_use })
    }

    fn is_young(&self, object: &Object, least: Duration) -> bool {
        let retention = self.options.retention.max(least);
        let age = Duration::from_millis(self.options.now_ms.saturating_sub(object.modified_ms));
        // Retention of nothing keeps nothing, whatever the clocks say.
        age < retention
    }

    /// Removes segments, but for those that a manifest has come to reach.
    async fn remove_segments(&mut self, mut batch: Vec<(Object, Digest)>) -> Result<(), GarbageError> {
        let is_fresh = self.read_at.is_some_and(|at| at.elapsed() < FRESH);
        if self.options.delete && !batch.is_empty() && !is_fresh {
            let at = Instant::now();
            mark(self.inventory, self.references, self.marks, self.options.parallel).await?;
            self.read_at = Some(at);
        }
        let found = batch.len();
        batch.retain(|(_, hash)| !self.marks.contains(hash));
        self.collected.segments.kept += (found - batch.len()) as u64;
        let batch = batch.into_iter().map(|(object, _)| object).collect();
        self.remove(batch, |collected| &mut collected.segments).await;
        Ok(())
    }

    /// Counts garbage, and removes it if told to.
    async fn remove(&mut self, batch: Vec<Object>, of: impl Fn(&mut Collected) -> &mut Found) {
        let sizes: HashMap<_, _> = batch.into_iter().map(|object| (object.path, object.bytes)).collect();
        let asked = sizes.len() as u64;
        let found = of(&mut self.collected);
        found.garbage += asked;
        found.garbage_bytes += sizes.values().sum::<u64>();
        if self.options.delete && asked > 0 {
            let removed = self.inventory.remove(sizes.keys().cloned().collect()).await;
            let deleted = removed.paths.len() as u64;
            let found = of(&mut self.collected);
            found.deleted += deleted;
            found.deleted_bytes += removed.paths.iter().filter_map(|path| sizes.get(path)).sum::<u64>();
            found.failed += asked.saturating_sub(deleted + removed.gone);
            if let Some(error) = removed.error {
                self.collected.failure = Some(error.to_string());
            }
        }
        (self.progress)(&self.collected);
    }
}

fn is_used(in_use: &PayloadsInUse, object: &Object, turn: &TurnId) -> bool {
    in_use.turns.contains(turn) || in_use.paths.contains(object.path.as_ref())
}
