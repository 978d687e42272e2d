//! What an agent's K and V in the object store consist of: a few bytes in the agent's hash.
//!
//! A manifest is a hint. Everything it names is verified when it is loaded, so one that is stale, of another history or
//! unreadable costs prefill and never a wrong word. It names the last segment only: each segment's header names the one
//! before (see [`crate::kv_object`]).
//!
//! Invariant: it is written after the store acknowledged everything it names.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a [`Digest`].
pub const DIGEST_BYTES: usize = 32;

/// A BLAKE3 digest: of a namespace, or of a block with everything before it. MessagePack's `bin`; 64 hexadecimal digits
/// in texts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

/// What is stored of an agent's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What else than tokens the blocks depend on: model, number format, kind of machine, tenant.
    pub namespace: Digest,
    /// Tokens whose K and V are stored, from the first one on; whole blocks.
    pub tokens: u32,
    /// How many of them are the system prompt's, after which the grid of segments starts anew; whole blocks.
    pub shared_tokens: u32,
    /// The hash of the last block, which names the last segment.
    pub last: Digest,
}

impl Digest {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl From<[u8; DIGEST_BYTES]> for Digest {
    fn from(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(DigestVisitor)
    }
}

struct DigestVisitor;

impl Visitor<'_> for DigestVisitor {
    type Value = Digest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a digest of {DIGEST_BYTES} bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Digest, E> {
        let bytes = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
        Ok(Digest(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::envelope::{EnvelopeError, decode, encode};

    fn manifest() -> Manifest {
        Manifest { namespace: Digest([1; 32]), tokens: 272, shared_tokens: 16, last: Digest([0xab; 32]) }
    }

    fn golden() -> Vec<u8> {
        let start = b"\x01\x84\xa9namespace\xc4\x20".to_vec();
        let middle = b"\xa6tokens\xcd\x01\x10\xadshared_tokens\x10\xa4last\xc4\x20";
        [start, vec![1; 32], middle.to_vec(), vec![0xab; 32]].concat()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(encode(&manifest()), Ok(golden()));
        assert_eq!(decode(&golden()), Ok(manifest()));
    }

    #[test]
    fn digests_read_as_hexadecimal() {
        let digest = Digest::from([0x0f; 32]);
        assert_eq!((digest.to_string(), format!("{digest:?}")), ("0f".repeat(32), "0f".repeat(32)));
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let whole = golden();
        assert_eq!(decode::<Manifest>(b""), Err(EnvelopeError::Empty));
        for end in 1..whole.len() {
            let cut = decode::<Manifest>(&whole[..end]);
            assert!(matches!(cut, Err(EnvelopeError::Malformed { .. })), "cut at {end}: {cut:?}");
        }
        let longer = decode::<Manifest>(&[&whole[..], b"\x00"].concat());
        assert!(matches!(longer, Err(EnvelopeError::Malformed { .. })), "{longer:?}");
    }

    #[test]
    fn a_digest_of_another_size_or_type_is_refused() {
        for digest in [&b"\xc4\x1f"[..], b"\xc4\x21", b"\xd9\x20", b"\xdc\x00\x20"] {
            let size = usize::from(*digest.last().expect("not empty"));
            let bytes = [b"\x01\x84\xa9namespace", digest, &vec![1; size]].concat();
            let rest = &golden()[golden().len() - 32 - 29..];
            let refused = decode::<Manifest>(&[&bytes[..], rest].concat());
            assert!(matches!(refused, Err(EnvelopeError::Malformed { .. })), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn manifests_round_trip(namespace: [u8; 32], tokens: u32, shared_tokens: u32, last: [u8; 32]) {
            let manifest = Manifest { namespace: namespace.into(), tokens, shared_tokens, last: last.into() };
            prop_assert_eq!(decode(&encode(&manifest).expect("encodes")), Ok(manifest));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode::<Manifest>(&bytes);
            let _ = decode::<Manifest>(&[&[crate::envelope::VERSION][..], &bytes].concat());
        }
    }
}
