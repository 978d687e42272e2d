//! A private Redis: a real `redis-server` on a free port, in a directory of its own, gone when dropped. Through
//! [`crate::machine`] it shares the machine with other tests' servers.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::machine::{self, Share};

/// How long a server may take to answer; a busy machine is slow, a broken one never answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running server; killed on drop.
pub struct RedisServer {
    child: Child,
    port: u16,
    directory: TempDir,
    options: Vec<String>,
    _machine: Share,
}

impl RedisServer {
    /// Starts a server without persistence and waits until it answers. Panics where there is no `redis-server`.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more command-line options, such as `["--maxmemory", "10mb"]`.
    pub fn start_with(options: &[&str]) -> Self {
        // Another process may take the free port first; then the server exits, and another port is tried.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(options) {
                return server;
            }
        }
        panic!("redis-server exits as soon as it is started; run it by hand to see why");
    }

    fn try_start(options: &[&str]) -> Option<Self> {
        let machine = machine::share();
        let directory = TempDir::new().expect("the temporary directory is writable");
        let port = free_port();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let child = spawn(port, directory.path(), &options);
        let mut server = Self { child, port, directory, options, _machine: machine };
        server.until_it_answers().then_some(server)
    }

    /// Kills it as a crash would; what its options made it write stays in its directory.
    pub fn crash(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Starts it again after [`Self::crash`], at the same address and with the same options.
    pub fn restart(&mut self) {
        self.child = spawn(self.port, self.directory.path(), &self.options);
        assert!(self.until_it_answers(), "redis-server does not start again");
    }

    /// False where it has exited.
    fn until_it_answers(&mut self) -> bool {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.answers() {
            if self.child.try_wait().expect("our own child can be waited for").is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "redis-server did not answer PING within {START_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Where it listens: `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The same as an address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn answers(&self) -> bool {
        let ping = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"PING\r\n")?;
            let mut reply = [0; 7];
            stream.read_exact(&mut reply)?;
            Ok(&reply == b"+PONG\r\n")
        };
        ping().unwrap_or(false)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Nothing to be done about a failure here: it has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, directory: &Path, options: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
        .arg("--dir")
        .arg(directory)
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server can be run; install redis (7.0 or newer)")
}

/// Below the ports that systems hand out to outgoing connections (32768 and above on Linux). While a server is down, its clients
/// connect again and again, and one of them could get the server's own port; then it could not start again. `free_port` of
/// `deploy/lib.sh` chooses from the same.
const PORTS: Range<u16> = 20_000..30_000;

/// A port on which nobody listens just now. This process does not get it again for a long time, because the server that is to listen
/// there may take a while to start.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(somewhere()));
    next_free(&NEXT)
}

fn next_free(next: &AtomicU32) -> u16 {
    let count = u32::from(PORTS.end - PORTS.start);
    for _ in 0..count {
        let port = PORTS.start + (next.fetch_add(1, Ordering::Relaxed) % count) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {} to {} is free on 127.0.0.1; end what listens there", PORTS.start, PORTS.end - 1);
}

/// Another number in each process, so that processes begin with different ports.
fn somewhere() -> u32 {
    RandomState::new().hash_one(std::process::id()) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_outgoing_connection_gets_a_port_of_ours_and_no_two_servers_get_one() {
        let ports: Vec<u16> = (0..100).map(|_| free_port()).collect();
        assert!(ports.iter().all(|port| PORTS.contains(port)), "{ports:?}");
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len(), "{ports:?}");
        // The last port of all: after it comes the first.
        let next = AtomicU32::new(u32::from(PORTS.end - PORTS.start) - 1);
        let first = next_free(&next);
        let _taken = TcpListener::bind(("127.0.0.1", first)).expect("it is free");
        next.store(u32::from(first - PORTS.start), Ordering::Relaxed);
        let second = next_free(&next);
        assert!(second != first && PORTS.contains(&second), "{first} {second}");
    }
}
