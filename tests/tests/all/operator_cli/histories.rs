//! Agents' histories: going back in one, giving it to another agent, and an agent as a file.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use turnmill_client::schema::envelope::encode;
use turnmill_client::schema::{Digest, Manifest, Message, Role, kv_object};
use turnmill_redis::steps::{ActOnAgent, AgentActed, AgentAction, Rollback, Seed, Seeded};
use turnmill_tests::broker_conformance::manifest;

use super::*;

/// Runs the next turn of `agent` to its completion: it adds a token, the number of turns so far.
async fn say(queue: &RedisQueue, worker: &RedisBroker, agent: &str, said: Option<Manifest>) -> String {
    submit(queue, agent, &[]).await;
    let claim = claim(worker).await;
    let keep = claim.history.tokens.len() as u32;
    let entry = TranscriptEntry {
        turn: claim.lease.turn,
        messages: Vec::new(),
        keep,
        tokens: vec![keep + 1],
        rendering: None,
    };
    let ending = Ending {
        published: 0,
        end: end(Outcome::Completed),
        entry: Some(entry),
        reply: None,
        reason: None,
        continues: false,
        manifest: said,
    };
    worker.finish(&claim.lease, &ending).await.expect("finishes");
    claim.lease.turn.to_string()
}

/// What the next turn of `agent` starts from.
async fn known(queue: &RedisQueue, worker: &RedisBroker, agent: &str) -> (Vec<u32>, Option<Manifest>) {
    let turn = submit(queue, agent, &[]).await;
    let claim = claim(worker).await;
    assert_eq!(claim.lease.turn.to_string(), turn);
    done(queue, &["turn", "cancel", &turn]).await;
    (claim.history.tokens.clone(), claim.manifest)
}

#[tokio::test]
async fn an_agent_goes_back_to_a_turn() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let first = say(&queue, &worker, "a", Some(manifest(16))).await;
    let second = say(&queue, &worker, "a", Some(manifest(32))).await;
    let third = say(&queue, &worker, "a", Some(manifest(48))).await;

    let asked = turnmill(&queue, &["agent", "rollback", "a", "--to", &first]).await;
    assert!(asked.code == Some(2) && asked.err.contains("add --yes"), "{}", asked.err);
    let other = TurnId::new(0).to_string();
    let unknown = turnmill(&queue, &["agent", "rollback", "a", "--to", &other, "-y"]).await;
    assert_eq!(unknown.code, Some(4));
    assert!([&first, &second, &third].iter().all(|turn| unknown.err.contains(*turn)), "{}", unknown.err);
    assert_eq!(turnmill(&queue, &["agent", "rollback", "b", "--to", &first, "-y"]).await.code, Some(4));

    let back = ["agent", "rollback", "a", "--to", &second, "--yes", "--json"];
    assert_eq!(done(&queue, &back).await.line(), json!({"agent": "a", "forgotten": 1}));
    assert_eq!(done(&queue, &back).await.line(), json!({"agent": "a", "forgotten": 0}));
    let (tokens, said) = known(&queue, &worker, "a").await;
    assert_eq!(
        (tokens, said),
        (vec![1, 2], Some(manifest(48))),
        "its whole segments of what remains are found"
    );
    let people = done(&queue, &["agent", "rollback", "a", "--to", &first, "-y"]).await.out;
    assert_eq!(people, format!("a forgot 1 turns after {first}\n"));
    assert_eq!(known(&queue, &worker, "a").await.0, [1]);
}

#[tokio::test]
async fn a_history_that_a_turn_goes_on_with_stays() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let first = say(&queue, &worker, "a", None).await;
    say(&queue, &worker, "a", None).await;
    let turn = submit(&queue, "a", &[]).await;
    let refused = async || {
        for arguments in [&["rollback", "a", "--to", &first, "-y"][..], &["reset", "a", "-y"]] {
            let busy = turnmill(&queue, &[&["agent"], arguments].concat()).await;
            assert_eq!(busy.code, Some(6), "{arguments:?}: {}", busy.err);
        }
    };
    let running = claim(&worker).await;
    refused().await;
    let delta = Delta { index: 0, tokens: vec![7], text: "x".into(), lengths: vec![1], ..Delta::default() };
    worker.append(&running.lease, &delta).await.expect("appends");
    worker.requeue(&running.lease, None).await.expect("requeues");
    refused().await;
    done(&queue, &["turn", "cancel", &turn]).await;

    // One that waits and has said nothing yet goes on with what remains.
    submit(&queue, "a", &[]).await;
    done(&queue, &["agent", "rollback", "a", "--to", &first, "-y"]).await;
    assert_eq!(claim(&worker).await.history.tokens, [1]);
}

/// Replies get lost, and other things happen meanwhile.
#[tokio::test]
async fn a_repeated_rollback_forgets_nothing_more() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let first = say(&queue, &worker, "a", None).await;
    let second = say(&queue, &worker, "a", None).await;
    let agent = AgentId::named(&name("default"), &name("a"));
    let turn = |text: &str| text.parse::<TurnId>().expect("a turn id");
    let rollback = Rollback { stay: 1, to: turn(&first), entries: 2, last: turn(&second) };
    let step = ActOnAgent { agent: &agent, action: AgentAction::RollBack(rollback), head: None };
    let answer = async || queue.run(&step).await;
    for _ in 0..2 {
        assert_eq!(answer().await, AgentActed::Done("idle".to_owned()));
    }
    say(&queue, &worker, "a", None).await;
    assert_eq!(answer().await, AgentActed::Changed, "as many entries as before, and another last one");
    assert_eq!(known(&queue, &worker, "a").await.0, [1, 2]);
    done(&queue, &["agent", "reset", "a", "-y"]).await;
    assert_eq!(answer().await, AgentActed::Changed);
}

#[tokio::test]
async fn an_agent_is_forked_at_a_turn() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let first = say(&queue, &worker, "a", None).await;
    say(&queue, &worker, "a", Some(manifest(32))).await;
    done(&queue, &["agent", "policy", "a", "halt"]).await;

    let forked = done(&queue, &["agent", "fork", "a", "b", "--json"]).await.line();
    assert_eq!(forked, json!({"agent": "b", "turns": 2}));
    let people = done(&queue, &["agent", "fork", "a", "c", "--at", &first]).await.out;
    assert_eq!(people, "c knows 1 turns of a\n");
    assert_eq!(text(&done(&queue, &["agent", "show", "b", "--json"]).await.line()["on_dead"]), "halt");
    assert_eq!(known(&queue, &worker, "b").await, (vec![1, 2], Some(manifest(32))));
    say(&queue, &worker, "c", None).await;
    assert_eq!(known(&queue, &worker, "c").await, (vec![1, 2], Some(manifest(32))));
    assert_eq!(known(&queue, &worker, "a").await.0, [1, 2], "the source knows nothing of it");

    for taken in [["fork", "a", "b"], ["fork", "a", "a"]] {
        let taken = turnmill(&queue, &[&["agent"], &taken[..]].concat()).await;
        assert!(taken.code == Some(6) && taken.err.contains("give another name"), "{}", taken.err);
    }
    submit(&queue, "waits", &[]).await;
    assert_eq!(turnmill(&queue, &["agent", "fork", "a", "waits"]).await.code, Some(6), "it has a turn");
    assert_eq!(turnmill(&queue, &["agent", "fork", "nobody", "d"]).await.code, Some(4));
    let other = TurnId::new(0).to_string();
    assert_eq!(turnmill(&queue, &["agent", "fork", "a", "d", "--at", &other]).await.code, Some(4));
    assert_eq!(turnmill(&queue, &["agent", "show", "d"]).await.code, Some(4), "nothing was made");
}

/// A long history is read in pages: by their number for small entries, by their bytes for large ones.
#[tokio::test]
async fn a_long_history_is_forked_whole() {
    let queue = RedisQueue::start();
    for (source, target, count, bytes) in [("small", "b", 2500, 10), ("large", "c", 20, 300 << 10)] {
        let entry = |number: u32| {
            let messages = vec![Message::new(Role::User, "x".repeat(bytes))];
            let entry = TranscriptEntry {
                turn: TurnId::new(0),
                messages,
                keep: 0,
                tokens: vec![number],
                rendering: None,
            };
            encode(&entry).expect("encodes")
        };
        let entries: Vec<Vec<u8>> = (0..count).map(entry).collect();
        let [of_source, of_target] =
            [source, target].map(|agent| AgentId::named(&name("default"), &name(agent)));
        let (seeding, manifest) = ("x".to_owned(), Vec::new());
        let slices = entries.iter().map(Vec::as_slice).collect();
        let seed = Seed { agent: &of_source, seeding, on_dead: "skip", manifest, entries: slices };
        assert_eq!(queue.run(&seed).await, Seeded::Done);

        let forked = done(&queue, &["agent", "fork", source, target, "--json"]).await.line();
        assert_eq!(forked["turns"], json!(count));
        let copy: Vec<Vec<u8>> =
            queue.command(&["LRANGE", &queue.keys().transcript(&of_target), "0", "-1"]).await;
        assert!(copy == entries, "{source}: {} entries of {}", copy.len(), entries.len());
    }
}

/// The same seeding again is known; another one is refused. What an earlier history's lease says late is not taken.
#[tokio::test]
async fn a_seeded_agent_is_seeded_once() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    submit(&queue, "a", &[]).await;
    let late = claim(&worker).await.lease;
    finish(&worker, &late, 0, Outcome::Completed).await;
    done(&queue, &["agent", "reset", "a", "-y"]).await;

    let agent = AgentId::named(&name("default"), &name("a"));
    let entry = TranscriptEntry {
        turn: TurnId::new(0),
        messages: Vec::new(),
        keep: 0,
        tokens: vec![5],
        rendering: None,
    };
    let (entry, manifest_of_16) = (encode(&entry).expect("encodes"), encode(&manifest(16)).expect("encodes"));
    let seed = async |id: &str| {
        let (seeding, manifest) = (id.to_owned(), manifest_of_16.clone());
        let entries = vec![&entry[..]; 2500];
        queue.run(&Seed { agent: &agent, seeding, on_dead: "skip", manifest, entries }).await
    };
    assert_eq!(seed("x").await, Seeded::Done);
    assert_eq!(seed("x").await, Seeded::Done);
    assert_eq!(seed("y").await, Seeded::Taken { entries: 2500, open: 0 });
    worker.advance(&late.fence(), &manifest(999)).await.expect("ignored");
    assert_eq!(known(&queue, &worker, "a").await, (vec![5], Some(manifest(16))));
}

/// Three segments of K and V in a store, as far as their headers go, and the manifest that reaches them.
fn stored(folder: &Path) -> (Manifest, Vec<PathBuf>) {
    let namespace = Digest([9; 32]);
    let mut parent = Digest([0; 32]);
    let mut paths = Vec::new();
    for number in 1..=3 {
        let hash = Digest([number; 32]);
        let head =
            [&b"TMKV\x01\0\0\0"[..], namespace.as_bytes(), parent.as_bytes(), hash.as_bytes()].concat();
        let path = folder.join(kv_object::path(&name("q"), &namespace, &hash));
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, [&head[..], &[number; 5000]].concat()).expect("written");
        paths.push(path);
        parent = hash;
    }
    (Manifest { namespace, tokens: 48, shared_tokens: 0, last: parent }, paths)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of letters")
}

fn url(folder: &TempDir) -> String {
    format!("file://{}", path(folder.path()))
}

#[tokio::test]
async fn an_agent_travels_as_a_file() {
    let (from, to, files) = (TempDir::new(), TempDir::new(), TempDir::new());
    let [from, to, files] = [from, to, files].map(|folder| folder.expect("a folder"));
    let (source, target) = (RedisQueue::start(), RedisQueue::start());
    let worker = source.worker("w").await;
    let (manifest, objects) = stored(from.path());
    say(&source, &worker, "a", None).await;
    say(&source, &worker, "a", Some(manifest)).await;
    done(&source, &["agent", "policy", "a", "halt"]).await;
    let file = files.path().join("a.tmagent");
    let file = path(&file);

    let export = ["agent", "export", "a", "--file", file, "--store", &url(&from), "--json"];
    let exported = json!({"agent": "a", "turns": 2, "objects": 3, "left_out": null});
    assert_eq!(done(&source, &export).await.line(), exported);
    let there = turnmill(&source, &export).await;
    assert!(there.code == Some(6) && there.err.contains("--force"), "{}", there.err);
    done(&source, &[&export[..], &["--force"]].concat()).await;
    let left: Vec<_> = std::fs::read_dir(files.path()).expect("listed").collect();
    assert_eq!(left.len(), 1, "nothing but the file: {left:?}");

    let importer = target.worker("w").await;
    let import = ["agent", "import", file, "--store", &url(&to), "--json"];
    assert_eq!(done(&target, &import).await.line(), exported);
    assert_eq!(known(&target, &importer, "a").await, (vec![1, 2], Some(manifest)));
    assert_eq!(text(&done(&target, &["agent", "show", "a", "--json"]).await.line()["on_dead"]), "halt");
    for object in &objects {
        let copy = to.path().join(object.strip_prefix(from.path()).expect("it is in the store"));
        assert_eq!(std::fs::read(copy).expect("copied"), std::fs::read(object).expect("there"));
    }
    assert_eq!(turnmill(&target, &import).await.code, Some(6), "it has a history now");
    // Objects that are there stay as they are.
    done(&target, &[&import[..], &["--agent", "b"]].concat()).await;
    // Without a store: what was said.
    let plain = done(&target, &["agent", "import", file, "--agent", "c"]).await;
    assert_eq!(plain.out, "c: 2 turns and 0 objects of K and V imported\n");
    assert!(plain.err.contains("no store was named"), "{}", plain.err);
    assert_eq!(known(&target, &importer, "c").await, (vec![1, 2], Some(manifest)));
}

#[tokio::test]
async fn what_the_store_lost_is_left_out() {
    let (store, files) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    let (manifest, objects) = stored(store.path());
    say(&queue, &worker, "a", Some(manifest)).await;
    let export = async || {
        let file = files.path().join("f");
        let url = url(&store);
        let arguments = ["agent", "export", "a", "--file", path(&file), "--force", "--store", &url, "--json"];
        let line = done(&queue, &arguments).await.line();
        (line["objects"].clone(), line["left_out"].as_str().map(str::to_owned))
    };
    std::fs::copy(&objects[2], &objects[1]).expect("copied");
    let (written, why) = export().await;
    assert!(written == json!(1) && why.is_some_and(|why| why.contains("not what its name says")));
    std::fs::remove_file(&objects[1]).expect("removed");
    let (written, why) = export().await;
    assert!(written == json!(1) && why.is_some_and(|why| why.contains("is not in the store")));
    // A chain that names itself comes to an end.
    let mut looped = std::fs::read(&objects[2]).expect("there");
    looped[40..72].copy_from_slice(&[3; 32]);
    std::fs::write(&objects[2], looped).expect("written");
    let (written, why) = export().await;
    assert!(written == json!(3) && why.is_some_and(|why| why.contains("one more")));
}

#[tokio::test]
async fn damaged_cut_and_foreign_files_make_no_agent() {
    let files = TempDir::new().expect("a folder");
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    say(&queue, &worker, "a", None).await;
    say(&queue, &worker, "a", None).await;
    let file = files.path().join("f");
    let file = path(&file);
    let to_pipe = Command::new(program("turnmill"))
        .args(["agent", "export", "a", "--file", "-"])
        .env("TURNMILL_REDIS_URL", queue.server.url())
        .env("TURNMILL_QUEUE", "q")
        .output();
    let whole = to_pipe.await.expect("runs").stdout;
    let refused = async |bytes: &[u8], says: &str| {
        std::fs::write(file, bytes).expect("written");
        let ran = turnmill(&queue, &["agent", "import", file, "--agent", "new"]).await;
        assert!(ran.code == Some(2) && ran.err.contains(says), "{says}: {:?} {}", ran.code, ran.err);
        assert_eq!(turnmill(&queue, &["agent", "show", "new"]).await.code, Some(4), "{says}");
    };
    refused(b"", "ends too early").await;
    refused(b"PK\x03\x04 a zip file", "not an exported agent").await;
    refused(&[b"TMAF\x02\0\0\0", &whole[8..]].concat(), "version 2").await;
    // The end record has 37 bytes before its body of 20.
    refused(&whole[..whole.len() - 57], "ends too early").await;
    refused(&whole[..whole.len() - 1], "ends too early").await;
    refused(&[&whole[..], b"x"].concat(), "something follows").await;
    let mut flipped = whole.clone();
    flipped[60] ^= 1;
    refused(&flipped, "damaged").await;
    std::fs::write(file, &whole).expect("written");
    let other = turnmill(&queue, &["agent", "import", file, "--tenant", "acme"]).await;
    assert!(other.code == Some(2) && other.err.contains("--tenant default"), "{}", other.err);
    assert_eq!(turnmill(&queue, &["agent", "import", "/nowhere/f"]).await.code, Some(2));
    assert_eq!(turnmill(&queue, &["agent", "export", "nobody", "--file", file]).await.code, Some(6));
    assert_eq!(
        turnmill(&queue, &["agent", "export", "nobody", "--file", file, "--force"]).await.code,
        Some(4)
    );
    assert_eq!(std::fs::read(file).expect("there"), whole, "a failed export replaces nothing");
    done(&queue, &["agent", "import", file, "--agent", "new"]).await;
    assert_eq!(known(&queue, &worker, "new").await.0, [1, 2]);
}

#[tokio::test]
async fn an_export_that_does_not_fit_names_its_file() {
    let files = TempDir::new().expect("a folder");
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    say(&queue, &worker, "a", None).await;
    let file = files.path().join("a.tmagent");
    let file = path(&file);
    let mut command = Command::new("sh");
    // Files may not grow, as on a full disk.
    command.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]).arg(program("turnmill"));
    command.args(["agent", "export", "a", "--file", file]).env("TURNMILL_REDIS_URL", queue.server.url());
    let output = command.env("TURNMILL_QUEUE", "q").output().await.expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with(&format!("turnmill: {file} cannot be written: ")), "{said}");
    assert!(std::fs::read_dir(files.path()).expect("listed").next().is_none(), "nothing is left");
}

#[tokio::test]
async fn an_export_that_nobody_reads_ends_quietly() {
    let queue = RedisQueue::start();
    let worker = queue.worker("w").await;
    say(&queue, &worker, "a", None).await;
    let mut command = Command::new(program("turnmill"));
    command.args(["agent", "export", "a", "--file", "-"]).env("TURNMILL_REDIS_URL", queue.server.url());
    command.env("TURNMILL_QUEUE", "q").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().await.expect("ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said), (Some(0), String::new()));
}
