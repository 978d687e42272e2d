//! What a run comes to: one JSON object, whose fields are a promise to scripts.

use serde::Serialize;

use super::audit::{Finding, Violation};
use super::failover::FailoverReport;
use super::storm::Tally;

/// How many leftovers are named; one leak may leave hundreds.
const NAMED_LEFTOVERS: usize = 5;

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Gives the same faults and the same turns again.
    pub seed: u64,
    /// How long everything took, the undisturbed run included.
    pub seconds: u64,
    /// Turns that were acknowledged.
    pub turns: usize,
    /// Workers killed with 9 while they held a turn with a published token.
    pub kills: u32,
    /// Workers stopped past their lease and woken.
    pub stops: u32,
    /// Redis killed with 9 and started again.
    pub redis_restarts: u32,
    /// Workers drained.
    pub drains: u32,
    /// Turns that another attempt went on with after published tokens.
    pub resumed: usize,
    /// Objects in the store with K and V when all was over.
    pub objects: usize,
    /// See [`Violation::Lost`].
    pub lost: usize,
    /// See [`Violation::Duplicated`].
    pub duplicated: usize,
    /// See [`Violation::OutOfOrder`].
    pub out_of_order: usize,
    /// See [`Violation::Diverged`].
    pub diverged: usize,
    /// See [`Violation::PostFence`].
    pub post_fence_writes: usize,
    /// See [`Violation::Manifest`].
    pub broken_manifests: usize,
    /// See [`Violation::Leftover`].
    pub leftovers: usize,
    /// Turns enqueued again because Redis forgot them; only where it syncs every second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub re_enqueued: Option<u64>,
    /// How failovers went; only where there are two servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverReport>,
}

impl Report {
    /// A report of what was done; nothing is found yet.
    pub fn new(seed: u64, turns: usize, resumed: usize, objects: usize, tally: Tally) -> Self {
        let Tally { kills, stops, redis_restarts, drains, cuts: _ } = tally;
        Self {
            seed,
            seconds: 0,
            turns,
            kills,
            stops,
            redis_restarts,
            drains,
            resumed,
            objects,
            lost: 0,
            duplicated: 0,
            out_of_order: 0,
            diverged: 0,
            post_fence_writes: 0,
            broken_manifests: 0,
            leftovers: 0,
            re_enqueued: None,
            failover: None,
        }
    }

    /// The same with these findings counted.
    pub fn with(mut self, findings: &[Finding]) -> Self {
        for finding in findings {
            *match finding.violation {
                Violation::Lost => &mut self.lost,
                Violation::Duplicated => &mut self.duplicated,
                Violation::OutOfOrder => &mut self.out_of_order,
                Violation::Diverged => &mut self.diverged,
                Violation::PostFence => &mut self.post_fence_writes,
                Violation::Manifest => &mut self.broken_manifests,
                Violation::Leftover => &mut self.leftovers,
            } += 1;
        }
        self
    }

    /// What did not happen, so that the run shows nothing about it.
    fn unshown(&self) -> impl Iterator<Item = String> {
        // With two servers there are failovers instead, which complain themselves.
        let redis = self.failover.is_none().then_some((self.redis_restarts as usize, "Redis was not killed"));
        let counts = [
            (self.turns, "no turn was acknowledged"),
            (self.kills as usize, "no worker was killed"),
            (self.stops as usize, "no worker was stopped past its lease"),
            (self.drains as usize, "no worker was drained"),
            (self.resumed, "no turn was resumed by another attempt"),
            (self.objects, "no object was kept in the store"),
        ];
        let nothing = counts.into_iter().chain(redis).filter(|(count, _)| *count == 0);
        nothing.map(|(_, what)| format!("{what}: the run shows nothing about it; give it more minutes"))
    }

    /// Why the run fails, with these findings counted; empty if it does not. A run that hurt nobody fails, too.
    pub fn complaints(&self, findings: &[Finding]) -> Vec<String> {
        let is_leftover = |finding: &&Finding| finding.violation == Violation::Leftover;
        let others = findings.iter().filter(|finding| !is_leftover(finding));
        let leftovers = findings.iter().filter(is_leftover).take(NAMED_LEFTOVERS);
        let mut complaints: Vec<String> = others.chain(leftovers).map(ToString::to_string).collect();
        if self.leftovers > NAMED_LEFTOVERS {
            complaints.push(format!("left over: {} more", self.leftovers - NAMED_LEFTOVERS));
        }
        complaints.extend(self.failover.and_then(|failover| failover.complaint()));
        complaints.extend(self.unshown());
        complaints
    }

    /// One field a line, those of a part indented under its name.
    ///
    /// # Errors
    /// A bug: the report cannot be written as JSON.
    pub fn for_people(&self) -> serde_json::Result<String> {
        let json = serde_json::to_string_pretty(self)?;
        let line = |line: &str| {
            let line = line.strip_prefix("  ")?.trim_end_matches([',', '{', ' ']).replace('"', "");
            Some(line).filter(|line| line.trim() != "}")
        };
        Ok(json.lines().filter_map(line).collect::<Vec<_>>().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chaos::failover::BAR;

    #[test]
    fn the_json_has_exactly_the_promised_fields_and_counts_each_kind() {
        let tally = Tally { kills: 1, stops: 2, redis_restarts: 3, drains: 4, cuts: 5 };
        let kinds = [
            Violation::Lost,
            Violation::Duplicated,
            Violation::Duplicated,
            Violation::OutOfOrder,
            Violation::OutOfOrder,
            Violation::OutOfOrder,
            Violation::Diverged,
            Violation::PostFence,
            Violation::PostFence,
            Violation::Manifest,
            Violation::Manifest,
            Violation::Manifest,
            Violation::Manifest,
            Violation::Leftover,
            Violation::Leftover,
            Violation::Leftover,
        ];
        let finding = |violation| Finding { violation, subject: "t".into(), detail: "d".into() };
        let mut report = Report::new(7, 40, 6, 9, tally).with(&kinds.map(finding));
        let expected = r#"{"seed":7,"seconds":0,"turns":40,"kills":1,"stops":2,"redis_restarts":3,"drains":4,"resumed":6,"objects":9,"lost":1,"duplicated":2,"out_of_order":3,"diverged":1,"post_fence_writes":2,"broken_manifests":4,"leftovers":3}"#;
        assert_eq!(serde_json::to_string(&report).expect("JSON"), expected);
        report.re_enqueued = Some(1);
        assert!(serde_json::to_string(&report).expect("JSON").ends_with(r#","re_enqueued":1}"#));
        report.failover = Some(failover());
        let failover = r#","failover":{"count":2,"unanswered":0,"largest_ms":900,"median_ms":700}}"#;
        assert!(serde_json::to_string(&report).expect("JSON").ends_with(failover));
    }

    #[test]
    fn people_get_a_field_a_line() {
        let mut report = Report::new(7, 40, 6, 9, Tally::default());
        let told = report.for_people().expect("text");
        assert!(
            told.starts_with("seed: 7\nseconds: 0\nturns: 40\n") && told.ends_with("\nleftovers: 0"),
            "{told}"
        );
        report.failover = Some(failover());
        let told = report.for_people().expect("text");
        let failover = "\nfailover:\n  count: 2\n  unanswered: 0\n  largest_ms: 900\n  median_ms: 700";
        assert!(told.ends_with(failover), "{told}");
    }

    #[test]
    fn every_finding_is_a_complaint_and_so_is_a_slow_failover_but_few_leftovers_are_named() {
        let finding = |violation| Finding::new(violation, "t", "d");
        let mut findings = vec![finding(Violation::Leftover); NAMED_LEFTOVERS];
        findings.push(finding(Violation::Lost));
        let mut report = eventful();
        assert_eq!(report.complaints(&[]), [""; 0]);
        report.failover = Some(failover());
        assert_eq!(report.complaints(&[]), [""; 0]);
        let told = report.clone().with(&findings).complaints(&findings);
        assert_eq!((told.len(), told[0].as_str(), told[1].as_str()), (6, "lost: t: d", "left over: t: d"));
        findings.extend(vec![finding(Violation::Leftover); 2]);
        let told = report.clone().with(&findings).complaints(&findings);
        assert_eq!((told.len(), told[6].as_str()), (7, "left over: 2 more"));
        report.failover = Some(FailoverReport::new(&[BAR], false));
        assert_eq!(report.complaints(&[]).len(), 1);
    }

    /// Of a run in which something of everything happened.
    fn eventful() -> Report {
        Report::new(7, 40, 6, 9, Tally { kills: 1, stops: 1, redis_restarts: 1, drains: 1, cuts: 1 })
    }

    #[test]
    fn what_did_not_happen_is_a_complaint() {
        type Change = fn(&mut Report);
        let cases: [(Change, &str); 7] = [
            (|report| report.turns = 0, "no turn was acknowledged: "),
            (|report| report.kills = 0, "no worker was killed: "),
            (|report| report.stops = 0, "no worker was stopped past its lease: "),
            (|report| report.drains = 0, "no worker was drained: "),
            (|report| report.resumed = 0, "no turn was resumed by another attempt: "),
            (|report| report.objects = 0, "no object was kept in the store: "),
            (|report| report.redis_restarts = 0, "Redis was not killed: "),
        ];
        for (change, says) in cases {
            let mut report = eventful();
            change(&mut report);
            let told = report.complaints(&[]);
            assert!(told.len() == 1 && told[0].starts_with(says), "{says}: {told:?}");
        }
        // Two servers fail over instead.
        let mut proxied = eventful();
        (proxied.redis_restarts, proxied.failover) = (0, Some(failover()));
        assert_eq!(proxied.complaints(&[]), [""; 0]);
    }

    fn failover() -> FailoverReport {
        FailoverReport::new(&[500, 900].map(Duration::from_millis), false)
    }
}
