//! Sizes in bytes that people can write.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, written `268435456` or `256MiB`. Serialises as the plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ByteSize(u64);

/// The text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a size in bytes; write a whole number, bare or with KiB, MiB, GiB, TiB, kB, MB, GB or TB"
)]
pub struct InvalidByteSize(String);

/// Binary units are powers of 1024, decimal ones of 1000. A bare `M` is refused: people mean either by it.
const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl ByteSize {
    /// A size of `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// A size, or as much as suits: the text `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoByteSize {
    /// As much as suits.
    Auto,
    /// So much.
    Size(ByteSize),
}

/// What stands for "as much as suits".
const AUTO: &str = "auto";

impl From<ByteSize> for AutoByteSize {
    fn from(size: ByteSize) -> Self {
        Self::Size(size)
    }
}

impl Serialize for AutoByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Size(size) => size.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for AutoByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText(PhantomData))
    }
}

impl FromStr for AutoByteSize {
    type Err = InvalidByteSize;
    fn from_str(s: &str) -> Result<Self, InvalidByteSize> {
        if s == AUTO { Ok(Self::Auto) } else { s.parse().map(Self::Size) }
    }
}

impl fmt::Display for AutoByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::Size(size) => size.fmt(f),
        }
    }
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;
    fn from_str(s: &str) -> Result<Self, InvalidByteSize> {
        let invalid = || InvalidByteSize(s.chars().take(32).collect());
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(invalid)?;
        number.checked_mul(*scale).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = &UNITS[2..6];
        match binary.iter().rev().find(|(_, scale)| self.0 > 0 && self.0.is_multiple_of(*scale)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText(PhantomData))
    }
}

/// Reads a number of bytes, or a text that `T` understands.
struct NumberOrText<T>(PhantomData<T>);

impl<T: From<ByteSize> + FromStr<Err = InvalidByteSize>> Visitor<'_> for NumberOrText<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes or a text such as \"256MiB\"")
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        let negative = |_| E::invalid_value(de::Unexpected::Signed(value), &self);
        u64::try_from(value).map(|bytes| ByteSize(bytes).into()).map_err(negative)
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        Ok(ByteSize(value).into())
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        value.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_numbers_and_units_are_read() {
        let cases = [
            ("0", 0),
            ("268435456", 268_435_456),
            ("256MiB", 268_435_456),
            ("256 MiB", 268_435_456),
            ("1GB", 1_000_000_000),
            ("7B", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn ambiguous_negative_and_overflowing_texts_are_refused() {
        for bad in ["", "MiB", "256M", "256mib", "-1", "1.5GiB", "1e9", "99999999TiB", "18446744073709551616"]
        {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn auto_is_a_size_only_where_it_is_meant() {
        assert_eq!("auto".parse(), Ok(AutoByteSize::Auto));
        assert_eq!("2MiB".parse(), Ok(AutoByteSize::Size(ByteSize(2 << 20))));
        assert!("Auto".parse::<AutoByteSize>().is_err() && "auto".parse::<ByteSize>().is_err());
        let read = |json: &str| serde_json::from_str::<AutoByteSize>(json).ok();
        for (json, size) in [("\"auto\"", AutoByteSize::Auto), ("7", AutoByteSize::Size(ByteSize(7)))] {
            assert_eq!(read(json), Some(size));
            assert_eq!(serde_json::to_string(&size).ok().as_deref(), Some(json));
        }
        assert_eq!((read("-1"), read("\"some\"")), (None, None));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes: u64, shift in 0u32..50) {
            let size = ByteSize(bytes << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
