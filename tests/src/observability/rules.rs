//! Prometheus' own files: rules, tests of rules, configuration.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::catalogue::{Catalogue, Labels};
use super::{path, promql, read};

/// Where they are.
pub const FOLDER: &str = "deploy/prometheus";

/// A file of rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "name")]
    _name: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(rename = "for")]
    hold: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// An alert.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its name.
    pub name: String,
    /// It fires for each series that this gives.
    pub expr: String,
    /// For how long it has to be so.
    pub hold: Option<String>,
    /// Labels it adds.
    pub labels: BTreeMap<String, String>,
    /// Texts for people, with templates.
    pub annotations: BTreeMap<String, String>,
}

/// A series that is computed once for many readers.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Its name.
    pub name: String,
    /// What it is.
    pub expr: String,
}

/// All rules.
#[derive(Clone, Debug)]
pub struct Rules {
    /// In the order of the file.
    pub alerts: Vec<Alert>,
    /// In the order in which they are computed.
    pub recordings: Vec<Recording>,
}

impl Rules {
    /// Those in the repository.
    pub fn load() -> Self {
        let files = ["rules.yml", "alerts.yml"].map(|name| yaml::<RuleFile>(&format!("{FOLDER}/{name}")));
        let rules = files.into_iter().flat_map(|file| file.groups).flat_map(|group| group.rules);
        let (mut alerts, mut recordings) = (Vec::new(), Vec::new());
        for Rule { alert, record, expr, hold, labels, annotations } in rules {
            match (alert, record) {
                (Some(name), None) => alerts.push(Alert { name, expr, hold, labels, annotations }),
                (None, Some(name)) => recordings.push(Recording { name, expr }),
                which => panic!("a rule has to be an alert or a recording: {which:?}, {expr}"),
            }
        }
        Self { alerts, recordings }
    }

    /// A worker's metrics, and what these rules make of them. What is wrong with recordings is told.
    pub fn catalogue(&self) -> Result<Catalogue, Vec<String>> {
        let mut catalogue = Catalogue::of_worker(target_labels());
        let mut faults = Vec::new();
        for Recording { name, expr } in &self.recordings {
            match promql::check(expr, &catalogue) {
                Ok(shape) => catalogue.record(name, shape.labels()),
                Err(found) => faults.extend(found.into_iter().map(|fault| format!("{name}: {fault}"))),
            }
        }
        if faults.is_empty() { Ok(catalogue) } else { Err(faults) }
    }
}

/// The example of a configuration.
pub fn configuration() -> Value {
    yaml(&format!("{FOLDER}/prometheus.yml"))
}

/// Labels of everything that is scraped by the example: Prometheus' own, and those it gives to targets.
pub fn target_labels() -> Labels {
    let configuration = configuration();
    let jobs = configuration["scrape_configs"].as_array().expect("a list of jobs");
    let groups = jobs.iter().flat_map(|job| job["static_configs"].as_array().expect("a list of targets"));
    let given =
        groups.filter_map(|group| group["labels"].as_object()).flat_map(|labels| labels.keys().cloned());
    given.chain(["instance".to_owned(), "job".to_owned()]).collect()
}

/// A test of an alert: at one time it fires, or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Of which alert.
    pub alert: String,
    /// How many times it is to fire.
    pub firing: usize,
}

/// What the tests for `promtool` say.
#[derive(Debug, Default)]
pub struct RuleTests {
    /// What is expected.
    pub moments: Vec<Moment>,
    /// Names and labels of the series that are made up.
    pub series: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct TestFile {
    tests: Vec<TestGroup>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestGroup {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "interval")]
    _interval: String,
    input_series: Vec<InputSeries>,
    #[serde(default)]
    alert_rule_test: Vec<AlertTest>,
    #[serde(default, rename = "promql_expr_test")]
    _promql: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct InputSeries {
    series: String,
}

#[derive(Debug, Deserialize)]
struct AlertTest {
    alertname: String,
    exp_alerts: Vec<Value>,
}

impl RuleTests {
    /// Those in the repository.
    pub fn load() -> Self {
        let folder = format!("{FOLDER}/tests");
        let entries = std::fs::read_dir(path(&folder)).expect("the folder can be read");
        let mut found = Self::default();
        for entry in entries {
            let name = entry.expect("the folder can be read").file_name();
            let file: TestFile = yaml(&format!("{folder}/{}", name.to_string_lossy()));
            for group in file.tests {
                found.series.extend(group.input_series.into_iter().map(|input| input.series));
                let moment = |AlertTest { alertname, exp_alerts }| Moment {
                    alert: alertname,
                    firing: exp_alerts.len(),
                };
                found.moments.extend(group.alert_rule_test.into_iter().map(moment));
            }
        }
        found
    }
}

/// A file of the repository.
pub fn yaml<T: DeserializeOwned>(name: &str) -> T {
    serde_saphyr::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
