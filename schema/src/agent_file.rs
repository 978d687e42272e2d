//! An agent as one file: what it heard and said, and its K and V where they were asked for.
//!
//! The file is [`START`], then records: an agent, its transcript entries, objects, an end. Each has its kind, length and
//! digest before it, so a reader holds one record at a time, and nothing damaged gets further than it.
//!
//! | bytes of a record | what |
//! |---|---|
//! | 0 | kind: 1 agent, 2 transcript entry, 3 object, 4 end |
//! | 1..5 | bytes of the body, little endian |
//! | 5..37 | BLAKE3 digest of bytes 0..5 and the body |
//! | 37.. | body: an envelope; of an object, the object |
//!
//! Invariants: a file that was cut lacks its end; entries and objects are the bytes that Redis and the store held.

use serde::{Deserialize, Serialize};

use crate::envelope::{EnvelopeError, MAX_ENVELOPE_BYTES, decode, encode};
use crate::kv_object::HeaderStart;
use crate::manifest::{DIGEST_BYTES, Manifest};
use crate::names::{AgentName, TenantName};
use crate::transcript::TranscriptEntry;

/// First bytes of a file: `TMAF`, the version (1, little endian), two zeros.
pub const START: [u8; 8] = *b"TMAF\x01\0\0\0";
/// Bytes before a record's body.
pub const RECORD_START_BYTES: usize = KIND_AND_LENGTH_BYTES + DIGEST_BYTES;
/// Largest object, in bytes: far above a segment of a large model.
pub const MAX_OBJECT_BYTES: usize = 256 * 1024 * 1024;

const KIND_AND_LENGTH_BYTES: usize = 5;
const MAGIC_BYTES: usize = 4;
const AGENT: u8 = 1;
const ENTRY: u8 = 2;
const OBJECT: u8 = 3;
const END: u8 = 4;

/// What happens to an agent's later turns when one becomes a dead letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDead {
    /// They go on.
    #[default]
    Skip,
    /// They wait for an operator.
    Halt,
}

/// Whose file it is; its first record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedAgent {
    /// Its tenant.
    pub tenant: TenantName,
    /// Its name.
    pub agent: AgentName,
    /// Its policy.
    #[serde(default)]
    pub on_dead: OnDead,
    /// What was stored of its K and V.
    #[serde(default)]
    pub manifest: Option<Manifest>,
}

/// How much there is in a file; its last record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Transcript entries.
    pub entries: u64,
    /// Objects.
    pub objects: u64,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Whose file it is.
    Agent(ExportedAgent),
    /// A transcript entry in its envelope.
    Entry(Vec<u8>),
    /// An object of K and V.
    Object(Vec<u8>),
    /// The file is whole.
    End(Totals),
}

/// What stands before a record's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordStart {
    start: [u8; RECORD_START_BYTES],
}

/// Why a file is not an exported agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentFileError {
    /// Something else.
    #[error("the file is not an exported agent; give one that turnmill agent export wrote")]
    Foreign,
    /// Written by another version.
    #[error("the file has version {version} of the format; this build reads version 1, so upgrade it")]
    UnknownVersion {
        /// Its version.
        version: u16,
    },
    /// Its end is missing.
    #[error("the file ends too early; copy or export it again")]
    Cut,
    /// A digest does not fit.
    #[error("the file is damaged: the BLAKE3 digest of a record is another one; copy or export it again")]
    Damaged,
    /// Over a size limit.
    #[error("a record of the file has {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit it breaks.
        limit: usize,
    },
    /// As its writer wrote it, and yet not what belongs there.
    #[error("the file is not as this version writes it: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// Something does not fit into an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

/// Refuses what does not start as a file of this version.
pub fn check_start(start: &[u8; START.len()]) -> Result<(), AgentFileError> {
    if start[..MAGIC_BYTES] != START[..MAGIC_BYTES] {
        return Err(AgentFileError::Foreign);
    }
    if *start != START {
        return Err(AgentFileError::UnknownVersion { version: u16::from_le_bytes([start[4], start[5]]) });
    }
    Ok(())
}

impl Record {
    /// The record as it stands in a file.
    pub fn encode(&self) -> Result<Vec<u8>, AgentFileError> {
        let encoded;
        let (kind, body) = match self {
            Self::Agent(agent) => {
                encoded = encode(agent)?;
                (AGENT, &encoded)
            }
            Self::Entry(entry) => (ENTRY, entry),
            Self::Object(object) => (OBJECT, object),
            Self::End(totals) => {
                encoded = encode(totals)?;
                (END, &encoded)
            }
        };
        check_size(kind, body.len())?;
        let mut record = vec![kind];
        // The limits are far below what 32 bits hold.
        record.extend((body.len() as u32).to_le_bytes());
        let digest = digest(&record, body);
        record.extend(digest.as_bytes());
        record.extend(body);
        Ok(record)
    }
}

impl RecordStart {
    /// Reads what stands before a body; refuses unknown kinds and sizes over the limits, before anything is allocated.
    pub fn read(start: [u8; RECORD_START_BYTES]) -> Result<Self, AgentFileError> {
        let read = Self { start };
        check_size(read.kind(), read.body_bytes())?;
        Ok(read)
    }

    /// How many bytes the body has.
    pub fn body_bytes(&self) -> usize {
        let [_, a, b, c, d, ..] = self.start;
        u32::from_le_bytes([a, b, c, d]) as usize
    }

    /// The record with this body.
    pub fn open(&self, body: Vec<u8>) -> Result<Record, AgentFileError> {
        let (head, expected) = self.start.split_at(KIND_AND_LENGTH_BYTES);
        if body.len() < self.body_bytes() {
            return Err(AgentFileError::Cut);
        }
        if digest(head, &body).as_bytes() != expected {
            return Err(AgentFileError::Damaged);
        }
        let malformed = |reason: String| AgentFileError::Malformed { reason };
        match self.kind() {
            AGENT => decode(&body).map(Record::Agent).map_err(|error| malformed(error.to_string())),
            END => decode(&body).map(Record::End).map_err(|error| malformed(error.to_string())),
            ENTRY => match decode::<TranscriptEntry>(&body) {
                Ok(_) => Ok(Record::Entry(body)),
                Err(error) => Err(malformed(error.to_string())),
            },
            // Other kinds were refused with the start.
            _ => match HeaderStart::read(&body) {
                Some(_) => Ok(Record::Object(body)),
                None => Err(malformed("one of its objects holds no K and V".to_owned())),
            },
        }
    }

    fn kind(&self) -> u8 {
        self.start[0]
    }
}

fn digest(kind_and_length: &[u8], body: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(kind_and_length).update(body).finalize()
}

fn check_size(kind: u8, bytes: usize) -> Result<(), AgentFileError> {
    let limit = match kind {
        AGENT | ENTRY | END => MAX_ENVELOPE_BYTES,
        OBJECT => MAX_OBJECT_BYTES,
        kind => {
            let reason = format!("it has a record of kind {kind}");
            return Err(AgentFileError::Malformed { reason });
        }
    };
    if bytes > limit { Err(AgentFileError::TooLarge { bytes, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::TurnId;
    use crate::manifest::Digest;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a name")
    }

    fn agent() -> Record {
        let (tenant, agent) = (name("acme"), name("a"));
        Record::Agent(ExportedAgent { tenant, agent, on_dead: OnDead::Halt, manifest: None })
    }

    fn entry() -> Record {
        let entry = TranscriptEntry {
            turn: TurnId::new(0),
            messages: Vec::new(),
            keep: 0,
            tokens: vec![1],
            rendering: None,
        };
        Record::Entry(encode(&entry).expect("encodes"))
    }

    fn object(content: &[u8]) -> Record {
        Record::Object([&b"TMKV\x01\0\0\0"[..], &[1; 96], content].concat())
    }

    fn read(bytes: &[u8]) -> Result<Record, AgentFileError> {
        let start = bytes.first_chunk().ok_or(AgentFileError::Cut)?;
        RecordStart::read(*start)?.open(bytes[RECORD_START_BYTES..].to_vec())
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(START, *b"TMAF\x01\x00\x00\x00");
        let body = b"\x01\x84\xa6tenant\xa4acme\xa5agent\xa1a\xa7on_dead\xa4halt\xa8manifest\xc0";
        let head = [&[1][..], &(body.len() as u32).to_le_bytes()].concat();
        let digest = blake3::hash(&[&head[..], body].concat());
        let golden = [&head[..], digest.as_bytes(), body].concat();
        assert_eq!(agent().encode(), Ok(golden.clone()));
        assert_eq!(read(&golden), Ok(agent()));
        let end = Record::End(Totals { entries: 2, objects: 1 }).encode().expect("encodes");
        assert_eq!(end[..5], *b"\x04\x14\x00\x00\x00");
        assert_eq!(end[RECORD_START_BYTES..], *b"\x01\x82\xa7entries\x02\xa7objects\x01");
    }

    #[test]
    fn other_files_and_versions_are_refused() {
        assert_eq!(check_start(&START), Ok(()));
        assert_eq!(check_start(b"PK\x03\x04\0\0\0\0"), Err(AgentFileError::Foreign));
        assert_eq!(check_start(b"TMAF\x02\0\0\0"), Err(AgentFileError::UnknownVersion { version: 2 }));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused() {
        for record in [agent(), entry(), object(b"abc"), Record::End(Totals::default())] {
            let whole = record.encode().expect("encodes");
            assert_eq!(read(&whole), Ok(record));
            for end in 0..whole.len() {
                assert_eq!(read(&whole[..end]), Err(AgentFileError::Cut), "cut at {end}");
            }
            assert_eq!(read(&[&whole[..], b"x"].concat()), Err(AgentFileError::Damaged));
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 0x40;
                assert!(read(&flipped).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn sizes_over_the_limits_are_refused_before_they_are_read() {
        for (kind, limit) in [(1, MAX_ENVELOPE_BYTES), (2, MAX_ENVELOPE_BYTES), (3, MAX_OBJECT_BYTES)] {
            let mut start = [0; RECORD_START_BYTES];
            start[0] = kind;
            start[1..5].copy_from_slice(&(limit as u32 + 1).to_le_bytes());
            assert_eq!(RecordStart::read(start), Err(AgentFileError::TooLarge { bytes: limit + 1, limit }));
        }
        let large = Record::Entry(vec![0; MAX_ENVELOPE_BYTES + 1]).encode();
        assert!(matches!(large, Err(AgentFileError::TooLarge { .. })));
        assert!(matches!(RecordStart::read([9; RECORD_START_BYTES]), Err(AgentFileError::Malformed { .. })));
    }

    #[test]
    fn whole_records_of_something_else_are_refused() {
        for record in [Record::Entry(b"\x01\xc0".to_vec()), Record::Object(b"TMKV".to_vec())] {
            let read = read(&record.encode().expect("encodes"));
            assert!(matches!(read, Err(AgentFileError::Malformed { .. })), "{read:?}");
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(content: Vec<u8>, tokens: u32, last: [u8; 32], entries: u64, objects: u64) {
            let manifest = Manifest { namespace: Digest([1; 32]), tokens, shared_tokens: 0, last: last.into() };
            let Record::Agent(agent) = agent() else { unreachable!("it is one") };
            let agent = Record::Agent(ExportedAgent { manifest: Some(manifest), ..agent });
            for record in [agent, object(&content), Record::End(Totals { entries, objects })] {
                prop_assert_eq!(read(&record.encode().expect("encodes")), Ok(record));
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, kind in 0..6u8) {
            let _ = read(&bytes);
            let head = [&[kind][..], &(bytes.len() as u32).to_le_bytes()].concat();
            let digest = digest(&head, &bytes);
            let _ = read(&[&head[..], digest.as_bytes(), &bytes].concat());
        }
    }
}
