//! The form of a segment in the object store, version 1.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `TMKV` |
//! | 4..6 | version, 1 |
//! | 6..8 | flags; bit 0: encrypted |
//! | 8..40 | the tenant's namespace |
//! | 40..72 | hash of the last block before it; zeros if there is none |
//! | 72..104 | hash of its last block |
//! | 104..116 | if it is encrypted: nonce of AES-256-GCM; all that follows is sealed, beside all that precedes |
//! | 1 | codec: 1 f16, 2 q8, 3 q4 |
//! | 1 | type of the pool's elements: 1 f16, 2 bf16, 3 f32 |
//! | 6 × 4 | tokens in a block, layers, K and V heads, elements of a head, index of the first block, number of tokens |
//! | 4 each | token ids |
//! | 8 each | xxh3 of each layer's payload |
//! | 8 | xxh3 of everything before it, unsealed and without the nonce |
//! | | payload of each layer: all K, then all V, `[blocks, block_tokens, kv_heads, head_dim]`, encoded |
//! | 16 | if it is encrypted: tag |
//!
//! Numbers are little endian. Invariant: what [`decode`] returns is what [`encode`] was given, but for the codec's
//! rounding; an object that differs in any bit, or is another than the one wanted, is a [`Damage`].

mod damage;
mod fields;
mod header;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

pub use damage::Damage;
pub use fields::Contents;
pub use header::{HEADER_BYTES, Header, header};

use super::keys::{NONCE_BYTES, TAG_BYTES, TenantKey};
use crate::config::KvCodec;
use crate::kv::codec::Coding;
use crate::kv::{BlockShape, Segment, SegmentData};

/// The object that keeps `data`, sealed if there is a key.
///
/// # Panics
/// If the data is not that of the segment's blocks, or the system gives no random numbers.
pub fn encode(data: &SegmentData, shape: &BlockShape, codec: KvCodec, key: Option<&TenantKey>) -> Vec<u8> {
    let SegmentData { segment, data } = data;
    let blocks = segment.tokens.len() / shape.block_tokens;
    assert_eq!(data.len(), blocks * shape.block_bytes(), "the data is that of the segment's blocks");
    let coding = Coding::new(codec, shape);
    let layer = fields::layer_bytes(&coding, shape, blocks).expect("what is encoded is in memory");
    let field_bytes = fields::field_bytes(segment.tokens.len(), shape.layers).expect("tokens are in memory");
    let body = HEADER_BYTES + if key.is_some() { NONCE_BYTES } else { 0 };
    let payload = body + field_bytes;

    let mut object = Vec::with_capacity(payload + shape.layers * layer + TAG_BYTES);
    Header { encrypted: key.is_some(), id: segment.id }.write(&mut object);
    object.resize(payload, 0);
    if coding.is_verbatim() {
        object.extend_from_slice(data);
    } else {
        object.resize(payload + shape.layers * layer, 0);
        coding.encode(data, &mut object[payload..]);
    }
    let (start, place) = (&object[..HEADER_BYTES], (segment.first_block, &segment.tokens[..]));
    let fields = fields::write(start, (codec, shape), place, object[payload..].chunks_exact(layer));
    object[body..payload].copy_from_slice(&fields);
    if let Some(key) = key {
        key.seal(&mut object, HEADER_BYTES);
    }
    object
}

/// The segment `wanted` out of the object that should keep it.
///
/// Blocks of a pool in f16 that were stored as such are the object's own bytes.
pub fn decode(
    object: Bytes,
    wanted: &Arc<Segment>,
    shape: &BlockShape,
    codec: KvCodec,
    key: Option<&TenantKey>,
) -> Result<SegmentData, Damage> {
    header(&object)?.check(&wanted.id)?;
    let contents = inspect(object, key)?;
    contents.check(wanted, shape, codec)?;
    let coding = Coding::new(codec, shape);
    let data = if coding.is_verbatim() {
        contents.payload
    } else {
        let blocks = wanted.tokens.len() / shape.block_tokens;
        let mut data = vec![0; blocks * shape.block_bytes()];
        coding.decode(&contents.payload, &mut data);
        data.into()
    };
    Ok(SegmentData { segment: wanted.clone(), data })
}

/// What an object holds, whichever it is: all checks but whether it is the one wanted.
pub fn inspect(object: Bytes, key: Option<&TenantKey>) -> Result<Contents, Damage> {
    let header = header(&object)?;
    let (object, body) = match (header.encrypted, key) {
        (true, Some(key)) => open(object, key)?,
        (true, None) => return Err(Damage::KeyMissing),
        (false, Some(_)) => return Err(Damage::Plain),
        (false, None) => (object.clone(), object.slice(HEADER_BYTES..)),
    };
    fields::read(header, &object[..HEADER_BYTES], &body)
}

/// Opens a sealed object; returns it and what follows its header.
fn open(object: Bytes, key: &TenantKey) -> Result<(Bytes, Bytes), Damage> {
    // In place if nobody else holds it.
    let mut object = object.try_into_mut().unwrap_or_else(|held| BytesMut::from(&held[..]));
    key.open(&mut object, HEADER_BYTES).ok_or(Damage::Sealed)?;
    let object = object.freeze();
    let body = object.slice(HEADER_BYTES + NONCE_BYTES..object.len() - TAG_BYTES);
    Ok((object, body))
}

impl Contents {
    /// Whether it is `wanted`, in the way this worker stores blocks.
    fn check(&self, wanted: &Segment, shape: &BlockShape, codec: KvCodec) -> Result<(), Damage> {
        if self.codec != codec {
            return Err(Damage::Codec);
        }
        if self.shape != *shape {
            return Err(Damage::Shape);
        }
        if self.tokens != wanted.tokens {
            return Err(Damage::Tokens);
        }
        if self.first_block != wanted.first_block { Err(Damage::Position) } else { Ok(()) }
    }
}
#[cfg(test)]
mod tests;
