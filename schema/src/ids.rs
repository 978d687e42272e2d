//! Names and ids that become parts of Redis keys.
//!
//! Invariant: a value of these types is safe inside a key: it holds no brace (hash tags), no blank and no
//! separator of ours, so two different ids can never make the same key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::names::{AgentName, TenantName};

/// Longest name of a queue, tenant or agent, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A queue's, tenant's or agent's name: 1 to 128 of `A-Z a-z 0-9 . _ - @ +`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("a name is empty; give 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 . _ - @ +")]
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("the name starting with {start:?} has {bytes} bytes; at most {MAX_NAME_BYTES} are allowed")]
    TooLong {
        /// How many bytes it has.
        bytes: usize,
        /// Its first characters, to find it by.
        start: String,
    },
    /// Holds a character that is not allowed.
    #[error("the name {name:?} holds the character {character:?}; allowed are A-Z a-z 0-9 . _ - @ +")]
    Character {
        /// The whole name.
        name: String,
        /// The first character at fault.
        character: char,
    },
}

impl Name {
    /// Checks `name` and keeps it.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        if name.is_empty() {
            return Err(InvalidName::Empty);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(InvalidName::TooLong { bytes: name.len(), start: name.chars().take(24).collect() });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_@+".contains(c);
        match name.chars().find(|c| !allowed(*c)) {
            Some(character) => Err(InvalidName::Character { name, character }),
            None => Ok(Self(name)),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        Self::new(s)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        Self::new(s)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// A turn's id: a UUIDv7 (sorts by creation time) and the shard its keys live in, written `<uuid>.<shard>`.
///
/// The shard is embedded, so the id alone leads to the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TurnId {
    uuid: Uuid,
    shard: u16,
}

/// The text is not a turn id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a turn id; one looks like 01980000-0000-7000-8000-000000000000.0")]
pub struct InvalidTurnId(String);

impl TurnId {
    /// A new id, made now, in `shard`.
    pub fn new(shard: u16) -> Self {
        Self { uuid: Uuid::now_v7(), shard }
    }

    /// The shard whose hash slot holds the turn's keys.
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// When it was made by its producer's clock, in Unix milliseconds.
    pub fn unix_ms(&self) -> u64 {
        // A UUIDv7 begins with them.
        self.uuid.as_u64_pair().0 >> 16
    }

    /// 64 random bits of the id: the seed of a turn that names none.
    pub fn seed(&self) -> u64 {
        self.uuid.as_u64_pair().1
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.uuid, self.shard)
    }
}

impl FromStr for TurnId {
    type Err = InvalidTurnId;
    fn from_str(s: &str) -> Result<Self, InvalidTurnId> {
        let invalid = || InvalidTurnId(s.chars().take(64).collect());
        let (uuid, shard) = s.split_once('.').ok_or_else(invalid)?;
        let id = Self {
            uuid: Uuid::try_parse(uuid).map_err(|_| invalid())?,
            shard: shard.parse().map_err(|_| invalid())?,
        };
        // One id, one spelling: anything else would name the same turn by two keys.
        if id.to_string() == s { Ok(id) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for TurnId {
    type Error = InvalidTurnId;
    fn try_from(s: String) -> Result<Self, InvalidTurnId> {
        s.parse()
    }
}

impl From<TurnId> for String {
    fn from(id: TurnId) -> String {
        id.to_string()
    }
}

/// Whose backlog a turn waits in: `tenant/agent`, or `tenant/~turn` for a turn that stands alone.
///
/// A turn without an agent is an agent of one turn whose keys `conclude` deletes; so every script knows
/// one shape only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(String);

impl AgentId {
    /// A named agent of a tenant.
    pub fn named(tenant: &TenantName, agent: &AgentName) -> Self {
        Self(format!("{tenant}/{agent}"))
    }

    /// The single-turn agent of a turn without one.
    pub fn lone(tenant: &TenantName, turn: TurnId) -> Self {
        Self(format!("{tenant}/~{turn}"))
    }

    /// Takes what a ticket or a script's reply holds: an id that this type once wrote.
    pub fn from_wire(text: String) -> Self {
        Self(text)
    }

    /// True for the agent of a turn that stands alone: it has no history and leaves no keys.
    pub fn is_lone(&self) -> bool {
        self.0.contains("/~")
    }

    /// The agent's name; none for a turn that stands alone.
    pub fn agent(&self) -> Option<AgentName> {
        let (_, agent) = self.0.split_once('/')?;
        AgentName::new(agent).ok()
    }

    /// What follows its tenant: the agent's name, or `~<turn id>` for a turn that stands alone.
    pub fn own(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, own)| own)
    }

    /// Its tenant.
    pub fn tenant(&self) -> &str {
        self.0.split_once('/').map_or(self.0.as_str(), |(tenant, _)| tenant)
    }

    /// The id as it stands in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_keys_are_refused() {
        assert_eq!(Name::new(""), Err(InvalidName::Empty));
        for bad in ["a b", "a{b}", "a/b", "a:b", "~a", "naïve", "a\n"] {
            assert!(matches!(Name::new(bad), Err(InvalidName::Character { .. })), "{bad:?}");
        }
        assert!(matches!(Name::new("a".repeat(129)), Err(InvalidName::TooLong { bytes: 129, .. })));
        assert_eq!(Name::new("team-1.planner@eu").map(String::from), Ok("team-1.planner@eu".into()));
    }

    #[test]
    fn turn_ids_round_trip_and_have_one_spelling() {
        let id = TurnId::new(3);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<TurnId>().is_err());
        for bad in ["", "x", "01980000-0000-7000-8000-000000000000", "01980000-0000-7000-8000-000000000000.x"]
        {
            assert!(bad.parse::<TurnId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_lone_turn_is_told_from_an_agent() {
        let tenant = TenantName::new("default").expect("valid");
        let agent = AgentName::new("a").expect("valid");
        assert!(!AgentId::named(&tenant, &agent).is_lone());
        assert!(AgentId::lone(&tenant, TurnId::new(0)).is_lone());
        assert_eq!(AgentId::named(&tenant, &agent).agent(), Some(agent));
        assert_eq!(AgentId::lone(&tenant, TurnId::new(0)).agent(), None);
    }
}
