//! Bad input: one clear sentence in the right place, and the worker goes on.

use std::io::Write;
use std::net::TcpListener;

use tempfile::NamedTempFile;
use turnmill_client::{ClientError, NewTurn};
use turnmill_schema::envelope::{self, EnvelopeError, MAX_ENVELOPE_BYTES, MAX_INLINE_BYTES};
use turnmill_schema::{Outcome, Sampling, Turn, TurnId};
use turnmill_tests::line::{Line, exactly, greedy, name};
use turnmill_tests::redis_server::RedisServer;
use turnmill_tests::worker::{Worker, model};

/// A file of these bytes.
fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("the temporary directory is writable");
    file.write_all(bytes).expect("the file takes them");
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("a path of text")
}

/// The value of `general.architecture` replaced by one of the same length.
fn of_unknown_architecture(mut gguf: Vec<u8>) -> Vec<u8> {
    let key = b"general.architecture";
    let at = gguf.windows(key.len()).position(|window| window == key).expect("the key is there");
    // After the key: the value's type (4 bytes) and length (8 bytes).
    let value = at + key.len() + 12;
    assert_eq!(&gguf[value..value + 5], b"llama");
    gguf[value..value + 5].copy_from_slice(b"mamba");
    gguf
}

#[tokio::test]
async fn a_worker_that_cannot_run_says_why_and_ends() {
    let line = Line::start().await;
    let whole = std::fs::read(model()).expect("the model can be read");
    let truncated = file(&whole[..whole.len() / 2]);
    let headless = file(&whole[..1000]);
    let unknown = file(&of_unknown_architecture(whole));
    let nonsense = file(b"this is no model");
    let config = file(b"lease_ms = 2000\npool_byte = \"1GiB\"\n");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a local port is free");
    let taken = taken.local_addr().expect("a bound socket has an address").to_string();
    let digest = "0".repeat(64);
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--model", path(&unknown)], &["architecture is \"mamba\"", "llama"]),
        (&["--model", path(&truncated)], &["not a whole GGUF file", "truncated", "fetch it again"]),
        (&["--model", path(&headless)], &["not a whole GGUF file", "fetch it again"]),
        (&["--model", path(&nonsense)], &["not a whole GGUF file"]),
        (&["--model", "/nowhere.gguf"], &["cannot read the model /nowhere.gguf", "--model"]),
        (&["--model-sha256", &digest], &["has SHA-256", "not 0000", "model_sha256"]),
        (&["--redis-url", "redis://:s3cret@127.0.0.1:1"], &["cannot reach Redis at 127.0.0.1:1"]),
        (&["--http-addr", &taken], &[&taken, "use"]),
        (&["--config", path(&config)], &["line 2", "pool_byte"]),
        (&["--pool-bytes", "1KiB"], &["pool_bytes is 1KiB", "from 1MiB"]),
    ];
    for (flags, parts) in cases {
        let said = Worker::refusal(&line.redis, flags);
        for part in parts {
            assert!(said.contains(part), "{flags:?} is refused without {part:?}: {said}");
        }
        assert!(!said.contains("s3cret"), "{said}");
    }
    let said = Worker::refusal_with(&line.redis, ("TURNMILL_REDIS_ULR", "x"));
    assert!(said.contains("TURNMILL_REDIS_ULR (did you mean TURNMILL_REDIS_URL?)"), "{said}");
    assert!(line.all_keys().await.iter().all(|key| !key.contains("turn:")), "nothing was claimed or written");
    // Its own server: the line's producer would refuse it too.
    let evicting = RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let said = Worker::refusal(&evicting, &[]);
    assert!(said.contains("allkeys-lru") && said.contains("noeviction"), "{said}");
}

#[tokio::test]
async fn producers_refuse_what_can_never_run_and_write_nothing() {
    let line = Line::without_workers().await;
    let cold = NewTurn::user("hi").sampling(Sampling { temperature: -1.0, ..greedy(1) });
    let error = line.producer.enqueue(cold).await.expect_err("must be refused");
    assert_eq!(error.to_string(), "temperature is -1; it must be from 0 to 100");
    let large = NewTurn::user("x".repeat(MAX_INLINE_BYTES));
    let error = line.producer.enqueue(large).await.expect_err("must be refused");
    assert!(matches!(error, ClientError::NoStore { .. }), "{error}");
    let huge = NewTurn::user("x".repeat(MAX_ENVELOPE_BYTES));
    let error = line.producer.enqueue(huge).await.expect_err("must be refused");
    let limit = MAX_ENVELOPE_BYTES;
    assert!(
        matches!(error, ClientError::Envelope(EnvelopeError::TooLarge { limit: l, .. }) if l == limit),
        "{error}"
    );
    for (arguments, part) in [
        (["--temperature", "-1"], "temperature is -1; it must be from 0 to 100"),
        (["--agent", "a{b}"], "holds the character '{'"),
        (["--agent", "naïve"], "holds the character 'ï'"),
    ] {
        let output = line.turnmill(&[&["submit", "-m", "hi"][..], &arguments].concat()).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(part), "{arguments:?}: {said}");
    }
    assert_eq!(line.all_keys().await, Vec::<String>::new());
}

/// A turn as a producer in another language may write it.
fn raw_turn(agent: &str, sampling: Sampling) -> Turn {
    let sampling = Sampling { seed: Some(1), ..sampling };
    let turn = Turn::new(TurnId::new(0), name("default"), NewTurn::user("hi").messages);
    Turn { agent: Some(name(agent)), sampling, ..turn }
}

#[tokio::test]
async fn a_turn_that_cannot_run_fails_and_its_agents_next_turn_runs() {
    let line = Line::start().await;
    let mut bad: Vec<(&str, TurnId, &[&str])> = Vec::new();

    let long = "word ".repeat(300);
    let says = |agent, text: &str, sampling| NewTurn::user(text).agent(name(agent)).sampling(sampling);
    let unlimited = Sampling { temperature: 0.0, ..Sampling::default() };
    let checked: [(&str, NewTurn, &[&str]); 4] = [
        ("prompt", says("prompt", &long, unlimited), &["prompt has", "context holds 256"]),
        ("prompt-and-limit", says("prompt-and-limit", &long, greedy(1)), &["tokens", "context has 256"]),
        ("context", says("context", "hi", greedy(300)), &["tokens", "context has 256"]),
        ("pool", says("pool", "hi", exactly(200)), &["whole pool holds 176", "larger pool"]),
    ];
    for (agent, turn, parts) in checked {
        bad.push((agent, line.enqueue(vec![turn]).await[0], parts));
    }

    let cold = raw_turn("cold", Sampling { temperature: -1.0, ..greedy(1) });
    line.enqueue_unchecked(&cold).await;
    bad.push(("cold", cold.id, &["temperature is -1; it must be from 0 to 100"]));

    let waiting = ["version", "odd-name", "foreign", "too-large"].map(|agent| raw_turn(agent, greedy(2)));
    for turn in &waiting {
        line.enqueue_unchecked(turn).await;
    }
    let [version, odd_name, foreign, too_large] = waiting.each_ref().map(|turn| turn.id);
    let mut future = envelope::encode_turn(&waiting[0]).expect("encodes");
    future[0] = 9;
    line.overwrite(version, &future).await;
    bad.push(("version", version, &["version 9", "reads version 1", "upgrade"]));
    let renamed = envelope::encode_turn(&waiting[1]).expect("encodes");
    line.overwrite(odd_name, &replaced(renamed, b"odd-name", b"odd name")).await;
    bad.push(("odd-name", odd_name, &["cannot be read", "character ' '"]));
    line.overwrite(foreign, b"\x01{\"json\": true}").await;
    bad.push(("foreign", foreign, &["cannot be read"]));
    line.overwrite(too_large, &vec![1; MAX_ENVELOPE_BYTES + 1]).await;
    bad.push(("too-large", too_large, &["at most 16777216"]));

    let good = bad.iter().map(|(agent, ..)| says(agent, "Say yes.", greedy(2))).collect();
    let good = line.enqueue(good).await;
    let _worker = line.worker(&["--max-context-tokens", "256", "--pool-bytes", "4MiB"]);
    for (agent, turn, parts) in bad {
        let result = line.wait(turn).await;
        let error = result.error.unwrap_or_default();
        assert_eq!((result.outcome, result.tokens.len()), (Outcome::Failed, 0), "{agent}: {error}");
        for part in parts {
            assert!(error.contains(part), "{agent} fails without {part:?}: {error}");
        }
        assert_eq!(error.lines().count(), 1, "{agent}: one sentence: {error}");
    }
    for told in line.told(&good).await {
        assert_eq!(told.end.outcome, Outcome::Completed, "{:?}", told.end);
        assert_eq!(told.begins[0].attempt, 1);
    }
}

fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).expect("it is there");
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}
