use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ::metrics::counter;

use super::*;
use crate::TelemetryError;
use crate::logs::{self, LogFormat};
use crate::metrics::tests::recorded;
use crate::program::tests::SAMPLE;

/// What a program answers that does what it is told.
#[derive(Default)]
struct Told {
    hangs: bool,
    starting: bool,
    lacks: Vec<&'static str>,
    slowed_by: Vec<&'static str>,
    open: u32,
}

struct Puppet(Mutex<Told>);

impl Puppet {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("no test panics while it writes")
    }
}

fn because(code: &'static str) -> Reason<&'static str> {
    Reason::new(code, format!("it is {code}"))
}

impl Probed for Puppet {
    type Code = &'static str;
    type Degraded = &'static str;

    fn live(&self, _: Instant) -> Result<(), Reason<&'static str>> {
        if self.told().hangs { Err(because("hung")) } else { Ok(()) }
    }

    fn started(&self) -> Result<(), Reason<&'static str>> {
        if self.told().starting { Err(because("starting")) } else { Ok(()) }
    }

    fn ready(&self, _: Instant) -> Result<(), Vec<Reason<&'static str>>> {
        let lacks = self.told().lacks.clone();
        if lacks.is_empty() { Ok(()) } else { Err(lacks.into_iter().map(because).collect()) }
    }

    fn degraded(&self) -> Vec<Reason<&'static str>> {
        self.told().slowed_by.iter().copied().map(because).collect()
    }

    fn scrape(&self, _: Instant) -> String {
        format!("sample_open {}\n", self.told().open)
    }
}

struct Server {
    addr: SocketAddr,
    state: ProbeState<Puppet>,
    /// Keeps the log filter changeable; nothing is written with it.
    _log: Box<dyn tracing::Subscriber + Send + Sync>,
    server: ProbeServer,
}

impl Server {
    fn start() -> Self {
        Self::start_with(1024)
    }

    /// One in a process that may have this many descriptors.
    fn start_with(descriptors: u64) -> Self {
        let info = "info".parse().expect("a filter");
        let (log, logs) = logs::subscriber(LogFormat::Json, &info, false, std::io::sink);
        let state = ProbeState {
            program: SAMPLE,
            answers: Arc::new(Puppet(Mutex::default())),
            metrics: recorded(|| counter!("sample_done_total").increment(1)),
            logs,
        };
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let server = serve(listener, state.clone(), descriptors).expect("it starts");
        Self { addr, state, _log: log, server }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a valid timeout");
        stream
    }

    /// Status, head and body of the answer.
    fn get(&self, path: &str) -> (u16, String, String) {
        self.ask("GET", path, "")
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: sample\r\ncontent-length: {length}");
        write!(stream, "{head}\r\nconnection: close\r\n\r\n{body}").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, head.to_lowercase(), body.to_owned())
    }

    /// Status, status word and codes of the reasons.
    fn health(&self, which: &str) -> (u16, String, Vec<String>) {
        let (status, head, body) = self.get(&format!("/health/{which}"));
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let reasons = body["reasons"].as_array().expect("a list");
        assert!(reasons.iter().all(|reason| !text(&reason["detail"]).is_empty()));
        (status, text(&body["status"]), reasons.iter().map(|reason| text(&reason["code"])).collect())
    }
}

fn pass() -> (u16, String, Vec<String>) {
    (200, "pass".to_owned(), Vec::new())
}

fn fail(codes: &[&str]) -> (u16, String, Vec<String>) {
    (503, "fail".to_owned(), codes.iter().map(|code| code.to_string()).collect())
}

#[test]
fn health_is_what_the_program_answers() {
    let server = Server::start();
    let told = || server.state.answers.told();
    for which in ["live", "startup", "ready"] {
        assert_eq!(server.health(which), pass());
    }
    told().starting = true;
    assert_eq!(server.health("startup"), fail(&["starting"]));
    told().lacks = vec!["starting", "cut_off"];
    assert_eq!(server.health("ready"), fail(&["starting", "cut_off"]));
    assert_eq!(server.health("live"), pass());
    told().hangs = true;
    assert_eq!(server.health("live"), fail(&["hung"]));
    assert!(server.get("/health/live").1.contains("cache-control: no-store"));
}

#[test]
fn a_program_that_is_slowed_down_is_ready_and_says_by_what() {
    let server = Server::start();
    let degraded = || {
        let body: Value = serde_json::from_str(&server.get("/health/ready").2).expect("JSON");
        body["degraded"].clone()
    };
    assert_eq!(degraded(), json!([]));
    server.state.answers.told().slowed_by = vec!["far"];
    assert_eq!(server.health("ready"), pass());
    assert_eq!(degraded(), json!([{ "code": "far", "detail": "it is far" }]));
}

#[test]
fn metrics_have_both_sources_and_the_right_type() {
    let server = Server::start();
    server.state.answers.told().open = 4;
    let (status, head, body) = server.get("/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.starts_with("sample_open 4\n") && body.contains("sample_done_total 1\n"), "{body}");
}

#[test]
fn the_log_filter_is_read_and_changed() {
    let server = Server::start();
    assert_eq!(server.get("/log").2, "info\n");
    let (status, _, body) = server.ask("PUT", "/log", "warn,turnmill=debug\n");
    assert_eq!((status, body.as_str()), (200, "warn,turnmill=debug\n"));
    assert_eq!(server.get("/log").2, "warn,turnmill=debug\n");
    for (filter, status) in [("info,a=loud", 400), ("\n", 400), (&"a,".repeat(FILTER_BYTES)[..], 413)] {
        assert_eq!(server.ask("PUT", "/log", filter).0, status);
    }
    let body: Value = serde_json::from_str(&server.ask("PUT", "/log", "info,a=loud").2).expect("JSON");
    assert!(body["error"].as_str().expect("text").contains("\"a=loud\""), "{body}");
    assert_eq!(server.ask("POST", "/log", "info").0, 405);
    assert_eq!(server.get("/log").2, "warn,turnmill=debug\n", "a refused one changes nothing");
}

#[tokio::test]
async fn only_this_machine_changes_the_log_filter() {
    let server = Server::start();
    for (peer, status) in [("192.0.2.1:9", 403), ("[2001:db8::1]:9", 403), ("[::ffff:127.0.0.1]:9", 200)] {
        let peer = ConnectInfo(peer.parse().expect("an address"));
        let answer = set_log(State(server.state.clone()), peer, "off".into()).await;
        assert_eq!(answer.status().as_u16(), status);
    }
}

#[test]
fn other_paths_get_a_404_that_names_the_known_ones() {
    let (status, _, body) = Server::start().get("/healthz?x=1");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(status, 404);
    let error = body["error"].as_str().expect("text");
    assert!(error.starts_with("there is no /healthz; ") && error.contains("/health/ready"), "{error}");
}

#[test]
fn a_port_in_use_is_told_by_its_address() {
    let server = Server::start();
    let refused = bind(server.addr).expect_err("in use");
    assert!(matches!(refused, TelemetryError::PortInUse { addr } if addr == server.addr), "{refused}");
    // TEST-NET-1: no machine has it.
    let foreign = SocketAddr::from(([192, 0, 2, 1], 9470));
    assert!(matches!(bind(foreign), Err(TelemetryError::Bind { addr, .. }) if addr == foreign));
}

#[test]
fn stopping_frees_the_port_even_from_a_client_that_says_nothing_more() {
    let server = Server::start();
    assert_eq!(server.health("live"), pass());
    let mut half_asked = server.connect();
    half_asked.write_all(b"GET /health/live HTTP/1.1\r\n").expect("sent");
    server.server.stop();
    bind(server.addr).expect("the port is free again");
}

#[tokio::test]
async fn probes_do_not_need_the_programs_runtime() {
    // The only thread of this runtime waits in `health`; a server on it would never answer.
    assert_eq!(Server::start().health("live"), pass());
}

/// Waits until the server closes the connection, and returns what it said before.
fn until_closed(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        // What was sent and never read makes it a reset.
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("not closed: {error}"),
        _ => String::from_utf8_lossy(&said).into_owned(),
    }
}

#[test]
fn a_request_that_does_not_end_is_given_up() {
    let server = Server::start();
    let requests = [
        "",
        "GET /health/live HTTP/1.1\r\nhost:",
        "PUT /log HTTP/1.1\r\nhost: sample\r\ncontent-length: 4\r\n\r\nin",
    ];
    let streams = requests.map(|request| {
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).expect("sent");
        stream
    });
    let [nothing, head, body] = streams.map(until_closed);
    assert_eq!((nothing.as_str(), head.as_str()), ("", ""));
    assert!(body.starts_with("HTTP/1.1 408 "), "{body}");
}

#[test]
fn a_new_client_takes_the_place_of_the_one_that_was_idle_longest() {
    // Room for four.
    let server = Server::start_with(0);
    let mut kept = server.connect();
    let request = "GET /health/live HTTP/1.1\r\nhost: sample\r\n\r\n";
    let first_line = |kept: &mut TcpStream| {
        kept.write_all(request.as_bytes()).expect("sent");
        let mut line = [0; 12];
        kept.read_exact(&mut line).expect("an answer");
        String::from_utf8_lossy(&line).into_owned()
    };
    let oldest: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    assert_eq!(first_line(&mut kept), "HTTP/1.1 200", "now it is the one that was heard last");
    for stream in oldest {
        assert_eq!(server.health("live"), pass());
        assert_eq!(until_closed(stream), "");
    }
}
