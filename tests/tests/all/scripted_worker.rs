//! `turnmill-tests scripted-worker`: everything of a worker but the model, with words from a script.

use std::io::Write as _;

use tempfile::{NamedTempFile, TempDir};
use turnmill_client::{NewTurn, TurnResult};
use turnmill_schema::{FinishReason, Message, Outcome, Role, Sampling};
use turnmill_tests::line::{Line, name};
use turnmill_tests::redis_server::RedisServer;
use turnmill_tests::until;
use turnmill_tests::worker::Worker;

/// Rules, the last of which says what it was told.
const RULES: &str = r#"
[[rule]]
when_is = "When is the tide?"
say = "High tide is at noon.\nLow tide is at six 🙂, <|im_end|> as ever."

[[rule]]
when = "Measure this"
say = "That was long."

[[rule]]
when = "a story"
say = "once upon a time there was "
tokens = 240

[[rule]]
when = "slowly"
say = "one two three four five six seven eight nine ten "
tokens = 60
tokens_per_second = 40

[[rule]]
when = "think"
say = "Well."
first_token_ms = 300

[[rule]]
when = "crash"
say = "So far so good"
fail = "the script says so"

[[rule]]
say = "You said: {prompt}"
"#;

const TIDES: &str = "High tide is at noon.\nLow tide is at six 🙂, <|im_end|> as ever.";

fn text(result: &TurnResult) -> &str {
    assert_eq!(result.outcome, Outcome::Completed, "{:?}", result.error);
    result.text.as_deref().expect("the reply is kept")
}

fn at_most(max_tokens: u32) -> Sampling {
    Sampling { max_tokens: Some(max_tokens), ..Sampling::default() }
}

#[tokio::test]
async fn the_words_of_a_rule_come_as_they_stand_there_however_they_are_sampled() {
    let line = Line::without_workers().await;
    let _worker = line.scripted_worker(RULES, &[]);
    for sampling in [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling { temperature: 2.0, seed: Some(7), frequency_penalty: 2.0, ..Sampling::default() },
        Sampling { repetition_penalty: 2.0, top_p: 0.5, ..Sampling::default() },
    ] {
        let result = line.run(NewTurn::user("When is the tide?").sampling(sampling)).await;
        assert_eq!((text(&result), result.finish), (TIDES, Some(FinishReason::Stop)));
        assert!(result.usage.prompt_tokens > 0, "{:?}", result.usage);
        // The end of the turn is a token of it.
        assert_eq!(result.usage.completion_tokens as usize, result.tokens.len());
        assert_eq!(result.lengths.iter().sum::<u32>() as usize, TIDES.len());
    }
    for _ in 0..2 {
        let thought = line.run(NewTurn::user("Please think.")).await;
        assert_eq!(text(&thought), "Well.");
        assert!(thought.timing.first_token_ms >= Some(300), "{:?}", thought.timing);
    }
    let printed = line.turnmill(&["submit", "--message", "When is the tide?", "--wait"]).await;
    assert_eq!(String::from_utf8_lossy(&printed.stdout).trim_end(), TIDES);
}

#[tokio::test]
async fn the_last_message_of_the_user_is_answered_whatever_was_said_before() {
    let line = Line::without_workers().await;
    let _worker = line.scripted_worker(RULES, &[]);
    for turn in 0..4 {
        let message = if turn % 2 == 0 { "When is the tide?" } else { "Thank you, a lot." };
        let result = line.run(NewTurn::user(message).agent(name("ada"))).await;
        let said = if turn % 2 == 0 { TIDES } else { "You said: Thank you, a lot." };
        assert_eq!(text(&result), said, "turn {turn}");
        assert_eq!(result.usage.cached_tokens > 0, turn > 0, "turn {turn}: {:?}", result.usage);
    }
    let messages = vec![
        Message::new(Role::System, "When is the tide?"),
        Message::new(Role::User, "one"),
        Message::new(Role::Assistant, "two"),
        Message::new(Role::User, "three"),
    ];
    let result = line.run(NewTurn { messages, ..NewTurn::default() }).await;
    assert_eq!(text(&result), "You said: three");
}

#[tokio::test]
async fn a_prompt_of_150_000_tokens_is_answered() {
    let line = Line::without_workers().await;
    let worker = line.scripted_worker(RULES, &["--max-context-tokens", "200000"]);
    // A token a digit.
    let digits: String = (0..150_000).map(|i| char::from(b'0' + (i * 7 % 10) as u8)).collect();
    let result = line.run(NewTurn::user(format!("Measure this: {digits}"))).await;
    assert_eq!((text(&result), result.finish), ("That was long.", Some(FinishReason::Stop)));
    assert!(result.usage.prompt_tokens > 150_000, "{:?}", result.usage);
    let longer = NewTurn::user(format!("Measure this: {digits}{}", &digits[..50_000]));
    let refused = line.run(longer).await;
    assert_eq!(refused.outcome, Outcome::Failed, "{:?}", refused.error);
    assert_eq!(worker.ready().0, 200);
}

#[tokio::test]
async fn limits_stop_strings_and_log_probabilities_are_the_workers_own() {
    let line = Line::without_workers().await;
    let _worker = line.scripted_worker(RULES, &[]);
    let run = async |sampling| line.run(NewTurn::user("When is the tide?").sampling(sampling)).await;
    let short = run(at_most(3)).await;
    assert_eq!((short.finish, short.tokens.len()), (Some(FinishReason::Length), 3));
    assert!(TIDES.starts_with(text(&short)) && text(&short).len() < TIDES.len());
    let stopped = run(Sampling { stop: vec!["noon.".to_owned()], ..Sampling::default() }).await;
    assert_eq!((text(&stopped), stopped.finish), ("High tide is at ", Some(FinishReason::Stop)));
    let longer = run(Sampling { min_tokens: 60, max_tokens: Some(90), ..Sampling::default() }).await;
    assert!(longer.tokens.len() > 60, "{:?}", longer.usage);
    assert!(text(&longer).starts_with(TIDES), "{:?}", longer.text);
    let told = run(Sampling { logprobs: Some(2), ..at_most(5) }).await;
    let likely = told.logprobs.iter().zip(&told.tokens).all(|(logprobs, token)| {
        logprobs.logprob == 0.0 && logprobs.top.first().is_some_and(|(top, _)| top == token)
    });
    assert!(told.logprobs.len() == 5 && likely, "{:?}", told.logprobs);
}

#[tokio::test]
async fn a_reply_goes_on_where_a_killed_worker_was() {
    let line = Line::without_workers().await;
    let flags = ["--lease-ms", "1000"];
    let mut first = line.scripted_worker(RULES, &flags);
    let undisturbed = line.run(NewTurn::user("Count slowly.")).await;
    let turns = line.enqueue(vec![NewTurn::user("Count slowly.")]).await;
    line.until_all_have_tokens(&turns).await;
    first.kill9();
    let _second = line.scripted_worker(RULES, &flags);
    let told = line.told(&turns).await.remove(0);
    assert_eq!(told.begins.len(), 2, "it was resumed");
    assert!(told.begins[1].resume_from > 0, "{:?}", told.begins);
    assert_eq!((told.text.as_str(), &told.tokens), (text(&undisturbed), &undisturbed.tokens));
    assert_eq!(told.tokens.len(), 61);
}

#[tokio::test]
async fn proposed_tokens_change_no_word() {
    let line = Line::without_workers().await;
    let plain = line.scripted_worker(RULES, &["--speculation", "off"]);
    let one_by_one = line.run(NewTurn::user("Tell me a story.")).await;
    assert_eq!(one_by_one.usage.completion_tokens, 241);
    drop(plain);
    let worker = line.scripted_worker(RULES, &["--speculation", "lookup"]);
    let together = line.run(NewTurn::user("Tell me a story.")).await;
    assert_eq!((text(&together), &together.tokens), (text(&one_by_one), &one_by_one.tokens));
    let accepted = worker.metric("turnmill_speculation_accepted_tokens_total", &[]);
    assert!(accepted > 100.0, "{accepted} tokens were accepted");
}

#[tokio::test]
async fn what_was_read_comes_back_from_the_store() {
    let line = Line::without_workers().await;
    let folder = TempDir::new().expect("the temporary directory is writable");
    let store = format!("file://{}", folder.path().display());
    let first = line.scripted_worker(RULES, &["--store", &store]);
    let long: String = (0..400).map(|i| format!("Line {i} is here. ")).collect();
    let asked = line.run(NewTurn::user(format!("Measure this: {long}")).agent(name("ada"))).await;
    assert_eq!(text(&asked), "That was long.");
    line.until_stored("ada", asked.usage.prompt_tokens / 16 * 16).await;
    drop(first);
    let _second = line.scripted_worker(RULES, &["--store", &store]);
    let again = line.run(NewTurn::user("And now?").agent(name("ada"))).await;
    assert_eq!(text(&again), "You said: And now?");
    assert!(again.usage.cached_tokens >= asked.usage.prompt_tokens / 16 * 16, "{:?}", again.usage);
}

#[tokio::test]
async fn a_rule_that_fails_ends_as_a_dead_letter_with_its_sentence() {
    let line = Line::without_workers().await;
    let _worker = line.scripted_worker(RULES, &["--max-attempts", "2", "--retry-base-ms", "10"]);
    let result = line.run(NewTurn::user("Please crash.")).await;
    assert_eq!(result.outcome, Outcome::Failed);
    assert_eq!(result.text.as_deref(), Some("So far so good"));
    let error = result.error.expect("a reason");
    assert!(error.contains("the script says so"), "{error}");
    assert_eq!(text(&line.run(NewTurn::user("And now?")).await), "You said: And now?");
}

#[tokio::test]
async fn two_hundred_turns_at_once_get_their_own_words() {
    let line = Line::without_workers().await;
    let flags = ["--max-sequences", "200", "--batch-tokens", "8192"];
    let worker = line.scripted_worker(RULES, &flags);
    let message = |i: usize| format!("I am number {i} of many.");
    let turns = line.enqueue((0..200).map(|i| NewTurn::user(message(i))).collect()).await;
    for (i, turn) in turns.into_iter().enumerate() {
        assert_eq!(text(&line.wait(turn).await), format!("You said: {}", message(i)));
    }
    assert_eq!(worker.metric("turnmill_turns_ended_total", &["outcome=\"completed\""]), 200.0);
    let used = || worker.metric("turnmill_engine_running_sequences", &[]);
    until("all sequences are gone", async || used() == 0.0).await;
}

#[tokio::test]
async fn without_a_script_it_says_what_it_was_told() {
    let line = Line::without_workers().await;
    let mut worker = Worker::launch_scripted(&line.redis.url(), &[]);
    worker.until_ready();
    assert_eq!(text(&line.run(NewTurn::user("Hello there.")).await), "You said: Hello there.");
    worker.sigterm();
    assert!(worker.wait_exit().success(), "{}", worker.log());
}

#[tokio::test]
async fn what_cannot_be_said_is_refused_before_anything_is_claimed() {
    let redis = RedisServer::start();
    let refusal = |script: &str, flags: &[&str]| {
        let mut file = NamedTempFile::new().expect("the temporary directory is writable");
        file.write_all(script.as_bytes()).expect("written");
        let path = file.path().to_string_lossy();
        Worker::scripted_refusal(&redis, &[&["--script", &*path], flags].concat())
    };
    let good = "[[rule]]\nsay = \"yes\"\n";
    for (script, flags, said) in [
        ("", &[][..], "the script has no rules; give at least one"),
        ("[[rule]]\nsays = \"a\"\n", &[], "line 2 of the script: unknown field `says`"),
        ("[[rule]]\nwhen = \"a\"\n", &[], "rule 1 of the script says nothing"),
        (good, &["--kv-codec", "q8"], "kv_codec is q8; a scripted worker's K and V are its tokens"),
        (good, &["--block-tokens", "256", "--pool-bytes", "1024TiB"], "pool_bytes makes "),
        (good, &["--lease-ms", "1"], "lease_ms is 1; it must be from "),
        (good, &["--model", "/nowhere/model.gguf"], "cannot read the model /nowhere/model.gguf"),
    ] {
        let refused = refusal(script, flags);
        assert!(refused.starts_with(said), "{script:?} {flags:?}: {refused}");
    }
    let missing = Worker::scripted_refusal(&redis, &["--script", "/nowhere/script.toml"]);
    assert!(missing.starts_with("cannot read the script /nowhere/script.toml"), "{missing}");
}
