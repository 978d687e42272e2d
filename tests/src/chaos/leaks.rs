//! What is held or kept and belongs to nobody, once every turn has ended: in workers before they leave, in Redis afterwards.

use turnmill_schema::Name;
use turnmill_schema::keys::Keys;

use super::ChaosError;
use super::audit::{Finding, Violation};
use crate::leftovers;
use crate::scrape::Scrape;

/// What a worker says that it holds. All of them are 0 while it has no turn.
const HELD: [&str; 4] = [
    "turnmill_turns_held",
    "turnmill_engine_running_sequences",
    "turnmill_engine_waiting_sequences",
    "turnmill_pool_blocks{state=\"held\"}",
];

/// What the shard of `queue` in the Redis at `url` holds. Blocks.
pub fn of_queue(url: &str, queue: &Name) -> Result<Vec<Finding>, ChaosError> {
    let left = leftovers::left(url, &Keys::new(queue, 0))?;
    Ok(left.into_iter().map(|what| Finding::new(Violation::Leftover, "the queue", what)).collect())
}

/// What the worker called `name` holds, as its metrics tell. What they do not tell, because the worker has not had a turn yet,
/// it does not hold.
pub fn of_worker(name: &str, metrics: &Scrape) -> Vec<Finding> {
    let held = |series: &&str| metrics.series(series).filter(|value| *value != 0.0);
    HELD.iter()
        .filter_map(|series| held(series).map(|value| format!("no turn is open, and {series} is {value}")))
        .map(|what| Finding::new(Violation::Leftover, name, what))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_server::RedisServer;

    #[test]
    fn a_worker_without_turns_holds_nothing() {
        assert_eq!(of_worker("w", &Scrape::read("")), []);
        let rest: String = HELD.iter().map(|series| format!("{series} 0\n")).collect();
        let cached = "turnmill_pool_blocks{state=\"cached\"} 9\nturnmill_turns_claimed_total 3\n";
        assert_eq!(of_worker("w", &Scrape::read(&(rest + cached))), []);
    }

    #[test]
    fn every_value_that_is_held_is_a_finding() {
        for held in HELD {
            let found = of_worker("w1-2", &Scrape::read(&format!("{held} 1\n")));
            assert_eq!(found.len(), 1, "{held}: {found:?}");
            let text = found[0].to_string();
            assert!(text.starts_with("left over: w1-2: ") && text.contains(held), "{text}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_key_of_nobody_is_a_finding() {
        let (redis, queue) = (RedisServer::start(), Name::new("q").expect("a name"));
        let look = || tokio::task::block_in_place(|| of_queue(&redis.url(), &queue)).expect("Redis answers");
        assert_eq!(look(), []);
        let client = redis::Client::open(redis.url()).expect("a URL");
        let mut connection = client.get_connection().expect("Redis answers");
        let key = Keys::new(&queue, 0).open();
        let () =
            redis::cmd("ZADD").arg(&key).arg(1).arg("t/a").query(&mut connection).expect("it is written");
        assert_eq!(look(), [Finding::new(Violation::Leftover, "the queue", key)]);
    }
}
