//! Constrained decoding: which tokens may come next if a reply must be JSON, fit a schema, match a regular expression or follow a
//! grammar. The only room that knows llguidance.
//!
//! Invariant: a mask depends on model, grammar and the tokens consumed so far alone, not on which masks were asked for before. So a
//! resumed turn, whose tokens are consumed again by a fresh [`Matcher`], goes on as it would have.
//!
//! Grammars come from strangers. What bounds them: the size and shape of the source (`schema`, `lark`), llguidance's own limits of
//! compiling and of each step (`limits`), and a deadline on each step (`deadline`). Compiling cannot be cancelled, so the shape of a
//! source decides how long it takes; it is done on a thread of its own with a large stack, because llguidance recurses.

mod deadline;
mod ends;
mod error;
mod grammars;
mod lark;
mod limits;
mod matcher;
mod schema;
mod source;
mod vocabulary;

pub use error::GrammarError;
pub use grammars::Grammars;
pub use matcher::Matcher;
pub use source::Constraint;
pub use vocabulary::Vocabulary;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod tests;
