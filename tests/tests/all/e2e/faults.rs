//! Workers that die or are asked to stop: every turn still ends once, with the words it would have had.

use turnmill_client::NewTurn;
use turnmill_schema::{Event, Outcome, Sampling, TurnId};
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::told::Told;

/// So that another worker takes over soon.
const SHORT_LEASE: [&str; 2] = ["--lease-ms", "1000"];

/// A turn of each of `count` agents, every other one sampled.
fn turns(prefix: &str, count: usize, tokens: u32) -> Vec<NewTurn> {
    let turn = |i: usize| {
        let sampling = match i % 2 {
            0 => exactly(tokens),
            _ => Sampling { temperature: 0.8, top_p: 0.95, seed: Some(i as u64), ..exactly(tokens) },
        };
        let text = format!("Tell me {} facts about water mills.", i + 2);
        NewTurn::user(text).agent(name(&format!("{prefix}{i}"))).sampling(sampling)
    };
    (0..count).map(turn).collect()
}

async fn ended(line: &Line, turns: &[TurnId]) -> usize {
    let mut ended = 0;
    for turn in turns {
        ended += usize::from(matches!(line.events(*turn).await.last(), Some(Event::End(_))));
    }
    ended
}

fn assert_same_words(disturbed: &[Told], undisturbed: &[Told]) {
    assert_eq!(disturbed.len(), undisturbed.len());
    for (i, (disturbed, undisturbed)) in disturbed.iter().zip(undisturbed).enumerate() {
        assert_eq!(disturbed.words(), undisturbed.words(), "turn {i}");
        assert_eq!(undisturbed.begins.len(), 1);
    }
}

#[tokio::test]
async fn eight_turns_survive_a_worker_killed_with_9() {
    let line = Line::start().await;
    let mut first = line.worker(&[&SHORT_LEASE[..], &["--worker-name", "first"]].concat());
    let killed = line.enqueue(turns("killed", 8, 60)).await;
    line.until_all_have_tokens(&killed).await;
    first.kill9();
    assert_eq!(ended(&line, &killed).await, 0, "all eight were running");

    let _second = line.worker(&[&SHORT_LEASE[..], &["--worker-name", "second"]].concat());
    let resumed = line.told(&killed).await;
    for told in &resumed {
        let attempts: Vec<u32> = told.begins.iter().map(|begin| begin.attempt).collect();
        assert_eq!(attempts, [1, 2], "{:?}", told.begins);
        assert!(told.begins[1].resume_from > 0, "published tokens are not made again");
        assert_eq!((told.tokens.len(), told.end.worker.as_deref()), (60, Some("second")));
        assert_eq!(told.end.outcome, Outcome::Completed);
    }
    let quiet = line.enqueue(turns("quiet", 8, 60)).await;
    assert_same_words(&resumed, &line.told(&quiet).await);
}

#[tokio::test]
async fn draining_requeues_what_does_not_finish() {
    let line = Line::start().await;
    // The default lease: a turn that another worker runs at once was requeued, not reclaimed.
    let mut first = line.worker(&["--drain-ms", "50"]);
    let mut running = turns("drained", 3, 60);
    running.push(NewTurn::user("And now?").agent(name("drained0")).sampling(exactly(5)));
    let running = line.enqueue(running).await;
    line.until_all_have_tokens(&running[..3]).await;
    first.sigterm();
    assert_eq!(first.wait_exit().code(), Some(0), "{}", first.log());
    let unfinished = 4 - ended(&line, &running).await;
    assert!(unfinished >= 3, "so long a turn cannot finish in the window");
    let lag = line.producer.lag().await.expect("counts");
    assert_eq!((lag.priorities[0].leased, lag.priorities[0].runnable), (0, 3), "all is requeued");

    let _second = line.worker(&[]);
    let resumed = line.told(&running).await;
    for told in &resumed[..3] {
        let attempts: Vec<u32> = told.begins.iter().map(|begin| begin.attempt).collect();
        assert_eq!(attempts, [1, 1], "a requeue costs no attempt");
        assert!(told.begins[1].resume_from > 0);
    }
    assert!(resumed[3].begins[0].epoch > resumed[0].begins[1].epoch, "a requeued turn is still the first");
    let mut quiet = turns("quiet", 3, 60);
    quiet.push(NewTurn::user("And now?").agent(name("quiet0")).sampling(exactly(5)));
    let quiet = line.enqueue(quiet).await;
    assert_same_words(&resumed, &line.told(&quiet).await);
}

#[tokio::test]
async fn draining_lets_turns_finish_and_claims_nothing() {
    let line = Line::start().await;
    let mut worker = line.worker(&["--drain-ms", "600000"]);
    let running = line.enqueue(turns("a", 2, 24)).await;
    line.until_all_have_tokens(&running).await;
    worker.sigterm();
    assert_eq!(worker.wait_exit().code(), Some(0), "{}", worker.log());
    for told in line.told(&running).await {
        assert_eq!((told.begins.len(), told.tokens.len()), (1, 24));
    }
    let listed = line.turnmill(&["worker", "ls", "--json"]).await;
    assert!(
        listed.status.success() && listed.stdout.is_empty(),
        "a worker that stopped is listed: {listed:?}"
    );
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_and_an_idle_worker_ends_at_once() {
    let line = Line::start().await;
    let mut worker = line.worker(&["--drain-ms", "600000"]);
    // As long as the context allows: it never finishes on its own while we look.
    let endless = Sampling { ignore_eos: true, temperature: 0.0, ..Sampling::default() };
    let endless = line.enqueue(vec![NewTurn::user("Go on.").agent(name("a")).sampling(endless)]).await;
    line.until_all_have_tokens(&endless).await;
    worker.sigterm();
    worker.until_ready_says(Some("draining")).await;
    assert_eq!(worker.get("/health/live").0, 200);
    let late = line.enqueue(turns("late", 1, 2)).await;
    worker.sigterm();
    assert_eq!(worker.wait_exit().code(), Some(0), "{}", worker.log());
    assert_eq!(ended(&line, &endless).await, 0);
    assert!(line.events(late[0]).await.is_empty(), "a draining worker claims nothing");
    let lag = line.producer.lag().await.expect("counts");
    assert_eq!((lag.priorities[0].leased, lag.priorities[0].runnable), (0, 2));

    // A queue of its own, so that it has nothing to do; its window is longer than our patience.
    let mut idle = line.worker(&["--drain-ms", "600000", "--queue", "empty"]);
    idle.sigterm();
    assert_eq!(idle.wait_exit().code(), Some(0), "{}", idle.log());
}
