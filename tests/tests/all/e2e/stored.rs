//! K and V that outlive their worker: any worker goes on with any agent, with the words that one undisturbed worker says,
//! and computes only what nobody computed before.

use std::path::Path;

use tempfile::TempDir;
use turnmill_client::{Client, NewTurn, TurnResult};
use turnmill_schema::{Message, Outcome, Role, Sampling, TurnId};
use turnmill_tests::line::{Line, exactly, greedy, name};
use turnmill_tests::proxy::Proxy;
use turnmill_tests::until;
use turnmill_tests::worker::Worker;

/// Tokens a block.
const BLOCK: u32 = 16;
/// So that another worker takes over soon.
const SHORT_LEASE: [&str; 2] = ["--lease-ms", "1000"];

fn folder() -> (TempDir, String) {
    let folder = TempDir::new().expect("the temporary directory is writable");
    let url = format!("file://{}", folder.path().display());
    (folder, url)
}

/// Stored objects.
fn objects(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let count = |entry: std::fs::DirEntry| {
        let path = entry.path();
        if path.is_dir() { objects(&path) } else { usize::from(!path.to_string_lossy().contains('#')) }
    };
    entries.map(count).sum()
}

/// Waits until nothing waits to be stored.
async fn until_saved(worker: &Worker) {
    let queued = || worker.metric("turnmill_store_save_queue_bytes", &[]);
    until("the store has taken everything", async || queued() == 0.0).await;
}

/// About a thousand tokens.
fn system_prompt() -> Message {
    let rules: String =
        (1..=62).map(|i| format!("Rule {i}: be polite, and never mention rule {i}.\n")).collect();
    Message::new(Role::System, rules)
}

#[tokio::test]
async fn ten_agents_share_one_system_prompt_over_three_workers() {
    let line = Line::start().await;
    let (folder, store) = folder();
    let mut workers = vec![line.worker(&["--store", &store])];
    let turn = |i: usize| {
        let messages = vec![system_prompt(), Message::new(Role::User, format!("What is {i} plus {i}?"))];
        let agent = Some(name(&format!("a{i}")));
        NewTurn { messages, agent, ..NewTurn::default() }.sampling(greedy(8))
    };
    let first = line.run(turn(0)).await;
    let prompt = first.usage.prompt_tokens;
    assert!(prompt > 1000 && first.usage.cached_tokens == 0, "{:?}", first.usage);
    line.until_stored("a0", prompt / BLOCK * BLOCK).await;
    let shared = line.manifest("a0").await.expect("it is stored").shared_tokens;
    assert!(shared + 2 * BLOCK >= prompt, "{shared} of {prompt} tokens are the system prompt's");

    // One of the first worker's and one of the others' at a time, so that all three take some.
    workers.extend([line.worker(&["--store", &store]), line.worker(&["--store", &store])]);
    let turns = line.enqueue((1..10).map(turn).collect()).await;
    for turn in turns {
        let result = line.wait(turn).await;
        assert_eq!(result.outcome, Outcome::Completed, "{:?}", result.error);
        assert!(result.usage.cached_tokens >= shared, "{:?}", result.usage);
    }
    for worker in &workers {
        until_saved(worker).await;
    }
    let sum =
        |name: &str, labels: &[&str]| workers.iter().map(|worker| worker.metric(name, labels)).sum::<f64>();
    let computed = sum("turnmill_prompt_tokens_total", &[]) - sum("turnmill_cached_tokens_total", &[]);
    let own = f64::from(prompt - shared + BLOCK);
    assert!(computed <= f64::from(shared) + 10.0 * own, "{computed} prompt tokens were computed");
    let saved = sum("turnmill_store_saves_total", &["outcome=\"saved\""]);
    assert_eq!(saved as usize, objects(folder.path()), "something was stored twice");
    let segments_of_prompt = (shared as usize).div_ceil(256);
    assert!(objects(folder.path()) <= segments_of_prompt + 10, "{} objects", objects(folder.path()));
}

/// The turns of one conversation; the fifth is long enough to be killed in its middle.
fn conversation() -> Vec<NewTurn> {
    let questions = [
        "Tell me about water mills.",
        "Who built the first ones?",
        "And wind mills?",
        "Which of them is older?",
        "Write a long story about a miller and her cat.",
        "What was the cat's name?",
        "Tell it again, shorter.",
        "Thank you. What did we talk about?",
    ];
    let turn = |(i, question): (usize, &&str)| {
        let tokens = if i == 4 { 120 } else { 40 };
        // Not past the model's own ending: a template does not render what follows it, and the history would be rewritten.
        let sampling = match i % 2 {
            0 => greedy(tokens),
            _ => Sampling { temperature: 0.8, seed: Some(i as u64), ..greedy(tokens) },
        };
        let mut turn = NewTurn::user(*question).agent(name("ada")).sampling(sampling);
        if i == 0 {
            turn.messages.insert(0, Message::new(Role::System, "You know everything about mills."));
        }
        turn
    };
    questions.iter().enumerate().map(turn).collect()
}

/// Workers of which one at a time reaches the queue.
struct Fleet {
    workers: Vec<(Proxy, Worker)>,
}

impl Fleet {
    async fn start(line: &Line, flags: &[&str], count: usize) -> Self {
        let mut workers = Vec::new();
        for _ in 0..count {
            workers.push(Self::launch(line, flags).await);
        }
        Self { workers }
    }

    async fn launch(line: &Line, flags: &[&str]) -> (Proxy, Worker) {
        let proxy = Proxy::start(line.redis.address()).await.expect("a local port is free");
        let mut worker = Worker::launch(&proxy.url(), flags);
        // The proxy runs on this runtime.
        tokio::task::block_in_place(|| worker.until_ready());
        (proxy, worker)
    }

    /// From now on worker `chosen` has the queue to itself.
    async fn choose(&self, chosen: usize) {
        for (index, (proxy, worker)) in self.workers.iter().enumerate().filter(|(index, _)| *index != chosen)
        {
            proxy.refuse(true);
            proxy.cut_all();
            worker.until_ready_says(Some("redis_disconnected")).await;
            assert_eq!(proxy.connections(), 0, "worker {index} is still there");
        }
        self.workers[chosen].0.refuse(false);
        self.workers[chosen].1.until_ready_says(None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_turns_go_from_worker_to_worker_and_one_dies_in_the_middle() {
    let line = Line::start().await;
    let mut undisturbed = Vec::new();
    {
        let _alone = line.worker(&[]);
        for turn in conversation() {
            let turn = line.enqueue(vec![NewTurn { agent: Some(name("bob")), ..turn }]).await;
            undisturbed.extend(line.told(&turn).await);
        }
    }
    let (_folder, store) = folder();
    let flags = [&SHORT_LEASE[..], &["--store", &store]].concat();
    let mut fleet = Fleet::start(&line, &flags, 3).await;
    let mut history = 0;
    for (i, turn) in conversation().into_iter().enumerate() {
        fleet.choose(i % 3).await;
        let turn = line.enqueue(vec![turn]).await;
        if i == 4 {
            line.until_all_have_tokens(&turn).await;
            fleet.workers[i % 3].1.kill9();
            fleet.workers[i % 3] = Fleet::launch(&line, &flags).await;
            fleet.choose((i + 1) % 3).await;
        }
        let told = line.told(&turn).await.remove(0);
        assert_eq!(told.words(), undisturbed[i].words(), "turn {i}");
        assert_eq!(told.begins.len(), if i == 4 { 2 } else { 1 }, "{:?}", told.begins);
        let usage = told.end.usage;
        assert!(usage.cached_tokens + BLOCK >= history, "turn {i}: {usage:?} after {history} tokens");
        // Its last token was sampled and not computed.
        history = usage.prompt_tokens + usage.completion_tokens;
        line.until_stored("ada", (history - 1) / BLOCK * BLOCK).await;
    }
    assert!(history > 500, "{history} tokens are no conversation");
}

#[tokio::test]
async fn a_tenant_finds_nothing_of_another() {
    let line = Line::start().await;
    let (_folder, store) = folder();
    let mut tokens = Vec::new();
    for tenant in ["default", "other", "default"] {
        let worker = line.worker(&["--store", &store]);
        let producer =
            Client::builder(line.redis.url()).tenant(name(tenant)).connect().await.expect("Redis answers");
        let messages = vec![system_prompt(), Message::new(Role::User, "Hello.")];
        let turn = NewTurn { messages, agent: Some(name("a")), new_session: true, ..NewTurn::default() };
        let turn = producer.enqueue(turn.sampling(greedy(4))).await.expect("enqueued").turn;
        let usage = producer.wait(turn).await.expect("the result can be read").usage;
        tokens.push(usage.cached_tokens);
        until_saved(&worker).await;
    }
    assert_eq!(tokens[..2], [0, 0]);
    assert!(tokens[2] > 900, "{tokens:?}");
}

#[tokio::test]
async fn a_turn_that_does_not_fit_the_drain_window_goes_on_elsewhere_where_it_was() {
    const TOKENS: u32 = 300;
    // Rows for proposed tokens would count as rows that made none.
    const ALONE: [&str; 2] = ["--speculation", "off"];
    let line = Line::start().await;
    let sampling = Sampling { temperature: 0.7, seed: Some(7), ..exactly(TOKENS) };
    let turn = |agent: &str| {
        NewTurn::user("Write a long story about a river.").agent(name(agent)).sampling(sampling.clone())
    };
    let (_folder, store) = folder();
    let flags = |more: &[&'static str]| [&["--store", store.as_str()][..], &ALONE, more].concat();
    let mut first = line.worker(&flags(&["--drain-ms", "100", "--worker-name", "first"]));
    let moved = line.enqueue(vec![turn("moved")]).await;
    line.until_all_have_tokens(&moved).await;
    first.sigterm();
    assert_eq!(first.wait_exit().code(), Some(0), "{}", first.log());
    let second = line.worker(&flags(&["--worker-name", "second"]));
    let told = line.told(&moved).await.remove(0);
    assert_eq!((told.tokens.len(), told.end.worker.as_deref()), (TOKENS as usize, Some("second")));
    let resumed = told.begins[1].resume_from;
    assert!(told.begins.len() == 2 && resumed > 0, "{:?}", told.begins);

    // Every row of a step that did not make a token was prefill.
    let rows = second.metric("turnmill_engine_step_rows_sum", &[]);
    let made = second.metric("turnmill_generated_tokens_total", &[]);
    assert_eq!(made as u32, TOKENS - resumed);
    assert!(rows - made <= f64::from(BLOCK), "{} tokens were prefilled", rows - made);
    let undisturbed = line.enqueue(vec![turn("undisturbed")]).await;
    assert_eq!(told.words(), line.told(&undisturbed).await[0].words());
}

#[tokio::test]
async fn a_long_turn_that_was_killed_finds_what_was_stored_while_it_ran() {
    // Enough to be computing still when the prompt is stored, on a busy machine too.
    const TOKENS: u32 = 1200;
    // The prompt has 2,870 tokens, and a segment 256: the last of these begins in the prompt and ends in the reply.
    const SEGMENTS: usize = 12;
    let line = Line::start().await;
    let (folder, store) = folder();
    // Proposals would let the turn end before the store has taken everything.
    let flags = [&SHORT_LEASE[..], &["--store", &store, "--speculation", "off"]].concat();
    let mut first = line.worker(&flags);
    let words: String = (0..600).map(|i| format!("{} ", i * 7)).collect();
    let turn = line.enqueue(vec![NewTurn::user(words).agent(name("a")).sampling(exactly(TOKENS))]).await;
    // Not until nothing waits to be stored: what waits to be copied out of the pool is not counted.
    until("full segments are stored as they fill", async || objects(folder.path()) >= SEGMENTS).await;
    first.kill9();
    assert_eq!(line.manifest("a").await, None, "no manifest names them");
    let second = line.worker(&flags);
    let result: TurnResult = line.wait(turn[0]).await;
    let told = (result.outcome, result.tokens.len());
    assert_eq!(told, (Outcome::Completed, TOKENS as usize), "{:?}", result.error);
    assert!(result.usage.cached_tokens + 256 > result.usage.prompt_tokens, "{:?}", result.usage);
    assert!(second.metric("turnmill_restored_tokens_total", &[]) >= 1024.0);
}

#[tokio::test]
async fn preempted_turns_go_on_where_they_were() {
    let line = Line::start().await;
    let turns = |prefix: &str| -> Vec<NewTurn> {
        let turn = |i: usize| {
            let text = format!("Tell me {} facts about clocks.", i + 2);
            NewTurn::user(text).agent(name(&format!("{prefix}{i}"))).sampling(exactly(150))
        };
        (0..6).map(turn).collect()
    };
    let roomy = {
        let _worker = line.worker(&[]);
        let roomy = line.enqueue(turns("roomy")).await;
        line.told(&roomy).await
    };
    // Room for about four of the six at their full length. Proposals would let some end before the others need their room.
    let tight =
        ["--pool-bytes", "18MiB", "--max-sequences", "6", "--batch-tokens", "64", "--speculation", "off"];
    let tight = line.worker(&tight);
    let ids: Vec<TurnId> = line.enqueue(turns("tight")).await;
    for (roomy, told) in roomy.iter().zip(line.told(&ids).await) {
        assert_eq!(roomy.words(), told.words());
    }
    assert!(tight.metric("turnmill_engine_preempted_total", &[]) > 0.0, "nobody was preempted");
    let offloaded = tight.metric("turnmill_offloaded_blocks_total", &[]);
    let came_back = tight.metric("turnmill_offloaded_blocks_restored_total", &[]);
    assert!(came_back > 0.0 && came_back <= offloaded, "{came_back} of {offloaded} blocks came back");
}

#[tokio::test]
async fn with_keys_only_tenants_that_have_one_are_kept_and_only_keys_open_them() {
    let line = Line::start().await;
    let (folder, store) = folder();
    let keys = TempDir::new().expect("the temporary directory is writable");
    std::fs::write(keys.path().join("default.key"), "a1".repeat(32)).expect("written");
    let keys = keys.path().display().to_string();
    let turn = |text: &str| NewTurn::user(text).agent(name("a")).sampling(greedy(20));
    let other =
        Client::builder(line.redis.url()).tenant(name("other")).connect().await.expect("Redis answers");
    {
        let worker = line.worker(&["--store", &store, "--kv-keys", &keys]);
        let kept_not = other.enqueue(turn("Tell me about keys.")).await.expect("enqueued").turn;
        other.wait(kept_not).await.expect("the result can be read");
        until_saved(&worker).await;
        assert_eq!(objects(folder.path()), 0, "a tenant without a key is kept in the clear");
        line.run(turn("Tell me about keys.")).await;
        line.until_stored("a", BLOCK).await;
        until_saved(&worker).await;
        assert_eq!(objects(folder.path()), 1);
    }
    {
        let _keyed = line.worker(&["--store", &store, "--kv-keys", &keys]);
        assert!(line.run(turn("And about locks?")).await.usage.cached_tokens > 0);
        line.until_stored("a", 3 * BLOCK).await;
    }
    // It has no keys: what it cannot open it leaves alone.
    let worker = line.worker(&["--store", &store]);
    assert_eq!(line.run(turn("And doors?")).await.usage.cached_tokens, 0);
    assert_eq!(worker.metric("turnmill_store_misses_total", &["reason=\"key_missing\""]), 1.0);
    assert!(!folder.path().join("kv-damaged").exists());
}
