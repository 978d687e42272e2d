//! Reading scripts' replies: an array whose first part says which kind of answer it is.

use redis::{FromRedisValue, ParsingError, Value};

/// The parts of an answer, first to last.
pub(crate) struct Parts(std::vec::IntoIter<Value>);

impl Parts {
    pub(crate) fn of(reply: Value) -> Result<Self, ParsingError> {
        Ok(Self(Vec::<Value>::from_redis_value(reply)?.into_iter()))
    }

    /// The next part; nil if there is none.
    pub(crate) fn next<T: FromRedisValue>(&mut self) -> Result<T, ParsingError> {
        T::from_redis_value(self.0.next().unwrap_or(Value::Nil))
    }

    /// The next part as text, or none if it is empty.
    pub(crate) fn text(&mut self) -> Result<Option<String>, ParsingError> {
        Ok(Some(self.next::<String>()?).filter(|text| !text.is_empty()))
    }

    /// What is left.
    pub(crate) fn rest(self) -> Vec<Value> {
        self.0.collect()
    }
}

/// The error for a kind of answer that the step does not know.
pub(crate) fn unknown<T>(kind: &str) -> Result<T, ParsingError> {
    Err(ParsingError::from(format!("it starts with {kind:?}")))
}
