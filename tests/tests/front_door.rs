//! What a worker looks like from outside: its health port, its signals, its settings and what it says when it cannot start.
//!
//! The workers are those of the folder that TURNMILL_TEST_BIN names, so that the tests can be run on other builds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::NamedTempFile;
use turnmill::NewTurn;
use turnmill_schema::Outcome;
use turnmill_tests::PATIENCE;
use turnmill_tests::line::{Line, exactly};
use turnmill_tests::redis_server::free_port;
use turnmill_tests::worker::model;

/// How long a probe may take. The promise is a second; a machine that builds something meanwhile is slower.
const PROBE: Duration = Duration::from_secs(10);

fn worker_program() -> PathBuf {
    match std::env::var_os("TURNMILL_TEST_BIN") {
        Some(folder) => PathBuf::from(folder).join("turnmill-worker"),
        None => turnmill_tests::program("turnmill-worker"),
    }
}

/// `turnmill-worker` without variables of ours, under `shell`, which ends with running "$@".
fn worker_command(shell: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", shell, "sh"]).arg(worker_program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TURNMILL_") {
            command.env_remove(name);
        }
    }
    command
}

/// A worker in a process of its own; killed on drop.
struct Worker {
    child: Child,
    http: SocketAddr,
    log: NamedTempFile,
}

impl Worker {
    /// Starts it under `shell` and waits until it is ready.
    fn start(line: &Line, shell: &str, flags: &[&str]) -> Self {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = NamedTempFile::new().expect("the temporary directory is writable");
        let mut command = worker_command(shell);
        command.args(["serve", "--redis-url", &line.redis.url(), "--model", &model(), "--store", "none"]);
        command.args(["--http-addr", &http.to_string()]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.reopen().expect("a file just made can be opened"));
        let mut worker = Self { child: command.spawn().expect("the worker can be run"), http, log };
        worker.until("ready", |worker| worker.probe("/health/ready") == Some(200));
        worker
    }

    /// Waits for a condition that only a worker that runs can fulfil.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let ended = self.child.try_wait().expect("our own child can be waited for");
            assert!(ended.is_none() && Instant::now() < deadline, "not {what} ({ended:?}):\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The status that its server gives `path`; none if there is no answer in time.
    fn probe(&self, path: &str) -> Option<u16> {
        let mut stream = TcpStream::connect_timeout(&self.http, PROBE).ok()?;
        stream.set_read_timeout(Some(PROBE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("the log is text")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A failure means that it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets this process have as many descriptors as the system allows.
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

#[tokio::test]
async fn two_thousand_half_requests_stop_neither_probes_nor_turns() {
    const CLIENTS: usize = 2000;
    many_descriptors(CLIENTS as u64 + 500);
    let line = Line::start().await;
    let worker = Worker::start(&line, "ulimit -n 1024; exec \"$@\"", &[]);
    let begun = Instant::now();
    let half: Vec<TcpStream> = (0..CLIENTS).map_while(|_| half_request(worker.http)).collect();
    eprintln!("{} clients were let in within {:?}", half.len(), begun.elapsed());
    let mut slowest = Duration::ZERO;
    for path in ["/health/live", "/health/ready", "/metrics"].iter().cycle().take(60) {
        let asked = Instant::now();
        assert_eq!(worker.probe(path), Some(200), "{path} among {} half requests", half.len());
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
