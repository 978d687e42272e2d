//! What watching costs: a worker as it is by default, with traces on, beside one that records, logs and traces nothing. And how fast
//! probes are answered while they compute all the time.
//!
//! Both workers run all the time and are asked in turns, in short bursts, now the one first and now the other, and neighbouring
//! bursts are compared: a machine that gets faster or slower does so for both.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use turnmill_client::{Client, ClientError, NewTurn};

use super::report::Samples;
use super::rounds::{median, percentile};
use super::{BenchError, say};
use crate::line::{exactly, ids, name};
use crate::otlp_server::OtlpServer;
use crate::redis_server::RedisServer;
use crate::worker::Worker;

/// Turns of a burst, all at once.
const TURNS: usize = 16;
/// Tokens of each reply.
const REPLY_TOKENS: u32 = 96;
/// Between two probes.
const PROBE_EVERY: Duration = Duration::from_millis(5);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Overhead {
    /// Tokens per second: watched first, unwatched second.
    pub tok_s: [Samples; 2],
    /// How many times as fast the watched one is: the median of neighbouring bursts' ratios.
    pub ratio: f64,
    /// `/health/ready` while the engine computes, in milliseconds: the median.
    pub probe_p50_ms: f64,
    /// What 95 of 100 took at most.
    pub probe_p95_ms: f64,
    /// What 99 of 100 took at most.
    pub probe_p99_ms: f64,
}

struct Side {
    producer: Client,
    worker: Arc<Worker>,
}

impl Side {
    async fn start(
        redis: &RedisServer,
        queue: &str,
        model: &str,
        flags: &[&str],
    ) -> Result<Self, BenchError> {
        let flags = [&["--model", model, "--queue", queue], flags].concat();
        let worker = tokio::task::block_in_place(|| Worker::start(redis, &flags));
        let producer = Client::builder(redis.url()).queue(name(queue)).connect().await?;
        Ok(Self { producer, worker: Arc::new(worker) })
    }

    /// Tokens per second of one burst.
    async fn burst(&self, number: usize) -> Result<f64, BenchError> {
        let turn = |i: usize| {
            NewTurn::user(format!("Burst {number}: tell me {i} facts.")).sampling(exactly(REPLY_TOKENS))
        };
        let began = Instant::now();
        let mut tokens = 0;
        let enqueued = self.producer.enqueue_batch((0..TURNS).map(turn).collect()).await;
        for turn in ids(enqueued.map_err(ClientError::from)?) {
            tokens += self.producer.wait(turn).await?.usage.completion_tokens;
        }
        Ok(f64::from(tokens) / began.elapsed().as_secs_f64())
    }
}

/// Measures both.
pub(super) async fn measure(model: &Path, quick: bool, began: Instant) -> Result<Overhead, BenchError> {
    let model = model.to_string_lossy();
    let redis = RedisServer::start();
    let receiver = OtlpServer::start();
    let watched = Side::start(&redis, "watched", &model, &["--otlp-endpoint", &receiver.url()]).await?;
    let unwatched = Side::start(&redis, "unwatched", &model, &["--no-metrics", "--log", "off"]).await?;
    let (mut tok_s, mut probes) = ([Vec::new(), Vec::new()], Vec::new());
    let bursts = if quick { 3 } else { 60 };
    for number in 0..=bursts {
        say(began, &format!("what watching costs, burst {number} of {bursts}"));
        // Both are probed, because probing costs as well.
        let mut speeds = [0.0; 2];
        let mut turns = [(0, &watched), (1, &unwatched)];
        turns.rotate_left(number % 2);
        for (index, side) in turns {
            let probing = Probing::start(side.worker.clone());
            speeds[index] = side.burst(number).await?;
            probes.extend(probing.stop());
        }
        // The first one warms up.
        if number > 0 {
            tok_s.iter_mut().zip(speeds).for_each(|(all, speed)| all.push(speed));
        }
    }
    probes.sort_by(f64::total_cmp);
    let [watched, unwatched] = tok_s;
    let ratios: Vec<f64> = watched.iter().zip(&unwatched).map(|(watched, not)| watched / not).collect();
    Ok(Overhead {
        tok_s: [Samples::new("metrics, logs, traces", watched), Samples::new("none of them", unwatched)],
        ratio: median(&ratios),
        probe_p50_ms: percentile(&probes, 0.5),
        probe_p95_ms: percentile(&probes, 0.95),
        probe_p99_ms: percentile(&probes, 0.99),
    })
}

/// A thread that asks `/health/ready` again and again.
struct Probing {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<f64>>,
}

impl Probing {
    fn start(worker: Arc<Worker>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let probe = move || {
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                worker.get("/health/ready");
                took.push(1e3 * asked.elapsed().as_secs_f64());
                std::thread::sleep(PROBE_EVERY);
            }
            took
        };
        Self { over, thread: std::thread::spawn(probe) }
    }

    /// What each answer took, in milliseconds.
    fn stop(self) -> Vec<f64> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread asks and does nothing else")
    }
}
