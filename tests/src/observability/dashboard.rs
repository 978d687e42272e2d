//! Grafana's dashboard, as its JSON model has it.

use serde_json::Value;

use super::read;

/// Where it is.
pub const FILE: &str = "deploy/grafana/dashboards/turnmill.json";

/// One thing on it that shows something; rows are none.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What Grafana knows it by.
    pub id: u64,
    /// Its heading.
    pub title: String,
    /// The kind of picture.
    pub kind: String,
    /// What it shows, for people.
    pub description: String,
    /// What its numbers are.
    pub unit: String,
    /// The uid of its data source.
    pub datasource: String,
    /// What is asked for.
    pub targets: Vec<Target>,
    /// Left, top, width and height.
    pub place: [u64; 4],
    json: Value,
}

/// One question of a panel.
#[derive(Clone, Debug)]
pub struct Target {
    /// PromQL with Grafana's variables.
    pub expr: String,
    /// What its lines are called, with `{{label}}`s.
    pub legend: String,
    /// The uid of its data source.
    pub datasource: String,
}

/// What a choice at the top of the dashboard is filled from.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Without the dollar.
    pub name: String,
    /// `datasource`, `query`, …
    pub kind: String,
    /// What gives its values.
    pub query: String,
    /// What All stands for.
    pub all: Option<String>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Dashboard {
    /// As it is in the file.
    pub json: Value,
    /// In their order.
    pub panels: Vec<Panel>,
    /// Titles of rows.
    pub rows: Vec<String>,
    /// In their order.
    pub variables: Vec<Variable>,
}

impl Dashboard {
    /// The one in the repository.
    pub fn load() -> Self {
        let json: Value = serde_json::from_str(&read(FILE)).unwrap_or_else(|error| panic!("{FILE}: {error}"));
        let (mut panels, mut rows) = (Vec::new(), Vec::new());
        for panel in list(&json["panels"]) {
            // The panels of a row that is folded are inside it.
            if panel["type"] == "row" {
                rows.push(text(&panel["title"]));
                panels.extend(list(&panel["panels"]).iter().map(Panel::read));
            } else {
                panels.push(Panel::read(panel));
            }
        }
        let variables = list(&json["templating"]["list"]).iter().map(Variable::read).collect();
        Self { json, panels, rows, variables }
    }
}

impl Panel {
    fn read(json: &Value) -> Self {
        let side = |name: &str| json["gridPos"][name].as_u64().unwrap_or_default();
        Self {
            id: json["id"].as_u64().unwrap_or_default(),
            title: text(&json["title"]),
            kind: text(&json["type"]),
            description: text(&json["description"]),
            unit: text(&json["fieldConfig"]["defaults"]["unit"]),
            datasource: text(&json["datasource"]["uid"]),
            targets: list(&json["targets"]).iter().map(Target::read).collect(),
            place: ["x", "y", "w", "h"].map(side),
            json: json.clone(),
        }
    }

    /// Whether it would raise alerts of its own.
    pub fn alerts(&self) -> bool {
        self.json.get("alert").is_some()
    }
}

impl Target {
    fn read(json: &Value) -> Self {
        Self {
            expr: text(&json["expr"]),
            legend: text(&json["legendFormat"]),
            datasource: text(&json["datasource"]["uid"]),
        }
    }

    /// Labels that its legend names.
    pub fn legend_labels(&self) -> Vec<&str> {
        self.legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()).map(str::trim).collect()
    }
}

impl Variable {
    fn read(json: &Value) -> Self {
        let query = &json["query"];
        Self {
            name: text(&json["name"]),
            kind: text(&json["type"]),
            query: text(query.get("query").unwrap_or(query)),
            all: json["allValue"].as_str().map(str::to_owned),
        }
    }
}

/// PromQL as Grafana would send it where everything is chosen and rates are over `interval`. A variable that is none of
/// ours stays, and is no PromQL.
pub fn substituted(expr: &str, interval: &str) -> String {
    let values = [("$__rate_interval", interval), ("$queue", ".*"), ("$instance", ".*")];
    values.iter().fold(expr.to_owned(), |expr, (variable, value)| expr.replace(variable, value))
}

fn text(json: &Value) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

fn list(json: &Value) -> &[Value] {
    json.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::catalogue::Catalogue;
    use super::super::promql;
    use super::*;

    #[test]
    fn labels_of_a_legend_are_those_in_double_braces() {
        let legend = |text: &str| Target::read(&json!({"legendFormat": text})).legend_labels().join(" ");
        assert_eq!(legend("{{queue}} new: {{ reason }}"), "queue reason");
        assert_eq!(legend("p95"), "");
    }

    #[test]
    fn a_variable_that_is_not_ours_is_left_and_is_no_promql() {
        let expr = substituted("rate(a_total{queue=~\"$queue\"}[$__rate_interval]) > $least", "1m");
        assert_eq!(expr, "rate(a_total{queue=~\".*\"}[1m]) > $least");
        assert!(
            promql::check(&expr, &Catalogue::default()).is_err_and(|faults| faults[0].contains("no PromQL"))
        );
    }
}
