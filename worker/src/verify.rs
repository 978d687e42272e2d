//! Compares a model with reference outputs: token ids, rendered prompts, log-probabilities, greedy replies.
//!
//! The reference is a JSON file made with another engine (see `tests/reference`). Log-probabilities are
//! teacher-forced: the reference's tokens are fed whatever this engine would have chosen, and a greedy reply is
//! equal when the likeliest token was the reference's at every step.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use turnmill_schema::Message;

use crate::config::{KvDtype, WeightsMode};
use crate::kv::BlockId;
use crate::model::{
    Engine, EngineError, LoadOptions, Model, ModelChoice, ModelError, Rendering, TextError, likeliest,
    log_sum_exp,
};
use crate::schedule::{PlannedSequence, SequenceId, StepPlan};

/// Listed log-probabilities below this are noise and not compared one by one.
const COMPARED_ABOVE: f32 = -10.0;
/// Rows of a prefill step; the long reference takes several.
const CHUNK_TOKENS: usize = 512;
/// Tokens in a block.
const BLOCK_TOKENS: usize = 16;
/// The pool; the longest reference in it is checked.
const POOL_BYTES: usize = 1 << 30;

/// A reference file.
#[derive(Debug, Deserialize)]
struct Reference {
    #[serde(default)]
    tokenize: Vec<Tokenized>,
    #[serde(default)]
    chat: Vec<Chat>,
}

#[derive(Debug, Deserialize)]
struct Tokenized {
    text: String,
    tokens: Vec<u32>,
}

#[derive(Debug, Deserialize)]
struct Chat {
    messages: Vec<Message>,
    prompt: String,
    prompt_tokens: Vec<u32>,
    steps: Vec<ReferenceStep>,
}

#[derive(Debug, Deserialize)]
struct ReferenceStep {
    token: u32,
    /// The likeliest tokens and their log-probabilities.
    top: Vec<(u32, f32)>,
}

/// How many of some cases came out equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cases {
    /// How many there were.
    pub cases: usize,
    /// How many were equal.
    pub equal: usize,
}

/// Log-probabilities against the reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Logprobs {
    /// Steps compared.
    pub steps: usize,
    /// Largest difference of a listed log-probability above -10.
    pub max_diff: f32,
    /// Steps whose likeliest token was the reference's.
    pub top1: usize,
    /// Mean over steps of the KL divergence from the reference in nats, summed over the listed tokens only.
    pub mean_kl: f64,
}

/// The outcome of a verification.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Texts whose token ids were compared.
    pub tokenize: Cases,
    /// Conversations whose rendered prompt and its token ids were compared.
    pub template: Cases,
    /// Log-probabilities.
    pub logprob: Logprobs,
    /// Whole greedy replies.
    pub greedy: Cases,
}

/// What to verify.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model file.
    pub model: ModelChoice,
    /// Reference files, verified together.
    pub references: Vec<PathBuf>,
}

/// Why a verification could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A reference file cannot be read.
    #[error("cannot use the reference {path}: {reason}")]
    Reference {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its vocabulary has no tokens for a text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A step failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Report {
    /// What falls short for this mode, one sentence each; empty when all is well.
    pub fn shortfalls(&self, weights: WeightsMode, kv_dtype: KvDtype) -> Vec<String> {
        let mut shortfalls = Vec::new();
        for (name, cases) in [("token ids", self.tokenize), ("rendered prompts", self.template)] {
            if cases.equal < cases.cases {
                shortfalls.push(format!("{} of {} {name} differ", cases.cases - cases.equal, cases.cases));
            }
        }
        let (max_diff, mean_kl) = thresholds(weights, kv_dtype);
        // NaN is over every limit.
        let over = |value: f64, limit: f64| value.is_nan() || value > limit;
        if over(f64::from(self.logprob.max_diff), f64::from(max_diff)) {
            shortfalls
                .push(format!("a log-probability differs by {}, over {max_diff}", self.logprob.max_diff));
        }
        if over(self.logprob.mean_kl, mean_kl) {
            shortfalls.push(format!("the mean KL is {}, over {mean_kl}", self.logprob.mean_kl));
        }
        if weights == WeightsMode::F32 && kv_dtype == KvDtype::F32 && self.greedy.equal < self.greedy.cases {
            let differ = self.greedy.cases - self.greedy.equal;
            shortfalls.push(format!("{differ} of {} greedy replies differ", self.greedy.cases));
        }
        shortfalls
    }
}

/// Largest difference and mean KL allowed: what rounding alone explains, with some room.
fn thresholds(weights: WeightsMode, kv_dtype: KvDtype) -> (f32, f64) {
    match (weights, kv_dtype) {
        (WeightsMode::F32, KvDtype::F32) => (0.002, 0.0001),
        (WeightsMode::F32, KvDtype::F16) => (0.05, 0.0005),
        (WeightsMode::F32, KvDtype::Bf16) => (0.5, 0.005),
        (WeightsMode::AsIs | WeightsMode::Fast, _) => (f32::INFINITY, 0.015),
    }
}

/// Verifies a model against reference files; `progress` is called with chats done and chats in all.
pub fn verify(options: &Options, progress: &dyn Fn(usize, usize)) -> Result<Report, VerifyError> {
    let references: Vec<Reference> =
        options.references.iter().map(|path| read_reference(path)).collect::<Result<_, _>>()?;
    let mut model = Model::load(&options.model.path, &load_options(options), &|_, _| ())?;
    check_fits(&model, options, &references)?;
    let mut report = Report::default();
    let mut divergence = 0.0;
    let chats = references.iter().map(|r| r.chat.len()).sum();
    let mut done = 0;
    for reference in &references {
        for case in &reference.tokenize {
            report.tokenize.count(model.tokenizer.encode(&case.text)? == case.tokens);
        }
        for chat in &reference.chat {
            let rendered = model.dialogue.render(&chat.messages, &Rendering::plain()).unwrap_or_default();
            let tokens = model.tokenizer.encode(&rendered)?;
            report.template.count(rendered == chat.prompt && tokens == chat.prompt_tokens);
            divergence += verify_chat(&mut model, chat, &mut report)?;
            done += 1;
            progress(done, chats);
        }
    }
    report.logprob.mean_kl = divergence / report.logprob.steps.max(1) as f64;
    Ok(report)
}

fn read_reference(path: &Path) -> Result<Reference, VerifyError> {
    let unusable = |reason: String| VerifyError::Reference { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| unusable(e.to_string()))
}

fn load_options(options: &Options) -> LoadOptions {
    let load = options.model.load_options();
    LoadOptions { block_tokens: BLOCK_TOKENS, pool_bytes: POOL_BYTES, ..load }
}

fn check_fits(model: &Model, options: &Options, references: &[Reference]) -> Result<(), VerifyError> {
    for (reference, path) in references.iter().zip(&options.references) {
        if let Some(reason) = reference.fault(model.config.vocabulary) {
            return Err(VerifyError::Reference { path: path.clone(), reason: reason.to_owned() });
        }
    }
    let room = model.context_tokens.min(model.blocks * BLOCK_TOKENS);
    let too_long = |reference: &Reference| reference.chat.iter().any(|chat| chat.tokens() > room);
    match references.iter().zip(&options.references).find(|(reference, _)| too_long(reference)) {
        Some((_, path)) => {
            let reason = format!("it has a chat of more than {room} tokens, which the model cannot hold");
            Err(VerifyError::Reference { path: path.clone(), reason })
        }
        None => Ok(()),
    }
}

/// Feeds a chat's reference tokens; returns the summed divergence of its steps.
fn verify_chat(model: &mut Model, chat: &Chat, report: &mut Report) -> Result<f64, VerifyError> {
    let mut divergence = 0.0;
    let mut equal = true;
    let mut fed = 0;
    let tokens: Vec<u32> =
        chat.prompt_tokens.iter().copied().chain(chat.steps.iter().map(|step| step.token)).collect();
    for (index, step) in chat.steps.iter().enumerate() {
        let end = chat.prompt_tokens.len() + index;
        let logits = feed(model, &tokens[..end], &mut fed)?;
        let normaliser = log_sum_exp(&logits);
        let logprob = |token: u32| (f64::from(logits[token as usize]) - normaliser) as f32;
        for (token, expected) in &step.top {
            let difference = (logprob(*token) - expected).abs();
            if *expected > COMPARED_ABOVE {
                report.logprob.max_diff = report.logprob.max_diff.max(difference);
            }
            divergence += f64::from(expected.exp()) * f64::from(expected - logprob(*token));
        }
        let hit = likeliest(&logits) == Some(step.token);
        report.logprob.top1 += usize::from(hit);
        report.logprob.steps += 1;
        equal &= hit;
    }
    report.greedy.count(equal);
    Ok(divergence)
}

/// Computes `tokens[*fed..]` in steps of at most [`CHUNK_TOKENS`] rows; returns the last row's logits.
fn feed(model: &mut Model, tokens: &[u32], fed: &mut usize) -> Result<Vec<f32>, EngineError> {
    let mut logits = Vec::new();
    while *fed < tokens.len() {
        let end = tokens.len().min(*fed + CHUNK_TOKENS);
        let output = model.engine.forward(&whole_pool_plan(tokens, *fed..end))?;
        logits = output.rows().next().map(<[f32]>::to_vec).unwrap_or_default();
        *fed = end;
    }
    Ok(logits)
}

/// A step of one sequence whose token at position p lies in slot p.
fn whole_pool_plan(tokens: &[u32], rows: std::ops::Range<usize>) -> StepPlan {
    let positions: Vec<u32> = rows.clone().map(|position| position as u32).collect();
    StepPlan {
        tokens: tokens[rows.clone()].to_vec(),
        slots: positions.clone(),
        positions,
        sequences: vec![PlannedSequence {
            id: SequenceId(0),
            query_tokens: rows.len() as u32,
            context_tokens: rows.end as u32,
            blocks: (0..rows.end.div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect(),
            samples: 1,
        }],
    }
}

impl Reference {
    /// Why nothing can be compared with it.
    fn fault(&self, vocabulary: usize) -> Option<&'static str> {
        let listed = |step: &ReferenceStep| step.top.iter().map(|(token, _)| *token).max().unwrap_or(0);
        let foreign = |chat: &Chat| {
            let known = |token: &u32| (*token as usize) < vocabulary;
            !chat.prompt_tokens.iter().all(known)
                || !chat.steps.iter().all(|step| known(&step.token) && known(&listed(step)))
        };
        if self.tokenize.is_empty() && self.chat.is_empty() {
            return Some("it has neither texts nor chats to compare");
        }
        if self.chat.iter().any(|chat| chat.prompt_tokens.is_empty()) {
            return Some("it has a chat without prompt tokens");
        }
        self.chat.iter().any(foreign).then_some("it has token ids outside the model's vocabulary")
    }
}

impl Cases {
    fn count(&mut self, equal: bool) {
        self.cases += 1;
        self.equal += usize::from(equal);
    }
}

impl Chat {
    fn tokens(&self) -> usize {
        self.prompt_tokens.len() + self.steps.len()
    }
}
