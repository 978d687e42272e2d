//! The port to the model: one forward pass over a ragged batch. The only room that knows candle.
//!
//! Owns: loading, the decoder and its backends, sampling, the tokenizer and the chat template.
//!
//! Invariant (x86-64; unmeasured on other CPUs): a token's logits have the same bits however it was reached: decoded alone, in a batch,
//! prefilled in chunks, or over blocks another sequence wrote. ADR 0003 lists the rules that make it so.

mod backend;
mod checkpoint;
mod config;
mod decoder;
mod device;
mod dialogue;
mod error;
mod grammar;
mod load;
mod mask;
mod matrix;
mod prompt;
mod sampler;
mod simd;
mod template;
mod tokenizer;

use std::sync::{Arc, Mutex};

use crate::kv::BlockId;
use crate::schedule::StepPlan;

pub use checkpoint::{Checkpoint, Part, Role};
pub use config::{Activation, DecoderConfig, Family, RopeConfig, RopeScaling};
pub use device::{CompiledKernel, ComputeDevice};
pub use dialogue::{Dialogue, FormatChoice};
pub use error::ModelError;
pub use grammar::{Constraint, GrammarError, Grammars, Matcher, Vocabulary};
pub use load::{LoadOptions, Model, ModelChoice};
pub use mask::TokenMask;
pub use prompt::{Asked, Prompt, PromptError, prompt, raw_prompt};
pub use sampler::{Choice, NoLogits, Sampler, likeliest, log_sum_exp};
pub use template::{ChatTemplate, Rendering, TemplateError, ToolSupport};
pub use tokenizer::{Detokenizer, TextError, Tokenizer};

/// Logits of the rows that sample, in plan order.
#[derive(Clone, Debug)]
pub struct Logits {
    /// `[rows, vocabulary]`, row-major.
    values: Vec<f32>,
    vocabulary: usize,
    spare: Spare,
}

/// Where the memory of logits waits for the next step: it is megabytes, and fresh memory costs a page fault each 4 KiB.
type Spare = Arc<Mutex<Vec<f32>>>;

impl Logits {
    /// Wraps `values`, whose length is a multiple of `vocabulary`.
    pub fn new(values: Vec<f32>, vocabulary: usize) -> Self {
        assert!(vocabulary > 0 && values.len().is_multiple_of(vocabulary), "logits are whole rows");
        Self { values, vocabulary, spare: Spare::default() }
    }

    /// One slice of `vocabulary` logits a sampling row.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocabulary)
    }

    /// The same, to be changed in place by samplers.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.vocabulary)
    }
}

impl Drop for Logits {
    fn drop(&mut self) {
        // Nobody panics while holding it, and a lost buffer is only allocated again.
        if let Ok(mut spare) = self.spare.lock() {
            *spare = std::mem::take(&mut self.values);
        }
    }
}

/// A model that can run steps.
pub trait Engine: Send {
    /// Writes the K and V of every row into its slot and returns the logits of the rows that sample.
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError>;

    /// Makes the first steps as fast as later ones. To be called before any block is in use.
    fn warm_up(&mut self) -> Result<(), EngineError>;

    /// The contents of `blocks`: for each layer all K and then all V, each `[blocks, block_tokens, kv_heads, head_dim]` in
    /// the pool's element type, little endian.
    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>, EngineError>;

    /// Replaces the contents of `blocks`, which no sequence reads, by those of as many others in `data`, which
    /// [`Self::read_blocks`] gave, after the first `skip` of them.
    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError>;
}

impl Engine for Box<dyn Engine> {
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        (**self).forward(plan)
    }

    fn warm_up(&mut self) -> Result<(), EngineError> {
        (**self).warm_up()
    }

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>, EngineError> {
        (**self).read_blocks(blocks)
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError> {
        (**self).write_blocks(skip, blocks, data)
    }
}

/// Errors of the [`Engine`] port.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The step itself failed; the sequences in it cannot go on, the worker can.
    #[error("the step failed: {0}")]
    Step(String),
    /// Blocks could not be copied out of the pool or into it.
    #[error("KV blocks could not be copied: {0}")]
    Transfer(String),
}
