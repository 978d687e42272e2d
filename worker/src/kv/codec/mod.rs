//! How a segment's elements are written outside the pool: exactly, or quantised in groups.
//!
//! Invariants: encoding and decoding keep the order of elements, so lengths follow from their number alone; a
//! group never spans two heads; decoding gives the same bits on every machine.
//!
//! | codec | a group of n elements | lossless |
//! |---|---|---|
//! | f16 | n × f16 | from a pool in f16 |
//! | q8 | scale f16, offset f16, n × u8 | never |
//! | q4 | scale f16, offset f16, ⌈n/2⌉ bytes: low halves are the first ⌈n/2⌉ elements, high ones the others | never |
//!
//! All little endian. A quantised element is `offset + scale × quantum`. It is off by at most half a scale and the
//! rounding to the pool's type; the scale is the group's range divided by 255 or 15, rounded up to f16. Elements beyond
//! the range of f16 saturate; a group with one that is not finite comes back as NaN where it is quantised.

mod elements;
mod group;

use self::group::GROUP;
use super::BlockShape;
use crate::config::{KvCodec, KvDtype};

/// One way to write the elements of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    codec: KvCodec,
    dtype: KvDtype,
    head_dim: usize,
    head_bytes: usize,
    encoded_head_bytes: usize,
}

impl Coding {
    /// How `codec` writes blocks of `shape`.
    ///
    /// # Panics
    /// Where a head has no elements.
    pub fn new(codec: KvCodec, shape: &BlockShape) -> Self {
        let head_dim = shape.head_dim;
        assert!(head_dim > 0, "a head has elements");
        let rest = match head_dim % GROUP {
            0 => 0,
            elements => group_bytes(codec, elements),
        };
        Self {
            codec,
            dtype: shape.dtype,
            head_dim,
            head_bytes: head_dim * shape.element_bytes(),
            encoded_head_bytes: head_dim / GROUP * group_bytes(codec, GROUP) + rest,
        }
    }

    /// Whether encoded and pool bytes are the same, so that nothing needs to be done.
    pub fn is_verbatim(&self) -> bool {
        self.codec == KvCodec::F16 && self.dtype == KvDtype::F16
    }

    /// Bytes that `elements` take encoded; they are whole heads. None where no memory could hold them.
    pub fn encoded_bytes(&self, elements: usize) -> Option<usize> {
        (elements / self.head_dim).checked_mul(self.encoded_head_bytes)
    }

    /// Encodes the elements of `pool`, bytes of the pool's type, into `encoded`.
    ///
    /// # Panics
    /// Where the two do not hold the same number of whole heads.
    pub fn encode(&self, pool: &[u8], encoded: &mut [u8]) {
        self.check_lengths(pool.len(), encoded.len());
        if self.is_verbatim() {
            return encoded.copy_from_slice(pool);
        }
        let group_bytes = group_bytes(self.codec, GROUP);
        let mut values = [0.0; GROUP];
        for (from, to) in self.heads(pool).zip(encoded.chunks_exact_mut(self.encoded_head_bytes)) {
            for (from, to) in from.chunks(self.pool_group_bytes()).zip(to.chunks_mut(group_bytes)) {
                let values = &mut values[..from.len() / self.element_bytes()];
                elements::load(self.dtype, from, values);
                match self.codec {
                    KvCodec::F16 => elements::store(KvDtype::F16, values, to),
                    KvCodec::Q8 => group::encode_q8(values, to),
                    KvCodec::Q4 => group::encode_q4(values, to),
                }
            }
        }
    }

    /// Decodes `encoded` into `pool`, bytes of the pool's type.
    ///
    /// # Panics
    /// Where the two do not hold the same number of whole heads.
    pub fn decode(&self, encoded: &[u8], pool: &mut [u8]) {
        self.check_lengths(pool.len(), encoded.len());
        if self.is_verbatim() {
            return pool.copy_from_slice(encoded);
        }
        let (pool_group_bytes, group_bytes) = (self.pool_group_bytes(), group_bytes(self.codec, GROUP));
        let mut values = [0.0; GROUP];
        let heads = encoded.chunks_exact(self.encoded_head_bytes);
        for (from, to) in heads.zip(pool.chunks_exact_mut(self.head_bytes)) {
            for (from, to) in from.chunks(group_bytes).zip(to.chunks_mut(pool_group_bytes)) {
                let values = &mut values[..to.len() / self.element_bytes()];
                match self.codec {
                    KvCodec::F16 => elements::load(KvDtype::F16, from, values),
                    KvCodec::Q8 => group::decode_q8(from, values),
                    KvCodec::Q4 => group::decode_q4(from, values),
                }
                elements::store(self.dtype, values, to);
            }
        }
    }

    fn heads<'a>(&self, pool: &'a [u8]) -> std::slice::ChunksExact<'a, u8> {
        pool.chunks_exact(self.head_bytes)
    }

    fn element_bytes(&self) -> usize {
        self.head_bytes / self.head_dim
    }

    fn pool_group_bytes(&self) -> usize {
        GROUP * self.element_bytes()
    }

    fn check_lengths(&self, pool: usize, encoded: usize) {
        let whole = pool.is_multiple_of(self.head_bytes);
        let equal = (pool / self.head_bytes).checked_mul(self.encoded_head_bytes) == Some(encoded);
        assert!(whole && equal, "{pool} bytes of the pool are not {encoded} encoded ones");
    }
}

fn group_bytes(codec: KvCodec, elements: usize) -> usize {
    match codec {
        KvCodec::F16 => 2 * elements,
        KvCodec::Q8 => group::PARAMETER_BYTES + elements,
        KvCodec::Q4 => group::PARAMETER_BYTES + elements.div_ceil(2),
    }
}

#[cfg(test)]
mod tests;
