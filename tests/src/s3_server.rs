//! A private S3: the program `s3` of this crate on a free port, serving a folder of its own, gone when dropped. It can
//! be told to misbehave, and counts what it is asked.
//!
//! Invariants: only requests signed with its own credentials are answered; a conditional put is atomic; what it is
//! told takes effect before the call that tells it returns.
//!
//! It keeps an object as a file and what belongs to it in a file named after the key, so that a key has at most
//! [`MAX_KEY_BYTES`] (in S3 1024), and no key may be a folder of another.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::machine::{self, Share};
use crate::program;

/// The only bucket.
pub const BUCKET: &str = "tests";
/// Under which [`S3Server::url`] puts everything.
const PREFIX: &str = "t";
/// Who may ask.
pub const ACCESS_KEY_ID: &str = "turnmill";
/// How they show it; not a secret.
pub const SECRET_ACCESS_KEY: &str = "only-for-tests";
/// Longest key, with its prefix.
pub const MAX_KEY_BYTES: usize = 160;
/// Where the server is told its [`Faults`]; no bucket has such a name.
pub const FAULTS_PATH: &str = "/-/faults";
/// Where the server tells its [`Counters`].
pub const COUNTERS_PATH: &str = "/-/counters";

/// How long the server may take to take an order or to count.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);

/// How the server misbehaves; by default it does not. Requests that are under way keep what they came in under.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Of everything given in percent, which starts anew each time that faults are set.
    pub seed: u64,
    /// How much later everything is done, in milliseconds.
    pub slow_ms: u64,
    /// How many requests in a hundred are answered 500 and not done.
    pub errors_percent: u8,
    /// How many objects in a hundred end early: fewer bytes come than were announced.
    pub truncate_percent: u8,
    /// How many objects in a hundred arrive short: fewer bytes are announced, and come, than are stored.
    pub shorten_percent: u8,
    /// Nothing is answered, ever.
    pub hang: bool,
    /// The bucket does not exist: everything is answered 404.
    pub gone: bool,
    /// Puts are answered 507 and not done.
    pub full: bool,
}

/// What the server was asked and did since it started, faults and clients' repetitions included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Reads of objects.
    pub gets: u64,
    /// Writes of objects or of parts of them.
    pub puts: u64,
    /// Those of `puts` that were refused because of what is there already.
    pub refused_puts: u64,
    /// Requests that a fault other than slowness befell.
    pub spoiled: u64,
    /// Bytes of requests' bodies.
    pub bytes_in: u64,
    /// Bytes of objects read.
    pub bytes_out: u64,
}

/// A running server; killed on drop.
pub struct S3Server {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
    _machine: Share,
}

impl S3Server {
    /// Starts a server of an empty bucket, and returns when it answers.
    pub fn start() -> Self {
        let machine = machine::share();
        let directory = TempDir::new().expect("the temporary directory is writable");
        let (child, address) = spawn(directory.path(), 0);
        Self { child, address, directory, _machine: machine }
    }

    /// Ends it as a crash would; its folder stays.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Starts it again after [`Self::kill`], at the same address and with what it stored; without faults.
    pub fn restart(&mut self) {
        (self.child, self.address) = spawn(self.directory.path(), self.address.port());
    }

    /// What a store is named by: `s3://<bucket>/<prefix>`. Clients need [`Self::env`] as well.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/{PREFIX}")
    }

    /// Where it listens: `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables that a worker or a command needs to use it.
    pub fn env(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// A client of the bucket, not of the prefix, with the defaults of its crate for what is not said here.
    pub fn client(&self) -> AmazonS3Builder {
        // An error means that somebody chose the cryptography already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let set = |builder: AmazonS3Builder, (name, value): (&str, String)| {
            let name = name.to_ascii_lowercase().parse().expect("the client knows these variables");
            builder.with_config(name, value)
        };
        self.env().into_iter().fold(AmazonS3Builder::new().with_bucket_name(BUCKET), set)
    }

    /// Where the objects under [`Self::url`] lie, each a file named by its path.
    pub fn folder(&self) -> PathBuf {
        self.directory.path().join(BUCKET).join(PREFIX)
    }

    /// Misbehaves like this from now on, instead of how it did before.
    pub fn faults(&self, faults: &Faults) {
        let faults = serde_json::to_string(faults).expect("plain data can be written");
        self.control("PUT", FAULTS_PATH, &faults);
    }

    /// What it was asked and did so far.
    pub fn counters(&self) -> Counters {
        let counters = self.control("GET", COUNTERS_PATH, "");
        serde_json::from_str(&counters).expect("counters are told in JSON")
    }

    /// The body of the answer, which is a success.
    fn control(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("the S3 server runs");
        stream.set_read_timeout(Some(CONTROL_TIMEOUT)).expect("a time above zero");
        let (host, length) = (self.address, body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
            .expect("the S3 server listens");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the S3 server answers");
        assert!(answer.starts_with("HTTP/1.1 2"), "{method} {path} {body}: {answer}");
        answer.split_once("\r\n\r\n").expect("an answer has a head").1.to_owned()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Nothing to be done about a failure here: it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server at `port`, or at a free one for 0, and its address, which it tells when it listens.
fn spawn(directory: &Path, port: u16) -> (Child, SocketAddr) {
    let mut command = Command::new(program("s3"));
    command.args(["--port", &port.to_string(), "--folder"]).arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the S3 server can be run");
    let mut line = String::new();
    let said = BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line);
    let address = said.ok().and_then(|_| line.trim().parse().ok());
    (child, address.expect("the S3 server tells its address; its error is above"))
}
