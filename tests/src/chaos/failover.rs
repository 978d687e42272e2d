//! Failovers: a replica becomes the primary, and connections to the old one stay open.
//!
//! Invariant: they are planned, by `FAILOVER TO` with a time limit and without FORCE. The primary holds writes back until the
//! replica has everything, or goes on as before, so nothing that was acknowledged may be lost. A replica that takes over from a
//! dead primary lacks the last acknowledged writes: no audit could tell that from a loss of ours.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisResult};
use serde::Serialize;

use super::ChaosError;
use super::store::Store;
use crate::redis_server::RedisServer;

/// The first turn after a failover has to end within this time.
pub const BAR: Duration = Duration::from_secs(5);

/// How long the primary may hold writes back until the replica has everything.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// How long the change of roles may take, the time limit included, before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between looks at who is the primary: what this adds to a failover, at most.
const LOOK: Duration = Duration::from_millis(2);

/// A server on a busy machine answers late, and one that fails over not at all for a moment.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// The second server, and how failovers went so far.
pub struct Failovers {
    replica: RedisServer,
    /// When the newest primary became one, in Unix milliseconds by its clock; none once a turn has ended since.
    open: Option<u64>,
    /// From `role:master` to the end of the first turn, for each failover after which one ended.
    times: Vec<Duration>,
}

impl Failovers {
    /// Starts a primary and a replica of it, both with these command-line options, and waits until the replica is in sync.
    pub async fn pair(options: &[&str]) -> Result<(RedisServer, Self), ChaosError> {
        // A server that becomes a replica is in sync soon: its primary does not wait for others that may come.
        let options = [options, &["--repl-diskless-sync-delay", "0"]].concat();
        let primary = RedisServer::start_with(&options);
        let of = format!("127.0.0.1 {}", primary.address().port());
        let replica = RedisServer::start_with(&[&options[..], &["--replicaof", &of]].concat());
        let failovers = Self { replica, open: None, times: Vec::new() };
        failovers.until_possible(&primary).await?;
        Ok((primary, failovers))
    }

    /// Waits until [`Self::is_possible`].
    pub async fn until_possible(&self, primary: &RedisServer) -> Result<(), ChaosError> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_possible(primary).await? {
            if Instant::now() > deadline {
                return Err(ChaosError::Failover("the replica does not get in sync".to_owned()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Whether no turn has ended since the last failover.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the replica is in sync, as it and the primary see it, and a turn has ended since the last failover.
    pub async fn is_possible(&self, primary: &RedisServer) -> Result<bool, ChaosError> {
        if self.is_open() {
            return Ok(false);
        }
        let of_replica = replication(&mut connect(&self.replica).await?).await?;
        let of_primary = replication(&mut connect(primary).await?).await?;
        Ok(says(&of_replica, "master_link_status:up") && of_primary.contains(",state=online,"))
    }

    /// Makes the replica the primary and `primary` its replica, and swaps the two. False if the replica did not have everything
    /// in time: then all is as before.
    pub async fn fail_over(&mut self, primary: &mut RedisServer) -> Result<bool, ChaosError> {
        let (mut old, mut new) = (connect(primary).await?, connect(&self.replica).await?);
        let address = self.replica.address();
        let mut order = redis::cmd("FAILOVER");
        order.arg("TO").arg(address.ip().to_string()).arg(address.port());
        order.arg("TIMEOUT").arg(TIME_LIMIT.as_millis() as u64);
        let () = order.query_async(&mut old).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut asked = redis::pipe();
            asked.cmd("INFO").arg("replication").cmd("TIME");
            let (told, (seconds, micros)): (String, (u64, u64)) = asked.query_async(&mut new).await?;
            if says(&told, "role:master") {
                self.open = Some(seconds * 1000 + micros / 1000);
                std::mem::swap(primary, &mut self.replica);
                return Ok(true);
            }
            if gave_up(&replication(&mut old).await?) {
                return Ok(false);
            }
            if Instant::now() > deadline {
                return Err(ChaosError::Failover(format!("no primary after {PATIENCE:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks whether a turn has ended since the last failover; the time it took, the first time that one has. `store` is
    /// the new primary's.
    pub async fn look(&mut self, store: &Store) -> Result<Option<Duration>, ChaosError> {
        let Some(since_ms) = self.open else { return Ok(None) };
        // Who ended a turn connected after the change of roles, so that was not in the same millisecond.
        let Some(ended_ms) = store.first_end(since_ms + 1).await? else { return Ok(None) };
        let took = Duration::from_millis(ended_ms.saturating_sub(since_ms));
        self.open = None;
        self.times.push(took);
        Ok(Some(took))
    }

    /// How they went.
    pub fn report(&self) -> FailoverReport {
        FailoverReport::new(&self.times, self.is_open())
    }
}

async fn connect(server: &RedisServer) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE_TIMEOUT));
    redis::Client::open(server.url())?.get_multiplexed_async_connection_with_config(&config).await
}

async fn replication(server: &mut MultiplexedConnection) -> RedisResult<String> {
    redis::cmd("INFO").arg("replication").query_async(server).await
}

fn says(info: &str, line: &str) -> bool {
    info.lines().any(|told| told == line)
}

/// Whether a server that was told to fail over is the primary still and does no more about it.
fn gave_up(info: &str) -> bool {
    says(info, "role:master") && says(info, "master_failover_state:no-failover")
}

/// How the failovers of a run went, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FailoverReport {
    /// Failovers.
    pub count: usize,
    /// Those after which no turn ended.
    pub unanswered: usize,
    /// Longest time from the new primary's `role:master` to the end of the first turn, in milliseconds.
    pub largest_ms: Option<u64>,
    /// Median of these times, in milliseconds.
    pub median_ms: Option<u64>,
}

impl FailoverReport {
    /// The report of failovers after which a turn ended within `times`, and of one more after which none did if `open`.
    pub fn new(times: &[Duration], open: bool) -> Self {
        let mut sorted: Vec<u64> = times.iter().map(|time| time.as_millis() as u64).collect();
        sorted.sort_unstable();
        let unanswered = usize::from(open);
        Self {
            count: times.len() + unanswered,
            unanswered,
            largest_ms: sorted.last().copied(),
            median_ms: median(&sorted),
        }
    }

    /// Why a run with these failovers fails; none if it does not.
    pub fn complaint(&self) -> Option<String> {
        let bar = BAR.as_millis() as u64;
        if self.count == 0 {
            return Some(
                "no failover took place: the run shows nothing about them; give it more minutes".into(),
            );
        }
        if self.unanswered > 0 {
            return Some("after the last failover no turn ended".into());
        }
        let largest = self.largest_ms.filter(|largest| *largest >= bar)?;
        Some(format!(
            "after a failover {largest} ms passed until the first turn ended; it must be less than {bar} ms"
        ))
    }
}

fn median(sorted: &[u64]) -> Option<u64> {
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { *upper } else { u64::midpoint(sorted[middle - 1], *upper) })
}

#[cfg(test)]
mod tests {
    use redis::AsyncCommands;
    use turnmill_schema::Name;
    use turnmill_schema::keys::Keys;

    use super::*;

    fn report(times: &[u64], open: bool) -> FailoverReport {
        FailoverReport::new(&times.iter().copied().map(Duration::from_millis).collect::<Vec<_>>(), open)
    }

    #[test]
    fn the_largest_and_the_median_are_told() {
        let told = |times: &[u64]| {
            let FailoverReport { count, largest_ms, median_ms, .. } = report(times, false);
            (count, largest_ms, median_ms)
        };
        assert_eq!(told(&[900, 100, 300]), (3, Some(900), Some(300)));
        assert_eq!(told(&[900, 100, 300, 400]), (4, Some(900), Some(350)));
        assert_eq!(told(&[7]), (1, Some(7), Some(7)));
        assert_eq!(told(&[]), (0, None, None));
    }

    #[test]
    fn a_run_fails_at_the_bar_without_an_answer_and_without_a_failover() {
        assert_eq!(report(&[4_999, 10], false).complaint(), None);
        let slow = report(&[10, 5_000], false).complaint().expect("it is at the bar");
        assert!(slow.contains("5000 ms passed"), "{slow}");
        assert_eq!(report(&[10], true), FailoverReport { count: 2, unanswered: 1, ..report(&[10], false) });
        assert!(report(&[10], true).complaint().is_some_and(|text| text.contains("no turn ended")));
        assert!(report(&[], false).complaint().is_some_and(|text| text.contains("no failover")));
    }

    #[test]
    fn a_failover_is_given_up_where_the_old_primary_goes_on() {
        let info = |role: &str, state: &str| format!("role:{role}\r\nmaster_failover_state:{state}\r\n");
        assert!(gave_up(&info("master", "no-failover")));
        assert!(!gave_up(&info("master", "waiting-for-sync")));
        assert!(!gave_up(&info("slave", "no-failover")));
    }

    #[tokio::test]
    async fn servers_change_roles_and_back_and_the_first_end_is_timed() {
        let (mut primary, mut failovers) = Failovers::pair(&[]).await.expect("in sync");
        let first = primary.address();
        let queue = Name::new("q").expect("a name");
        let events = Keys::new(&queue, 0).events();
        let mut redis = connect(&primary).await.expect("Redis answers");
        let _before: String = redis.xadd(&events, "*", &[("turn", "before")]).await.expect("it is written");
        for home in [false, true] {
            assert!(failovers.fail_over(&mut primary).await.expect("they answer"));
            assert_eq!(primary.address() == first, home);
            let store = Store::open(&primary.url(), &queue).expect("a URL");
            assert_eq!(failovers.look(&store).await.expect("answered"), None, "no turn has ended since");
            assert!(!failovers.is_possible(&primary).await.expect("answered"), "the last one is open");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut redis = connect(&primary).await.expect("Redis answers");
            let _id: String = redis.xadd(&events, "*", &[("turn", "after")]).await.expect("it is writable");
            let took = failovers.look(&store).await.expect("answered").expect("a turn has ended");
            assert!(took >= Duration::from_millis(20), "{took:?}");
            assert_eq!(failovers.look(&store).await.expect("answered"), None, "it is told once");
            failovers.until_possible(&primary).await.expect("the old primary gets in sync");
        }
        assert_eq!((failovers.report().count, failovers.report().unanswered), (2, 0));
    }
}
