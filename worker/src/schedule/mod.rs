//! Which rows the next step computes. Pure: no clock, no I/O.
//!
//! [`Scheduler`] is the whole of it: `add` turns as sequences, then `schedule` a plan, run it, `apply` what
//! it sampled.

mod draft;
mod limits;
mod lookup;
mod plan;
mod restore;
mod scheduler;
mod sequence;
mod speculate;
mod trust;
mod waiting;

pub use limits::{Limits, Refused};
pub use plan::{PlannedSequence, SequenceId, StepPlan};
pub use scheduler::{Counts, Scheduler};
pub use sequence::{Left, NewSequence, Sampled};
pub use speculate::Speculation;
