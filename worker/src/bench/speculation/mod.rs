//! What proposed tokens are worth: tokens per second of turns with prompt lookup and without, of an agent's turns and of
//! questions, one at a time and several at once.
//!
//! Scheduler, steps and sampler as a worker has them, no queue. The two take turns, first one first and then the other;
//! each figure is the median of its rounds, and the ratio is that of the two. Prompts are not counted, and mostly found in
//! the pool. Both say the same, which is checked.

mod tasks;

use std::time::{Duration, Instant};

use serde::Serialize;
use turnmill_schema::{History, Message, Priority, Role, Sampling};

use crate::kv::{BlockPool, TokenChain};
use crate::model::{
    Asked, Engine, EngineError, LoadOptions, Model, ModelChoice, ModelError, NoLogits, PromptError, Sampler,
    prompt,
};
use crate::schedule::{Limits, NewSequence, Refused, Sampled, Scheduler, SequenceId, Speculation};

/// Tokens in a block.
const BLOCK_TOKENS: usize = 16;
/// Rows of a step at most.
const BATCH_TOKENS: usize = 512;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model file.
    pub model: ModelChoice,
    /// Turns at once.
    pub batch: Vec<usize>,
    /// Tokens each makes at most.
    pub generate: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// How much is proposed.
    pub speculation: Speculation,
    /// Times that each is measured.
    pub rounds: usize,
}

/// What a kind of turns came to.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// `agent` or `chat`.
    pub text: &'static str,
    /// Turns at once.
    pub batch: usize,
    /// Tokens per second of all together, without proposals.
    pub plain_tok_s: f64,
    /// The same with them.
    pub lookup_tok_s: f64,
    /// How many times faster that is.
    pub ratio: f64,
    /// Tokens that were made.
    pub tokens: usize,
    /// Tokens that were proposed meanwhile.
    pub proposed: usize,
    /// Those of them that were right.
    pub accepted: usize,
    /// Their share.
    pub acceptance: f64,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum SpeculationError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A text is not one for this model.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A step failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model makes no sense.
    #[error(transparent)]
    Logits(#[from] NoLogits),
    /// A text does not fit the model.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The figures would compare different things.
    #[error("with proposals turns say something else than without; please report the model and this command")]
    Differs,
}

/// Measures; `progress` is called before each figure.
pub fn run(options: &Options, progress: &dyn Fn(String)) -> Result<Vec<Figure>, SpeculationError> {
    progress("loading the model".to_owned());
    let mut bench = Bench::new(options)?;
    let mut figures = Vec::new();
    for (text, tasks) in [("agent", &tasks::AGENT), ("chat", &tasks::CHAT)] {
        let prompts = bench.prompts(tasks)?;
        for batch in options.batch.iter().copied() {
            progress(format!("{text}, {batch} at once"));
            figures.push(bench.figure(text, &prompts, batch)?);
        }
    }
    Ok(figures)
}

struct Bench {
    model: Model,
    scheduler: Scheduler,
    options: Options,
    /// Turns so far.
    turns: u64,
}

/// What the turns of one measurement said, and how long it took.
#[derive(Default)]
struct Made {
    /// By turn.
    said: Vec<Vec<u32>>,
    /// Tokens within the time.
    tokens: usize,
    took: Duration,
    proposed: usize,
    accepted: usize,
}

impl Made {
    fn tok_s(&self) -> f64 {
        self.tokens as f64 / self.took.as_secs_f64()
    }
}

impl Bench {
    fn new(options: &Options) -> Result<Self, SpeculationError> {
        let load = options.model.load_options();
        let mut load = LoadOptions { block_tokens: BLOCK_TOKENS, ..load };
        let turns = options.batch.iter().copied().max().unwrap_or(1);
        // Longer than any task, so all of a kind are found again.
        load.pool_bytes = turns.max(tasks::AGENT.len())
            * (1024 + options.generate)
            * load.token_bytes(&options.model.path)?;
        let mut model = Model::load(&options.model.path, &load, &|_, _| ())?;
        model.warm_up()?;
        let limits = Limits {
            max_sequences: turns,
            batch_tokens: BATCH_TOKENS.max(turns),
            max_context_tokens: model.context_tokens as u32,
        };
        let scheduler = Scheduler::new(limits, BlockPool::new(model.blocks as u32, BLOCK_TOKENS as u32));
        Ok(Self { model, scheduler, options: options.clone(), turns: 0 })
    }

    fn prompts(&self, tasks: &[&str]) -> Result<Vec<Vec<u32>>, SpeculationError> {
        let Model { tokenizer, dialogue, .. } = &self.model;
        let make = |task: &&str| {
            let messages = [Message::new(Role::System, tasks::SYSTEM), Message::new(Role::User, *task)];
            Ok(prompt(tokenizer, dialogue, &History::default(), &Asked::plain(&messages))?.tokens)
        };
        tasks.iter().map(make).collect()
    }

    fn figure(
        &mut self,
        text: &'static str,
        prompts: &[Vec<u32>],
        batch: usize,
    ) -> Result<Figure, SpeculationError> {
        let speculation = [None, Some(self.options.speculation)];
        let mut rates = [Vec::new(), Vec::new()];
        let mut last = [Made::default(), Made::default()];
        for round in 0..self.options.rounds {
            for which in [round % 2, 1 - round % 2] {
                last[which] = self.all(prompts, batch, speculation[which])?;
                rates[which].push(last[which].tok_s());
            }
            if last[0].said != last[1].said {
                return Err(SpeculationError::Differs);
            }
        }
        let [plain_tok_s, lookup_tok_s] = rates.map(median);
        let Made { tokens, proposed, accepted, .. } = last[1];
        let acceptance = accepted as f64 / proposed.max(1) as f64;
        let ratio = lookup_tok_s / plain_tok_s;
        Ok(Figure { text, batch, plain_tok_s, lookup_tok_s, ratio, tokens, proposed, accepted, acceptance })
    }

    /// All prompts, `batch` at once; where there are fewer, they are told apart by their seed.
    fn all(
        &mut self,
        prompts: &[Vec<u32>],
        batch: usize,
        speculation: Option<Speculation>,
    ) -> Result<Made, SpeculationError> {
        let turns: Vec<(u64, &Vec<u32>)> =
            (0..).zip(prompts.iter().cycle().take(batch.max(prompts.len()))).collect();
        let mut all = Made::default();
        for together in turns.chunks(batch) {
            self.scheduler.speculate(speculation);
            let made = Together::new(self, together)?.run()?;
            all.said.extend(made.said);
            all.tokens += made.tokens;
            all.took += made.took;
            all.proposed += made.proposed;
            all.accepted += made.accepted;
        }
        Ok(all)
    }
}

/// Turns that are made at once.
struct Together<'a> {
    bench: &'a mut Bench,
    /// Id of the first.
    first: u64,
    samplers: Vec<Sampler>,
    made: Made,
}

impl<'a> Together<'a> {
    fn new(bench: &'a mut Bench, turns: &[(u64, &Vec<u32>)]) -> Result<Self, SpeculationError> {
        let (first, mut samplers) = (bench.turns, Vec::new());
        for (seed, prompt) in turns {
            bench.scheduler.add(NewSequence {
                id: SequenceId(bench.turns),
                chain: TokenChain::new(bench.model.namespace, BLOCK_TOKENS, prompt.to_vec()),
                max_total_tokens: (prompt.len() + bench.options.generate) as u32,
                priority: Priority::Interactive,
                alone: false,
                restorable_blocks: 0,
            })?;
            bench.turns += 1;
            let temperature = bench.options.temperature;
            let sampling = Sampling { temperature, seed: Some(*seed), ..Sampling::default() };
            samplers.push(Sampler::new(sampling, prompt, &[]));
        }
        let made = Made { said: vec![Vec::new(); turns.len()], ..Made::default() };
        Ok(Self { bench, first, samplers, made })
    }

    /// Time counts once every turn has said something.
    fn run(mut self) -> Result<Made, SpeculationError> {
        while self.made.said.iter().any(Vec::is_empty) {
            self.step()?;
        }
        let before: usize = self.made.said.iter().map(Vec::len).sum();
        (self.made.proposed, self.made.accepted) = (0, 0);
        let began = Instant::now();
        while self.bench.scheduler.has_work() {
            self.step()?;
        }
        self.made.took = began.elapsed();
        self.made.tokens = self.made.said.iter().map(Vec::len).sum::<usize>() - before;
        Ok(self.made)
    }

    fn step(&mut self) -> Result<(), SpeculationError> {
        let Bench { model, scheduler, options, .. } = &mut *self.bench;
        let plan = scheduler.schedule().expect("nothing waits for anybody else");
        let mut logits = model.engine.forward(&plan)?;
        let mut rows = logits.rows_mut();
        let mut sampled = Vec::new();
        for (id, tokens) in plan.sampling() {
            let turn = (id.0 - self.first) as usize;
            let own: Vec<_> = rows.by_ref().take(tokens.len()).collect();
            self.made.proposed += tokens.len() - 1;
            for (row, logits) in own.into_iter().enumerate() {
                let token = self.samplers[turn].sample(logits, None)?.token;
                self.made.said[turn].push(token);
                let ends = model.tokenizer.ends().contains(&token);
                let finished = ends || self.made.said[turn].len() == options.generate;
                sampled.push(Sampled { id, token, finished });
                if finished || tokens.get(row + 1) != Some(&token) {
                    break;
                }
                self.made.accepted += 1;
            }
        }
        scheduler.apply(&sampled);
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
