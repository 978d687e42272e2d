//! Golden words: 300 turns that never change, and the tokens that a commit of record said to them.
//!
//! A turn's tokens depend on model, weights mode, seed, sampling and history alone (promise 3, ADR 0003). So every later
//! commit must say the same tokens. Tests that compare two runs of one commit cannot see a change that both runs share.

pub mod words;
pub mod workload;

pub use words::{Words, compare, record, recorded};
pub use workload::{Asked, turns};
