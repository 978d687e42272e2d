//! Objects that hold K and V: where they are, and the start of their header, which is never encrypted.
//!
//! Moving, listing and collecting objects needs no more than this; what follows the start is their reader's own.
//!
//! Invariants: an object's name is the hash in its header, so a chain of segments can be walked from its last one without
//! the history; a path is computed, never read from an object.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `TMKV` |
//! | 4..6 | version, 1, little endian |
//! | 6..8 | flags, little endian |
//! | 8..40 | namespace |
//! | 40..72 | the name of the segment before; zeros: this is the first |
//! | 72..104 | its own name: the hash of its last block |

use crate::ids::Name;
use crate::manifest::{DIGEST_BYTES, Digest};

/// The folder of the object store that holds K and V: `kv/<queue>/…`.
pub const FOLDER: &str = "kv";
/// First bytes of every object.
pub const MAGIC: [u8; 4] = *b"TMKV";
/// The version of the layout that this build reads.
pub const VERSION: u16 = 1;
/// Bytes of the part of the header that is laid out here.
pub const HEADER_START_BYTES: usize = 104;

/// The start of an object's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderStart {
    /// What the bits of `flags` mean is the reader's.
    pub flags: u16,
    /// What else than tokens the blocks depend on.
    pub namespace: Digest,
    /// The segment before; none for the first one.
    pub parent: Option<Digest>,
    /// Its own name.
    pub hash: Digest,
}

impl HeaderStart {
    /// Reads the start of `object`, or of as much of it as was read; none if it is no object of this version.
    pub fn read(object: &[u8]) -> Option<Self> {
        let start = object.first_chunk::<HEADER_START_BYTES>()?;
        let u16_at = |at: usize| u16::from_le_bytes([start[at], start[at + 1]]);
        let digest_at = |at: usize| {
            let mut bytes = [0; DIGEST_BYTES];
            bytes.copy_from_slice(&start[at..at + DIGEST_BYTES]);
            Digest(bytes)
        };
        if start[..4] != MAGIC || u16_at(4) != VERSION {
            return None;
        }
        let parent = Some(digest_at(40)).filter(|parent| parent.0 != [0; DIGEST_BYTES]);
        Some(Self { flags: u16_at(6), namespace: digest_at(8), parent, hash: digest_at(72) })
    }
}

/// The name of the segment before `object`; none if it is the first one, or no object of this version.
pub fn parent_of(object: &[u8]) -> Option<Digest> {
    HeaderStart::read(object)?.parent
}

/// An object's path under the store's prefix: `kv/<queue>/<namespace>/<2 digits>/<hash>`.
pub fn path(queue: &Name, namespace: &Digest, hash: &Digest) -> String {
    let hash = hash.to_string();
    format!("{FOLDER}/{queue}/{namespace}/{}/{hash}", &hash[..2])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start(parent: u8) -> Vec<u8> {
        let head = b"TMKV\x01\x00\x05\x00".to_vec();
        [head, vec![1; 32], vec![parent; 32], vec![3; 32]].concat()
    }

    #[test]
    fn golden_header() {
        let (namespace, hash) = (Digest([1; 32]), Digest([3; 32]));
        let read = HeaderStart { flags: 5, namespace, parent: Some(Digest([2; 32])), hash };
        assert_eq!(HeaderStart::read(&[start(2), b"rest".to_vec()].concat()), Some(read));
        assert_eq!(parent_of(&start(2)), Some(Digest([2; 32])));
        assert_eq!(HeaderStart::read(&start(0)), Some(HeaderStart { parent: None, ..read }));
        assert_eq!(parent_of(&start(0)), None);
    }

    #[test]
    fn what_is_short_or_of_another_kind_or_version_is_no_object() {
        for end in 0..HEADER_START_BYTES {
            assert_eq!(HeaderStart::read(&start(2)[..end]), None, "cut at {end}");
        }
        for byte in 0..6 {
            let mut other = start(2);
            other[byte] ^= 1;
            assert_eq!((HeaderStart::read(&other), parent_of(&other)), (None, None), "byte {byte}");
        }
    }

    #[test]
    fn the_path_holds_queue_namespace_and_hash() {
        let queue = Name::new("q").expect("a name");
        let (namespace, hash) = (Digest([0x1f; 32]), Digest([0xc0; 32]));
        let expected = format!("kv/q/{}/c0/{}", "1f".repeat(32), "c0".repeat(32));
        assert_eq!(path(&queue, &namespace, &hash), expected);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = HeaderStart::read(&bytes);
            let _ = parent_of(&[&b"TMKV\x01\x00"[..], &bytes].concat());
        }
    }
}
