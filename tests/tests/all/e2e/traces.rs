//! A turn's spans, as a real receiver gets them from the command line and from real workers.

use std::net::TcpListener;

use tempfile::TempDir;
use turnmill_client::NewTurn;
use turnmill_schema::{Outcome, TraceParent};
use turnmill_tests::line::{Line, exactly, greedy, name};
use turnmill_tests::otlp_server::{OtlpServer, Received};
use turnmill_tests::until;
use turnmill_tests::worker::Worker;

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// So that nobody waits for a batch to fill.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

/// A worker whose spans go to `url`.
fn worker(line: &Line, flags: &[&str], url: &str) -> Worker {
    let mut worker =
        Worker::launch_with(&line.redis.url(), flags, &[("OTEL_EXPORTER_OTLP_ENDPOINT", url), SOON]);
    worker.until_ready();
    worker
}

fn find<'a>(spans: &'a [Received], name: &str) -> &'a Received {
    let mut named = spans.iter().filter(|span| span.name == name);
    let found = named.next().unwrap_or_else(|| panic!("no span {name}: {spans:#?}"));
    assert_eq!(named.next(), None, "one span {name}");
    found
}

fn has(spans: &[Received], names: &[&str]) -> bool {
    names.iter().all(|name| spans.iter().any(|span| span.name == *name))
}

#[tokio::test]
async fn a_turn_is_one_trace_from_its_producer_to_its_end() {
    let (line, receiver) = (Line::start().await, OtlpServer::start());
    let _worker = worker(&line, &[], &receiver.url());
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.url()[..]), ("TRACEPARENT", CALLER)];
    let flags = [
        "submit",
        "--agent",
        "ada",
        "-m",
        "Count.",
        "--max-tokens",
        "6",
        "--ignore-eos",
        "--temperature",
        "0",
    ];
    let flags = [&flags[..], &["--request-id", "r-1", "--wait", "--json"]].concat();
    let output = line.turnmill_with(&flags, &variables).await;
    assert!(output.status.success(), "{output:?}");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let phases = ["claim", "prefill", "decode", "finish"];
    let spans = receiver.until(|spans| has(spans, &["enqueue", "turn"]) && has(spans, &phases)).await;
    assert!(spans.iter().all(|span| span.trace == CALLER[3..35]), "one trace: {spans:#?}");
    let (enqueue, turn) = (find(&spans, "enqueue"), find(&spans, "turn"));
    assert_eq!(
        (enqueue.parent.as_str(), enqueue.kind, enqueue.service.as_str()),
        (&CALLER[36..52], 4, "turnmill")
    );
    assert_eq!((&turn.parent, turn.kind, turn.service.as_str()), (&enqueue.id, 5, "turnmill-worker"));
    for phase in phases {
        assert_eq!(find(&spans, phase).parent, turn.id, "{phase}");
    }
    let id = said["turn"].as_str().expect("text");
    for (key, value) in [
        ("turnmill.turn", id),
        ("turnmill.agent", "ada"),
        ("turnmill.tenant", "default"),
        ("turnmill.queue", "default"),
        ("turnmill.request_id", "r-1"),
        ("messaging.message.id", id),
        ("messaging.destination.name", "default"),
    ] {
        assert_eq!([enqueue, turn].map(|span| span.attributes[key].as_str()), [value; 2], "{key}");
    }
    assert_eq!(
        (&turn.attributes["turnmill.attempt"][..], &turn.attributes["turnmill.outcome"][..]),
        ("1", "completed")
    );
    assert_eq!(find(&spans, "decode").attributes["turnmill.tokens"], "6");
    // One after the other, within the turn.
    let [claim, prefill, decode, finish] = phases.map(|phase| find(&spans, phase));
    assert!(turn.from_ns == claim.from_ns && claim.to_ns <= prefill.from_ns, "{spans:#?}");
    assert!(prefill.to_ns == decode.from_ns && decode.to_ns <= finish.from_ns && finish.to_ns <= turn.to_ns);
    assert!(spans.iter().all(|span| span.links.is_empty() && !span.is_error && span.from_ns <= span.to_ns));
}

#[tokio::test]
async fn the_context_that_a_caller_gives_is_the_parent_of_the_turn() {
    let (line, receiver) = (Line::start().await, OtlpServer::start());
    // By the setting, this time.
    let worker = Worker::launch_with(&line.redis.url(), &["--otlp-endpoint", &receiver.url()], &[SOON]);
    let parent: TraceParent = CALLER.parse().expect("a traceparent");
    let unsampled: TraceParent = CALLER.replace("-01", "-00").parse().expect("a traceparent");
    let turn = || NewTurn::user("Count.").sampling(exactly(2));
    let traced =
        NewTurn { tracestate: Some("vendor=1".parse().expect("a tracestate")), ..turn().traceparent(parent) };
    let turns = line.enqueue(vec![turn().traceparent(unsampled), traced]).await;
    line.told(&turns).await;
    let spans = receiver.until(|spans| has(spans, &["turn"])).await;
    let span = find(&spans, "turn");
    assert_eq!((&span.trace[..], &span.parent[..]), (&CALLER[3..35], &CALLER[36..52]));
    assert_eq!(span.attributes["turnmill.turn"], turns[1].to_string());
    // Log lines lead to the trace, where there is one.
    let ended = |turn: String| {
        let lines = worker.log_lines().into_iter().filter(move |line| line["turn"] == turn.as_str());
        lines.filter(|line| line["message"] == "the turn has ended").collect::<Vec<_>>()
    };
    assert_eq!(ended(turns[1].to_string())[0]["span_id"], span.id.as_str());
    assert_eq!(ended(turns[1].to_string())[0]["trace_id"], span.trace.as_str());
}

#[tokio::test]
async fn an_attempt_after_kill_9_links_to_the_one_before() {
    let (line, receiver) = (Line::start().await, OtlpServer::start());
    let short_lease = ["--lease-ms", "1000"];
    let mut first = worker(&line, &short_lease, &receiver.url());
    let turn = NewTurn::user("Tell me about water mills.").agent(name("ada")).sampling(exactly(100));
    let turns = line.enqueue(vec![turn]).await;
    line.until_all_have_tokens(&turns).await;
    // What the first attempt did is told as it does it; its own span ends with it, and nobody ends that.
    let spans = receiver.until(|spans| has(spans, &["claim", "prefill"])).await;
    first.kill9();
    let died = find(&spans, "claim");
    assert!(!has(&spans, &["turn"]));

    let _second = worker(&line, &short_lease, &receiver.url());
    assert_eq!(line.wait(turns[0]).await.outcome, Outcome::Completed);
    let spans = receiver.until(|spans| has(spans, &["turn"])).await;
    let second = find(&spans, "turn");
    assert_eq!(second.attributes["turnmill.attempt"], "2");
    assert_eq!(
        (&second.trace, second.parent.as_str()),
        (&died.trace, ""),
        "a trace that follows from the turn's id"
    );
    assert_eq!(second.links, [(died.trace.clone(), died.parent.clone())]);
    assert_ne!(second.id, died.parent);
}

#[tokio::test]
async fn what_comes_back_from_the_store_is_a_phase_of_the_turn() {
    let (line, receiver) = (Line::start().await, OtlpServer::start());
    let folder = TempDir::new().expect("the temporary directory is writable");
    let store = format!("file://{}", folder.path().display());
    let flags = ["--store", store.as_str()];
    let says = |text: &str| NewTurn::user(text).agent(name("ada")).sampling(greedy(8));
    let mut first = worker(&line, &flags, &receiver.url());
    line.run(says(&"The mill by the river grinds corn. ".repeat(40))).await;
    line.until_stored("ada", 256).await;
    first.sigterm();
    first.wait_exit();
    let _second = worker(&line, &flags, &receiver.url());
    line.run(says("And what else?")).await;
    let spans = receiver
        .until(|spans| {
            has(spans, &["restore"]) && spans.iter().filter(|span| span.name == "turn").count() == 2
        })
        .await;
    let restore = find(&spans, "restore");
    let of = spans.iter().find(|span| span.id == restore.parent).expect("its parent");
    assert_eq!(of.name, "turn");
    assert!(
        ["restored", "prefilled"].contains(&restore.attributes["turnmill.outcome"].as_str()),
        "{restore:?}"
    );
}

#[tokio::test]
async fn a_dead_receiver_costs_spans_and_nothing_else() {
    let line = Line::start().await;
    // Nobody listens there any more; and somebody who takes connections and never answers.
    let refusing =
        TcpListener::bind("127.0.0.1:0").expect("a local port is free").local_addr().expect("bound");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a local port is free");
    let silent_url = format!("http://{}", silent.local_addr().expect("bound"));
    // Longer than the test would wait for the worker's end.
    let patient = ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000");
    let small = ("OTEL_BSP_MAX_QUEUE_SIZE", "8");
    for (url, reason) in [(format!("http://{refusing}"), "export_failed"), (silent_url, "queue_full")] {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), SOON, patient, small];
        let mut worker = Worker::launch_with(&line.redis.url(), &[], &variables);
        worker.until_ready();
        let turns = (0..4).map(|_| NewTurn::user("Count.").sampling(exactly(2))).collect();
        for told in line.told(&line.enqueue(turns).await).await {
            assert_eq!(told.end.outcome, Outcome::Completed);
        }
        let reason_is = format!("reason=\"{reason}\"");
        let dropped = || worker.metric("turnmill_spans_dropped_total", &[&reason_is]);
        until(&format!("a span is counted as {reason}"), async || dropped() >= 1.0).await;
        worker.sigterm();
        assert_eq!(worker.wait_exit().code(), Some(0), "{}", worker.log());
        let told = worker.log().matches("spans cannot be exported").count();
        assert!(told == 1 || reason == "queue_full", "said once, not once a batch:\n{}", worker.log());
    }
}
