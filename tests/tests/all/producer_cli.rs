//! The producer and its command line against a real Redis. Workers are played by the tests: they write result
//! streams by hand, as the schema defines them.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures::{Stream, StreamExt};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use turnmill_client::schema::keys::{FIELD_AGENT, FIELD_AT, FIELD_END, FIELD_EVENT, FIELD_REPLY, Keys};
use turnmill_client::schema::{
    Begin, Delta, End, Event, FinishReason, Outcome, Part, Priority, Timing, ToolCall, TurnId, Usage,
    envelope,
};
use turnmill_client::{Client, ClientBuilder, ClientError, Enqueued, Followed, NewTurn, StreamId};
use turnmill_tests::line::{ids, name};
use turnmill_tests::program;
use turnmill_tests::redis_server::RedisServer;

/// What the played worker answers; token `i` is the `i`th character.
const REPLY: &str = "naïve ⅔ wörds";

/// Longest wait for a condition; a busy machine is slow, a broken producer never gets there.
const PATIENCE: Duration = Duration::from_secs(60);

fn builder(server: &RedisServer) -> ClientBuilder {
    Client::builder(server.url()).block(Duration::from_millis(200))
}

async fn producer(server: &RedisServer) -> Client {
    builder(server).connect().await.expect("Redis answers")
}

/// The played worker and the operator with redis-cli.
struct Worker {
    redis: MultiplexedConnection,
    keys: Keys,
}

impl Worker {
    async fn new(server: &RedisServer) -> Self {
        let client = redis::Client::open(server.url()).expect("a URL");
        let redis = client.get_multiplexed_async_connection().await.expect("Redis answers");
        Self { redis, keys: Keys::new(&name("default"), 0) }
    }

    async fn publish(&mut self, turn: TurnId, id: &str, event: &Event) {
        let event = envelope::encode(event).expect("encodes");
        let fields = [(FIELD_EVENT, event), (FIELD_AT, b"0".to_vec())];
        let key = self.keys.result(turn);
        let _id: String = self.redis.xadd(key, id, &fields).await.expect("XADD");
    }

    async fn begin(&mut self, turn: TurnId, epoch: u64, resume_from: u32) {
        let begin = Begin { epoch, resume_from, attempt: 1, worker: "played".into() };
        self.publish(turn, &format!("{epoch}-{resume_from}"), &Event::Begin(begin)).await;
    }

    async fn delta(&mut self, turn: TurnId, epoch: u64, index: u32, end: u32) {
        self.publish(turn, &format!("{epoch}-{end}"), &Event::Delta(delta(index, end))).await;
    }

    async fn end(&mut self, turn: TurnId, id: &str, end: &End) {
        self.publish(turn, id, &Event::End(end.clone())).await;
        let stored = envelope::encode(&Event::End(end.clone())).expect("encodes");
        let _new: u64 = self.redis.hset(self.keys.turn(turn), FIELD_END, stored).await.expect("HSET");
    }

    /// Plays a whole turn in one attempt.
    async fn answer(&mut self, turn: TurnId, end: &End) {
        self.begin(turn, 5, 0).await;
        self.delta(turn, 5, 0, 4).await;
        self.delta(turn, 5, 4, 13).await;
        self.end(turn, "6-13", end).await;
    }

    /// Ends a turn as its worker does if the reply is short, and lets the stream expire: all at once, as seen by a reader that
    /// looked away meanwhile.
    async fn keep_reply(&mut self, turn: TurnId, reply: Delta) {
        let encode = |event| envelope::encode(&event).expect("encodes");
        let (end, reply) = (encode(Event::End(completed())), encode(Event::Delta(reply)));
        let fields = [(FIELD_END, end), (FIELD_REPLY, reply), ("epoch", b"5".to_vec())];
        let mut ending = redis::pipe();
        ending.atomic().hset_multiple(self.keys.turn(turn), &fields).del(self.keys.result(turn));
        let _: redis::Value = ending.query_async(&mut self.redis).await.expect("EXEC");
    }

    async fn drop_result(&mut self, turn: TurnId) {
        let _deleted: u64 = self.redis.del(self.keys.result(turn)).await.expect("DEL");
    }

    /// Waits until a reader blocks on the result stream, and cuts it off.
    async fn kill_reader(&mut self) {
        tokio::time::timeout(PATIENCE, self.kill_blocked()).await.expect("a reader blocks on the stream");
    }

    async fn kill_blocked(&mut self) {
        loop {
            let clients: String =
                redis::cmd("CLIENT").arg("LIST").query_async(&mut self.redis).await.expect("CLIENT LIST");
            let blocked = clients.lines().find(|line| line.contains("cmd=xread") && line.contains("flags=b"));
            if let Some(line) = blocked {
                let id = line.split_once("id=").and_then(|(_, rest)| rest.split(' ').next()).expect("an id");
                let killed: u64 = redis::cmd("CLIENT")
                    .arg(&["KILL", "ID", id])
                    .query_async(&mut self.redis)
                    .await
                    .expect("CLIENT KILL");
                if killed == 1 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for the turn that a command line puts at the head of `agent`.
    async fn head(&mut self, agent: &str) -> TurnId {
        tokio::time::timeout(PATIENCE, self.find_head(agent)).await.expect("the turn is enqueued")
    }

    async fn find_head(&mut self, agent: &str) -> TurnId {
        let key = self.keys.backlog(&turnmill_client::schema::AgentId::named(&name("default"), &name(agent)));
        loop {
            let head: Option<String> = self.redis.lindex(&key, 0).await.expect("LINDEX");
            if let Some(turn) = head.and_then(|head| head.split(' ').next()?.parse().ok()) {
                return turn;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn delta(index: u32, end: u32) -> Delta {
    let mut delta = Delta { index, ..Delta::default() };
    let characters = (0..end).zip(REPLY.chars()).skip(index as usize);
    characters.for_each(|(token, character)| delta.push(token, &character.to_string(), None));
    delta
}

fn completed() -> End {
    End {
        outcome: Outcome::Completed,
        finish: Some(FinishReason::Stop),
        stop: None,
        error: None,
        usage: Usage { prompt_tokens: 7, cached_tokens: 2, completion_tokens: 13, reasoning_tokens: 0 },
        timing: Timing { queued_ms: 1, first_token_ms: Some(2), total_ms: 3 },
        worker: Some("played".into()),
    }
}

fn failed() -> End {
    End {
        outcome: Outcome::Failed,
        finish: None,
        error: Some("the prompt is too long".into()),
        ..completed()
    }
}

type Events = Vec<Result<Followed, ClientError>>;

/// Reads one event that is there or will come.
async fn next(events: &mut (impl Stream<Item = Result<Followed, ClientError>> + Unpin)) -> Followed {
    events.next().await.expect("not ended").expect("no error")
}

/// The tokens and text of deltas, and whether the last event is the only End.
fn read(events: impl IntoIterator<Item = Followed>) -> (Vec<u32>, String, bool) {
    let (mut tokens, mut text, mut ends, mut last) = (Vec::new(), String::new(), 0, false);
    for followed in events {
        last = matches!(followed.event, Event::End(_));
        ends += u32::from(last);
        if let Event::Delta(delta) = followed.event {
            assert_eq!(delta.index as usize, tokens.len(), "no token twice and none missing");
            tokens.extend(delta.tokens);
            text.push_str(&delta.text);
        }
    }
    (tokens, text, ends == 1 && last)
}

fn whole() -> (Vec<u32>, String, bool) {
    ((0..13).collect(), REPLY.to_owned(), true)
}

#[tokio::test]
async fn follow_goes_on_after_a_killed_connection_without_a_repeated_token() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    let reader = tokio::spawn(producer.follow(turn, None).collect::<Events>());

    worker.begin(turn, 5, 0).await;
    worker.delta(turn, 5, 0, 3).await;
    worker.kill_reader().await;
    worker.delta(turn, 5, 3, 6).await;
    worker.kill_reader().await;
    // The worker dies; the next attempt repeats tokens, as one may after Redis lost its last second.
    worker.begin(turn, 9, 3).await;
    worker.delta(turn, 9, 3, 8).await;
    worker.delta(turn, 9, 8, 13).await;
    worker.end(turn, "10-13", &completed()).await;

    let events = reader.await.expect("no panic");
    assert_eq!(read(events.into_iter().map(|followed| followed.expect("no error"))), whole());
}

#[tokio::test]
async fn follow_cuts_what_comes_again_after_redis_lost_its_last_second() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    let mut events = producer.follow(turn, None);

    worker.begin(turn, 5, 0).await;
    worker.delta(turn, 5, 0, 6).await;
    let mut all = vec![next(&mut events).await, next(&mut events).await];
    // Back to 4 tokens, in other pieces; token 6 starts within a delta.
    worker.drop_result(turn).await;
    worker.begin(turn, 5, 0).await;
    worker.delta(turn, 5, 0, 4).await;
    worker.delta(turn, 5, 4, 13).await;
    worker.end(turn, "6-13", &completed()).await;
    while let Some(followed) = events.next().await {
        all.push(followed.expect("no error"));
    }
    assert_eq!(read(all), whole());
}

#[tokio::test]
async fn follow_from_an_entry_gives_what_comes_after_it() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    worker.answer(turn, &completed()).await;
    let from =
        |epoch, sequence| producer.follow(turn, Some(StreamId { epoch, sequence })).collect::<Events>();

    let rest = from(5, 4).await;
    let deltas: Vec<_> =
        rest.iter().map(|followed| followed.as_ref().map(|f| &f.event).expect("no error")).collect();
    assert_eq!(deltas, [&Event::Delta(delta(4, 13)), &Event::End(completed())]);
    // Whoever has the End gets it again rather than waiting for ever.
    let again = from(6, 13).await;
    assert!(matches!(&again[..], [Ok(Followed { id: Some(_), event: Event::End(_) })]), "{again:?}");
}

#[tokio::test]
async fn an_expired_stream_leaves_the_outcome_and_an_expired_turn_is_told() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi").agent(name("a"))).await.expect("enqueued").turn;
    worker.answer(turn, &completed()).await;
    let result = producer.wait(turn).await.expect("ended");
    assert_eq!((result.text.as_deref(), result.agent), (Some(REPLY), Some(name("a"))));

    worker.drop_result(turn).await;
    let result = producer.wait(turn).await.expect("ended");
    assert_eq!((result.text, result.outcome, result.usage), (None, Outcome::Completed, completed().usage));

    let _deleted: u64 = worker.redis.del(worker.keys.turn(turn)).await.expect("DEL");
    let error = producer.wait(turn).await.expect_err("must be told");
    assert!(matches!(error, ClientError::UnknownTurn { .. }), "{error}");
}

#[tokio::test]
async fn a_short_reply_outlives_its_stream() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    let mut events = producer.follow(turn, None);
    worker.begin(turn, 5, 0).await;
    worker.delta(turn, 5, 0, 4).await;
    let mut all = vec![next(&mut events).await, next(&mut events).await];
    // The rest is made, and the stream goes before this reader comes to it.
    worker.keep_reply(turn, delta(0, 13)).await;
    while let Some(followed) = events.next().await {
        all.push(followed.expect("no error"));
    }
    assert_eq!(read(all), whole());

    assert_eq!(producer.wait(turn).await.expect("ended").text.as_deref(), Some(REPLY));
    let from =
        |epoch, sequence| producer.follow(turn, Some(StreamId { epoch, sequence })).collect::<Events>();
    let end = from(5, 13).await;
    let id = Some(StreamId { epoch: 6, sequence: 13 });
    assert!(matches!(&end[..], [Ok(Followed { id: at, event: Event::End(_) })] if *at == id), "{end:?}");
    // Between any two tokens, whether or not a delta ended there.
    for at in 1..13 {
        let rest = from(5, u64::from(at)).await;
        let [Ok(Followed { event: Event::Delta(rest), .. }), Ok(_)] = &rest[..] else { panic!("{rest:?}") };
        assert_eq!(*rest, delta(at, 13));
    }
    // A worker that did not say where: whole, or not at all.
    worker.keep_reply(turn, Delta { lengths: Vec::new(), ..delta(0, 13) }).await;
    assert_eq!(producer.wait(turn).await.expect("ended").text.as_deref(), Some(REPLY));
    let cut = from(5, 4).await;
    assert!(matches!(&cut[..], [Err(ClientError::Unreadable { .. })]), "{cut:?}");
}

#[tokio::test]
async fn a_gap_is_an_error_and_not_wrong_text() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    worker.delta(turn, 5, 0, 2).await;
    worker.delta(turn, 5, 4, 6).await;
    let error = producer.wait(turn).await.expect_err("must be told");
    assert!(matches!(error, ClientError::Gap { expected: 2, found: 4, .. }), "{error}");
}

#[tokio::test]
async fn batches_keep_their_order_and_repeating_them_adds_nothing() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let mut turns: Vec<_> =
        (0..450).map(|i| producer.prepare(NewTurn::user(format!("{i}")).agent(name("a")))).collect();
    let enqueued = producer.enqueue_prepared(&mut turns).await.expect("enqueued");
    assert_eq!(producer.enqueue_prepared(&mut turns).await.expect("enqueued before"), enqueued);
    let ids = ids(enqueued);
    let agent = turns[0].turn().agent_id();
    let backlog: Vec<String> = worker.redis.lrange(worker.keys.backlog(&agent), 0, -1).await.expect("LRANGE");
    let backlog: Vec<TurnId> =
        backlog.iter().filter_map(|entry| entry.split(' ').next()?.parse().ok()).collect();
    assert_eq!((&backlog, ids.len()), (&ids, 450));
    let stored: Vec<u8> = worker.redis.hget(worker.keys.turn(ids[0]), "envelope").await.expect("HGET");
    let stored: turnmill_client::schema::Turn = envelope::decode(&stored).expect("a turn");
    assert_eq!((stored.sampling.seed, &stored), (Some(ids[0].seed()), turns[0].turn()));

    let lag = producer.lag().await.expect("counts");
    let runnable: Vec<_> = lag.priorities.iter().map(|row| (row.priority, row.runnable)).collect();
    assert_eq!(runnable, [(Priority::Interactive, 1), (Priority::Batch, 0)]);
    assert_eq!((lag.open_turns, lag.oldest_ms.is_some()), (450, true));
}

#[tokio::test]
async fn the_idempotency_key_and_the_depth_limit_hold() {
    let server = RedisServer::start();
    let producer = builder(&server).max_depth(1).connect().await.expect("Redis answers");
    let keyed = || NewTurn { idempotency_key: Some(name("k")), ..NewTurn::user("hi") };
    let first = producer.enqueue(keyed()).await.expect("enqueued").turn;
    assert_eq!(
        producer.enqueue(keyed()).await.expect("enqueued before"),
        Enqueued { turn: first, fresh: false }
    );
    let error = producer.enqueue(NewTurn::user("hi")).await.expect_err("must be refused");
    assert!(matches!(error, ClientError::QueueFull { tenant: None, open: 1, limit: 1, .. }), "{error}");
    assert!(error.to_string().starts_with("queue full; retry after "), "{error}");
    let error = producer.enqueue(NewTurn::default()).await.expect_err("must be refused");
    assert!(matches!(error, ClientError::InvalidTurn(_)), "{error}");
}

#[tokio::test]
async fn lag_tells_leased_from_runnable() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turns = ["a", "b", "c"].map(|agent| NewTurn::user("hi").agent(name(agent)));
    producer.enqueue_batch(turns.into()).await.expect("enqueued");
    let ready = worker.keys.ready(Priority::Interactive);
    let _ok: String = worker.redis.xgroup_create(&ready, "workers", "0").await.expect("XGROUP CREATE");
    let mut read = redis::cmd("XREADGROUP");
    read.arg(&["GROUP", "workers", "w", "COUNT", "1", "STREAMS", &ready, ">"]);
    let _token: redis::Value = read.query_async(&mut worker.redis).await.expect("XREADGROUP");
    let lag = producer.lag().await.expect("counts");
    let row = &lag.priorities[0];
    assert_eq!((row.runnable, row.leased, row.queued, row.lag), (2, 1, 2, Some(2)));
    assert!(row.oldest_ms.is_some());
}

#[tokio::test]
async fn a_redis_that_stays_away_ends_the_wait() {
    let server = RedisServer::start();
    let producer =
        builder(&server).retry_for(Duration::from_millis(300)).connect().await.expect("Redis answers");
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    drop(server);
    let error = producer.wait(turn).await.expect_err("must give up");
    assert!(error.is_outage(), "{error}");
    assert!(producer.enqueue(NewTurn::user("hi")).await.is_err());
}

/// The command, as built beside this test.
fn turnmill(server: &RedisServer, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("turnmill"));
    command.args(arguments).env("TURNMILL_REDIS_URL", server.url());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the command with `input` while `worker` plays.
async fn run(mut command: Command, input: &str) -> Output {
    let input = input.to_owned();
    let done = tokio::task::spawn_blocking(move || {
        let mut child = command.stdin(Stdio::piped()).spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A command that refuses its flags does not read.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("ends")
    });
    done.await.expect("no panic")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn wait_json_prints_one_object_with_exactly_these_keys() {
    let server = RedisServer::start();
    let mut worker = Worker::new(&server).await;
    let command = turnmill(&server, &["submit", "--agent", "a", "--message", "hi", "--wait", "--json"]);
    let running = tokio::spawn(run(command, ""));
    let turn = worker.head("a").await;
    worker.answer(turn, &completed()).await;
    let output = running.await.expect("no panic");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let printed: Value = serde_json::from_str(&stdout(&output)).expect("one object");
    let expected = json!({
        "turn": turn, "agent": "a", "outcome": "completed", "finish": "stop", "text": REPLY,
        "usage": {"prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": 13},
        "timing": {"queued_ms": 1, "first_token_ms": 2, "total_ms": 3}, "worker": "played",
    });
    assert_eq!(printed, expected);
}

#[tokio::test]
async fn calls_of_tools_are_printed_and_given_as_openai_spells_them() {
    let server = RedisServer::start();
    let mut worker = Worker::new(&server).await;
    let input = json!({"agent": "a", "message": "Add.", "tools": [{"type": "function", "function": {"name": "add"}}]});
    let command = turnmill(&server, &["submit", "--wait", "--json"]);
    let running = tokio::spawn(async move { run(command, &input.to_string()).await });
    let turn = worker.head("a").await;
    let mut reply = Delta::default();
    reply.push_parts(0, &[(Part::Reasoning, "Sum."), (Part::Content, "I add.")], None);
    reply.push_parts(1, &[(Part::ToolName(0), "add"), (Part::ToolArguments(0), "{\"b\": 1,")], None);
    reply.push_parts(2, &[(Part::ToolArguments(0), "\n \"a\": 2}")], None);
    worker.begin(turn, 5, 0).await;
    worker.publish(turn, "5-3", &Event::Delta(reply)).await;
    worker.end(turn, "6-3", &End { finish: Some(FinishReason::ToolCalls), ..completed() }).await;
    let output = running.await.expect("no panic");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let printed: Value = serde_json::from_str(&stdout(&output)).expect("one object");
    let call = json!({
        "id": ToolCall::id_of(&turn, 0), "type": "function",
        "function": {"name": "add", "arguments": "{\"b\": 1,\n \"a\": 2}"},
    });
    assert_eq!(printed["tool_calls"], json!([call]));
    assert_eq!(
        [&printed["reasoning"], &printed["text"], &printed["finish"]],
        ["Sum.", "I add.", "tool_calls"]
    );
    let output = run(turnmill(&server, &["tail", &turn.to_string()]), "").await;
    let text = "I add.\nadd({\"b\": 1,  \"a\": 2})\n";
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), text));
}

#[tokio::test]
async fn a_failed_turn_is_exit_1_with_its_error() {
    let server = RedisServer::start();
    let mut worker = Worker::new(&server).await;
    let running =
        tokio::spawn(run(turnmill(&server, &["submit", "--agent", "a", "-m", "hi", "--stream"]), ""));
    let turn = worker.head("a").await;
    worker.begin(turn, 5, 0).await;
    worker.delta(turn, 5, 0, 5).await;
    worker.end(turn, "6-5", &failed()).await;
    let output = running.await.expect("no panic");
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), "naïve\n".to_owned()));
    assert_eq!(stderr(&output), format!("turnmill: turn {turn} failed: the prompt is too long\n"));
}

#[tokio::test]
async fn json_lines_are_submitted_and_printed_as_they_end() {
    let server = RedisServer::start();
    let mut worker = Worker::new(&server).await;
    let input = "{\"agent\": \"a\", \"message\": \"one\"}\n{\"agent\": \"b\", \"message\": \"two\"}\n";
    let command = turnmill(&server, &["submit", "-", "--wait", "--json", "--tokens", "--max-tokens", "9"]);
    let running = tokio::spawn(run(command, input));
    let (a, b) = (worker.head("a").await, worker.head("b").await);
    worker.answer(b, &completed()).await;
    worker.answer(a, &completed()).await;
    let output = running.await.expect("no panic");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let printed = stdout(&output);
    let printed: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let turns: BTreeSet<String> = printed.iter().map(|result| result["turn"].to_string()).collect();
    assert_eq!(turns, BTreeSet::from([json!(a).to_string(), json!(b).to_string()]));
    assert!(printed.iter().all(|result| result["tokens"] == json!((0..13).collect::<Vec<_>>())));
    assert!(printed.iter().all(|result| result["lengths"] == json!(delta(0, 13).lengths)));
}

#[tokio::test]
async fn tail_goes_on_from_an_entry_it_printed() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    worker.answer(turn, &completed()).await;
    let turn = turn.to_string();
    let output = run(turnmill(&server, &["tail", &turn, "--json"]), "").await;
    let printed = stdout(&output);
    let ids: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("an object")["id"].clone())
        .collect();
    assert_eq!(ids, [json!("5-0"), json!("5-4"), json!("5-13"), json!("6-13")]);
    let output = run(turnmill(&server, &["tail", &turn, "--from", "5-4"]), "").await;
    let rest: String = REPLY.chars().skip(4).collect();
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), format!("{rest}\n")));
}

#[tokio::test]
async fn exit_codes_are_as_documented() {
    let server = RedisServer::start();
    let unknown = TurnId::new(0).to_string();
    for (arguments, input, code, says) in [
        (&["submit", "-m", "hi"][..], "", 0, ""),
        (&["submit", "-m", "hi", "--max-tokens", "0"], "", 0, ""),
        (&["submit", "--prompt", "Once", "--special-tokens"], "", 0, ""),
        (&["submit", "-m", "hi", "--reasoning", "very"], "", 2, "give off, on, minimal"),
        (&["submit", "-m", "hi", "--tools", "nowhere.json"], "", 2, "cannot read nowhere.json"),
        (&["submit", "-m", "hi", "--tool-choice", "required"], "", 2, "the turn has no tools; give tools"),
        (&["submit"], "{\"message\": \"a\", \"tool_choice\": \"any\"}", 2, "line 1: tool_choice is \"any\""),
        (&["submit", "-m", "hi", "--agent", "a b"], "", 2, "holds the character ' '"),
        (&["submit"], "", 2, "nothing to submit"),
        (&["submit"], "{\"message\": \"a\"}\n{\"massage\": \"b\"}\n", 2, "line 2: unknown key \"massage\""),
        (&["submit", "--stream"], "{\"message\": \"a\"}\n", 2, "add --json"),
        (&["submit", "nowhere.jsonl"], "", 2, "cannot read nowhere.jsonl"),
        (&["tail", "nonsense"], "", 2, "is not a turn id"),
        (&["tail", &unknown], "", 4, "never enqueued"),
        (&["lag", "--redis-url", "redis://127.0.0.1:1"], "", 3, "cannot reach Redis at 127.0.0.1:1"),
        (&["lag", "--redis-url", "rediss://127.0.0.1:1"], "", 3, "cannot reach Redis at 127.0.0.1:1"),
        (&["lag", "--redis-url", "nonsense"], "", 2, "is not a Redis URL"),
        (&["completions", "bash"], "", 0, ""),
        (&["version"], "", 0, ""),
    ] {
        let output = run(turnmill(&server, arguments), input).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn a_redis_that_may_evict_turns_is_not_used() {
    let server = RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let output = run(turnmill(&server, &["submit", "-m", "hi"]), "").await;
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("CONFIG SET maxmemory-policy noeviction"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_closed_pipe_ends_the_command_quietly() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    let mut child = turnmill(&server, &["tail", &turn.to_string()]).spawn().expect("starts");
    drop(child.stdout.take());
    worker.answer(turn, &completed()).await;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.expect("no panic");
    let output = output.expect("ends");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[tokio::test]
async fn a_turn_without_an_agent_has_none() {
    let server = RedisServer::start();
    let (producer, mut worker) = (producer(&server).await, Worker::new(&server).await);
    let turn = producer.enqueue(NewTurn::user("hi")).await.expect("enqueued").turn;
    let agent: String = worker.redis.hget(worker.keys.turn(turn), FIELD_AGENT).await.expect("HGET");
    assert_eq!(agent, format!("default/~{turn}"));
    worker.answer(turn, &completed()).await;
    assert_eq!(producer.wait(turn).await.expect("ended").agent, None);
}
