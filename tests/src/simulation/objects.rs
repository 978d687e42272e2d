//! The object store: one in memory for all workers, and the way to it, on which calls are slow, fail, lose their answer or leave an
//! object that is cut or changed.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::ledger::Stage;

/// One worker's way to the store.
pub(super) struct Objects {
    stage: Arc<Stage>,
    store: Arc<InMemory>,
}

impl Objects {
    pub(super) fn new(stage: Arc<Stage>) -> Self {
        let store = Arc::clone(&stage.objects);
        Self { stage, store }
    }

    /// Under way; an error if the store cannot be reached.
    async fn pass(&self) -> Result<()> {
        let (stage, faults) = (&self.stage, self.stage.world.faults);
        let late_ms =
            if stage.fails(faults.object_delay) { stage.dice.below(3 * stage.world.object_ms) } else { 0 };
        stage.clock.sleep(stage.dice.below(4) + late_ms).await;
        if stage.fails(faults.object_loss) {
            return Err(Error::Generic { store: "sim", source: "a flaw of the simulation".into() });
        }
        Ok(())
    }

    fn damage(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let place = self.stage.dice.below(bytes.len() as u64) as usize;
        if self.stage.dice.chance(500) {
            bytes.truncate(place);
        } else if let Some(byte) = bytes.get_mut(place) {
            *byte ^= 1 << self.stage.dice.below(8);
        }
        bytes
    }

    /// A disk loses a bit, or the end of a file.
    async fn rot(&self, location: &Path) -> Result<()> {
        let bytes = self.store.get(location).await?.bytes().await?;
        self.store.put(location, self.damage(&bytes).into()).await?;
        Ok(())
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a simulated store")
    }
}

// As async_trait, which we do not depend on, writes it.
impl ObjectStore for Objects {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            self.pass().await?;
            let is_damaged = self.stage.fails(self.stage.world.faults.damage);
            let payload = if is_damaged { self.damage(&Bytes::from(payload)).into() } else { payload };
            let put = self.store.put_opts(location, payload, options).await;
            self.pass().await?;
            put
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.store.put_multipart_opts(location, options)
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            self.pass().await?;
            if self.stage.fails(self.stage.world.faults.damage) {
                self.rot(location).await?;
            }
            let got = self.store.get_opts(location, options).await;
            self.pass().await?;
            got
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.store.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.store.copy_opts(from, to, options)
    }
}
