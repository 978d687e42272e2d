//! Proposed tokens change how many steps a turn takes, and nothing else: not its tokens, texts, log-probabilities and
//! endings, not what is saved of its blocks, not how it goes on after it was stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use turnmill_schema::{FinishReason, Priority, Sampling, TokenLogprobs};
use turnmill_worker::config::{KvDtype, WeightsMode};
use turnmill_worker::engine::{
    self, EngineChannel, EngineHandle, EngineSettings, Finished, Form, Progress, Reply, Saving, SegmentSink,
    Start,
};
use turnmill_worker::kv::{BlockId, Namespace, Segment, SegmentData, SegmentGrid, SegmentId, TokenChain};
use turnmill_worker::lifecycle::Lifecycle;
use turnmill_worker::model::{Engine, EngineError, Logits, Tokenizer};
use turnmill_worker::schedule::{SequenceId, Speculation, StepPlan};
use turnmill_worker::surroundings::Surroundings;

use crate::common::{Tiny, default_model, engine_settings, lifecycle, load, only_me_soon};

const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK_TOKENS: usize = 16;
const LOOKUP: Option<Speculation> = Some(Speculation { tokens: 7, rows: 32 });

/// What the engine was asked to compute.
#[derive(Default)]
struct Counts {
    steps: AtomicUsize,
    proposed: AtomicUsize,
}

/// An engine that counts, and makes no sense after a number of tokens of a sequence.
struct Counting<E> {
    engine: E,
    counts: Arc<Counts>,
    nonsense_after: u32,
}

impl<E: Engine> Engine for Counting<E> {
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        let proposed: usize = plan.sampling().map(|(_, tokens)| tokens.len() - 1).sum();
        self.counts.steps.fetch_add(1, Ordering::SeqCst);
        self.counts.proposed.fetch_add(proposed, Ordering::SeqCst);
        let mut logits = self.engine.forward(plan)?;
        for (row, logits) in plan.sampled_rows().into_iter().zip(logits.rows_mut()) {
            if plan.positions[row as usize] >= self.nonsense_after {
                logits.fill(f32::NAN);
            }
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

/// What was saved, by first block and tokens.
type Segments = BTreeMap<(usize, Vec<u32>), Vec<u8>>;

/// Keeps every segment.
#[derive(Default)]
struct Keeping(Mutex<Segments>);

impl SegmentSink for Keeping {
    fn announce(&self, _: &SegmentId) -> bool {
        true
    }

    fn has_room(&self, _: &Segment) -> bool {
        true
    }

    fn save(&self, data: SegmentData) {
        let key = (data.segment.first_block, data.segment.tokens.clone());
        self.0.lock().expect("nobody panics").insert(key, data.data.to_vec());
    }

    fn withdraw(&self, _: &SegmentId) {}
}

/// A turn to make.
#[derive(Clone)]
struct Wish {
    prompt: Vec<u32>,
    sampling: Sampling,
    tokens: u32,
    /// What an earlier attempt made.
    made: Vec<u32>,
}

/// What it came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    tokens: Vec<u32>,
    texts: Vec<String>,
    logprobs: Vec<Option<TokenLogprobs>>,
    finish: Option<FinishReason>,
    kept: Vec<u32>,
    text: String,
    failed: bool,
}

/// An engine with a model.
struct Line {
    engine: EngineChannel,
    lifecycle: Arc<Lifecycle>,
    tokenizer: Arc<Tokenizer>,
    namespace: Namespace,
    counts: Arc<Counts>,
    kept: Arc<Keeping>,
    next: u64,
}

impl Line {
    fn start(path: &Path, weights: WeightsMode, pool: usize, speculation: Option<Speculation>) -> Self {
        Self::start_sound(path, weights, pool, speculation, u32::MAX)
    }

    /// With a model that makes no sense after a number of tokens of a sequence.
    fn start_sound(
        path: &Path,
        weights: WeightsMode,
        pool: usize,
        speculation: Option<Speculation>,
        nonsense_after: u32,
    ) -> Self {
        let model = load(path, weights, KvDtype::F16, pool);
        let counts = Arc::new(Counts::default());
        let lifecycle = lifecycle(PATIENCE);
        let settings =
            EngineSettings { speculation, offload_bytes: 1 << 20, ..engine_settings(&model, BLOCK_TOKENS) };
        let counting = Counting { engine: model.engine, counts: counts.clone(), nonsense_after };
        let kept = Arc::new(Keeping::default());
        let sink: Arc<dyn SegmentSink> = kept.clone();
        let (engine, _thread) =
            engine::spawn(counting, settings, Some(sink), lifecycle.clone(), Surroundings::machine())
                .expect("a thread can be started");
        let (tokenizer, namespace) = (model.tokenizer, model.namespace);
        Self { engine, lifecycle, tokenizer, namespace, counts, kept, next: 0 }
    }

    async fn begin(&mut self, wish: &Wish) -> (SequenceId, mpsc::Receiver<Progress>) {
        self.next += 1;
        let id = SequenceId(self.next);
        let (progress, receiver) = mpsc::channel(wish.tokens as usize + 3);
        let mut reply = Reply::new(self.tokenizer.clone(), &wish.sampling, wish.tokens, Form::default());
        wish.made.iter().for_each(|token| drop(reply.push(*token)));
        let namespace = self.namespace.for_tenant("t");
        let grid =
            SegmentGrid { namespace, tenant: "t".into(), block_tokens: BLOCK_TOKENS, shared_blocks: 0 };
        let start = Start {
            id,
            max_total_tokens: wish.prompt.len() as u32 + wish.tokens,
            chain: TokenChain::new(namespace, BLOCK_TOKENS, [&wish.prompt[..], &wish.made].concat()),
            reply,
            sampling: wish.sampling.clone(),
            priority: Priority::Interactive,
            alone: false,
            restorable_blocks: 0,
            saving: Some(Saving { grid, only_shared: false }),
            progress,
        };
        self.engine.start(start).await.expect("the engine runs");
        (id, receiver)
    }

    /// Makes all turns at once.
    async fn make(&mut self, wishes: &[Wish]) -> Vec<Said> {
        let mut running = Vec::new();
        for wish in wishes {
            running.push(self.begin(wish).await.1);
        }
        let mut all = Vec::new();
        for (progress, wish) in running.into_iter().zip(wishes) {
            all.push(said(progress, wish).await);
        }
        all
    }

    fn counted(&self) -> (usize, usize) {
        (self.counts.steps.load(Ordering::SeqCst), self.counts.proposed.load(Ordering::SeqCst))
    }

    async fn idle(&self) {
        let patience = Instant::now() + PATIENCE;
        while self.lifecycle.headroom() < 1.0 {
            assert!(Instant::now() < patience, "blocks are held for ever");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What came back holds the turn's prompt and everything it said, and one hash for each full block of these.
fn check_returned(chain: &TokenChain, wish: &Wish, said: &[u32]) {
    let whole = [&wish.prompt[..], &wish.made, said].concat();
    let whole = TokenChain::new(chain.namespace(), BLOCK_TOKENS, whole);
    assert_eq!((chain.tokens(), chain.hashes()), (whole.tokens(), whole.hashes()));
}

async fn said(mut progress: mpsc::Receiver<Progress>, wish: &Wish) -> Said {
    let mut said = Said::default();
    while let Some(next) = tokio::time::timeout(PATIENCE, progress.recv()).await.expect("it goes on") {
        match next {
            Progress::Token(token) => {
                assert_eq!(said.finish, None, "a token after the last");
                said.tokens.push(token.id);
                said.texts.push(token.pieces.into_iter().map(|(_, text)| text).collect());
                said.logprobs.push(token.logprobs);
                if let Some(finished) = token.finished {
                    let Finished { reply, chain } = *finished;
                    check_returned(&chain, wish, &said.tokens);
                    said.kept = reply.kept_tokens(chain.tokens())[wish.prompt.len()..].to_vec();
                    said.text = reply.text().to_owned();
                    said.finish = reply.finish();
                }
            }
            Progress::Stopped(_) => panic!("nobody stops it"),
            Progress::Failed(_) => said.failed = true,
            Progress::Refused(text) => panic!("{text}"),
            Progress::Admitted { .. } | Progress::Room { .. } => {}
        }
    }
    said
}

/// Everything that looks back: filters, seeds, penalties, stop rules, log-probabilities.
fn samplings(favoured: &[u32], stop: &str) -> Vec<Sampling> {
    let greedy = Sampling { temperature: 0.0, ignore_eos: true, ..Sampling::default() };
    let drawn = Sampling { temperature: 0.8, seed: Some(7), ..greedy.clone() };
    // A few likely tokens, so that what was said comes again by chance.
    let favoured = |bias: f32| favoured.iter().map(|token| (*token, bias)).collect::<BTreeMap<u32, f32>>();
    let repeating = Sampling { logit_bias: favoured(30.0), ..drawn.clone() };
    vec![
        greedy.clone(),
        Sampling { logprobs: Some(3), ..greedy.clone() },
        Sampling { repetition_penalty: 1.1, ..greedy.clone() },
        Sampling {
            frequency_penalty: 0.5,
            presence_penalty: 0.3,
            logit_bias: favoured(6.0),
            ..greedy.clone()
        },
        Sampling { stop: vec![stop.to_owned()], min_tokens: 30, logit_bias: favoured(30.0), ..greedy },
        drawn.clone(),
        Sampling { top_p: 0.9, min_p: 0.02, logprobs: Some(1), ..repeating.clone() },
        Sampling { top_k: 3, seed: Some(8), ..repeating.clone() },
        Sampling { temperature: 0.3, repetition_penalty: 1.3, seed: Some(9), ..repeating.clone() },
        Sampling { frequency_penalty: 1.0, presence_penalty: 1.0, ..repeating.clone() },
        Sampling { stop: vec![stop.to_owned()], min_tokens: 20, seed: Some(10), ..repeating.clone() },
        Sampling {
            stop_token_ids: vec![*favoured(0.0).keys().next().expect("some")],
            min_tokens: 40,
            ..repeating
        },
    ]
}

/// Prompts whose ends occurred before.
fn wishes(prompt: &[u32], tokens: u32, samplings: Vec<Sampling>) -> Vec<Wish> {
    let wish = |(index, sampling)| {
        let prompt = [&[300 + index as u32], prompt].concat();
        Wish { prompt, sampling, tokens, made: Vec::new() }
    };
    samplings.into_iter().enumerate().map(wish).collect()
}

fn tiny_wishes(tokens: u32) -> Vec<Wish> {
    let pattern: Vec<u32> = [5, 6, 7, 8, 5, 6, 7, 9, 10, 11].repeat(4);
    wishes(&pattern, tokens, samplings(&[5, 6, 7], "t7t5t6"))
}

#[tokio::test]
async fn tiny_models_say_the_same_with_and_without() {
    let _only_me = only_me_soon().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = Tiny::default().write(directory.path());
    let wishes = tiny_wishes(90);
    for weights in [WeightsMode::F32, WeightsMode::Fast] {
        let mut plain = Line::start(&path, weights, 8192, None);
        let mut expected = Vec::new();
        for wish in &wishes {
            expected.extend(plain.make(std::slice::from_ref(wish)).await);
        }
        let (plain_steps, proposed) = plain.counted();
        assert_eq!(proposed, 0);
        let endings: Vec<_> = expected.iter().map(|said| said.finish).collect();
        assert!(endings.contains(&Some(FinishReason::Stop)) && endings.contains(&Some(FinishReason::Length)));

        let mut alone = Line::start(&path, weights, 8192, LOOKUP);
        for (wish, expected) in wishes.iter().zip(&expected) {
            assert_eq!(alone.make(std::slice::from_ref(wish)).await[0], *expected, "{:?}", wish.sampling);
        }
        let (steps, proposed) = alone.counted();
        assert!(proposed > 100 && steps < plain_steps, "{steps} of {plain_steps}, {proposed} proposed");

        // All at once, with room, and where they take blocks from each other.
        for pool in [8192, 512] {
            let mut together = Line::start(&path, weights, pool, LOOKUP);
            assert_eq!(together.make(&wishes).await, expected, "a pool of {pool} tokens");
            assert!(together.counted().1 > 0);
            together.idle().await;
        }
    }
}

#[tokio::test]
async fn the_default_model_says_the_same_with_and_without() {
    let _only_me = only_me_soon().await;
    let mut plain = Line::start(&default_model(), WeightsMode::Fast, 4096, None);
    let text = "<|im_start|>user\nRepeat this:\n[{\"path\": \"src/main.rs\", \"line\": 12, \"kind\": \"error\"}, \
                {\"path\": \"src/lib.rs\", \"line\": 40, \"kind\": \"error\"}]<|im_end|>\n<|im_start|>assistant\n[{\"path\":";
    let prompt = plain.tokenizer.encode(text).expect("text");
    let samplings = samplings(&prompt[prompt.len() - 3..], "lib.rs");
    let wishes = wishes(&prompt, 32, samplings.into_iter().step_by(2).collect());
    let expected = plain.make(&wishes).await;
    let mut line = Line::start(&default_model(), WeightsMode::Fast, 4096, LOOKUP);
    assert_eq!(line.make(&wishes).await, expected);
    assert_eq!(line.make(&wishes[..1]).await, expected[..1]);
    assert!(line.counted().1 > 50, "{:?}", line.counted());
}

#[tokio::test]
async fn what_is_saved_is_of_tokens_that_were_said() {
    let _only_me = only_me_soon().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = Tiny::default().write(directory.path());
    // A full segment and more.
    let wishes = tiny_wishes(240).split_off(6);
    let mut kept = Vec::new();
    for speculation in [None, LOOKUP] {
        let mut line = Line::start(&path, WeightsMode::F32, 8192, speculation);
        line.make(&wishes).await;
        // Each has the engine's thread take every order before, and copy what is announced.
        for _ in 0..3 {
            line.make(&[Wish { tokens: 1, prompt: vec![1, 2, 3], ..wishes[0].clone() }]).await;
        }
        line.idle().await;
        kept.push(std::mem::take(&mut *line.kept.0.lock().expect("nobody panics")));
    }
    let tokens = |kept: &Segments| kept.keys().cloned().collect::<Vec<_>>();
    assert!(kept[0].len() >= 2 * wishes.len() - 4, "{}", kept[0].len());
    assert_eq!(tokens(&kept[1]), tokens(&kept[0]));
    assert!(kept[0] == kept[1], "the same tokens have other K and V");
}

#[tokio::test]
async fn a_turn_that_is_stopped_goes_on_where_it_was() {
    let _only_me = only_me_soon().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = Tiny::default().write(directory.path());
    let wishes = tiny_wishes(60).split_off(4);
    let expected = Line::start(&path, WeightsMode::F32, 8192, None).make(&wishes).await;
    for (wish, expected) in wishes.iter().zip(&expected) {
        let mut first = Line::start(&path, WeightsMode::F32, 8192, LOOKUP);
        let (id, mut progress) = first.begin(wish).await;
        let mut made = Vec::new();
        while made.len() < 25 {
            if let Progress::Token(token) = progress.recv().await.expect("it runs") {
                made.push(token.id);
            }
        }
        first.engine.stop(id, true).await.expect("the engine runs");
        first.idle().await;
        let mut returned = None;
        while let Some(next) = progress.recv().await {
            assert!(returned.is_none(), "an entry after the last");
            match next {
                Progress::Token(token) => {
                    made.push(token.id);
                    returned = token.finished.map(|finished| finished.chain);
                }
                Progress::Stopped(chain) => returned = Some(chain),
                Progress::Refused(text) | Progress::Failed(text) => panic!("{text}"),
                Progress::Admitted { .. } | Progress::Room { .. } => panic!("it ran before"),
            }
        }
        check_returned(&returned.expect("its tokens come back"), wish, &made);
        assert_eq!(made, expected.tokens[..made.len()]);
        let all = [&wish.prompt[..], &expected.tokens].concat();
        for (first_block, tokens) in first.kept.0.lock().expect("nobody panics").keys() {
            assert_eq!(*tokens, all[first_block * BLOCK_TOKENS..][..tokens.len()]);
        }
        if made.len() < expected.tokens.len() {
            let rest = &expected.tokens[made.len()..];
            let mut second = Line::start(&path, WeightsMode::F32, 8192, LOOKUP);
            let said = second.make(&[Wish { made, ..wish.clone() }]).await.remove(0);
            assert_eq!((&said.tokens[..], &said.text), (rest, &expected.text));
            assert_eq!((said.finish, said.kept), (expected.finish, expected.kept.clone()));
        }
    }
}

#[tokio::test]
async fn a_turn_that_fails_within_a_step_has_said_what_it_could() {
    let _only_me = only_me_soon().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = Tiny::default().write(directory.path());
    let wishes = tiny_wishes(60);
    let mut said = Vec::new();
    for speculation in [None, LOOKUP] {
        let mut line = Line::start_sound(&path, WeightsMode::F32, 8192, speculation, 70);
        said.push(line.make(&wishes).await);
        line.idle().await;
    }
    assert!(said[0].iter().all(|said| said.failed || said.finish == Some(FinishReason::Stop)), "{said:?}");
    assert!(said[0].iter().any(|said| said.failed && said.tokens.len() == 30));
    assert_eq!(said[1], said[0]);
}
