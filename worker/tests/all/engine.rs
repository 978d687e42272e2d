//! The engine's thread: turns that hurt it, and turns that are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use turnmill_schema::{Priority, Sampling};
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::engine::{
    self, EngineChannel, EngineHandle, EngineSettings, Form, Progress, Reply, Saving, SegmentSink, Start,
};
use turnmill_worker::kv::{BlockId, Segment, SegmentData, SegmentGrid, SegmentId, TokenChain};
use turnmill_worker::lifecycle::Lifecycle;
use turnmill_worker::model::{Engine, EngineError, Logits, Tokenizer};
use turnmill_worker::schedule::{Limits, SequenceId, StepPlan};
use turnmill_worker::surroundings::Surroundings;

use crate::common::{Tiny, lifecycle, load, only_me_soon};

/// A token that makes the engine panic.
const POISON: u32 = 300;
/// A token after which the logits of every row of the step's last sequence are not numbers.
const NOISE: u32 = 301;
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine that does not survive a step with [`POISON`] in it, and counts its steps.
struct Fragile<E> {
    engine: E,
    steps: Arc<AtomicU64>,
}

impl<E: Engine> Engine for Fragile<E> {
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        self.steps.fetch_add(1, Ordering::SeqCst);
        assert!(!plan.tokens.contains(&POISON), "poison");
        let mut logits = self.engine.forward(plan)?;
        if plan.tokens.last() == Some(&NOISE) {
            logits.rows_mut().last().expect("it samples").fill(f32::NAN);
        }
        Ok(logits)
    }

    fn warm_up(&mut self) -> Result<(), EngineError> {
        self.engine.warm_up()
    }

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>, EngineError> {
        self.engine.read_blocks(blocks)
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError> {
        self.engine.write_blocks(skip, blocks, data)
    }
}

struct Line {
    engine: EngineChannel,
    lifecycle: Arc<Lifecycle>,
    tokenizer: Arc<Tokenizer>,
    namespace: turnmill_worker::kv::Namespace,
    steps: Arc<AtomicU64>,
}

/// A sink that is full for ever.
struct Full;

impl SegmentSink for Full {
    fn announce(&self, _: &SegmentId) -> bool {
        true
    }

    fn has_room(&self, _: &Segment) -> bool {
        false
    }

    fn save(&self, _: SegmentData) {
        panic!("there is no room");
    }

    fn withdraw(&self, _: &SegmentId) {}
}

impl Line {
    fn start() -> Self {
        Self::start_with(None)
    }

    fn start_with(sink: Option<Arc<dyn SegmentSink>>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = Tiny::default().write(directory.path());
        let model = load(&path, WeightsMode::F32, KvDtype::F32, 4096);
        let steps = Arc::new(AtomicU64::new(0));
        let lifecycle = lifecycle(PATIENCE);
        let fragile = Fragile { engine: model.engine, steps: steps.clone() };
        let limits =
            Limits { max_sequences: 8, batch_tokens: 64, max_context_tokens: model.context_tokens as u32 };
        let settings = EngineSettings {
            limits,
            blocks: model.blocks as u32,
            block_tokens: 16,
            transfer_bytes: 1,
            offload_bytes: 0,
            speculation: None,
        };
        let (engine, _thread) =
            engine::spawn(fragile, settings, sink, lifecycle.clone(), Surroundings::machine())
                .expect("a thread can be started");
        let tokenizer = model.tokenizer;
        Self { engine, lifecycle, tokenizer, namespace: model.namespace, steps }
    }

    /// Everything a turn computes; where there is no sink, nothing.
    fn saving(&self) -> Saving {
        let namespace = self.namespace.for_tenant("t");
        let grid = SegmentGrid { namespace, tenant: "t".into(), block_tokens: 16, shared_blocks: 0 };
        Saving { grid, only_shared: false }
    }

    /// Starts a turn that makes `tokens` tokens whatever the model says.
    async fn turn(&self, id: u64, prompt: Vec<u32>, tokens: u32) -> mpsc::Receiver<Progress> {
        let sampling = Sampling { temperature: 0.0, ignore_eos: true, ..Sampling::default() };
        let (progress, receiver) = mpsc::channel(tokens as usize + 3);
        let start = Start {
            id: SequenceId(id),
            max_total_tokens: prompt.len() as u32 + tokens,
            reply: Reply::new(self.tokenizer.clone(), &sampling, tokens, Form::default()),
            chain: TokenChain::new(self.namespace.for_tenant("t"), 16, prompt),
            sampling,
            priority: Priority::Interactive,
            alone: false,
            restorable_blocks: 0,
            saving: Some(self.saving()),
            progress,
        };
        self.engine.start(start).await.expect("the engine runs");
        receiver
    }
}

/// How many tokens came, and what the engine said was wrong, if anything.
async fn outcome(mut progress: mpsc::Receiver<Progress>) -> (usize, Option<String>) {
    let (mut tokens, mut failure) = (0, None);
    while let Some(next) = tokio::time::timeout(PATIENCE, progress.recv()).await.expect("it goes on") {
        match next {
            Progress::Token(_) => tokens += 1,
            Progress::Stopped(_) => panic!("nobody stops it"),
            Progress::Failed(text) | Progress::Refused(text) => failure = Some(text),
            Progress::Admitted { .. } | Progress::Room { .. } => {}
        }
    }
    (tokens, failure)
}

#[tokio::test]
async fn a_turn_that_makes_the_engine_panic_fails_and_the_worker_goes_on() {
    let _only_me = only_me_soon().await;
    let line = Line::start();
    for round in 0..3 {
        let poison = line.turn(2 * round, vec![1, POISON, 3], 4).await;
        let (tokens, failure) = outcome(poison).await;
        assert_eq!(tokens, 0);
        assert!(failure.is_some_and(|text| text.contains("panicked (poison)")), "it says what happened");
        let sound = line.turn(2 * round + 1, vec![1, 2, 3], 4).await;
        assert_eq!(outcome(sound).await, (4, None));
    }
    assert!(!line.engine.is_gone());
    until(&line, |line| line.lifecycle.headroom() == 1.0).await;
}

#[tokio::test]
async fn a_turn_whose_logits_are_not_numbers_fails_and_the_worker_goes_on() {
    let _only_me = only_me_soon().await;
    let line = Line::start();
    let (tokens, failure) = outcome(line.turn(1, vec![1, 2, NOISE], 4).await).await;
    assert_eq!(tokens, 0);
    assert!(failure.is_some_and(|text| text.contains("NaN")), "it says what happened");
    assert_eq!(outcome(line.turn(2, vec![1, 2, 3], 4).await).await, (4, None));
    until(&line, |line| line.lifecycle.headroom() == 1.0).await;
}

#[tokio::test]
async fn stopping_a_turn_frees_its_blocks_within_a_step() {
    let _only_me = only_me_soon().await;
    let line = Line::start();
    let mut running = line.turn(1, vec![1; 100], 3000).await;
    while !matches!(running.recv().await.expect("it runs"), Progress::Token(_)) {}
    assert!(line.lifecycle.headroom() < 1.0);
    line.engine.stop(SequenceId(1), false).await.expect("the engine runs");
    let steps = line.steps.load(Ordering::SeqCst);
    until(&line, |line| line.lifecycle.headroom() == 1.0).await;
    assert!(line.steps.load(Ordering::SeqCst) <= steps + 1, "the step under way is the last one");
}

#[tokio::test]
async fn a_turn_gets_its_tokens_back_whether_it_ends_or_is_stopped() {
    let _only_me = only_me_soon().await;
    let line = Line::start();
    let ends = line.turn(1, vec![1; 40], 30).await;
    assert_eq!(returned(ends, vec![1; 40]).await, 40 + 30);
    // At its first token, at a later one, and at once.
    for (id, after) in [(2, 1), (3, 20), (4, 0)] {
        let mut stopped = line.turn(id, vec![id as u32; 40], 2000).await;
        let mut made = Vec::new();
        while made.len() < after {
            if let Progress::Token(token) = stopped.recv().await.expect("it runs") {
                made.push(token.id);
            }
        }
        line.engine.stop(SequenceId(id), false).await.expect("the engine runs");
        returned(stopped, [vec![id as u32; 40], made].concat()).await;
    }
    // Of one that is gone nothing more is said.
    line.engine.stop(SequenceId(1), false).await.expect("the engine runs");
    assert_eq!(outcome(line.turn(5, vec![1, 2, 3], 4).await).await, (4, None));
}

/// Takes the rest of a turn that has said `all` so far, prompt included. Its tokens come back last, and are what it said;
/// returns how many.
async fn returned(mut progress: mpsc::Receiver<Progress>, mut all: Vec<u32>) -> usize {
    let mut chain = None;
    while let Some(next) = tokio::time::timeout(PATIENCE, progress.recv()).await.expect("it goes on") {
        assert!(chain.is_none(), "an entry after the last");
        match next {
            Progress::Token(token) => {
                all.push(token.id);
                chain = token.finished.map(|finished| finished.chain);
            }
            Progress::Stopped(stopped) => chain = Some(stopped),
            Progress::Failed(text) | Progress::Refused(text) => panic!("{text}"),
            Progress::Admitted { .. } | Progress::Room { .. } => {}
        }
    }
    let chain = chain.expect("its tokens come back");
    let whole = TokenChain::new(chain.namespace(), 16, all);
    assert_eq!((chain.tokens(), chain.hashes()), (whole.tokens(), whole.hashes()));
    chain.len()
}

#[tokio::test]
async fn a_store_without_room_does_not_make_the_engine_look_hung() {
    let _only_me = only_me_soon().await;
    let line = Line::start_with(Some(Arc::new(Full)));
    let hangs = |line: &Line| line.lifecycle.engine_stalled(Instant::now() + 100 * PATIENCE);
    for id in 0..3 {
        let turn = line.turn(id, vec![id as u32 + 1; 40], 4).await;
        assert_eq!(outcome(turn).await, (4, None));
        until(&line, |line| !hangs(line)).await;
    }
}

async fn until(line: &Line, holds: impl Fn(&Line) -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !holds(line) {
        assert!(Instant::now() < patience, "it never came to that");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
