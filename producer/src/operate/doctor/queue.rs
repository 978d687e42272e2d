//! Checks of the queue: types under its keys, scripts, lag, tickets nobody keeps alive, workers, dead letters.

use turnmill_redis::type_of_name;

use super::Check;
use crate::error::ClientError;
use crate::operate::Operator;
use crate::operate::Scope;
use crate::operate::dead::DeadQuery;

/// A ticket that nobody kept alive for this many leases is stuck: any worker would have reclaimed it.
const STUCK_LEASES: u64 = 3;
/// Stuck tickets that are counted at most.
const MAX_STUCK: usize = 1000;
/// Keys whose types are looked at, at most.
const MAX_KEYS: usize = 100_000;
/// Keys named in a report.
const NAMED: usize = 3;

impl Operator {
    pub(super) async fn examine_queue(&self, lease_ms: u64) -> Vec<Check> {
        let or_unknown = |check, found: Result<Check, ClientError>| {
            found.unwrap_or_else(|error| Check::unknown(check, &error))
        };
        let mut checks = vec![or_unknown("types", self.types().await)];
        checks.extend(self.work().await);
        checks.push(or_unknown("stuck", self.stuck(lease_ms).await));
        checks.push(or_unknown("dead", self.dead().await));
        checks
    }

    /// Whether every key of ours has the type the scripts expect.
    async fn types(&self) -> Result<Check, ClientError> {
        let (mut seen, mut wrong) = (0, Vec::new());
        for keys in self.client.queue.all_keys() {
            let prefix = keys.open().trim_end_matches("open").to_owned();
            let mut scan = self.redis().server().scan(format!("{prefix}*"));
            while let Some(page) = self.redis().next_page(&mut scan).await? {
                seen += page.len();
                wrong.extend(self.wrong_types(&prefix, page).await?);
                if seen >= MAX_KEYS {
                    break;
                }
            }
        }
        let whole = if seen >= MAX_KEYS { " of more" } else { "" };
        if wrong.is_empty() {
            return Ok(Check::ok("types", format!("{seen} keys{whole}, each of its type")));
        }
        let named: Vec<&str> = wrong.iter().take(NAMED).map(String::as_str).collect();
        let found = format!(
            "{} of {seen} keys{whole} are not what this version writes: {}",
            wrong.len(),
            named.join("; ")
        );
        let advice = "find out who writes there, or whose older version did; then rename or delete them";
        Ok(Check::fail("types", found, advice))
    }

    async fn wrong_types(&self, prefix: &str, page: Vec<String>) -> Result<Vec<String>, ClientError> {
        let types = self.redis().ask(|server| server.types_of(&page)).await?;
        let wrong = |(key, found): (String, String)| {
            let expected = type_of_name(key.strip_prefix(prefix).unwrap_or_default());
            // A key may have gone since it was listed.
            let fits = found == "none" || expected == Some(found.as_str());
            (!fits).then(|| match expected {
                Some(expected) => format!("{key} is a {found}, not a {expected}"),
                None => format!("{key} is no key of this version"),
            })
        };
        Ok(page.into_iter().zip(types).filter_map(wrong).collect())
    }

    /// Scripts, lag, workers and whether the queue is paused.
    async fn work(&self) -> Vec<Check> {
        let lag = match self.client.lag().await {
            Ok(lag) => lag,
            Err(error) => {
                let advice = match error.is_outage() {
                    true => super::advice(&error),
                    false => "the scripts must run: see the reason, and types above",
                };
                return vec![Check::fail("scripts", error.to_string(), advice)];
            }
        };
        let mut checks = vec![Check::ok("scripts", "they run")];
        let unknown: Vec<&str> =
            lag.priorities.iter().filter(|row| row.lag.is_none()).map(|row| row.priority.as_str()).collect();
        checks.push(if unknown.is_empty() {
            Check::ok("lag", "Redis knows it")
        } else {
            let found = format!("Redis does not know it of {}", unknown.join(", "));
            Check::warn("lag", found, "nothing: runnable is counted otherwise; alert on runnable, not on lag")
        });
        checks.push(if lag.paused {
            Check::warn("paused", "the queue is paused: no turn is leased", "turnmill queue resume")
        } else {
            Check::ok("paused", "the queue is not paused")
        });
        checks.push(match self.workers().await {
            Ok(workers) => {
                judge_workers(workers.iter().filter(|worker| !worker.is_silent()).count(), lag.open_turns)
            }
            Err(error) => Check::unknown("workers", &error),
        });
        checks
    }

    /// Tickets that were delivered and that nobody kept alive or reclaimed since.
    async fn stuck(&self, lease_ms: u64) -> Result<Check, ClientError> {
        let idle_ms = lease_ms.saturating_mul(STUCK_LEASES);
        let mut stuck = 0;
        for keys in self.client.queue.all_keys() {
            stuck += self.redis().ask(|server| server.count_unrenewed(&keys, idle_ms, MAX_STUCK)).await?;
        }
        if stuck == 0 {
            return Ok(Check::ok("stuck", format!("no ticket is idle for longer than {idle_ms} ms")));
        }
        let more = if stuck >= MAX_STUCK { " or more" } else { "" };
        let found = format!("{stuck}{more} tickets are idle for longer than {idle_ms} ms");
        Ok(Check::fail("stuck", found, "start a worker: a live one reclaims them within two of its leases"))
    }

    async fn dead(&self) -> Result<Check, ClientError> {
        let query = DeadQuery { scope: Scope::AllTenants, ..DeadQuery::default() };
        let reasons = self.count_dead_letters(&query).await?;
        if reasons.is_empty() {
            return Ok(Check::ok("dead", "no dead letters"));
        }
        let all: u64 = reasons.values().sum();
        let reasons: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let found = format!("{all} dead letters: {}", reasons.join(", "));
        Ok(Check::warn("dead", found, "turnmill dead ls -A; then replay or purge them: they do not expire"))
    }
}

fn judge_workers(workers: usize, open_turns: u64) -> Check {
    match (workers, open_turns) {
        (0, 0) => Check::warn(
            "workers",
            "none, and no work",
            "start one before there is: delayed turns need it too",
        ),
        (0, _) => Check::fail(
            "workers",
            format!("none, and {open_turns} turns wait"),
            "start turnmill-worker serve",
        ),
        _ => Check::ok("workers", format!("{workers}")),
    }
}
