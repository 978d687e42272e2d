//! What came of a step that attends to many agents.

use redis::{FromRedisValue, ParsingError, Value};

/// How many agents a step changed, and which ones it could not read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attended {
    /// Agents that it changed.
    pub count: u64,
    /// Of each agent that cannot be read, why, with the key that is to blame. Nothing of it was written.
    pub errors: Vec<String>,
}

impl FromRedisValue for Attended {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (count, errors) = FromRedisValue::from_redis_value(value)?;
        Ok(Self { count, errors })
    }
}
