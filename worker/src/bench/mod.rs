//! How fast a worker's parts are, measured as the product runs them.

pub mod engine;
pub mod queue;
