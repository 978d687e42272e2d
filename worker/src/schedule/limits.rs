//! What a scheduler takes in, and the words in which it refuses the rest.

use super::{NewSequence, SequenceId};
use crate::kv::BlockPool;

/// Bounds of a step and of its sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run, and hold blocks, at a time; at least 1.
    pub max_sequences: usize,
    /// Rows a step computes at most; at least 1. Below `max_sequences` not every sequence decodes in every
    /// step.
    pub batch_tokens: usize,
    /// Longest sequence, prompt and reply together.
    pub max_context_tokens: u32,
}

/// Why a sequence can never run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is nothing to compute.
    #[error("the sequence has no tokens; give at least one")]
    Empty,
    /// There is no room for a reply.
    #[error("the sequence has {tokens} tokens and may have {max_total}; allow at least one more")]
    NothingToMake {
        /// Tokens it starts with.
        tokens: usize,
        /// Tokens it may have.
        max_total: u32,
    },
    /// Longer than the context.
    #[error("the turn needs {needed} tokens and the context has {context}; shorten the prompt or max_tokens")]
    Context {
        /// Tokens it may come to need.
        needed: u32,
        /// Tokens a sequence may have.
        context: u32,
    },
    /// Longer than the pool.
    #[error(
        "the turn needs KV blocks for {needed} tokens and the whole pool holds {pool}; \
         shorten the prompt or max_tokens, or give the worker a larger pool"
    )]
    Pool {
        /// Tokens it may come to need.
        needed: u32,
        /// Tokens that all blocks together hold.
        pool: u32,
    },
    /// Hashed in blocks of another size.
    #[error(
        "the turn's tokens are hashed in blocks of {chain} tokens and the pool's blocks have {pool}: \
         a bug in the worker; please report it"
    )]
    Blocks {
        /// Tokens in a block of the sequence.
        chain: usize,
        /// Tokens in a block of the pool.
        pool: u32,
    },
    /// The id is taken.
    #[error("sequence {} is scheduled already; ids are used once", .0.0)]
    Duplicate(SequenceId),
}

impl Limits {
    /// Refuses what could never run over `pool`, however empty.
    pub(super) fn check(&self, new: &NewSequence, pool: &BlockPool) -> Result<(), Refused> {
        let (needed, tokens) = (new.max_total_tokens, new.chain.len());
        let context = self.max_context_tokens;
        if new.chain.block_tokens() != pool.block_tokens() as usize {
            return Err(Refused::Blocks { chain: new.chain.block_tokens(), pool: pool.block_tokens() });
        }
        let pool = pool.counts().total as u32 * pool.block_tokens();
        if tokens == 0 {
            return Err(Refused::Empty);
        }
        if tokens >= needed as usize {
            return Err(Refused::NothingToMake { tokens, max_total: needed });
        }
        if needed > context {
            return Err(Refused::Context { needed, context });
        }
        if needed > pool {
            return Err(Refused::Pool { needed, pool });
        }
        Ok(())
    }
}
