//! What a worker looks like from outside: its health port, its signals, its settings and what it says when it cannot start.
//!
//! The workers are those of the folder that TURNMILL_TEST_BIN names, so that the tests can be run on other builds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Flags of a program.
type Flags<'a> = &'a [&'a str];
/// Variables of its environment.
type Variables<'a> = &'a [(&'a str, &'a str)];

use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};
use turnmill_client::NewTurn;
use turnmill_schema::Outcome;
use turnmill_tests::line::{Line, exactly};
use turnmill_tests::redis_server::RedisServer;
use turnmill_tests::worker::{Worker, model};
use turnmill_tests::{PATIENCE, machine, program, until, without_settings};

/// How long a probe may take. The promise is a second; a machine that builds something meanwhile is slower.
const PROBE: Duration = Duration::from_secs(10);

/// A shell's words that run the worker and do nothing else.
const PLAIN: &str = "exec \"$@\"";

/// The same under a terminal that can hang up, whoever runs the tests under `nohup`: no shell takes back what was ignored before
/// it. macOS has no such flag; there run the tests without `nohup`.
const UNDER_A_TERMINAL: &str =
    if cfg!(target_os = "linux") { "exec env --default-signal=HUP \"$@\"" } else { PLAIN };

/// `turnmill-worker` without settings of this machine, under `shell`, which ends with running "$@".
fn worker_command(shell: &str) -> Command {
    let mut command = without_settings(Command::new("sh"));
    command.args(["-c", shell, "sh"]).arg(program("turnmill-worker")).stdin(Stdio::null());
    command
}

/// What `turnmill-worker` prints, and how it ends.
fn output(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = worker_command(PLAIN);
    command.args(arguments).envs(variables.iter().copied());
    command.output().expect("the worker can be run")
}

/// A worker of the line under `shell`, ready.
fn start(line: &Line, shell: &str, flags: &[&str]) -> Worker {
    let mut worker = Worker::launch_by(worker_command(shell), &line.redis.url(), flags, &[], None);
    worker.until_ready();
    worker
}

/// The status that the server at `http` gives `path`; none if there is no answer in time.
fn probe(http: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&http, PROBE).ok()?;
    stream.set_read_timeout(Some(PROBE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Lets this process have as many descriptors as the system allows, which other tests must not notice.
fn many_descriptors(wanted: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(maximum.is_none_or(|maximum| maximum >= wanted), "ulimit -Hn must be at least {wanted}");
    let limit = Rlimit { current: Some(maximum.unwrap_or(wanted)), maximum };
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit is allowed");
}

/// Connects and sends a half of a request; none if the server lets nobody in.
fn half_request(http: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&http, PROBE).ok()?;
    // The server may have closed it already; then there is nothing to send.
    let _ = stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: ");
    Some(stream)
}

/// Whether the other side ends the connection.
fn is_closed(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).expect("a valid timeout");
    match stream.read(&mut [0; 64]) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Ends all connections of the line's Redis, as a restart of a proxy would.
fn cut_connections(line: &Line) {
    let mut stream = TcpStream::connect(line.redis.address()).expect("Redis listens");
    stream.write_all(b"CLIENT KILL TYPE normal SKIPME yes\r\n").expect("sent");
    assert_eq!(stream.read(&mut [0; 1]).expect("Redis answers"), 1);
}

/// The clients' descriptors are this process's, and its limit is every test's: a process of its own has them.
#[test]
fn two_thousand_half_requests_stop_neither_probes_nor_turns() {
    // The test over there cannot ask for it here.
    let _machine = machine::alone();
    let mut test = Command::new(std::env::current_exe().expect("a running program has a path"));
    test.args(["--exact", "front_door::among_two_thousand_half_requests", "--ignored", "--nocapture"]);
    let output = test.output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains(" 1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "two_thousand_half_requests_stop_neither_probes_nor_turns runs it in a process of its own"]
async fn among_two_thousand_half_requests() {
    const CLIENTS: usize = 2000;
    many_descriptors(CLIENTS as u64 + 500);
    let line = Line::start().await;
    let worker = start(&line, &format!("ulimit -n 1024; {PLAIN}"), &[]);
    let begun = Instant::now();
    let half: Vec<TcpStream> = (0..CLIENTS).map_while(|_| half_request(worker.http())).collect();
    eprintln!("{} clients were let in within {:?}", half.len(), begun.elapsed());
    let mut slowest = Duration::ZERO;
    for path in ["/health/live", "/health/ready", "/metrics"].iter().cycle().take(60) {
        let asked = Instant::now();
        assert_eq!(probe(worker.http(), path), Some(200), "{path} among {} half requests", half.len());
        slowest = slowest.max(asked.elapsed());
    }
    eprintln!("slowest of 60 probes: {slowest:?}");
    assert_eq!(half.len(), CLIENTS);
    // A worker that has no descriptor left would not notice before it needs one.
    cut_connections(&line);
    let result = line.run(NewTurn::user("Count.").sampling(exactly(4))).await;
    assert_eq!(result.outcome, Outcome::Completed, "{}", worker.log());
    assert!(half.into_iter().all(is_closed), "a half request is given up");
}

#[tokio::test]
async fn the_port_that_the_system_chose_is_logged() {
    let line = Line::start().await;
    let worker = Worker::launch(&line.redis.url(), &["--http-addr", "127.0.0.1:0"]);
    until("it is ready", async || worker.log().contains("\"message\":\"ready\"")).await;
    let lines = worker.log_lines();
    let ready = lines.iter().find(|line| line["message"] == "ready").expect("it is ready");
    let addr = ready["addr"].as_str().and_then(|addr| addr.parse().ok()).expect("an address");
    assert_eq!(probe(addr, "/health/live"), Some(200), "{addr}");
}

/// A turn that takes a while.
fn long_turn() -> NewTurn {
    NewTurn::user("Count.").sampling(exactly(120))
}

#[tokio::test]
async fn a_closed_terminal_drains_the_worker_and_never_hurries_it() {
    let line = Line::start().await;
    let mut worker = start(&line, UNDER_A_TERMINAL, &[]);
    let turns = line.enqueue(vec![long_turn()]).await;
    line.until_all_have_tokens(&turns).await;
    worker.signal(Signal::SIGUSR1);
    worker.signal(Signal::SIGUSR2);
    worker.signal(Signal::SIGHUP);
    until("it drains", async || worker.log().contains("draining")).await;
    // From the shell, and from who cleans up after the session.
    worker.signal(Signal::SIGHUP);
    worker.signal(Signal::SIGTERM);
    let status = worker.wait_exit();
    assert!(status.success(), "{status}:\n{}", worker.log());
    assert_eq!(line.wait(turns[0]).await.outcome, Outcome::Completed);
}

#[tokio::test]
async fn a_worker_under_nohup_outlives_its_terminal() {
    let line = Line::start().await;
    let mut worker = start(&line, &format!("trap '' HUP; {PLAIN}"), &[]);
    worker.signal(Signal::SIGHUP);
    assert_eq!(line.run(long_turn()).await.outcome, Outcome::Completed);
    worker.signal(Signal::SIGTERM);
    assert!(worker.wait_exit().success() && worker.log().contains("SIGTERM"), "{}", worker.log());
}

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    writer.into()
}

#[tokio::test]
async fn nobody_needs_to_read_what_is_written() {
    for arguments in ["config", "config --json", "metrics", "version", "completions bash", "serve --help"] {
        let mut command = worker_command(PLAIN);
        let output =
            command.args(arguments.split(' ')).stdout(closed_pipe()).output().expect("it can be run");
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments}: {output:?}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let output = worker_command(PLAIN).arg("config").stdout(full).output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("cannot be written: "), "{said}");
    let line = Line::start().await;
    for format in ["json", "text"] {
        let (command, url) = (worker_command(PLAIN), line.redis.url());
        let flags = ["--log-format", format];
        let mut worker = Worker::launch_by(command, &url, &flags, &[], Some(closed_pipe()));
        assert_eq!(line.run(long_turn()).await.outcome, Outcome::Completed);
        worker.signal(Signal::SIGTERM);
        assert!(worker.wait_exit().success(), "with a log in {format} that nobody reads");
    }
}

#[test]
fn what_keeps_a_worker_from_starting_is_a_line_of_its_log() {
    let folder = TempDir::new().expect("the temporary directory is writable");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("the file takes it");
        path.to_str().expect("a path of text").to_owned()
    };
    let json = file("json.toml", "log_format = \"json\"\nlease_ms = 1\n");
    let text = file("text.toml", "log_format = \"text\"\nlease_ms = 1\n");
    let broken = file("broken.toml", "lease_ms\n");
    let redis: [&str; 5] =
        ["--model", &model(), "--redis-url", "redis://127.0.0.1:1", "--http-addr=127.0.0.1:0"];
    let cases: [(Flags<'_>, Variables<'_>, &str); 11] = [
        (&[], &[], "no model is named"),
        (&["--lease-ms", "1"], &[], "lease_ms is 1; it must be from 300"),
        (&["--lease-ms", "1", "--shards=2000"], &[], "shards is 2000;"),
        (&["--lease-ms", "soon"], &[], "invalid value 'soon'"),
        (&["--leas-ms", "1"], &[], "unexpected argument '--leas-ms'"),
        (&[], &[("TURNMILL_LEASE_MS", "soon")], "invalid value 'soon'"),
        (&[], &[("TURNMILL_LEAS_MS", "1")], "TURNMILL_LEAS_MS"),
        (&["--config", &json], &[], "lease_ms is 1;"),
        (&["--config", &broken], &[], "line 1"),
        (&["--config", "/nowhere.toml"], &[], "/nowhere.toml"),
        (&redis, &[], "cannot reach Redis at 127.0.0.1:1"),
    ];
    for (flags, variables, part) in cases {
        let output = output(&[&["serve"], flags].concat(), variables);
        let said = String::from_utf8_lossy(&output.stderr);
        let line = |line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {said}"));
        let lines: Vec<Value> = said.lines().map(line).collect();
        let last = lines.last().expect("it says something");
        assert!(!output.status.success() && last["level"] == "ERROR", "{flags:?}: {said}");
        assert!(last["error"].as_str().is_some_and(|error| error.contains(part)), "{flags:?}: {said}");
    }
    let cases: [(Flags<'_>, Variables<'_>); 5] = [
        (&["--log-format=text"], &[]),
        (&["--lease-ms=soon"], &[("TURNMILL_LOG_FORMAT", "text")]),
        (&["--config", &text], &[]),
        (&["--log-format=text", "--config", &json], &[]),
        (&["--log-format=text", "--leas-ms", "1"], &[]),
    ];
    for (flags, variables) in cases {
        let output = output(&[&["serve"], flags].concat(), variables);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.contains('{') && !said.is_empty(), "{flags:?}: {said}");
    }
}

/// `(name, value)` of all settings, as `turnmill-worker config` tells them.
fn settings(arguments: &[&str], variables: &[(&str, &str)]) -> Vec<(String, Value)> {
    let output = output(&[&["config", "--json"], arguments].concat(), variables);
    let told: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("settings are refused: {output:?}"));
    let setting = |told: Value| (told["name"].as_str().expect("a name").to_owned(), told["value"].clone());
    told.into_iter().map(setting).collect()
}

#[test]
fn empty_variables_are_unset() {
    let unset = settings(&[], &[]);
    let names = unset.iter().map(|(name, _)| name.as_str()).chain(["config"]);
    let variables: Vec<String> = names.map(|name| format!("TURNMILL_{}", name.to_uppercase())).collect();
    let empty: Vec<(&str, &str)> = variables.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(settings(&[], &empty), unset);
}

#[test]
fn settings_that_were_printed_are_a_configuration_file() {
    let secret = [("TURNMILL_REDIS_URL", "redis://user:s3cret@host:6380/2")];
    let flags =
        ["--model=/a \"b\".gguf", "--pool-bytes=2GiB", "--headroom-low=0.01", "--log=info,hyper=warn"];
    let printed = output(&[&["config"], &flags[..]].concat(), &secret);
    let file = NamedTempFile::new().expect("the temporary directory is writable");
    std::fs::write(&file, &printed.stdout).expect("the file takes it");
    let config = format!("--config={}", file.path().display());
    assert_eq!(settings(&[&config], &secret), settings(&flags, &secret));
    // The one that is left out does not come back as a wrong password.
    let without = settings(&[&config], &[]);
    let url = without.iter().find(|(name, _)| name == "redis_url").expect("it is a setting");
    assert_eq!(url.1, "redis://127.0.0.1:6379", "{}", String::from_utf8_lossy(&printed.stdout));
}

#[test]
fn redis_is_where_its_url_says() {
    let folder = TempDir::new().expect("the temporary directory is writable");
    let socket = folder.path().join("redis@1.sock");
    let socket = socket.to_str().expect("a path of text");
    let redis = RedisServer::start_with(&[
        "--unixsocket",
        socket,
        "--user",
        "ada",
        "on",
        ">p@s/s#w?rd&+%",
        "~*",
        "&*",
        "+@all",
    ]);
    let port = redis.address().port();
    let encoded = "p%40s%2Fs%23w%3Frd%26%2B%25";
    for url in [
        format!("valkey://127.0.0.1:{port}"),
        format!("redis://ada:{encoded}@127.0.0.1:{port}"),
        format!("redis://ada:p@s%2Fs%23w%3Frd&+%25@127.0.0.1:{port}"),
        format!("unix://{socket}?user=ada&pass={encoded}"),
        format!("valkey+unix://{socket}?user=ada&pass={encoded}"),
    ] {
        // Other things than Redis may be wrong there.
        let checked = output(&["check", "--redis-url", &url, "--model", &model(), "--store=none"], &[]);
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(said.contains("Redis 7.") || said.contains("Redis 8."), "{url}: {said}");
    }
    for url in [
        format!("redis://ada:p@s/s#w?rd&+%@127.0.0.1:{port}"),
        format!("redis://ada:p@127.0.0.1/s@127.0.0.1:{port}"),
        format!("redis://ada:p#s@127.0.0.1:{port}"),
        format!("unix://{socket}?user=ada&pass=p@s/s#w?rd&+%"),
    ] {
        let refused = output(&["check", "--redis-url", &url, "--model", &model(), "--store=none"], &[]);
        let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
        assert!(
            said.contains("percent-encode") && !said.contains("ada") && !said.contains("p@s"),
            "{url}: {said}"
        );
    }
}

/// Numbers that programs trip over.
const NUMBERS: [&str; 8] =
    ["0", "1", "-1", "4294967295", "4294967296", "18446744073709551615", "18446744073709551616", "1e400"];

/// What `config` says against `--name=value`; none if it is accepted.
fn refusal(name: &str, value: &str) -> Option<String> {
    let flag = format!("--{}={value}", name.replace('_', "-"));
    let output = output(&["config", &flag], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!([Some(0), Some(1), Some(2)].contains(&output.status.code()), "{flag}: {output:?}");
    (!output.status.success()).then_some(said)
}

#[test]
fn every_number_is_taken_or_refused_in_one_sentence() {
    let _machine = machine::share();
    for (name, default) in settings(&[], &[]) {
        for number in NUMBERS {
            let Some(said) = refusal(&name, number) else {
                let unbounded = default.is_number() && number.len() > 10;
                assert!(!unbounded, "{name} takes {number}");
                continue;
            };
            let own: Vec<&str> = said.lines().take_while(|line| !line.is_empty()).collect();
            let flag = name.replace('_', "-");
            let names = |line: &str| line.contains(&name) || line.contains(&format!("--{flag}"));
            assert!(
                own.len() == 1 && names(own[0]) && own[0].contains(';') || said.starts_with("error: "),
                "{said}"
            );
        }
    }
}

#[tokio::test]
async fn a_worker_runs_with_every_number_at_its_most() {
    // A thousand threads, or a step that fills the memory, are no mistake; and shares must differ.
    let apart = ["threads", "headroom_low", "headroom_high"];
    let numbers = settings(&[], &[]).into_iter().filter(|(_, default)| default.is_number());
    let flags: Vec<String> = numbers
        .filter(|(name, _)| !apart.contains(&name.as_str()))
        .map(|(name, _)| {
            let said = ["18446744073709551615", "4294967295", "65535"].map(|number| refusal(&name, number));
            let said = said.into_iter().flatten().find(|said| said.contains("it must be"));
            let said = said.unwrap_or_else(|| panic!("{name} has no bound"));
            let most = said.trim_end().rsplit_once(" to ").expect("it names the most").1;
            format!("--{}={}", name.replace('_', "-"), most.split(' ').next().unwrap_or(most))
        })
        .collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let line = Line::start().await;
    let mut worker = line.worker(&flags);
    assert_eq!(line.run(NewTurn::user("Count.").sampling(exactly(4))).await.outcome, Outcome::Completed);
    worker.signal(Signal::SIGTERM);
    assert!(worker.wait_exit().success(), "{}", worker.log());
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
}
