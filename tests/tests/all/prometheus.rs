//! A real Prometheus scrapes real workers under a little load: everything that alerts, recorded series and dashboard ask for can be
//! answered, and has an answer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use turnmill_client::NewTurn;
use turnmill_schema::{Message, Outcome, Role};
use turnmill_tests::PATIENCE;
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::observability::dashboard::{Dashboard, Panel, Target, substituted};
use turnmill_tests::observability::promql::selectors;
use turnmill_tests::observability::rules::Rules;
use turnmill_tests::prometheus_server::PrometheusServer;
use turnmill_tests::worker::Worker;

/// What `$__rate_interval` stands for: some scrapes.
const RATE_INTERVAL: &str = "10s";
/// How far back a panel looks: over the whole test.
const SHOWN_SECONDS: u32 = 300;

/// Tokens of a full stored segment.
const SEGMENT_TOKENS: u32 = 256;

/// A question of the dashboard.
struct Question {
    panel: String,
    legend: String,
    expr: String,
}

fn questions() -> Vec<Question> {
    let of_panel = |panel: Panel| {
        let question = move |target: Target| Question {
            panel: panel.title.clone(),
            legend: target.legend,
            expr: substituted(&target.expr, RATE_INTERVAL),
        };
        panel.targets.into_iter().map(question)
    };
    Dashboard::load().panels.into_iter().flat_map(of_panel).collect()
}

/// Agents that begin with the same words.
const OF_A_SET: usize = 3;

/// About five hundred tokens, more than a stored segment.
fn system_prompt(set: usize) -> Message {
    let rules: String =
        (1..=25).map(|i| format!("Rule {i} of {set}: be polite, and never mention rule {i}.\n")).collect();
    Message::new(Role::System, rules)
}

/// A turn of each agent of these sets, all at once; in the first of an agent it is told how to behave.
async fn talk(line: &Line, sets: &[(usize, bool)]) {
    let turn = |set: usize, first: bool, agent: usize| {
        let text = format!("Count from {set}, again and again.");
        let mut turn = NewTurn::user(text).agent(name(&agent_name(set, agent)));
        if first {
            turn.messages.insert(0, system_prompt(set));
        }
        turn.sampling(exactly(24))
    };
    let of_set = |(set, first): &(usize, bool)| {
        (0..OF_A_SET).map(|agent| turn(*set, *first, agent)).collect::<Vec<_>>()
    };
    for turn in line.enqueue(sets.iter().flat_map(of_set).collect()).await {
        let result = line.wait(turn).await;
        assert_eq!(result.outcome, Outcome::Completed, "{:?}", result.error);
    }
}

fn agent_name(set: usize, agent: usize) -> String {
    format!("agent-{set}-{agent}")
}

/// Those that Prometheus cannot answer, and those that have no answer yet.
async fn unanswered(prometheus: &PrometheusServer, questions: &[Question]) -> Vec<String> {
    let mut empty = Vec::new();
    for Question { panel, legend, expr } in questions {
        let told = prometheus.query_range(expr, SHOWN_SECONDS).await;
        let told = told.unwrap_or_else(|error| panic!("{panel}, {legend}: {error}\n{expr}"));
        // Quantiles of nothing are no numbers, and are no answer.
        let is_answer = |series: &Value| {
            series["values"].as_array().is_some_and(|values| values.iter().any(|pair| pair[1] != "NaN"))
        };
        if !told.iter().any(is_answer) {
            empty.push(format!("{panel}, {legend}: {expr}"));
        }
    }
    empty
}

/// Talks until every question has an answer. Old agents come back after new ones have driven their blocks out.
async fn until_answered(line: &Line, prometheus: &PrometheusServer) {
    let questions = questions();
    let deadline = Instant::now() + PATIENCE;
    for set in 2.. {
        talk(line, &[(set - 2, false), (set, true)]).await;
        let empty = unanswered(prometheus, &questions).await;
        if empty.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "no answer to\n{}", empty.join("\n"));
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
    // Room for about two conversations, so that blocks are evicted.
    let flags = ["--store", &store, "--pool-bytes", "24MiB"];
    let mut first: Worker = line.worker(&flags);
    talk(&line, &[(0, true)]).await;
    for agent in 0..OF_A_SET {
        line.until_stored(&agent_name(0, agent), SEGMENT_TOKENS).await;
    }
    let second = line.worker(&flags);
    let prometheus = PrometheusServer::start(&[first.http(), second.http()]).await;
    talk(&line, &[(1, true)]).await;
    // What only the first has computed the second has to restore.
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
