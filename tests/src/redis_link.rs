//! The connection over which a test asks its Redis. It is kept, because tests ask hundreds of thousands of times, and made anew if it
//! is gone: tests kill clients and servers.

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline, Value};
use tokio::sync::Mutex;

/// A way to the Redis at a URL. It connects when something is asked.
pub struct RedisLink {
    url: String,
    kept: Mutex<Option<MultiplexedConnection>>,
}

impl RedisLink {
    /// One to the server at `url`.
    pub fn new(url: String) -> Self {
        Self { url, kept: Mutex::default() }
    }

    /// A connection of its own.
    pub async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(&*self.url).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("the server answers")
    }

    /// One command.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::pipe();
        command.cmd(words[0]).arg(&words[1..]);
        self.one(&command).await
    }

    /// The answer to a pipeline of one command.
    pub async fn one<T: FromRedisValue>(&self, command: &Pipeline) -> T {
        let mut answers = self.ask(command).await;
        assert_eq!(answers.len(), 1, "a command has an answer");
        answer(answers.remove(0))
    }

    /// The answers to commands, in their order and over one round trip.
    pub async fn ask(&self, commands: &Pipeline) -> Vec<Value> {
        let mut connection = self.connection().await;
        let answers = match commands.query_async(&mut connection).await {
            // What is sent over a connection that is gone is not done.
            Err(error) if error.is_connection_dropped() => {
                let mut fresh = self.connect().await;
                *self.kept.lock().await = Some(fresh.clone());
                commands.query_async(&mut fresh).await
            }
            answers => answers,
        };
        answers.expect("the commands work")
    }

    async fn connection(&self) -> MultiplexedConnection {
        let mut kept = self.kept.lock().await;
        if kept.is_none() {
            *kept = Some(self.connect().await);
        }
        kept.clone().expect("just made")
    }
}

/// An answer as what it must be.
pub fn answer<T: FromRedisValue>(value: Value) -> T {
    redis::from_redis_value(value).expect("the answer is of this kind")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_server::RedisServer;

    /// How many connections the server has ever accepted.
    async fn accepted(link: &RedisLink) -> u64 {
        let stats: String = link.command(&["INFO", "stats"]).await;
        let count = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        count.and_then(|count| count.trim().parse().ok()).expect("a count")
    }

    #[tokio::test]
    async fn commands_share_a_connection_until_it_is_gone() {
        let mut server = RedisServer::start();
        let link = RedisLink::new(server.url());
        let before = accepted(&link).await;
        for i in 0..10_i64 {
            assert_eq!(link.command::<i64>(&["INCR", "x"]).await, i + 1);
        }
        let mut both = redis::pipe();
        both.cmd("GET").arg("x").cmd("GET").arg("y");
        let [x, y] = <[Value; 2]>::try_from(link.ask(&both).await).expect("two answers");
        assert_eq!((answer::<i64>(x), answer::<Option<i64>>(y)), (10, None));
        assert_eq!(accepted(&link).await, before);

        let other = RedisLink::new(server.url());
        let _: Value = other.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        assert_eq!(link.command::<i64>(&["INCR", "x"]).await, 11, "once, over another connection");
        server.crash();
        server.restart();
        assert_eq!(link.command::<i64>(&["INCR", "x"]).await, 1, "it kept nothing");
    }
}
