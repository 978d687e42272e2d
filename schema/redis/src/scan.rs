//! Reading through all keys of a queue, for what must not be missed: which objects in the store are still referred to.

use redis::{Cmd, FromRedisValue, RedisResult, Value};

use crate::fault::Fault;
use crate::server::Server;

/// Keys that Redis looks at in one step of a scan.
const SCAN_KEYS: usize = 1000;

/// All keys of a server that match a pattern, a page at a time; see [`Server::scan`].
#[derive(Debug)]
pub struct Scan<'a> {
    server: &'a Server,
    pattern: String,
    /// None: that was all.
    cursor: Option<u64>,
}

impl Server {
    /// Reads through all keys that match `pattern`.
    pub fn scan(&self, pattern: String) -> Scan<'_> {
        Scan { server: self, pattern, cursor: Some(0) }
    }

    /// A field of every key's hash, as `command` gives it (`HGET`, `HSTRLEN`). A hash that refuses is its own error.
    ///
    /// # Errors
    /// See [`Fault`]: of the whole call, or of one key.
    pub async fn fields_of<T: FromRedisValue>(
        &self,
        command: &str,
        keys: &[String],
        field: &str,
    ) -> Result<Vec<Result<T, Fault>>, Fault> {
        const STEP: &str = "scan";
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for key in keys {
            let mut ask = Cmd::new();
            ask.arg(command).arg(key).arg(field);
            pipeline.add_command(ask);
        }
        let answers: Vec<RedisResult<Value>> = self.ask_all(STEP, &pipeline).await?;
        let read = |answer: RedisResult<Value>| {
            let read = answer.and_then(|value| Ok(T::from_redis_value(value)?));
            read.map_err(|error| self.classify(STEP, &error))
        };
        Ok(answers.into_iter().map(read).collect())
    }
}

impl Scan<'_> {
    /// Some more keys, or none of them; maybe keys that were given before. None: that was all.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, Fault> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(SCAN_KEYS);
        // Keys of others need not be text.
        let (next, keys): (u64, Vec<Vec<u8>>) = self.server.ask("scan", &scan).await?;
        self.cursor = Some(next).filter(|next| *next != 0);
        Ok(Some(keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect()))
    }
}
