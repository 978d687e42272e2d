//! A rolling restart under load, as an upgrade does it: nothing fails, nothing is lost, no token comes twice, and there is always a
//! worker that is ready.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use turnmill_client::NewTurn;
use turnmill_schema::{Outcome, TurnId};
use turnmill_tests::line::{Line, exactly, name};
use turnmill_tests::until;
use turnmill_tests::worker::{Worker, is_ready};

const AGENTS: usize = 8;
const WORKERS: usize = 3;
const REPLY_TOKENS: u32 = 64;

/// A turn in the middle of an agent's conversation.
fn turn(agent: &str, number: usize) -> NewTurn {
    NewTurn::user(format!("Fact {number}, please.")).agent(name(agent)).sampling(exactly(REPLY_TOKENS))
}

/// The talk of all agents.
#[derive(Default)]
struct Talk {
    over: AtomicBool,
    /// Turns that ended.
    ended: AtomicUsize,
}

impl Talk {
    /// One agent's, until it is over; its turns.
    async fn of(&self, line: &Line, agent: String) -> Vec<TurnId> {
        let mut turns = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            let id = line.enqueue(vec![turn(&agent, turns.len())]).await[0];
            assert_eq!(line.wait(id).await.outcome, Outcome::Completed);
            self.ended.fetch_add(1, Ordering::Relaxed);
            turns.push(id);
        }
        turns
    }

    /// Waits until as many more turns ended as there are agents.
    async fn goes_on(&self) {
        let before = self.ended.load(Ordering::Relaxed);
        until("more turns end", async || self.ended.load(Ordering::Relaxed) >= before + AGENTS).await;
    }
}

/// Watches whether any of the workers is ready; how long none was.
struct Watch {
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Duration>,
}

impl Watch {
    fn start(workers: &[Worker]) -> Self {
        let addresses = Arc::new(Mutex::new(workers.iter().map(Worker::http).collect::<Vec<_>>()));
        let over = Arc::new(AtomicBool::new(false));
        let (known, stop) = (addresses.clone(), over.clone());
        let watch = move || {
            let mut none = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let now = known.lock().expect("nobody panics with it").clone();
                let any = now.into_iter().any(is_ready);
                std::thread::sleep(Duration::from_millis(2));
                none += if any { Duration::ZERO } else { began.elapsed() };
            }
            none
        };
        Self { addresses, over, thread: std::thread::spawn(watch) }
    }

    fn replace(&self, index: usize, worker: &Worker) {
        self.addresses.lock().expect("nobody panics with it")[index] = worker.http();
    }

    fn stop(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it watches and does nothing else")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_three_workers_loses_nothing() {
    let line = Line::start().await;
    let flags = ["--drain-ms", "20", "--max-sequences", "4"];
    let start = || tokio::task::block_in_place(|| line.worker(&flags));
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| start()).collect();
    let watch = Watch::start(&workers);
    let talk = Talk::default();
    let agents = futures::future::join_all((0..AGENTS).map(|i| talk.of(&line, format!("agent{i}"))));
    let restarts = async {
        for (index, worker) in workers.iter_mut().enumerate() {
            talk.goes_on().await;
            worker.sigterm();
            let status = tokio::task::block_in_place(|| worker.wait_exit());
            assert_eq!(status.code(), Some(0), "{}", worker.log());
            *worker = start();
            watch.replace(index, worker);
        }
        talk.goes_on().await;
        talk.over.store(true, Ordering::Relaxed);
    };
    let (turns, ()) = tokio::join!(agents, restarts);
    let none_ready = watch.stop();

    let (mut tokens, mut moved) = (0, 0);
    for turn in turns.iter().flatten() {
        // It panics where a token comes twice or is missing, or where there is no one End.
        let told = &line.told(&[*turn]).await[0];
        assert_eq!((told.end.outcome, told.tokens.len()), (Outcome::Completed, REPLY_TOKENS as usize));
        tokens += told.tokens.len();
        moved += usize::from(told.begins.len() > 1);
    }
    let count: usize = turns.iter().map(Vec::len).sum();
    println!(
        "{count} turns, {tokens} tokens, {moved} turns went on at another worker; none ready for {none_ready:?}"
    );
    assert!(moved > 0, "the window is too long to show anything");
    assert_eq!(none_ready, Duration::ZERO, "two of three workers were there all the time");
    for (number, disturbed) in turns[0].iter().enumerate() {
        let quiet = line.enqueue(vec![turn("quiet", number)]).await;
        assert_eq!(line.told(&quiet).await[0].words(), line.told(&[*disturbed]).await[0].words());
    }
}
