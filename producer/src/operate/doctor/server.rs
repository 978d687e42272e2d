//! Checks of the server: version, memory, durability, role, clock.

use std::time::{SystemTime, UNIX_EPOCH};

use turnmill_redis::{Server, ServerFacts, ServerReport};

use crate::operate::Operator;

use super::Check;

/// Memory in use above which there is soon no room, in percent of the limit.
const NEARLY_FULL_PERCENT: u64 = 90;
/// Clocks further apart make deadlines and schedules wrong by as much, in milliseconds.
const MAX_SKEW_MS: u64 = 1000;

/// A field of INFO; none if the server does not tell.
fn field<'a>(report: &'a ServerReport, name: &str) -> Option<&'a str> {
    report.info.get(name).map(String::as_str)
}

fn number(report: &ServerReport, name: &str) -> u64 {
    field(report, name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Operator {
    pub(super) async fn examine_server(&self) -> Vec<Check> {
        let report = match self.redis().ask(Server::report).await {
            Ok(report) => report,
            Err(error) => return vec![Check::unknown("server", &error)],
        };
        let mut checks = judge(&report);
        checks.push(match self.now_ms().await {
            Ok(now_ms) => judge_clock(now_ms, local_ms()),
            Err(error) => Check::unknown("clock", &error),
        });
        checks
    }
}

fn local_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Every check of what the server says.
pub(super) fn judge(report: &ServerReport) -> Vec<Check> {
    vec![
        version(report),
        eviction(report),
        memory(report),
        persistence(report),
        replication(report),
        durability(report),
    ]
}

fn version(report: &ServerReport) -> Check {
    let Some(version) = field(report, "redis_version") else {
        return Check::warn(
            "version",
            "the server does not tell",
            "make sure that it is Redis 7.0 or newer, or Valkey",
        );
    };
    if (ServerFacts { version: version.to_owned(), ..ServerFacts::default() }).is_too_old() {
        return Check::fail(
            "version",
            version,
            "upgrade to Redis 7.0 or newer, or Valkey: the scripts need it",
        );
    }
    Check::ok("version", version)
}

fn eviction(report: &ServerReport) -> Check {
    let policy = field(report, "maxmemory_policy").unwrap_or("unknown");
    let bounded = number(report, "maxmemory") > 0;
    match (policy, bounded) {
        ("noeviction", _) => Check::ok("eviction", "noeviction"),
        (_, true) => Check::fail(
            "eviction",
            format!("{policy}: turns may be evicted"),
            "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        ),
        (_, false) => Check::warn(
            "eviction",
            format!("{policy}, but without maxmemory nothing is evicted"),
            "set noeviction before somebody sets maxmemory",
        ),
    }
}

fn memory(report: &ServerReport) -> Check {
    let (used, limit) = (number(report, "used_memory"), number(report, "maxmemory"));
    let used_mib = used / (1 << 20);
    if limit == 0 {
        return Check::ok("memory", format!("{used_mib} MiB used, without a limit"));
    }
    let percent = used.saturating_mul(100) / limit;
    let found = format!("{used_mib} MiB used, {percent} % of maxmemory");
    match percent {
        100.. => {
            Check::fail("memory", found, "raise maxmemory: enqueueing is refused until running turns end")
        }
        NEARLY_FULL_PERCENT.. => {
            Check::warn("memory", found, "raise maxmemory, or lower the workers' retained_bytes")
        }
        _ => Check::ok("memory", found),
    }
}

fn persistence(report: &ServerReport) -> Check {
    let failed = ["aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"]
        .into_iter()
        .find(|name| field(report, name).is_some_and(|status| status != "ok"));
    if let Some(name) = failed {
        let advice = "look into the server's log and at its disk: writes do not reach it";
        return Check::fail("persistence", format!("{name} is not ok"), advice);
    }
    if number(report, "aof_enabled") == 0 {
        return Check::fail(
            "persistence",
            "the append-only file is off: a restart loses the queue",
            "redis-cli CONFIG SET appendonly yes, and the same in redis.conf",
        );
    }
    match report.appendfsync.as_deref() {
        Some("no") => Check::warn(
            "persistence",
            "AOF, appendfsync no",
            "use everysec or always: the kernel decides what is lost",
        ),
        Some(fsync) => Check::ok("persistence", format!("AOF, appendfsync {fsync}")),
        None => Check::warn(
            "persistence",
            "AOF; CONFIG GET is refused",
            "ask who may whether appendfsync is always or everysec",
        ),
    }
}

fn replication(report: &ServerReport) -> Check {
    match (field(report, "role"), number(report, "connected_slaves")) {
        (Some("slave"), _) => {
            let master = field(report, "master_host").unwrap_or("its master");
            Check::fail(
                "replication",
                "this is a read-only replica",
                format!("connect to {master}, which takes writes"),
            )
        }
        (_, 0) => Check::ok("replication", "no replicas"),
        (_, replicas) => Check::warn(
            "replication",
            format!("{replicas} replicas, written to after the reply"),
            "a failover may lose or repeat what was acknowledged last; enqueue under idempotency keys",
        ),
    }
}

/// Which promise holds when the server loses power.
fn durability(report: &ServerReport) -> Check {
    let aof = number(report, "aof_enabled") == 1;
    let found = match report.appendfsync.as_deref().filter(|_| aof) {
        Some("always") => {
            return Check::ok("durability", "no acknowledged turn is lost with the server's power");
        }
        Some("everysec") => "with the server's power about the last second of acknowledged writes is lost",
        Some(_) => "with the server's power as much is lost as the kernel had not written",
        None if aof => "unknown",
        None => {
            return Check::fail(
                "durability",
                "everything is lost with the server's process",
                "turn the append-only file on",
            );
        }
    };
    Check::warn(
        "durability",
        found,
        "enqueue again under idempotency keys after a crash, or set appendfsync always",
    )
}

fn judge_clock(server_ms: u64, local_ms: u64) -> Check {
    let apart_ms = server_ms.abs_diff(local_ms);
    let found = format!("{apart_ms} ms from this machine's");
    if apart_ms > MAX_SKEW_MS {
        return Check::warn(
            "clock",
            found,
            "set both by NTP: deadlines and schedules made here are wrong by as much",
        );
    }
    Check::ok("clock", found)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// A server as it should be, but for what is given.
    fn verdict(check: &str, other: &[(&str, &str)], appendfsync: Option<&str>) -> Verdict {
        let good = [
            ("redis_version", "7.2.4"),
            ("maxmemory_policy", "noeviction"),
            ("maxmemory", "1000"),
            ("used_memory", "10"),
            ("aof_enabled", "1"),
            ("role", "master"),
        ];
        let info =
            good.iter().chain(other).map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let report = ServerReport { info, appendfsync: appendfsync.map(str::to_owned) };
        let found = judge(&report).into_iter().find(|found| found.check == check);
        found.expect("the check is made").verdict
    }

    #[test]
    fn a_good_server_passes() {
        for check in ["version", "eviction", "memory", "persistence", "replication", "durability"] {
            assert_eq!(verdict(check, &[], Some("always")), Verdict::Ok, "{check}");
        }
    }

    #[test]
    fn every_fault_is_found() {
        let always = Some("always");
        for (check, other, appendfsync, expected) in [
            ("version", ("redis_version", "6.2.14"), always, Verdict::Fail),
            ("eviction", ("maxmemory_policy", "allkeys-lru"), always, Verdict::Fail),
            ("memory", ("used_memory", "950"), always, Verdict::Warn),
            ("memory", ("used_memory", "1001"), always, Verdict::Fail),
            ("persistence", ("aof_enabled", "0"), always, Verdict::Fail),
            ("persistence", ("aof_last_write_status", "err"), always, Verdict::Fail),
            ("persistence", ("role", "master"), None, Verdict::Warn),
            ("replication", ("role", "slave"), always, Verdict::Fail),
            ("replication", ("connected_slaves", "1"), always, Verdict::Warn),
            ("durability", ("role", "master"), Some("everysec"), Verdict::Warn),
            ("durability", ("role", "master"), None, Verdict::Warn),
            ("durability", ("aof_enabled", "0"), always, Verdict::Fail),
        ] {
            assert_eq!(verdict(check, &[other], appendfsync), expected, "{check} {other:?} {appendfsync:?}");
        }
    }

    #[test]
    fn clocks_may_differ_a_little() {
        assert_eq!(judge_clock(5_000, 5_400).verdict, Verdict::Ok);
        assert_eq!(judge_clock(5_000, 9_000).verdict, Verdict::Warn);
    }
}
