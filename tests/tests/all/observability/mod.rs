//! Alerts, recorded series, dashboard and runbook, against the metrics that a worker has. Nothing runs here but the programs'
//! `--help`; `prometheus.rs` asks a real Prometheus, and `deploy/check-alerts` runs the rules' own tests.

mod dashboard;
mod runbook;

use std::collections::{BTreeMap, BTreeSet};

use turnmill_tests::observability::catalogue::Catalogue;
use turnmill_tests::observability::dashboard::Dashboard;
use turnmill_tests::observability::rules::{Alert, RuleTests, Rules};
use turnmill_tests::observability::runbook::{Entry, FILE, PARTS, entries, load};
use turnmill_tests::observability::{REPOSITORY, promql};

const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

/// Panics with all of them.
fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn catalogue(rules: &Rules) -> Catalogue {
    rules.catalogue().unwrap_or_else(|faults| panic!("\n{}", faults.join("\n")))
}

fn alerts_by_severity(rules: &Rules) -> BTreeMap<&str, usize> {
    let mut count = BTreeMap::new();
    for alert in &rules.alerts {
        *count.entry(alert.labels.get("severity").map_or("none", String::as_str)).or_default() += 1;
    }
    count
}

#[test]
fn alerts_ask_for_metrics_and_labels_that_exist() {
    let rules = Rules::load();
    let catalogue = catalogue(&rules);
    let mut faults = Vec::new();
    for Alert { name, expr, annotations, labels, .. } in &rules.alerts {
        match promql::check(expr, &catalogue) {
            Err(found) => faults.extend(found.into_iter().map(|fault| format!("{name}: {fault}"))),
            Ok(shape) => {
                let known = &shape.labels() | &labels.keys().cloned().collect();
                let texts = annotations.values().flat_map(|text| template_labels(text));
                let unknown = texts.filter(|label| !known.contains(*label));
                faults.extend(
                    unknown
                        .map(|label| format!("{name}: its text names the label {label}, which it has not")),
                );
            }
        }
    }
    none(faults);
}

/// Labels that a template of an alert's text names.
fn template_labels(text: &str) -> Vec<&str> {
    let name_end = |rest: &str| rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    text.split("$labels.").skip(1).map(|rest| &rest[..name_end(rest)]).collect()
}

#[test]
fn every_alert_is_whole_and_has_its_entry_in_the_runbook() {
    let rules = Rules::load();
    let by_title: BTreeMap<String, Entry> =
        entries(&load()).into_iter().map(|entry| (entry.title.clone(), entry)).collect();
    let mut faults = Vec::new();
    for Alert { name, hold, labels, annotations, .. } in &rules.alerts {
        let mut has = |what: &str, it: bool| {
            if !it {
                faults.push(format!("{name}: {what}"));
            }
        };
        has("needs a severity", labels.get("severity").is_some_and(|s| SEVERITIES.contains(&s.as_str())));
        has("needs `for`", hold.is_some());
        for text in ["summary", "description"] {
            has(&format!("needs a {text}"), annotations.get(text).is_some_and(|text| !text.is_empty()));
        }
        let entry = by_title.get(name);
        has("needs an entry in the runbook", entry.is_some());
        let link = |entry: &Entry| format!("{REPOSITORY}/blob/main/{}#{}", FILE, entry.anchor());
        has("its runbook_url is not its entry's", annotations.get("runbook_url") == entry.map(link).as_ref());
        let body = entry.map_or("", |entry| &entry.body);
        let mut at = 0;
        for part in PARTS {
            let found = body[at..].find(part);
            has(&format!("its entry lacks {part}, or has it out of order"), found.is_some());
            at += found.unwrap_or_default();
        }
        let first_look = body.split(PARTS[1]).nth(1).and_then(|rest| rest.split(PARTS[2]).next());
        has("its first look is no command", first_look.is_some_and(|text| text.contains("\n    ")));
    }
    let names: BTreeSet<&String> = rules.alerts.iter().map(|alert| &alert.name).collect();
    let stray = by_title.keys().filter(|title| !names.contains(title));
    faults.extend(stray.map(|title| format!("the runbook has an entry {title}, and there is no such alert")));
    none(faults);
    assert_eq!(names.len(), rules.alerts.len(), "two alerts have one name");
    let count = alerts_by_severity(&rules);
    assert!(
        rules.alerts.len() >= 14 && SEVERITIES.iter().all(|severity| count.contains_key(severity)),
        "{count:?}"
    );
}

#[test]
fn every_alert_is_tested_firing_and_not_firing_on_series_that_exist() {
    let rules = Rules::load();
    let catalogue = catalogue(&rules);
    let tests = RuleTests::load();
    let mut faults = Vec::new();
    for Alert { name, .. } in &rules.alerts {
        let of_it = || tests.moments.iter().filter(|moment| moment.alert == *name);
        for (what, found) in
            [("firing", of_it().any(|m| m.firing > 0)), ("not firing", of_it().any(|m| m.firing == 0))]
        {
            if !found {
                faults.push(format!("no test in deploy/prometheus/tests shows {name} {what}"));
            }
        }
    }
    let known: BTreeSet<&String> = rules.alerts.iter().map(|alert| &alert.name).collect();
    let stray = tests.moments.iter().map(|moment| &moment.alert).filter(|name| !known.contains(name));
    faults.extend(stray.map(|name| format!("a test names {name}, and there is no such alert")));
    // A misspelt series would let every alert be silent, as those tests want that show it silent.
    for series in &tests.series {
        let asked = format!("count_over_time({series}[1m])");
        if let Err(found) = promql::check(&asked, &catalogue) {
            faults.extend(found.into_iter().map(|fault| format!("in the tests: {fault}")));
        }
    }
    none(faults);
}

#[test]
fn recorded_series_are_named_by_their_labels_and_used() {
    let rules = Rules::load();
    let catalogue = catalogue(&rules);
    let dashboard = Dashboard::load();
    let shown = dashboard.panels.iter().flat_map(|panel| &panel.targets).map(|target| &target.expr);
    let readers: Vec<&String> = rules
        .alerts
        .iter()
        .map(|alert| &alert.expr)
        .chain(rules.recordings.iter().map(|r| &r.expr))
        .chain(shown)
        .collect();
    let mut faults = Vec::new();
    for recording in &rules.recordings {
        let name = &recording.name;
        let parts: Vec<&str> = name.split(':').collect();
        let labels = catalogue.series(name).map(|series| series.labels).unwrap_or_default();
        let level = Vec::from_iter(labels).join("_");
        if parts.len() != 3 || parts[0] != level {
            faults.push(format!("{name} should be {level}:<metric>:<operations>"));
        }
        if !readers.iter().any(|expr| expr.contains(name.as_str())) {
            faults.push(format!("nothing reads {name}"));
        }
    }
    none(faults);
}
