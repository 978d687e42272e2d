//! That the check catches what it is there for.

use super::super::catalogue::Form;
use super::*;

fn catalogue() -> Catalogue {
    let targets = ["instance", "job", "queue"].map(str::to_owned);
    let mut catalogue = Catalogue::new(Labels::from(targets));
    catalogue.add_with("turns_total", Form::Counter, &["outcome"], &["done", "failed"]);
    catalogue.add("claims_total", Form::Counter, &[]);
    catalogue.add("blocks", Form::Gauge, &["state"]);
    catalogue.add("ratio", Form::Gauge, &[]);
    catalogue.add("wait_seconds", Form::Histogram, &[]);
    catalogue.record("queue:ratio:max", Labels::from(["queue".to_owned()]));
    catalogue
}

fn labels(text: &str) -> Vec<String> {
    let shape = check(text, &catalogue()).unwrap_or_else(|faults| panic!("{text}: {faults:?}"));
    Vec::from_iter(shape.labels())
}

#[track_caller]
fn caught(text: &str, fault: &str) {
    let faults = check(text, &catalogue()).expect_err(text);
    assert!(faults.iter().any(|found| found.contains(fault)), "{text}: {faults:?}");
}

#[test]
fn labels_are_those_that_prometheus_gives() {
    assert_eq!(labels("ratio"), ["instance", "job", "queue"]);
    assert_eq!(labels("sum by (queue, state) (blocks)"), ["queue", "state"]);
    assert_eq!(labels("sum without (state, job) (blocks)"), ["instance", "queue"]);
    assert_eq!(labels("sum(blocks) > 1"), Vec::<String>::new());
    assert_eq!(
        labels("histogram_quantile(0.9, sum by (queue, le) (rate(wait_seconds_bucket[5m])))"),
        ["queue"]
    );
    assert_eq!(labels("absent(up{job=\"x\"})"), ["job"]);
    assert_eq!(labels("sum by (queue) (up) == 0 or absent(up{job=\"x\"})"), ["job", "queue"]);
    assert_eq!(labels("ratio > 1 and on (queue) queue:ratio:max > 1"), ["instance", "job", "queue"]);
    assert_eq!(labels("ratio * on (queue) group_left () queue:ratio:max"), ["instance", "job", "queue"]);
    assert_eq!(labels("sum by (instance) (ratio) / on (instance) sum by (instance) (blocks)"), ["instance"]);
    assert_eq!(labels("time() - max_over_time(ratio[5m] offset 1h)"), ["instance", "job", "queue"]);
    assert_eq!(
        labels("rate(turns_total[5m]) / ignoring (outcome) rate(claims_total[5m])"),
        ["instance", "job", "queue"]
    );
}

#[test]
fn a_misspelt_metric_is_caught_wherever_it_stands() {
    caught("ration", "no metric ration");
    caught("rate(turn_total[5m])", "no metric turn_total");
    caught("sum(blocks) / sum by (queue) (block)", "no metric block");
    caught("ratio > 0 unless on (queue) max by (queue) (queue:ratio:min)", "no metric queue:ratio:min");
    caught("absent(upp)", "no metric upp");
    caught("rate(wait_seconds_buckets[5m])", "no metric wait_seconds_buckets");
    caught("avg_over_time(ration[1d:5m])", "no metric ration");
    caught("{job=\"turnmill\"}", "has no name");
}

#[test]
fn a_misspelt_label_is_caught_wherever_it_stands() {
    caught("rate(turns_total{outcom=\"failed\"}[5m])", "turns_total has no label outcom");
    caught("ratio{state=\"free\"}", "ratio has no label state");
    caught("sum by (queue, stat) (blocks)", "no label stat ");
    caught("sum without (stat) (blocks)", "no label stat ");
    caught("ratio > 0 and on (queu) ratio", "no label queu ");
    // Gone by then, though the metric has it.
    caught("sum by (state) (sum by (queue) (blocks))", "no label state ");
    caught("queue:ratio:max{instance=\"a\"}", "no label instance");
    caught("sum by (le) (rate(wait_seconds_count[5m]))", "no label le ");
}

#[test]
fn a_misspelt_value_of_a_label_is_caught() {
    caught("rate(turns_total{outcome=\"fail\"}[5m])", "turns_total is never outcome=\"fail\"");
    caught("rate(turns_total{outcome!=\"fail\"}[5m])", "turns_total is never outcome=\"fail\"");
    caught("rate(turns_total{outcome=~\"failed|don\"}[5m])", "turns_total is never outcome=\"don\"");
    labels("rate(turns_total{outcome=~\"failed|done\", queue=\"any\", instance=~\"a|b\"}[5m])");
    labels("rate(turns_total{outcome=~\".*\"}[5m])");
    labels("blocks{state=\"whatever\"}");
}

#[test]
fn what_never_matches_is_caught() {
    caught("sum by (queue) (ratio) / sum by (instance) (ratio)", "never matches");
    caught("ratio and sum by (queue) (ratio)", "never matches");
    caught("ratio unless queue:ratio:max == 1", "never matches");
    caught("rate(turns_total[5m]) / rate(claims_total[5m])", "never matches");
}

#[test]
fn histograms_and_counters_used_as_what_they_are_not_are_caught() {
    caught("histogram_quantile(0.9, rate(wait_seconds[5m]))", "wait_seconds is a histogram");
    caught("wait_seconds > 1", "wait_seconds is a histogram");
    caught("histogram_quantile(0.9, sum by (queue) (rate(wait_seconds_bucket[5m])))", "no label le ");
    caught("claims_total > 5", "claims_total only grows");
    caught("sum by (queue) (wait_seconds_sum)", "wait_seconds_sum only grows");
    caught("max_over_time(claims_total[5m])", "claims_total only grows");
    caught("rate(ratio[5m])", "ratio does not only grow");
    labels("absent(claims_total)");
    labels("resets(claims_total[1h])");
    labels("deriv(ratio[5m])");
}

#[test]
fn what_is_no_promql_is_told() {
    caught("sum by (queue (ratio)", "no PromQL");
    caught("ratio > $least", "no PromQL");
}

#[test]
fn selectors_are_told_with_their_matchers_and_without_ranges() {
    let text = "rate(turns_total{outcome=\"failed\"}[5m] offset 1h) / on (queue) queue:ratio:max > 1";
    assert_eq!(selectors(text), ["turns_total{outcome=\"failed\"}", "queue:ratio:max"]);
    assert_eq!(
        selectors("blocks{state=~\"free|held\"}"),
        ["blocks{state=\"free\"}", "blocks{state=\"held\"}"]
    );
    assert_eq!(selectors("blocks{state=~\".*\"}"), ["blocks{state=~\".*\"}"]);
}
