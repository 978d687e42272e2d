//! Some fields of a hash, read by name. An empty field is none, as it is to the scripts.

use std::collections::HashMap;
use std::str::FromStr;

use redis::{Cmd, FromRedisValue, ParsingError, Value};
use turnmill_schema::envelope;
use turnmill_schema::{End, Event};

/// The fields that were asked for and are there.
#[derive(Debug)]
pub(crate) struct Hash {
    fields: HashMap<&'static str, Vec<u8>>,
}

impl Hash {
    /// The command that [`Hash::read`] reads the answer of.
    pub(crate) fn command(key: String, names: &[&'static str]) -> Cmd {
        let mut command = redis::cmd("HMGET");
        command.arg(key).arg(names);
        command
    }

    pub(crate) fn read(names: &[&'static str], answer: Value) -> Result<Self, ParsingError> {
        let values = Vec::<Option<Vec<u8>>>::from_redis_value(answer)?;
        let there = |(name, value): (&&'static str, Option<Vec<u8>>)| {
            value.filter(|value| !value.is_empty()).map(|value| (*name, value))
        };
        Ok(Self { fields: names.iter().zip(values).filter_map(there).collect() })
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Vec<u8>> {
        self.fields.remove(name)
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.fields.get(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// A field that is written as text: a number, an id.
    pub(crate) fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, ParsingError> {
        let parse = |text: String| text.parse().map_err(|_| wrong(name, format!("it is {text:?}")));
        self.text(name).map(parse).transpose()
    }

    /// A field that must be there and be `T`.
    pub(crate) fn required<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ParsingError> {
        let found = self.text(name).and_then(|text| parse(&text));
        found.ok_or_else(|| wrong(name, "it is missing or of another form, as another version writes it"))
    }

    /// A field that holds an event in its envelope.
    pub(crate) fn event(&self, name: &str) -> Result<Option<Event>, ParsingError> {
        let decode = |bytes: &Vec<u8>| envelope::decode(bytes).map_err(|error| wrong(name, error));
        self.fields.get(name).map(decode).transpose()
    }

    /// A field that holds the end of a turn.
    pub(crate) fn end(&self, name: &str) -> Result<Option<End>, ParsingError> {
        match self.event(name)? {
            Some(Event::End(end)) => Ok(Some(end)),
            Some(_) => Err(wrong(name, "it is not an End")),
            None => Ok(None),
        }
    }
}

fn wrong(name: &str, reason: impl std::fmt::Display) -> ParsingError {
    ParsingError::from(format!("field {name}: {reason}"))
}
