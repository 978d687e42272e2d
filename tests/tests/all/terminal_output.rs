//! What a terminal gets of texts from outside: control characters are shown, never sent.

use std::io::Read;
use std::sync::mpsc;

use pty_process::blocking::{Command, open};
use redis::AsyncCommands;
use turnmill_client::NewTurn;
use turnmill_client::schema::keys::{FIELD_AT, FIELD_END, FIELD_EVENT, Keys};
use turnmill_client::schema::{Delta, End, Event, Outcome, Timing, TurnId, Usage, envelope};
use turnmill_tests::line::{Line, name};
use turnmill_tests::{PATIENCE, program};

/// Clears the screen, sets the title, and asks the terminal to answer; the last is one byte in Latin-1 and two in UTF-8.
const HOSTILE: &str = "\x1b[2J\x1b]0;owned\x07\u{9b}6n";

/// Ends a turn as a worker would that says hostile things.
async fn answer(line: &Line, turn: TurnId, outcome: Outcome) {
    let keys = Keys::new(&name("default"), 0);
    let client = redis::Client::open(line.redis.url()).expect("a URL");
    let mut redis = client.get_multiplexed_async_connection().await.expect("Redis answers");
    let end = End {
        outcome,
        finish: None,
        stop: None,
        error: (outcome == Outcome::Failed).then(|| format!("wrong{HOSTILE}")),
        usage: Usage::default(),
        timing: Timing::default(),
        worker: Some(format!("w{HOSTILE}")),
    };
    let mut text = Delta::default();
    text.push(1, &format!("said{HOSTILE}\n"), None);
    let end = Event::End(end);
    for (id, event) in [("5-1", Event::Delta(text)), ("6-1", end.clone())] {
        let fields = [(FIELD_EVENT, envelope::encode(&event).expect("encodes")), (FIELD_AT, b"0".to_vec())];
        let _id: String = redis.xadd(keys.result(turn), id, &fields).await.expect("XADD");
    }
    let stored = envelope::encode(&end).expect("encodes");
    let _new: u64 = redis.hset(keys.turn(turn), FIELD_END, stored).await.expect("HSET");
}

/// What the command writes to its terminal.
fn on_a_terminal(line: &Line, arguments: &[&str]) -> String {
    let (mut terminal, end) = open().expect("a terminal");
    let command =
        Command::new(program("turnmill")).args(arguments).env("TURNMILL_REDIS_URL", line.redis.url());
    let mut child = command.spawn(end).expect("the command can be run");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut written = Vec::new();
        // The read fails once the other end is closed.
        let _ = terminal.read_to_end(&mut written);
        // Nobody listens any more if it took too long.
        let _ = tell.send(written);
    });
    let written = told.recv_timeout(PATIENCE);
    // It has closed its terminal, so it has said everything; or it hangs.
    let _ = child.kill();
    child.wait().expect("our own child can be waited for");
    String::from_utf8(written.expect("the command ends")).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn control_characters_from_outside_reach_no_terminal() {
    let line = Line::without_workers().await;
    let said = line.enqueue(vec![NewTurn::user("hi"), NewTurn::user("hi")]).await;
    answer(&line, said[0], Outcome::Completed).await;
    answer(&line, said[1], Outcome::Failed).await;
    let [good, bad] = [said[0].to_string(), said[1].to_string()];
    for arguments in [
        &["tail", &good][..],
        &["tail", &good, "--json"],
        &["tail", &bad],
        &["turn", "show", &good],
        &["turn", "show", &bad],
        &["turn", "show", &bad, "--json"],
    ] {
        let shown = on_a_terminal(&line, arguments);
        let obeyed = shown.chars().filter(|c| c.is_control() && !"\r\n\t".contains(*c)).collect::<String>();
        assert_eq!(obeyed, "", "{arguments:?}: {shown:?}");
        assert!(shown.contains("said") || shown.contains("wrong") || shown.contains(&good), "{shown:?}");
    }
}
