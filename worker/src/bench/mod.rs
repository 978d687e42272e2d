//! How fast a worker's parts are, measured as the product runs them, and what codecs cost in words.

pub mod drift;
pub mod engine;
pub mod queue;
