//! What workers log: whose line it is, and nothing that turns say.

use std::io::Write;

use serde_json::Value;
use tempfile::NamedTempFile;
use turnmill_client::NewTurn;
use turnmill_schema::{Outcome, TurnId};
use turnmill_tests::line::{Line, exactly, greedy, name};
use turnmill_tests::worker::Worker;

/// No log has it by chance.
const SECRET: &str = "quetzalcoatlus";

/// Its last line is written after the last turn's end can be seen.
fn end(worker: &mut Worker) {
    worker.sigterm();
    assert_eq!(worker.wait_exit().code(), Some(0), "{}", worker.log());
}

fn of_turn(worker: &Worker, turn: TurnId) -> Vec<Value> {
    worker.log_lines().into_iter().filter(|line| line["turn"] == turn.to_string()).collect()
}

#[tokio::test]
async fn every_line_of_a_turn_says_whose_it_is() {
    let line = Line::start().await;
    let mut worker = line.worker(&["--log", "trace", "--max-context-tokens", "256"]);
    let says = |text: &str| NewTurn::user(text).sampling(exactly(3));
    let named = says("Count.").agent(name("ada")).request_id("req/7".parse().expect("a request id"));
    let refused = says(&"word ".repeat(300)).agent(name("ada"));
    let turns = line.enqueue(vec![named, says("Count."), refused]).await;
    line.told(&turns).await;
    end(&mut worker);
    let lone = format!("~{}", turns[1]);
    let own = turns.iter().map(TurnId::to_string).collect::<Vec<_>>();
    for (turn, agent, request) in [(0, "ada", "req/7"), (1, &lone[..], &own[1][..]), (2, "ada", &own[2][..])]
    {
        let lines = of_turn(&worker, turns[turn]);
        assert!(!lines.is_empty(), "something is logged of every turn");
        for line in lines {
            let whose = [&line["agent"], &line["tenant"], &line["request_id"]];
            assert_eq!(whose, [agent, "default", request].map(Value::from).each_ref(), "{line}");
        }
    }
    // All that is logged in a turn's span is a line of a turn, and said by the runner or on its behalf.
    let ended = worker.log_lines().into_iter().filter(|line| line["message"] == "the turn has ended");
    assert_eq!(ended.filter(|line| line["turn"].is_string()).count(), 3);
}

#[tokio::test]
async fn no_line_says_what_turns_say_unless_it_is_asked_for() {
    let line = Line::start().await;
    let text = format!("Say {SECRET}, and what a {SECRET} is.");
    let says = |agent: &str, text: &str| NewTurn::user(text).agent(name(agent)).sampling(greedy(12));
    let mut worker = line.worker(&["--log", "trace", "--max-context-tokens", "256"]);
    let long = format!("{SECRET} ").repeat(100);
    let turns = line.enqueue(vec![says("a", &text), says("a", &text), says("b", &long)]).await;
    let outcomes: Vec<Outcome> = line.told(&turns).await.iter().map(|told| told.end.outcome).collect();
    assert_eq!(outcomes, [Outcome::Completed, Outcome::Completed, Outcome::Failed]);
    end(&mut worker);
    let (lines, log) = (worker.log_lines().len(), worker.log());
    assert!(lines > 10 && !log.contains(SECRET), "{log}");

    // A template that quotes the turn in its refusal, and an envelope whose decoder does.
    let mut template = NamedTempFile::new().expect("the temporary directory is writable");
    write!(template, "{{{{ raise_exception(messages[0].content) }}}}").expect("written");
    let template = template.path().to_str().expect("a path of text");
    let broken = line.enqueue(vec![says("c", "hi")]).await[0];
    let mut envelope = b"\x01\x84\xa2id\xd9\x26".to_vec();
    envelope.extend(broken.to_string().as_bytes());
    envelope.extend(b"\xa6tenant\xa7default\xa5agent\xa1c\xa8messages");
    envelope.push(0xa0 | SECRET.len() as u8);
    envelope.extend(SECRET.as_bytes());
    line.overwrite(broken, &envelope).await;
    let refused = line.enqueue(vec![says("d", &text)]).await[0];
    let mut worker = line.worker(&["--log", "trace", "--chat-template", template, "--max-attempts", "1"]);
    for turn in [broken, refused] {
        let error = line.wait(turn).await.error.expect("it failed");
        assert!(error.contains(SECRET), "its owner is told: {error}");
    }
    end(&mut worker);
    for turn in [broken, refused] {
        let logged = of_turn(&worker, turn).iter().any(|line| line["level"] == "WARN");
        assert!(logged, "that it failed is logged: {}", worker.log());
    }
    assert!(!worker.log().contains(SECRET), "{}", worker.log());

    let mut worker = line.worker(&["--log", "info,turnmill_worker=debug", "--log-content"]);
    let told = line.run(says("e", &text)).await;
    end(&mut worker);
    let lines = of_turn(&worker, told.turn);
    let said = |message: &str, field: &str| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.unwrap_or_else(|| panic!("no {message}: {lines:?}"))[field].as_str().expect("text").to_owned()
    };
    assert!(said("the turn's new messages", "messages").contains(SECRET));
    assert_eq!(Some(said("the turn's reply", "text")), told.text);
}

#[tokio::test]
async fn the_level_is_changed_while_the_worker_runs() {
    let line = Line::start().await;
    let mut worker = line.worker(&["--log", "off"]);
    assert_eq!(worker.get("/log"), (200, "off\n".to_owned()));
    line.run(NewTurn::user("Count.").sampling(exactly(2))).await;
    assert_eq!(worker.log(), "");
    assert_eq!(worker.put("/log", "info,turnmill_worker=nonsense").0, 400);
    assert_eq!(worker.put("/log", "info").0, 200);
    let heard = line.run(NewTurn::user("Count.").sampling(exactly(2))).await;
    end(&mut worker);
    let ended = of_turn(&worker, heard.turn).iter().any(|line| line["message"] == "the turn has ended");
    assert!(ended, "{}", worker.log());
}
