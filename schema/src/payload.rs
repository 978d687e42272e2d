//! Turns too large for Redis: the object that holds one, and the reference that stands in its place.
//!
//! The `envelope` field of a turn's hash holds one of two forms, told apart by the first byte: `1`, the turn itself, or
//! `2`, a [`PayloadReference`]. A reader of inline turns only refuses the second as a version it does not read.
//!
//! Invariants: an object holds exactly the bytes that would stand inline were they fewer; a reference fixes their number
//! and digest, so a turn is read whole and as written or not at all; an object's name is computed from the reference,
//! never read from it, so that no reference leads a reader, or a deleter, to anything but payloads.

use serde::{Deserialize, Serialize};

use crate::envelope::{
    EnvelopeError, MAX_ENVELOPE_BYTES, MAX_INLINE_BYTES, check_size, decode, decode_as, encode, encode_as,
};
use crate::ids::{Name, TurnId};
use crate::turn::Turn;

/// First byte of a reference.
pub const REFERENCE: u8 = 2;

/// The folder of the object store that holds payloads: `payloads/<queue>/…`.
pub const FOLDER: &str = "payloads";

/// What stands in a turn's hash.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredTurn {
    /// The turn itself.
    Inline(Box<Turn>),
    /// Where it is.
    Reference(PayloadReference),
}

/// An encoded turn, on its way to Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncodedTurn {
    /// At most [`MAX_INLINE_BYTES`]: goes into the turn's hash.
    Inline(Vec<u8>),
    /// More: the object is stored first, then the encoded reference goes into the hash.
    Large {
        /// Names the object.
        reference: PayloadReference,
        /// The object's bytes.
        object: Vec<u8>,
    },
}

/// Names the object that holds a turn, and says what it must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadReference {
    /// The turn that the object was written for. A replay refers to the object of the turn it replays.
    pub turn: TurnId,
    /// Size of the object.
    pub bytes: u64,
    /// Digest of the object.
    #[serde(with = "hex")]
    pub blake3: blake3::Hash,
}

/// Why an object is not the one its reference names. Reading it again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Cut, or replaced.
    #[error("the payload of turn {turn} has {found} bytes, not {expected}; submit the turn again")]
    Size {
        /// The turn.
        turn: TurnId,
        /// Bytes that the reference says.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Changed after it was written.
    #[error("the payload of turn {turn} is damaged: its BLAKE3 digest is another one; submit the turn again")]
    Digest {
        /// The turn.
        turn: TurnId,
    },
    /// As its producer wrote it, and yet not a turn.
    #[error("the payload of turn {turn} is not a turn: {reason}")]
    Malformed {
        /// The turn.
        turn: TurnId,
        /// The decoder's words.
        reason: EnvelopeError,
    },
    /// Another turn's.
    #[error("the payload of turn {turn} holds turn {found}; the producer that wrote it has a bug")]
    OtherTurn {
        /// The turn.
        turn: TurnId,
        /// What the object says it is.
        found: TurnId,
    },
}

impl StoredTurn {
    /// Reads either form.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.first() != Some(&REFERENCE) {
            return decode(bytes).map(|turn| Self::Inline(Box::new(turn)));
        }
        let reference: PayloadReference = decode_as(REFERENCE, bytes)?;
        check_size(usize::try_from(reference.bytes).unwrap_or(usize::MAX), MAX_ENVELOPE_BYTES)?;
        Ok(Self::Reference(reference))
    }

    /// Where the turn is, when not here.
    pub fn reference(&self) -> Option<PayloadReference> {
        match self {
            Self::Inline(_) => None,
            Self::Reference(reference) => Some(*reference),
        }
    }
}

impl EncodedTurn {
    /// Encodes `turn`; refuses more than [`MAX_ENVELOPE_BYTES`].
    pub fn new(turn: &Turn) -> Result<Self, EnvelopeError> {
        let bytes = encode(turn)?;
        if bytes.len() <= MAX_INLINE_BYTES {
            return Ok(Self::Inline(bytes));
        }
        Ok(Self::Large { reference: PayloadReference::of(turn.id, &bytes), object: bytes })
    }
}

impl PayloadReference {
    /// The reference to `object`, the encoded turn `turn`.
    pub fn of(turn: TurnId, object: &[u8]) -> Self {
        Self { turn, bytes: object.len() as u64, blake3: blake3::hash(object) }
    }

    /// The bytes that stand in the turn's hash.
    pub fn encode(&self) -> Result<Vec<u8>, EnvelopeError> {
        encode_as(REFERENCE, self, MAX_INLINE_BYTES)
    }

    /// The object's name in the store: `payloads/<queue>/<turn>-<digest>`. Without the content nobody can
    /// name the object, and writing the same content again changes nothing.
    pub fn path(&self, queue: &Name) -> String {
        format!("{FOLDER}/{queue}/{}-{}", self.turn, self.blake3)
    }

    /// Refuses an object of `found` bytes, before they are read.
    pub fn check_size(&self, found: u64) -> Result<(), PayloadError> {
        let Self { turn, bytes: expected, .. } = *self;
        if found == expected { Ok(()) } else { Err(PayloadError::Size { turn, expected, found }) }
    }

    /// The turn that `object` holds, where that is the object meant.
    pub fn open(&self, object: &[u8]) -> Result<Turn, PayloadError> {
        self.check_size(object.len() as u64)?;
        if blake3::hash(object) != self.blake3 {
            return Err(PayloadError::Digest { turn: self.turn });
        }
        let turn: Turn =
            decode(object).map_err(|reason| PayloadError::Malformed { turn: self.turn, reason })?;
        if turn.id == self.turn {
            Ok(turn)
        } else {
            Err(PayloadError::OtherTurn { turn: self.turn, found: turn.id })
        }
    }
}

/// A digest as 64 hexadecimal digits, as `b3sum` prints it.
mod hex {
    use blake3::Hash;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hash.to_hex())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let digits = String::deserialize(deserializer)?;
        Hash::from_hex(digits).map_err(|error| D::Error::custom(format!("a BLAKE3 digest: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::envelope::encode_turn;
    use crate::message::{Message, Role};
    use crate::names::TenantName;

    const ID: &str = "01980000-0000-7000-8000-000000000000.0";

    fn turn(content: &str) -> Turn {
        Turn::new(
            ID.parse().expect("a turn id"),
            TenantName::new("default").expect("a name"),
            vec![Message::new(Role::User, content)],
        )
    }

    fn large(content_bytes: usize) -> (PayloadReference, Vec<u8>) {
        match EncodedTurn::new(&turn(&"x".repeat(content_bytes))).expect("encodes") {
            EncodedTurn::Large { reference, object } => (reference, object),
            EncodedTurn::Inline(bytes) => panic!("{} bytes stand inline", bytes.len()),
        }
    }

    fn digest_of_abc() -> PayloadReference {
        PayloadReference::of(ID.parse().expect("a turn id"), b"abc")
    }

    /// The digest is the published one of `abc`.
    fn golden() -> Vec<u8> {
        let hex = b"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let turn = [b"\x02\x83\xa4turn\xd9\x26", ID.as_bytes()].concat();
        [&turn[..], b"\xa5bytes\x03\xa6blake3\xd9\x40", hex].concat()
    }

    #[test]
    fn golden_bytes_of_a_reference() {
        assert_eq!(digest_of_abc().encode(), Ok(golden()));
        assert_eq!(StoredTurn::decode(&golden()), Ok(StoredTurn::Reference(digest_of_abc())));
    }

    #[test]
    fn the_first_byte_tells_the_forms_apart() {
        let inline = encode_turn(&turn("hi")).expect("encodes");
        assert_eq!(StoredTurn::decode(&inline), Ok(StoredTurn::Inline(Box::new(turn("hi")))));
        assert_eq!(EncodedTurn::new(&turn("hi")), Ok(EncodedTurn::Inline(inline)));
        assert_eq!(decode::<Turn>(&golden()), Err(EnvelopeError::UnknownVersion { version: REFERENCE }));
        assert_eq!(StoredTurn::decode(b"\x03"), Err(EnvelopeError::UnknownVersion { version: 3 }));
        assert_eq!(StoredTurn::decode(b""), Err(EnvelopeError::Empty));
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let whole = golden();
        for end in 1..whole.len() {
            let cut = StoredTurn::decode(&whole[..end]);
            assert!(matches!(cut, Err(EnvelopeError::Malformed { .. })), "cut at {end}: {cut:?}");
        }
        let longer = StoredTurn::decode(&[&whole[..], b"\x00"].concat());
        assert!(matches!(longer, Err(EnvelopeError::Malformed { .. })), "{longer:?}");
    }

    #[test]
    fn a_turn_goes_by_reference_from_one_byte_over_the_limit_on() {
        let overhead =
            encode(&turn(&"x".repeat(MAX_INLINE_BYTES))).expect("encodes").len() - MAX_INLINE_BYTES;
        let fits = turn(&"x".repeat(MAX_INLINE_BYTES - overhead));
        assert_eq!(EncodedTurn::new(&fits), Ok(EncodedTurn::Inline(encode_turn(&fits).expect("fits"))));
        let (reference, object) = large(MAX_INLINE_BYTES - overhead + 1);
        assert_eq!((reference.bytes, object.len()), (MAX_INLINE_BYTES as u64 + 1, MAX_INLINE_BYTES + 1));
        assert_eq!(reference.open(&object), Ok(turn(&"x".repeat(MAX_INLINE_BYTES - overhead + 1))));
    }

    #[test]
    fn over_the_hard_limit_both_turns_and_references_are_refused_with_the_numbers() {
        let refused = EncodedTurn::new(&turn(&"x".repeat(MAX_ENVELOPE_BYTES))).expect_err("too large");
        assert!(matches!(refused, EnvelopeError::TooLarge { limit: MAX_ENVELOPE_BYTES, .. }));
        assert!(refused.to_string().contains("16777216"), "{refused}");
        let reference = PayloadReference { bytes: MAX_ENVELOPE_BYTES as u64 + 1, ..digest_of_abc() };
        let stored = reference.encode().expect("encodes");
        assert!(matches!(StoredTurn::decode(&stored), Err(EnvelopeError::TooLarge { .. })));
    }

    #[test]
    fn only_the_object_that_was_written_is_opened() {
        let (reference, object) = large(MAX_INLINE_BYTES);
        let shorter = reference.open(&object[1..]).expect_err("a byte is missing");
        assert!(
            matches!(shorter, PayloadError::Size { .. }) && shorter.to_string().contains(ID),
            "{shorter}"
        );
        for place in [0, object.len() / 2, object.len() - 1] {
            let mut flipped = object.clone();
            flipped[place] ^= 1;
            assert_eq!(reference.open(&flipped), Err(PayloadError::Digest { turn: reference.turn }));
        }
        let foreign = encode(&turn("hi")).expect("encodes");
        let other = TurnId::new(0);
        let reference = PayloadReference::of(other, &foreign);
        assert_eq!(
            reference.open(&foreign),
            Err(PayloadError::OtherTurn { turn: other, found: turn("hi").id })
        );
        let reason = decode::<Turn>(b"abc").expect_err("no turn");
        let malformed = PayloadError::Malformed { turn: digest_of_abc().turn, reason };
        assert_eq!(digest_of_abc().open(b"abc"), Err(malformed));
    }

    #[test]
    fn the_path_holds_queue_turn_and_digest() {
        let queue = Name::new("q").expect("a name");
        let digest = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(digest_of_abc().path(&queue), format!("payloads/q/{ID}-{digest}"));
    }

    proptest! {
        #[test]
        fn references_round_trip(content: Vec<u8>) {
            let reference = PayloadReference::of(TurnId::new(7), &content);
            let stored = reference.encode().expect("encodes");
            prop_assert_eq!(StoredTurn::decode(&stored), Ok(StoredTurn::Reference(reference)));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = StoredTurn::decode(&bytes);
            let _ = StoredTurn::decode(&[&[REFERENCE][..], &bytes].concat());
        }
    }
}
