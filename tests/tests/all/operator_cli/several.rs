//! Commands about several turns: an error of one turn keeps no other from being attended to, and each is told.

use turnmill_client::schema::keys::FIELD_ENVELOPE;

use super::*;

#[tokio::test]
async fn an_unknown_turn_keeps_no_other_from_being_attended_to() {
    let queue = RedisQueue::start();
    let (one, other) = (TurnId::new(0).to_string(), TurnId::new(0).to_string());
    for (verb, does) in [("show", "queued"), ("retry", "runs_now"), ("cancel", "cancelled")] {
        let there = submit(&queue, verb, &["--delay", "3600"]).await;
        let ran = turnmill(&queue, &["turn", verb, &one, &there, &other, "--json"]).await;
        assert_eq!(ran.code, Some(4), "{verb}: {}", ran.err);
        assert_eq!(ran.line()["turn"], json!(there), "{verb}");
        assert!(verb == "show" || ran.line()["status"] == does, "{verb}: {}", ran.out);
        for turn in [&one, &other] {
            assert_eq!(ran.err.matches(&**turn).count(), 1, "{verb}: {}", ran.err);
        }
    }
    let late = submit(&queue, "late", &[]).await;
    done(&queue, &["turn", "cancel", &late]).await;
    let ran = turnmill(&queue, &["turn", "retry", &late, &one]).await;
    assert_eq!(ran.code, Some(4), "whichever comes last: {}", ran.err);
    assert!(ran.err.contains(&late) && ran.err.contains("cancelled"), "{}", ran.err);
}

/// Dead letters of these agents, oldest first. What the oldest one asked for cannot be read.
async fn with_an_unreadable_letter(queue: &RedisQueue, agents: &[&str]) -> Vec<String> {
    let worker = queue.worker("w").await;
    let mut turns = Vec::new();
    for agent in agents {
        turns.push(submit(queue, agent, &[]).await);
        play(&worker, Outcome::Failed).await;
    }
    let oldest = queue.keys().turn(turns[0].parse().expect("a turn id"));
    let new: u64 = queue.command(&["HSET", &oldest, FIELD_ENVELOPE, "nonsense"]).await;
    assert_eq!(new, 0, "it had an envelope");
    turns
}

#[tokio::test]
async fn an_unreadable_letter_is_told_and_those_after_it_are_replayed() {
    let queue = RedisQueue::start().broken();
    let turns = with_an_unreadable_letter(&queue, &["a", "b", "c"]).await;
    let ran = turnmill(&queue, &["dead", "replay", "--all", "--yes", "--json"]).await;
    assert_eq!(ran.code, Some(3), "{}", ran.err);
    assert!(ran.err.contains(&turns[0]), "{}", ran.err);
    let replayed: Vec<String> = ran.lines().iter().map(|line| text(&line["turn"])).collect();
    assert_eq!(replayed, turns[1..]);
    assert_eq!(done(&queue, &["lag", "--json"]).await.line()["open_turns"], json!(2));

    // Those that are gone are told, and the one that is there is purged.
    let [a, b, c] = [&*turns[0], &turns[1], &turns[2]];
    let ran = turnmill(&queue, &["dead", "purge", b, a, c, "--yes"]).await;
    assert_eq!((ran.code, ran.out), (Some(4), format!("{a} purged\n")));
    for gone in [b, c] {
        assert!(ran.err.contains(&format!("turn {gone} has no dead letter")), "{}", ran.err);
    }
}

#[tokio::test]
async fn a_letter_that_cannot_be_read_is_no_success_as_text_and_as_json() {
    let queue = RedisQueue::start().broken();
    let turns = with_an_unreadable_letter(&queue, &["a", "b"]).await;
    let people = turnmill(&queue, &["dead", "show", &turns[0]]).await;
    let programs = turnmill(&queue, &["dead", "show", &turns[0], "--json"]).await;
    assert_eq!((people.code, programs.code), (Some(3), Some(3)), "{}", programs.err);
    let shown = programs.line();
    assert_eq!((&shown["letter"]["turn"], &shown["asked"]), (&json!(turns[0]), &Value::Null));
    assert_eq!(people.err, format!("turnmill: {}\n", text(&shown["error"])));
    let good = done(&queue, &["dead", "show", &turns[1], "--json"]).await.line();
    assert_eq!((good.get("error"), &good["asked"]["agent"]), (None, &json!("b")));
}

/// More letters than are purged in one call, of which Redis refuses the last one.
#[tokio::test]
async fn letters_that_were_purged_before_an_error_are_told() {
    const PURGED: usize = 500;
    let queue = RedisQueue::start().broken();
    let turn = |number: usize| {
        let start = if number < PURGED { "01980000" } else { "0198ffff" };
        format!("{start}-0000-7000-8000-{number:012x}.0")
    };
    let mut letters = redis::pipe();
    for number in 0..PURGED + 2 {
        letters.cmd("XADD").arg(queue.keys().dead()).arg("*").arg("turn").arg(turn(number));
        letters.arg("agent").arg("default/a").arg("reason").arg("attempts").arg("attempts").arg(1);
    }
    let _: Vec<String> = letters.query_async(&mut queue.raw().await).await.expect("XADD");
    let user = ["~tm:{q.0}:[^rt]*", "~tm:{q.0}:ready:*", "~*01980000*", "&*", "+@all"];
    let _: String = queue.command(&[&["ACL", "SETUSER", "poor", "on", ">pw"][..], &user].concat()).await;
    let url = queue.server.url().replace("redis://", "redis://poor:pw@");
    let ran = run(&url, &["dead", "purge", "--all", "--yes"], "").await;
    assert_eq!(ran.code, Some(3), "{}", ran.err);
    let purged: Vec<&str> = ran.out.lines().filter_map(|line| line.strip_suffix(" purged")).collect();
    assert_eq!(purged, (0..PURGED).map(turn).collect::<Vec<_>>());
    let told = format!("the 2 letters from turn {} to turn {}: ", turn(PURGED), turn(PURGED + 1));
    assert!(ran.err.contains(&told), "{}", ran.err);
    assert_eq!(
        done(&queue, &["dead", "ls", "--json", "--limit", "0"]).await.line(),
        json!({"reasons": {"attempts": 2}})
    );
}
