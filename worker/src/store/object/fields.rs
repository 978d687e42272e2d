//! What lies between an object's header and its payload, and the checksums over all of them.

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::{Damage, Header};
use crate::config::{KvCodec, KvDtype};
use crate::kv::BlockShape;
use crate::kv::codec::Coding;

/// Codec, type and six numbers.
const FIXED_BYTES: usize = 2 + 6 * 4;
const CHECKSUM_BYTES: usize = 8;

/// A verified object: it is whole, and its tokens lead from its parent to its name.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Which segment.
    pub header: Header,
    /// How its blocks are encoded.
    pub codec: KvCodec,
    /// Extent of its blocks.
    pub shape: BlockShape,
    /// Index within the sequence of its first block.
    pub first_block: usize,
    /// The tokens of all its blocks.
    pub tokens: Vec<u32>,
    /// The encoded blocks.
    pub(super) payload: Bytes,
}

/// Bytes of the fields of a segment of `tokens` tokens, checksums and all; None if no memory could hold them.
pub(super) fn field_bytes(tokens: usize, layers: usize) -> Option<usize> {
    let sums = layers.checked_add(1)?.checked_mul(CHECKSUM_BYTES)?;
    tokens.checked_mul(4)?.checked_add(sums)?.checked_add(FIXED_BYTES)
}

/// Encoded bytes of one layer of a segment of `blocks` blocks; None if no memory could hold them.
pub(super) fn layer_bytes(coding: &Coding, shape: &BlockShape, blocks: usize) -> Option<usize> {
    let parts = [blocks, shape.block_tokens, shape.kv_heads, shape.head_dim];
    let elements = parts.into_iter().try_fold(2usize, usize::checked_mul)?;
    coding.encoded_bytes(elements)
}

/// The fields of a segment whose encoded layers are `layers`; `start` is the header.
pub(super) fn write<'a>(
    start: &[u8],
    (codec, shape): (KvCodec, &BlockShape),
    (first_block, tokens): (usize, &[u32]),
    layers: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut fields = vec![codec_code(codec), dtype_code(shape.dtype)];
    let numbers =
        [shape.block_tokens, shape.layers, shape.kv_heads, shape.head_dim, first_block, tokens.len()];
    for number in numbers {
        fields.extend(u32::try_from(number).expect("numbers of a model fit 32 bits").to_le_bytes());
    }
    fields.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    fields.extend(layers.flat_map(|layer| xxh3_64(layer).to_le_bytes()));
    fields.extend(header_checksum(start, &fields).to_le_bytes());
    fields
}

/// Reads and verifies what follows the header, whose bytes are `start`.
pub(super) fn read(header: Header, start: &[u8], body: &Bytes) -> Result<Contents, Damage> {
    let fixed: &[u8; FIXED_BYTES] = body.first_chunk().ok_or(Damage::Length)?;
    let (numbers, _) = fixed[2..].as_chunks::<4>();
    let number = |at: usize| u32::from_le_bytes(numbers[at]) as usize;
    let (layers, count) = (number(1), number(5));
    let end = field_bytes(count, layers).filter(|end| *end <= body.len()).ok_or(Damage::Length)?;
    let (fields, checksum) = body[..end].split_at(end - CHECKSUM_BYTES);
    if header_checksum(start, fields).to_le_bytes() != checksum {
        return Err(Damage::HeaderChecksum);
    }
    // Sound from here on, but not yet sensible.
    let dtype = dtype_of(fixed[1]).ok_or(Damage::Shape)?;
    let shape =
        BlockShape { block_tokens: number(0), layers, kv_heads: number(2), head_dim: number(3), dtype };
    let (tokens, checksums) = fields[FIXED_BYTES..].split_at(4 * count);
    let contents = Contents {
        header,
        codec: codec_of(fixed[0]).ok_or(Damage::Codec)?,
        shape,
        first_block: number(4),
        tokens: tokens.as_chunks().0.iter().map(|token| u32::from_le_bytes(*token)).collect(),
        payload: body.slice(end..),
    };
    contents.check_shape()?;
    contents.check_layers(checksums)?;
    contents.check_chain()?;
    Ok(contents)
}

impl Contents {
    fn check_shape(&self) -> Result<(), Damage> {
        let BlockShape { layers, block_tokens, kv_heads, head_dim, dtype: _ } = self.shape;
        if [layers, block_tokens, kv_heads, head_dim].contains(&0) {
            return Err(Damage::Shape);
        }
        let whole = !self.tokens.is_empty() && self.tokens.len().is_multiple_of(block_tokens);
        if whole { Ok(()) } else { Err(Damage::Tokens) }
    }

    fn check_layers(&self, checksums: &[u8]) -> Result<(), Damage> {
        let BlockShape { layers, block_tokens, .. } = self.shape;
        let coding = Coding::new(self.codec, &self.shape);
        let layer = layer_bytes(&coding, &self.shape, self.tokens.len() / block_tokens);
        let layer = layer.filter(|layer| layer.checked_mul(layers) == Some(self.payload.len()));
        let payloads = self.payload.chunks_exact(layer.ok_or(Damage::Length)?);
        let (checksums, _) = checksums.as_chunks::<CHECKSUM_BYTES>();
        match payloads.zip(checksums).position(|(payload, sum)| xxh3_64(payload).to_le_bytes() != *sum) {
            Some(layer) => Err(Damage::LayerChecksum(layer)),
            None => Ok(()),
        }
    }

    fn check_chain(&self) -> Result<(), Damage> {
        let id = &self.header.id;
        let last = id.parent.after(&id.namespace, &self.tokens, self.shape.block_tokens);
        if last == id.last { Ok(()) } else { Err(Damage::Chain) }
    }
}

fn header_checksum(start: &[u8], fields: &[u8]) -> u64 {
    let mut hasher = Xxh3Default::new();
    hasher.update(start);
    hasher.update(fields);
    hasher.digest()
}

fn codec_code(codec: KvCodec) -> u8 {
    match codec {
        KvCodec::F16 => 1,
        KvCodec::Q8 => 2,
        KvCodec::Q4 => 3,
    }
}

fn codec_of(code: u8) -> Option<KvCodec> {
    [KvCodec::F16, KvCodec::Q8, KvCodec::Q4].into_iter().find(|codec| codec_code(*codec) == code)
}

fn dtype_code(dtype: KvDtype) -> u8 {
    match dtype {
        KvDtype::F16 => 1,
        KvDtype::Bf16 => 2,
        KvDtype::F32 => 3,
    }
}

fn dtype_of(code: u8) -> Option<KvDtype> {
    [KvDtype::F16, KvDtype::Bf16, KvDtype::F32].into_iter().find(|dtype| dtype_code(*dtype) == code)
}
