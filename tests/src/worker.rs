//! A real worker: the `turnmill-worker` binary in a process of its own, or the scripted one of `turnmill-tests`; gone when dropped.
//!
//! Its environment holds no `TURNMILL_*` variable but ours, since a worker refuses those it does not know. Ours
//! give what every worker needs, so that flags can override any of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::redis_server::{RedisServer, free_port};
use crate::{PATIENCE, command};

/// How long a worker may take to load its model.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running worker; killed on drop. A test that fails prints its log.
pub struct Worker {
    child: Child,
    http: SocketAddr,
    log: NamedTempFile,
}

impl Worker {
    /// Starts `turnmill-worker serve` with `flags` on the queue in `redis`, and waits until it is ready.
    pub fn start(redis: &RedisServer, flags: &[&str]) -> Self {
        let mut worker = Self::launch(&redis.url(), flags);
        worker.until_ready();
        worker
    }

    /// Starts one on the queue at `url`, and does not wait for it.
    pub fn launch(url: &str, flags: &[&str]) -> Self {
        Self::spawn(url, flags, &[])
    }

    /// The same with more variables in its environment, such as those of a store.
    pub fn launch_with(url: &str, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(url, flags, variables)
    }

    /// Waits until it is ready. Panics where it is not soon.
    pub fn until_ready(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while self.try_get("/health/ready").is_none_or(|(status, _)| status != 200) {
            assert_eq!(self.exited(), None, "the worker does not start:\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready within {START_TIMEOUT:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a worker that cannot run, and returns the reason that the last line of its log gives.
    pub fn refusal(redis: &RedisServer, flags: &[&str]) -> String {
        Self::spawn(&redis.url(), flags, &[]).into_refusal()
    }

    /// The same with one more variable in its environment.
    pub fn refusal_with(redis: &RedisServer, variable: (&str, &str)) -> String {
        Self::spawn(&redis.url(), &[], &[variable]).into_refusal()
    }

    /// Starts `turnmill-tests scripted-worker` with `flags` on the queue at `url`, and does not wait for it.
    pub fn launch_scripted(url: &str, flags: &[&str]) -> Self {
        let mut command = command("turnmill-tests");
        command.arg("scripted-worker");
        Self::run(command, url, flags, &[], None)
    }

    /// Starts a scripted worker that cannot run, and returns the reason that the last line of its log gives.
    pub fn scripted_refusal(redis: &RedisServer, flags: &[&str]) -> String {
        Self::launch_scripted(&redis.url(), flags).into_refusal()
    }

    fn spawn(url: &str, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::launch_by(command("turnmill-worker"), url, flags, variables, None)
    }

    /// Starts one by `command`, which is the worker's program or ends with running it, and does not wait for it. What it says goes
    /// to `stderr`; none: to its log.
    pub fn launch_by(
        mut command: Command,
        url: &str,
        flags: &[&str],
        variables: &[(&str, &str)],
        stderr: Option<Stdio>,
    ) -> Self {
        command.arg("serve");
        Self::run(command, url, flags, variables, stderr)
    }

    fn run(
        mut command: Command,
        url: &str,
        flags: &[&str],
        variables: &[(&str, &str)],
        stderr: Option<Stdio>,
    ) -> Self {
        let http = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = NamedTempFile::new().expect("the temporary directory is writable");
        command.env("TURNMILL_MODEL", model()).env("TURNMILL_REDIS_URL", url);
        // A store is what a test is about, or nothing of this machine.
        command.env("TURNMILL_STORE", "none");
        // Tests read the streams themselves, also long after the end.
        command.env("TURNMILL_KEEP_STREAM_MS", "3600000");
        command.env("TURNMILL_HTTP_ADDR", http.to_string()).envs(variables.iter().copied());
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::null());
        let to_log = || log.reopen().expect("a file just made can be opened").into();
        command.stderr(stderr.unwrap_or_else(to_log));
        let child = command.spawn().expect("the worker can be run");
        Self { child, http, log }
    }

    fn into_refusal(mut self) -> String {
        let status = self.wait_exit();
        let log = self.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        let line = |line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {log}"));
        let lines: Vec<Value> = log.lines().map(line).collect();
        let fatal = |line: &&Value| line["message"] == "the worker ends with an error";
        assert_eq!(lines.iter().filter(fatal).count(), 1, "{log}");
        lines
            .last()
            .filter(fatal)
            .and_then(|line| line["error"].as_str())
            .expect("it is the last line")
            .to_owned()
    }

    /// The status and body of `path` on its HTTP server.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).unwrap_or_else(|| panic!("no answer to GET {path}:\n{}", self.log()))
    }

    /// The status of `/health/ready` and the codes of its reasons.
    pub fn ready(&self) -> (u16, Vec<String>) {
        let (status, body) = self.get("/health/ready");
        let body: Value = serde_json::from_str(&body).expect("health is told in JSON");
        let reasons = body["reasons"].as_array().expect("a list of reasons");
        let code = |reason: &Value| reason["code"].as_str().expect("a reason has a code").to_owned();
        (status, reasons.iter().map(code).collect())
    }

    /// Waits until `/health/ready` gives exactly this reason, or none.
    pub async fn until_ready_says(&self, code: Option<&str>) {
        let deadline = Instant::now() + PATIENCE;
        let status = if code.is_some() { 503 } else { 200 };
        let wanted = (status, code.into_iter().map(str::to_owned).collect());
        loop {
            let said = self.ready();
            if said == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "readiness stays {said:?}, wanted {wanted:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The sum of a metric's values over all its labels, or over those that have all of `labels`, as `outcome="saved"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics");
        let of_it = |line: &&str| {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            &line[..end] == name && labels.iter().all(|label| line.contains(label))
        };
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        text.lines().filter(of_it).filter_map(value).sum()
    }

    /// Where its HTTP server listens.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The same; none if it does not answer.
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        ask(self.http, "GET", path, "")
    }

    /// The status and body of the answer to a PUT of `body`.
    pub fn put(&self, path: &str, body: &str) -> (u16, String) {
        let answer = ask(self.http, "PUT", path, body);
        answer.unwrap_or_else(|| panic!("no answer to PUT {path}:\n{}", self.log()))
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a chance to say anything, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_exit();
    }

    /// Asks it to drain.
    pub fn sigterm(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Stops it as a machine that hangs would: it knows nothing of the time until [`Self::sigcont`].
    pub fn sigstop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on after [`Self::sigstop`].
    pub fn sigcont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// How it ended; none while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pids fit"));
        kill(pid, signal).expect("our own child can be signalled");
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(Instant::now() < deadline, "the worker does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines of its log that are JSON: all of them, unless it panicked or was told to write text.
    pub fn log_lines(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("the log is text")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nothing to be done about a failure here: it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the worker at {}:\n{}", self.http, self.log());
        }
    }
}

/// Whether the worker whose HTTP server is at `address` is there, and ready.
pub fn is_ready(address: SocketAddr) -> bool {
    ask(address, "GET", "/health/ready", "").is_some_and(|(status, _)| status == 200)
}

fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(START_TIMEOUT)).ok()?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: worker\r\nContent-Length: {}", body.len());
    let request = format!("{head}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The model that tests run: a small GGUF file of the llama family.
pub fn model() -> String {
    std::env::var("TURNMILL_TEST_MODEL")
        .expect("TURNMILL_TEST_MODEL must name the GGUF file of SmolLM2-135M-Instruct; deploy/test sets it")
}
