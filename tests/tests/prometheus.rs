//! A real Prometheus scrapes real workers under a little load: everything that alerts, recorded series and dashboard ask for can be
//! answered, and has an answer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use turnmill::NewTurn;
use turnmill_schema::{Message, Outcome, Role};
use turnmill_tests::PATIENCE;
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::observability::dashboard::{Dashboard, substituted};
use turnmill_tests::observability::promql::selectors;
use turnmill_tests::observability::rules::Rules;
use turnmill_tests::prometheus_server::PrometheusServer;
use turnmill_tests::worker::Worker;

/// What `$__rate_interval` stands for: some scrapes.
const RATE_INTERVAL: &str = "10s";
/// How far back a panel looks.
const SHOWN_SECONDS: u32 = 120;

/// Questions that may have no answer here, because nothing of it happens: panel, and legend.
const MAY_BE_EMPTY: [(&str, &str); 0] = [];

/// A question of the dashboard.
struct Question {
    panel: String,
    legend: String,
    expr: String,
}

fn questions() -> Vec<Question> {
    let panels = Dashboard::load().panels.into_iter();
    let of_panel = |panel: turnmill_tests::observability::dashboard::Panel| {
        let question = move |target: turnmill_tests::observability::dashboard::Target| Question {
            panel: panel.title.clone(),
            legend: target.legend,
            expr: substituted(&target.expr, RATE_INTERVAL),
        };
        panel.targets.into_iter().map(question)
    };
    panels.flat_map(of_panel).collect()
}

/// About four hundred tokens, more than a stored run.
fn system_prompt() -> Message {
    let rules: String =
        (1..=25).map(|i| format!("Rule {i}: be polite, and never mention rule {i}.\n")).collect();
    Message::new(Role::System, rules)
}

/// Three agents talk at once, each in a conversation of its own.
async fn talk(line: &Line, round: usize) {
    let turn = |agent: usize| {
        let mut turn =
            NewTurn::user(format!("Count from {round}, again and again.")).agent(name(&format!("a{agent}")));
        if round == 0 {
            turn.messages.insert(0, system_prompt());
        }
        turn.sampling(exactly(24))
    };
    let turns = line.enqueue((0..3).map(turn).collect()).await;
    for turn in turns {
        assert_eq!(line.wait(turn).await.outcome, Outcome::Completed);
    }
}

/// Those that Prometheus cannot answer, and those that have no answer yet.
async fn unanswered(prometheus: &PrometheusServer, questions: &[Question]) -> Vec<String> {
    let mut empty = Vec::new();
    for Question { panel, legend, expr } in questions {
        let told = prometheus.query_range(expr, SHOWN_SECONDS).await;
        let told = told.unwrap_or_else(|error| panic!("{panel}, {legend}: {error}\n{expr}"));
        // Quantiles of nothing are no numbers, and are no answer.
        let is_answer = |series: &serde_json::Value| {
            series["values"].as_array().is_some_and(|values| values.iter().any(|pair| pair[1] != "NaN"))
        };
        if !told.iter().any(is_answer) && !MAY_BE_EMPTY.contains(&(panel, legend)) {
            empty.push(format!("{panel}, {legend}: {expr}"));
        }
    }
    empty
}

async fn until_answered(line: &Line, prometheus: &PrometheusServer) {
    let questions = questions();
    let deadline = Instant::now() + PATIENCE;
    for round in 10.. {
        let empty = unanswered(prometheus, &questions).await;
        if empty.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "no answer to\n{}", empty.join("\n"));
        talk(line, round).await;
    }
}

/// Everything that a selector asks for by name and matchers is there: values of labels are spelled as the worker spells them.
async fn every_selector_selects(prometheus: &PrometheusServer, rules: &Rules) {
    let exprs = rules.alerts.iter().map(|alert| alert.expr.clone());
    let exprs = exprs.chain(rules.recordings.iter().map(|recording| recording.expr.clone()));
    let exprs = exprs.chain(questions().into_iter().map(|question| question.expr));
    let asked: BTreeSet<String> = exprs.flat_map(|expr| selectors(&expr)).collect();
    assert!(asked.len() > 50, "{} selectors", asked.len());
    let mut empty = Vec::new();
    for selector in &asked {
        let found = prometheus.query(&format!("count_over_time({selector}[10m])")).await;
        if found.unwrap_or_else(|error| panic!("{selector}: {error}")).is_empty() {
            empty.push(selector.as_str());
        }
    }
    assert!(empty.is_empty(), "nothing is selected by\n{}", empty.join("\n"));
}

/// Every rule was evaluated and is well, and no alert fires over a line that is.
async fn every_rule_is_well(prometheus: &PrometheusServer, rules: &Rules) {
    let deadline = Instant::now() + PATIENCE;
    let told = loop {
        let told = prometheus.rules().await;
        if told.iter().all(|rule| rule["health"] != "unknown") {
            break told;
        }
        assert!(Instant::now() < deadline, "some rules are never evaluated: {told:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let names: BTreeSet<&str> = told.iter().filter_map(|rule| rule["name"].as_str()).collect();
    let ours = rules.alerts.iter().map(|alert| &alert.name).chain(rules.recordings.iter().map(|r| &r.name));
    assert_eq!(names, ours.map(String::as_str).collect());
    for rule in &told {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_answers_every_panel_and_evaluates_every_rule() {
    let line = Line::start().await;
    let folder = TempDir::new().expect("the temporary directory is writable");
    let store = format!("file://{}", folder.path().display());
    // A pool that is small, so that blocks are evicted.
    let flags = ["--store", &store, "--pool-bytes", "24MiB", "--host-cache-bytes", "0"];
    let mut first: Worker = line.worker(&flags);
    let second = line.worker(&flags);
    let prometheus = PrometheusServer::start(&[first.http(), second.http()]).await;
    for round in 0..3 {
        talk(&line, round).await;
    }
    // What the first has computed the other has to bring back.
    first.sigterm();
    assert!(first.wait_exit().success(), "{}", first.log());

    let rules = Rules::load();
    until_answered(&line, &prometheus).await;
    for recording in &rules.recordings {
        let found = prometheus.query(&recording.name).await;
        assert!(found.is_ok_and(|found| !found.is_empty()), "{} has no value", recording.name);
    }
    every_selector_selects(&prometheus, &rules).await;
    every_rule_is_well(&prometheus, &rules).await;
}
