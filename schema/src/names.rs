//! Names by what they name, so that no two of them can be swapped. Each has the form of a [`Name`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{InvalidName, Name};

macro_rules! names {
    ($($(#[$doc:meta])+ $name:ident;)+) => {$(
        $(#[$doc])+
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Name);

        impl $name {
            /// Checks `name` and keeps it.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                Name::new(name).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The name, for what takes any.
            pub fn as_name(&self) -> &Name {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                Self::new(s)
            }
        }

        impl From<Name> for $name {
            fn from(name: Name) -> Self {
                Self(name)
            }
        }

        impl From<$name> for Name {
            fn from(name: $name) -> Name {
                name.0
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    )+};
}

names! {
    /// A queue's name.
    QueueName;
    /// A tenant's name. Tenants never share anything.
    TenantName;
    /// An agent's name. Agents of two tenants may have the same one.
    AgentName;
    /// What makes enqueueing safe to repeat: a tenant's turns with the same key are one turn.
    IdempotencyKey;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_checked_and_written_as_names_are() {
        for bad in ["", "a b", "a/b", "~a"] {
            assert_eq!(AgentName::new(bad).err(), Name::new(bad).err(), "{bad:?}");
            let (name, agent) = (serde_json::to_string(bad).expect("a text"), "an agent of no name");
            assert!(serde_json::from_str::<AgentName>(&name).is_err(), "{agent}: {name}");
        }
        let (name, key) = (Name::new("a-1").expect("a name"), IdempotencyKey::new("a-1").expect("a name"));
        assert_eq!(serde_json::to_string(&key).ok(), serde_json::to_string(&name).ok());
        assert_eq!("a-1".parse(), Ok(key));
    }
}
