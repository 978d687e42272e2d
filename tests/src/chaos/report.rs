//! What a run comes to: one JSON object, whose fields are a promise to scripts.

use serde::Serialize;

use super::audit::{Finding, Violation};
use super::storm::Tally;

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
    /// Turns enqueued again because Redis forgot them; only where it syncs every second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub re_enqueued: Option<u64>,
}

impl Report {
    /// A report of what was done; nothing is found yet.
    pub fn new(seed: u64, turns: usize, resumed: usize, tally: Tally) -> Self {
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
            lost: 0,
            duplicated: 0,
            out_of_order: 0,
            diverged: 0,
            post_fence_writes: 0,
            broken_manifests: 0,
            re_enqueued: None,
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
            } += 1;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ];
        let finding = |violation| Finding { violation, subject: "t".into(), detail: "d".into() };
        let mut report = Report::new(7, 40, 6, tally).with(&kinds.map(finding));
        let expected = r#"{"seed":7,"seconds":0,"turns":40,"kills":1,"stops":2,"redis_restarts":3,"drains":4,"resumed":6,"lost":1,"duplicated":2,"out_of_order":3,"diverged":1,"post_fence_writes":2,"broken_manifests":4}"#;
        assert_eq!(serde_json::to_string(&report).expect("JSON"), expected);
        report.re_enqueued = Some(1);
        assert!(serde_json::to_string(&report).expect("JSON").ends_with(r#","re_enqueued":1}"#));
    }
}
