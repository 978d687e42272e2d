//! The first 104 bytes: what an object is, readable without a key.

use super::Damage;
use crate::kv::{Namespace, PrefixHash, SegmentId};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 104;

const MAGIC: [u8; 4] = *b"TMKV";
const VERSION: u16 = 1;
const ENCRYPTED: u16 = 1;

/// Which segment an object says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether the rest is sealed with the tenant's key.
    pub encrypted: bool,
    /// Its name and its parent's.
    pub id: SegmentId,
}

/// Reads the header at the start of an object. Nothing proves what it says; the rest of the object does.
pub fn header(start: &[u8]) -> Result<Header, Damage> {
    let start: &[u8; HEADER_BYTES] = start.first_chunk().ok_or(Damage::Length)?;
    if start[..4] != MAGIC {
        return Err(Damage::Magic);
    }
    let word = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]);
    let hash = |at: usize| *start[at..].first_chunk::<32>().expect("three hashes end with the header");
    let (version, flags) = (word(4), word(6));
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    if flags & !ENCRYPTED != 0 {
        return Err(Damage::Flags(flags));
    }
    let id = SegmentId {
        namespace: Namespace::from_bytes(hash(8)),
        parent: PrefixHash(hash(40)),
        last: PrefixHash(hash(72)),
    };
    Ok(Header { encrypted: flags == ENCRYPTED, id })
}

impl Header {
    pub(super) fn write(&self, object: &mut Vec<u8>) {
        object.extend(MAGIC);
        object.extend(VERSION.to_le_bytes());
        object.extend(if self.encrypted { ENCRYPTED } else { 0 }.to_le_bytes());
        object.extend(self.id.namespace.as_bytes());
        object.extend(self.id.parent.0);
        object.extend(self.id.last.0);
    }

    /// Whether it is the header of `wanted`.
    pub(super) fn check(&self, wanted: &SegmentId) -> Result<(), Damage> {
        if self.id.namespace != wanted.namespace {
            return Err(Damage::Namespace);
        }
        // The name first: it covers the parent, so that another parent under the right name was put there.
        if self.id.last != wanted.last {
            return Err(Damage::Hash);
        }
        if self.id.parent != wanted.parent { Err(Damage::Parent) } else { Ok(()) }
    }
}
