//! Some fields of a hash in Redis, read by name. An empty field is none, as it is to the scripts.

use std::collections::HashMap;
use std::str::FromStr;

use redis::{Cmd, FromRedisValue, ParsingError, Value};
use serde::de::DeserializeOwned;
use turnmill_schema::envelope;

use crate::error::ProducerError;

/// The fields that were asked for and are there.
#[derive(Debug)]
pub(super) struct Hash {
    what: String,
    fields: HashMap<&'static str, Vec<u8>>,
}

impl Hash {
    /// The command that [`Hash::read`] reads the answer of.
    pub(super) fn command(key: &str, names: &[&'static str]) -> Cmd {
        let mut command = redis::cmd("HMGET");
        command.arg(key).arg(names);
        command
    }

    /// Reads the answer; `what` says in errors whose it is.
    pub(super) fn read(what: String, names: &[&'static str], answer: Value) -> Result<Self, ParsingError> {
        let values = Vec::<Option<Vec<u8>>>::from_redis_value(answer)?;
        let there = |(name, value): (&&'static str, Option<Vec<u8>>)| {
            value.filter(|value| !value.is_empty()).map(|value| (*name, value))
        };
        Ok(Self { what, fields: names.iter().zip(values).filter_map(there).collect() })
    }

    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.fields.get(name).map(Vec::as_slice)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.bytes(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// A field that is written as text: a number, an id.
    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, ProducerError> {
        let parse = |text: String| text.parse().map_err(|_| self.unreadable(name, format!("it is {text:?}")));
        self.text(name).map(parse).transpose()
    }

    /// A field that holds an envelope.
    pub(super) fn decoded<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ProducerError> {
        let decode =
            |bytes| envelope::decode(bytes).map_err(|error| self.unreadable(name, error.to_string()));
        self.bytes(name).map(decode).transpose()
    }

    /// An error about a field.
    pub(super) fn unreadable(&self, name: &str, reason: String) -> ProducerError {
        ProducerError::Unreadable { what: format!("the field {name} of {}", self.what), reason }
    }
}
