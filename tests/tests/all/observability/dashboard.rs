//! The dashboard, and what Grafana and Prometheus are set up with.

use std::collections::BTreeSet;

use serde_json::Value;
use turnmill_tests::observability::dashboard::{Dashboard, Panel, Target, substituted};
use turnmill_tests::observability::rules::{self, Rules};
use turnmill_tests::observability::{path, promql};

use super::{catalogue, none};

#[test]
fn the_dashboard_asks_for_metrics_and_labels_that_exist() {
    let catalogue = catalogue(&Rules::load());
    let mut faults = Vec::new();
    for panel in Dashboard::load().panels {
        for target in &panel.targets {
            match promql::check(&substituted(&target.expr, "1m"), &catalogue) {
                Err(found) => {
                    faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", panel.title)))
                }
                Ok(shape) => {
                    // A heatmap's legend names the bounds of its buckets.
                    let unknown =
                        target.legend_labels().into_iter().filter(|label| !shape.labels().contains(*label));
                    faults.extend(
                        unknown.map(|label| {
                            format!("{}: its legend names {label}, which it has not", panel.title)
                        }),
                    );
                }
            }
        }
    }
    none(faults);
}

#[test]
fn the_dashboard_is_complete_and_can_be_provisioned() {
    let Dashboard { json, panels, rows, variables } = Dashboard::load();
    assert_eq!(
        (&json["uid"], &json["id"]),
        (&Value::from("turnmill"), &Value::Null),
        "links need a uid that stays"
    );
    assert_eq!(rows, ["Queue", "Turns and latency", "Engine", "Pool", "Store", "Workers"]);
    let mut faults: Vec<String> = panels.iter().flat_map(incomplete).collect();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel.id).collect();
    if ids.len() != panels.len() {
        faults.push("two panels have one id".to_owned());
    }
    for (i, panel) in panels.iter().enumerate() {
        let over = panels[..i].iter().filter(|other| overlap(panel.place, other.place));
        faults.extend(over.map(|other| format!("{} lies over {}", panel.title, other.title)));
    }
    none(faults);

    let kinds: Vec<(&str, &str)> = variables.iter().map(|v| (v.name.as_str(), v.kind.as_str())).collect();
    assert_eq!(kinds, [("datasource", "datasource"), ("queue", "query"), ("instance", "query")]);
    let catalogue = catalogue(&Rules::load());
    for variable in &variables[1..] {
        // `label_values(selector, label)`
        let asked = variable.query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) =
            asked.and_then(|asked| asked.rsplit_once(", ")).expect("label_values(selector, label)");
        let shape = promql::check(&substituted(selector, "1m"), &catalogue);
        let labels = shape.unwrap_or_else(|faults| panic!("{}: {faults:?}", variable.name)).labels();
        assert!(labels.contains(label), "{}: {label} is none of {labels:?}", variable.name);
        assert_eq!(variable.all.as_deref(), Some(".*"), "a target without the label is to be shown too");
    }
}

fn incomplete(panel: &Panel) -> Vec<String> {
    let all_targets = |wrong: fn(&str) -> bool, of: fn(&Target) -> &str| {
        panel.targets.is_empty() || panel.targets.iter().any(|target| wrong(of(target)))
    };
    let checks = [
        ("has no title", panel.title.is_empty()),
        ("has no description", panel.description.len() < 10),
        ("has no unit", panel.unit.is_empty()),
        ("has no questions, or one without a legend", all_targets(str::is_empty, |target| &target.legend)),
        (
            "asks another Prometheus than was chosen",
            all_targets(|uid| uid != "${datasource}", |target| &target.datasource),
        ),
        ("belongs to another data source", panel.datasource != "${datasource}"),
        ("raises alerts of its own", panel.alerts()),
        (
            "is as wide as nothing, or wider than the page",
            panel.place[2] == 0 || panel.place[0] + panel.place[2] > 24,
        ),
    ];
    checks
        .into_iter()
        .filter(|(_, wrong)| *wrong)
        .map(|(fault, _)| format!("{} {fault}", panel.title))
        .collect()
}

fn overlap(a: [u64; 4], b: [u64; 4]) -> bool {
    let along = |i: usize| a[i] < b[i] + b[i + 2] && b[i] < a[i] + a[i + 2];
    along(0) && along(1)
}

#[test]
fn provisioning_names_what_is_there() {
    let sources: Value = rules::yaml("deploy/grafana/provisioning/datasources/turnmill.yml");
    let source = &sources["datasources"][0];
    assert_eq!((&sources["apiVersion"], &source["type"]), (&Value::from(1), &Value::from("prometheus")));
    assert!(source["uid"].is_string(), "a uid that stays");
    let providers: Value = rules::yaml("deploy/grafana/provisioning/dashboards/turnmill.yml");
    let provider = &providers["providers"][0];
    assert_eq!((&providers["apiVersion"], &provider["type"]), (&Value::from(1), &Value::from("file")));
    assert!(provider["options"]["path"].is_string());

    let configuration = rules::configuration();
    let files = configuration["rule_files"].as_array().expect("a list of files");
    for file in files {
        let file = format!("{}/{}", rules::FOLDER, file.as_str().expect("a name"));
        assert!(path(&file).is_file(), "{file} is not there");
    }
    assert_eq!(files.len(), 2);
    assert_eq!(configuration["scrape_configs"][0]["job_name"], "turnmill", "alerts ask for this job");
}
