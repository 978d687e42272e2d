//! What people and their programs give to `turnmill`: variables, texts, files and addresses.

use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;
use turnmill_tests::line::Line;
use turnmill_tests::{PATIENCE, program};

/// Runs `turnmill` with `input`, and with the variables and no other of ours.
async fn turnmill(line: &Line, arguments: &[&str], variables: &[(&str, &str)], input: &[u8]) -> Output {
    let mut command = Command::new(program("turnmill"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TURNMILL_") {
            command.env_remove(name);
        }
    }
    command.env("TURNMILL_REDIS_URL", line.redis.url()).envs(variables.iter().copied()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("the command can be run");
    // A command that refuses its flags does not read.
    let _ = child.stdin.take().expect("piped").write_all(input).await;
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends");
    output.expect("our own child can be waited for")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn an_empty_variable_is_unset_and_a_misspelt_one_refused() {
    let line = Line::without_workers().await;
    let flag = format!("--redis-url={}", line.redis.url());
    for variable in turnmill_schema::environment::PRODUCER {
        let output = turnmill(&line, &["submit", "-m", "hi", &flag], &[(variable, "")], b"").await;
        assert_eq!(output.status.code(), Some(0), "{variable}: {}", stderr(&output));
    }
    for variable in turnmill_schema::environment::WORKER {
        let shared = turnmill_schema::environment::PRODUCER.contains(&variable);
        let set = [(variable, "1")];
        let output = turnmill(&line, &["lag"], if shared { &[] } else { &set }, b"").await;
        assert_eq!(output.status.code(), Some(0), "{variable}: {}", stderr(&output));
    }
    let output = turnmill(&line, &["lag"], &[("TURNMILL_REDISURL", "redis://elsewhere")], b"").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("(did you mean TURNMILL_REDIS_URL?)"), "{}", stderr(&output));
    let output = turnmill(&line, &["version"], &[("TURNMILL_REDISURL", "redis://elsewhere")], b"").await;
    assert_eq!(output.status.code(), Some(0), "it reads no setting");
}

#[tokio::test]
async fn texts_may_begin_with_dashes() {
    let line = Line::without_workers().await;
    for text in ["- buy milk", "--", "---", "--wait", "-5"] {
        for flags in [&["-m", text][..], &["-m", "hi", "--system", text], &["-m", "hi", "--stop", text]] {
            let output = turnmill(&line, &[&["submit"], flags].concat(), &[], b"").await;
            assert_eq!(output.status.code(), Some(0), "{flags:?}: {}", stderr(&output));
        }
    }
    for name in ["-x", "--", "--wait", "-5"] {
        let submitted = turnmill(&line, &["submit", "-m", "hi", "--agent", name], &[], b"").await;
        assert_eq!(submitted.status.code(), Some(0), "{name}: {}", stderr(&submitted));
        let shown = turnmill(&line, &["agent", "show", "--json", "--", name], &[], b"").await;
        assert_eq!(shown.status.code(), Some(0), "{name}: {}", stderr(&shown));
    }
    let misspelt = turnmill(&line, &["agent", "show", "--josn"], &[], b"").await;
    assert_eq!(misspelt.status.code(), Some(2), "no misspelt flag is a name: {}", stderr(&misspelt));
    let open = line.producer.lag().await.expect("counts").open_turns;
    assert_eq!(open, 19, "one turn each");
}

#[tokio::test]
async fn files_of_other_programs_are_read_or_named() {
    let line = Line::without_workers().await;
    let utf16 = |big: bool, mark: bool| -> Vec<u8> {
        let text = "{\"message\": \"a\"}\r\n{\"message\": \"b\"}\r\n".encode_utf16();
        let units = mark.then_some(0xfeff).into_iter().chain(text);
        units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    };
    let utf16_said = "line 1: the input is UTF-16";
    for (input, code, says) in [
        (b"\xef\xbb\xbf{\"message\": \"a\"}\r\n\xef\xbb\xbf{\"message\": \"b\"}\r\n".to_vec(), 0, ""),
        (b"{\"message\": \"a\", \"stop\": \"END\", \"max_tokens\": 20.0, \"agent\": null}\n".to_vec(), 0, ""),
        (utf16(false, true), 2, utf16_said),
        (utf16(true, true), 2, utf16_said),
        (utf16(false, false), 2, utf16_said),
        (utf16(true, false), 2, utf16_said),
        (b"{\"message\": \"caf\xe9\"}\n".to_vec(), 2, "line 1: it is not UTF-8 from byte 17 on"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"name\": null}]}\n".to_vec(), 0, ""),
        (
            b"{\"messages\": [{\"role\": \"assistant\", \"content\": null}]}\n".to_vec(),
            2,
            "line 1: messages: number 1 has no content; give it a text",
        ),
        (b"{\"message\": \"a\", \"max_tokens\": -1}\n".to_vec(), 2, "max_tokens is -1; give a whole number"),
    ] {
        let output = turnmill(&line, &["submit", "-"], &[], &input).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn times_in_another_unit_are_refused_and_none_runs_at_once() {
    let line = Line::without_workers().await;
    let most = u64::MAX.to_string();
    for (flag, value, says) in [
        ("--delay", &*most, "is not a whole number of seconds from 0 to 316224000"),
        ("--delay", "-1", "is not a whole number of seconds"),
        ("--deadline", &most, "is not a whole number of seconds"),
        ("--at", &most, "give Unix seconds"),
        ("--at", "1800000000000", "give Unix seconds, not milliseconds"),
        ("--at", "2200-01-01T00:00:00Z", "after the year 2199"),
    ] {
        let output = turnmill(&line, &["submit", "-m", "hi", flag, value], &[], b"").await;
        assert_eq!(output.status.code(), Some(2), "{flag} {value}");
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
    assert_eq!(line.producer.lag().await.expect("counts").open_turns, 0);
    for from in ["1700000000", "1700000000-5", "1700000000000000"] {
        let output = turnmill(&line, &["events", "--from", from], &[], b"").await;
        assert_eq!(output.status.code(), Some(2), "{from}");
        assert!(stderr(&output).contains("no time in Unix milliseconds"), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_password_is_never_told_and_never_taken_for_a_host() {
    let line = Line::without_workers().await;
    let host = line.redis.url().replace("redis://", "");
    for password in
        ["hunter@two", "hunter#two", "hunter/two", "hunter?two", "hunter:two", "a@hunter#b", "hunter%zz"]
    {
        let url = format!("redis://:{password}@{host}");
        let output = turnmill(&line, &["lag", "--redis-url", &url], &[], b"").await;
        let said = stderr(&output) + &String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains("hunter") && !said.contains("two"), "{password}: {said}");
        let wrong = password.contains(['#', '/', '?']);
        assert_eq!(output.status.code(), Some(if wrong { 2 } else { 3 }), "{password}: {said}");
        assert!(!wrong || said.contains("percent-encode"), "{password}: {said}");
    }
    let output = turnmill(&line, &["lag", "--redis-url", &format!("valkey://{host}")], &[], b"").await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
