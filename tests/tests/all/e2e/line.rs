//! The whole line: command line, queue, worker, model, and back. One worker with default settings is enough for all of it.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use turnmill_client::NewTurn;
use turnmill_schema::{FinishReason, History, Outcome, Sampling, TranscriptEntry, envelope};
use turnmill_tests::line::{Line, exactly, greedy, name};

const QUESTION: &str = "What is the capital of France? Answer in one sentence.";
const ANSWER: &str = "The capital of France is Paris.";

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The one object that `submit … --wait --json` prints.
async fn submit(line: &Line, arguments: &[&str]) -> Value {
    let arguments = [&["submit", "--temperature", "0", "--wait", "--json"], arguments].concat();
    let output = line.turnmill(&arguments).await;
    serde_json::from_str(&printed(&output)).expect("one object")
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_line_keeps_what_it_promises() {
    let line = Line::start().await;
    let _worker = line.worker(&["--worker-name", "w1"]);
    // First, because nothing may be in the worker's pool.
    the_command_line_prints_results_and_agents_have_history(&line).await;
    a_lone_turn_streams_can_be_tailed_and_leaves_no_agent(&line).await;
    sampling_and_stop_rules_hold(&line).await;
    turns_of_an_agent_run_in_order_and_chain(&line).await;
    a_deadline_passes_between_steps(&line).await;
    a_scheduled_turn_waits_for_its_time_in_its_place(&line).await;
}

async fn the_command_line_prints_results_and_agents_have_history(line: &Line) {
    let first = submit(line, &["--agent", "a", "--message", QUESTION]).await;
    let expected = ["turn", "agent", "outcome", "finish", "text", "usage", "timing", "worker"];
    assert_eq!(keys(&first), expected);
    assert_eq!(keys(&first["usage"]), ["prompt_tokens", "cached_tokens", "completion_tokens"]);
    assert_eq!(keys(&first["timing"]), ["queued_ms", "first_token_ms", "total_ms"]);
    assert_eq!((&first["agent"], &first["worker"]), (&"a".into(), &"w1".into()));
    assert_eq!((&first["outcome"], &first["finish"]), (&"completed".into(), &"stop".into()));
    assert_eq!((&first["text"], &first["usage"]["cached_tokens"]), (&ANSWER.into(), &0.into()));
    let timing = ["queued_ms", "first_token_ms", "total_ms"].map(|key| first["timing"][key].as_u64());
    assert!(timing[0].is_some() && timing.is_sorted(), "{timing:?}");

    let tokens = |result: &Value, what: &str| result["usage"][what].as_u64().expect("a count");
    let second = submit(line, &["--agent", "a", "--message", "And of Italy?"]).await;
    let history = tokens(&first, "prompt_tokens") + tokens(&first, "completion_tokens");
    assert!(tokens(&second, "prompt_tokens") > history, "{second}");
    assert!(tokens(&second, "cached_tokens") > 0, "{second}");
    assert_eq!(line.transcript("a").await.len(), 2);

    let anew = submit(line, &["--agent", "a", "--new-session", "--message", QUESTION]).await;
    assert_eq!(anew["text"], ANSWER);
    assert_eq!(tokens(&anew, "prompt_tokens"), tokens(&first, "prompt_tokens"));
    assert_eq!(line.transcript("a").await.len(), 1);
}

async fn a_lone_turn_streams_can_be_tailed_and_leaves_no_agent(line: &Line) {
    let streamed = line.turnmill(&["submit", "-m", QUESTION, "--temperature", "0", "--stream"]).await;
    assert_eq!(printed(&streamed), format!("{ANSWER}\n"));

    let submitted = line.turnmill(&["submit", "-m", QUESTION, "--temperature", "0"]).await;
    let turn = printed(&submitted).trim().to_owned();
    assert_eq!(printed(&line.turnmill(&["tail", &turn]).await), format!("{ANSWER}\n"));
    let events = printed(&line.turnmill(&["tail", &turn, "--json"]).await);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<&Value> = events.iter().map(|event| &event["kind"]).collect();
    assert_eq!((kinds[0], kinds.last()), (&"begin".into(), Some(&&"end".into())), "{kinds:?}");
    let from = events[1]["id"].as_str().expect("an entry id").to_owned();
    let rest = printed(&line.turnmill(&["tail", &turn, "--from", &from]).await);
    let seen = events[1]["text"].as_str().expect("a delta has text");
    assert_eq!(format!("{seen}{}", rest.trim_end()), ANSWER);

    let left: Vec<String> = line.all_keys().await.into_iter().filter(|key| key.contains("/~")).collect();
    assert_eq!(left, Vec::<String>::new(), "a lone turn leaves its result, not an agent");
}

async fn sampling_and_stop_rules_hold(line: &Line) {
    let plain = line.run(NewTurn::user(QUESTION).sampling(greedy(20))).await;
    assert_eq!((plain.text.as_deref(), plain.finish), (Some(ANSWER), Some(FinishReason::Stop)));
    let made = plain.tokens;
    let bias = [(made[0], -100.0)].into();
    let samplings = [
        Sampling { logprobs: Some(2), ..greedy(20) },
        Sampling { stop: vec![" is".to_owned()], ..greedy(20) },
        Sampling { stop_token_ids: vec![made[2]], ..greedy(20) },
        greedy(3),
        Sampling { min_tokens: 12, ..greedy(20) },
        exactly(12),
        Sampling { logit_bias: bias, ..greedy(2) },
    ];
    let turns = samplings.map(|sampling| NewTurn::user(QUESTION).sampling(sampling));
    let turns = line.enqueue(turns.into()).await;
    let mut results = Vec::new();
    for turn in turns {
        results.push(line.wait(turn).await);
    }
    let [logprobs, stop, stop_token, short, long, endless, biased] = &results[..] else {
        panic!("seven results")
    };

    assert_eq!((&logprobs.tokens, logprobs.logprobs.len()), (&made, made.len()));
    for (token, at) in made.iter().zip(&logprobs.logprobs) {
        let [likeliest, next] = at.top[..] else { panic!("two alternatives: {at:?}") };
        assert_eq!(likeliest, (*token, at.logprob), "a greedy token is the likeliest");
        assert!(next.1 <= likeliest.1 && likeliest.1 <= 0.0, "{at:?}");
    }
    let told =
        |result: &turnmill_client::TurnResult| (result.text.clone().unwrap_or_default(), result.finish);
    assert_eq!(told(stop), ("The capital of France".to_owned(), Some(FinishReason::Stop)));
    assert_eq!(told(stop_token), ("The capital".to_owned(), Some(FinishReason::Stop)));
    assert_eq!(stop_token.tokens, made[..3], "the stop token is told, not its text");
    assert_eq!(told(short), ("The capital of".to_owned(), Some(FinishReason::Length)));
    assert!((12..=20).contains(&long.tokens.len()), "{long:?}");
    assert_eq!(long.tokens[..made.len() - 1], made[..made.len() - 1]);
    assert_ne!(long.tokens[made.len() - 1], made[made.len() - 1], "too early to end");
    assert_eq!((endless.tokens.len(), endless.finish), (12, Some(FinishReason::Length)));
    assert_eq!(endless.tokens[..made.len()], made, "the end is a token like others");
    assert_ne!(biased.tokens[0], made[0]);
}

async fn turns_of_an_agent_run_in_order_and_chain(line: &Line) {
    let says = ["My name is Ada.", "I like mills.", "What do I like?", "Thank you."];
    let turns = |agent: &'static str| {
        // A reply cut short lacks its end marker; the next prompt must go on from it all the same.
        says.map(|text| NewTurn::user(text).agent(name(agent)).sampling(greedy(12)))
    };
    let waiting = line.enqueue(turns("together").into()).await;
    let together = line.told(&waiting).await;
    for pair in together.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        assert!(before.begins[0].epoch < after.begins[0].epoch, "in the order in which they were enqueued");
        assert!(after.end.usage.prompt_tokens > before.end.usage.prompt_tokens + 2);
        assert!(after.end.usage.cached_tokens > before.end.usage.cached_tokens, "{:?}", after.end);
    }

    let stored = line.transcript("together").await;
    let entries: Vec<TranscriptEntry> =
        stored.iter().map(|entry| envelope::decode(entry).expect("an entry")).collect();
    assert_eq!(entries.iter().map(|entry| entry.turn).collect::<Vec<_>>(), waiting);
    let history: History = entries.into_iter().collect();
    let contents: Vec<&str> = history.messages.iter().map(|message| message.content.as_str()).collect();
    let expected: Vec<&str> =
        says.iter().zip(&together).flat_map(|(said, told)| [*said, told.text.as_str()]).collect();
    assert_eq!(contents, expected);
    assert!(together.iter().all(|told| told.end.outcome == Outcome::Completed));

    for (turn, told) in turns("singly").into_iter().zip(&together) {
        assert_eq!(line.run(turn).await.tokens, told.tokens, "waiting in line changes no word");
    }
}

async fn a_deadline_passes_between_steps(line: &Line) {
    let late = NewTurn::user("Go on.").agent(name("late")).sampling(endless());
    let late = line.enqueue(vec![late.deadline_in(Duration::from_secs(2))]).await[0];
    let result = line.wait(late).await;
    assert_eq!(result.outcome, Outcome::Expired, "{result:?}");
    assert!(!result.tokens.is_empty(), "it ran, and what it made is there");
    assert!(result.error.is_some_and(|error| error.contains("deadline passed while it ran")));
}

async fn a_scheduled_turn_waits_for_its_time_in_its_place(line: &Line) {
    let say = |text: &str| NewTurn::user(text).agent(name("scheduled")).sampling(greedy(2));
    let ids = line.enqueue(vec![say("one").delay(Duration::from_millis(700)), say("two")]).await;
    let told = line.told(&ids).await;
    assert!(told[0].end.timing.queued_ms >= 700, "{:?}", told[0].end.timing);
    assert!(told[1].begins[0].epoch > told[0].begins[0].epoch, "the one behind waits for it");
}

/// For as long as the context allows.
fn endless() -> Sampling {
    Sampling { ignore_eos: true, temperature: 0.0, ..Sampling::default() }
}
