//! From the host cache or the store to blocks, verified.
//!
//! Invariants: what is handed out was decoded and verified in this call; reading, checksums and decoding happen on the
//! store's own threads; an object that is not what it should be is out of the way before the caller hears of it, so that
//! the segment that is computed instead can be stored (one without its key stays: it may be whole); no more than `parallel` objects are read at once.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{Error, GetResult, GetResultPayload};

use super::objects::silent_for;
use super::{Miss, Shared};
use crate::kv::{Segment, SegmentData};
use crate::observe::metrics;
use crate::store::object::{self, Damage};

/// The segment, or why it has to be computed.
pub(super) async fn fetch(shared: Arc<Shared>, segment: Arc<Segment>) -> Result<SegmentData, Miss> {
    let found = match cached(&shared, &segment).await {
        Some(data) => Ok(data),
        None => stored(&shared, &segment).await,
    };
    match &found {
        Ok(_) => shared.used(&segment.id),
        Err(miss) => metrics::segment_missed(miss.reason()),
    }
    found
}

async fn cached(shared: &Arc<Shared>, segment: &Arc<Segment>) -> Option<SegmentData> {
    let object = shared.cache.get(&segment.id)?;
    match open(shared, segment, Source::Memory(object)).await {
        Ok((_, data)) => {
            metrics::host_cache_hit();
            Some(data)
        }
        Err(_) => {
            // The store's may be whole.
            shared.cache.remove(&segment.id);
            None
        }
    }
}

async fn stored(shared: &Arc<Shared>, segment: &Arc<Segment>) -> Result<SegmentData, Miss> {
    let _permit = shared.parallel.acquire().await;
    // Another turn may have fetched it meanwhile: equal system prompts come together.
    if let Some(data) = cached(shared, segment).await {
        return Ok(data);
    }
    shared.health.may_read(shared.surroundings.now()).map_err(Miss::Unreachable)?;
    let _reading = shared.reads_first.begin();
    let timeout = shared.settings.timeout;
    let asked = shared.surroundings.now();
    match shared.surroundings.timeout(timeout, read(shared, segment)).await {
        Ok(Ok((object, data))) => {
            shared.health.read();
            metrics::segment_fetched(object.len(), shared.surroundings.since(asked));
            shared.cache.insert(segment.id, object);
            shared.ledger.found(segment.id);
            Ok(data)
        }
        Ok(Err(fault)) => Err(missed(shared, segment, fault).await),
        Err(_) => {
            shared.cost.no_bytes(timeout, shared.surroundings.now());
            shared.health.read_failed(&silent_for(timeout));
            Err(Miss::TimedOut)
        }
    }
}

/// Why an object that was asked for is not had.
enum Fault {
    Absent,
    Damaged(Damage),
    Failed(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { .. } => Self::Absent,
            error => Self::Failed(error.to_string()),
        }
    }
}

async fn missed(shared: &Shared, segment: &Segment, fault: Fault) -> Miss {
    match fault {
        Fault::Absent => {
            shared.health.read();
            shared.ledger.lost(&segment.id);
            Miss::Absent
        }
        // Another worker, with the key, can read it; it is the settings that are wrong.
        Fault::Damaged(Damage::KeyMissing) => {
            shared.health.read();
            Miss::Damaged(Damage::KeyMissing)
        }
        Fault::Damaged(damage) => {
            shared.health.read();
            shared.objects.set_aside(&segment.id, &damage.to_string()).await;
            shared.ledger.lost(&segment.id);
            Miss::Damaged(damage)
        }
        Fault::Failed(reason) => {
            shared.health.read_failed(&reason);
            Miss::Unreachable(reason)
        }
    }
}

async fn read(shared: &Arc<Shared>, segment: &Arc<Segment>) -> Result<(Bytes, SegmentData), Fault> {
    let asked = shared.surroundings.now();
    let answer = shared.objects.get(&segment.id).await;
    let latency = shared.surroundings.since(asked);
    let object = match answer {
        Ok(object) => object,
        Err(error) => {
            let fault = Fault::from(error);
            if matches!(fault, Fault::Absent) {
                shared.cost.no_bytes(latency, shared.surroundings.now());
            }
            return Err(fault);
        }
    };
    let transfer = shared.cost.transfer(latency, shared.surroundings.now());
    let source = Source::of(object, shared.most_bytes(segment)).await?;
    let (object, data) = open(shared, segment, source).await?;
    transfer.done(object.len(), shared.surroundings.now());
    Ok((object, data))
}

/// The object's bytes and nothing else: how many there are.
pub(super) async fn read_only(shared: Arc<Shared>, segment: Arc<Segment>) -> Result<usize, Miss> {
    let _permit = shared.parallel.acquire().await;
    let unreachable = |error: &dyn ToString| Miss::Unreachable(error.to_string());
    let object = shared.objects.get(&segment.id).await.map_err(|error| unreachable(&error))?;
    let source = Source::of(object, shared.most_bytes(&segment)).await.map_err(|fault| match fault {
        Fault::Absent => Miss::Absent,
        Fault::Damaged(damage) => Miss::Damaged(damage),
        Fault::Failed(reason) => Miss::Unreachable(reason),
    })?;
    let read = shared.surroundings.run_blocking(move || source.bytes().map(|object| object.len())).await;
    read.map_err(|error| unreachable(&error))?.map_err(|error| unreachable(&error))
}

/// Where an object's bytes come from.
enum Source {
    Memory(Bytes),
    /// Read by the thread that verifies it, so that it finds the bytes in its caches.
    File(File, u64),
}

impl Source {
    /// The object, or the first `most` bytes of one that is longer than any segment: an object that was replaced may be of
    /// any size, and a part of it is as damaged as all of it.
    async fn of(object: GetResult, most: u64) -> Result<Self, Fault> {
        let bytes = object.meta.size.min(most);
        match object.payload {
            GetResultPayload::File(file, _) => Ok(Self::File(file, bytes)),
            GetResultPayload::Stream(_) if object.meta.size <= most => {
                Ok(Self::Memory(object.bytes().await?))
            }
            GetResultPayload::Stream(mut parts) => {
                let mut start = Vec::new();
                while (start.len() as u64) < most
                    && let Some(part) = parts.try_next().await?
                {
                    start.extend_from_slice(&part);
                }
                Ok(Self::Memory(start.into()))
            }
        }
    }

    fn bytes(self) -> io::Result<Bytes> {
        match self {
            Self::Memory(object) => Ok(object),
            Self::File(file, bytes) => {
                let mut object = Vec::with_capacity(usize::try_from(bytes).map_err(io::Error::other)?);
                file.take(bytes).read_to_end(&mut object)?;
                Ok(object.into())
            }
        }
    }
}

/// Reads, verifies and decodes an object, in one go on a thread that may block.
async fn open(
    shared: &Arc<Shared>,
    segment: &Arc<Segment>,
    source: Source,
) -> Result<(Bytes, SegmentData), Fault> {
    let (segment, surroundings) = (segment.clone(), shared.surroundings.clone());
    let shared = shared.clone();
    let open = move || {
        let object = source.bytes().map_err(|error| Fault::Failed(error.to_string()))?;
        let (settings, key) = (&shared.settings, shared.key(&segment.tenant));
        let data = object::decode(object.clone(), &segment, &settings.shape, settings.codec, key.as_ref());
        Ok((object, data.map_err(Fault::Damaged)?))
    };
    let opened = surroundings.run_blocking(open).await;
    opened.unwrap_or_else(|error| Err(Fault::Failed(format!("a segment cannot be decoded: {error}"))))
}
