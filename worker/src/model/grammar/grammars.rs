//! Compiles grammars, and keeps what was compiled.

use std::sync::{Mutex, PoisonError};
use std::thread;

use super::deadline::Deadline;
use super::source::Source;
use super::{Constraint, GrammarError, Matcher, Vocabulary, ends, limits};

/// Compiled grammars of one vocabulary, shared by turns.
pub struct Grammars {
    vocabulary: Vocabulary,
    deadline: Deadline,
    /// Most recently used last.
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    digest: [u8; 32],
    /// At its start, its first mask made.
    matcher: Matcher,
    /// Estimate of its memory.
    bytes: usize,
}

impl Grammars {
    /// None yet.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, GrammarError> {
        Self::with_times(vocabulary, limits::Times::default())
    }

    /// Grammars that may take `times`.
    pub(super) fn with_times(vocabulary: Vocabulary, times: limits::Times) -> Result<Self, GrammarError> {
        Ok(Self { vocabulary, deadline: Deadline::new(times)?, kept: Mutex::default() })
    }

    /// The tokens that these grammars allow.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// A matcher at the start of `constraint`. Blocks: a millisecond for a usual schema, 20 µs if it is kept, up to two seconds for one made
    /// to be slow. Not to be called on the runtime.
    pub fn compile(&self, constraint: &Constraint) -> Result<Matcher, GrammarError> {
        let source = Source::new(constraint)?;
        let digest = source.digest();
        if let Some(matcher) = self.find(digest) {
            return Ok(matcher);
        }
        let (matcher, bytes) = self.compile_apart(&source)?;
        let fork = matcher.fork(&self.deadline);
        self.keep(Kept { digest, matcher, bytes });
        Ok(fork)
    }

    /// On a thread of its own: llguidance recurses as deep as a source nests, and a stack that overflows ends the worker.
    fn compile_apart(&self, source: &Source) -> Result<(Matcher, usize), GrammarError> {
        let failed =
            |reason: &str| GrammarError::Failed(format!("the grammar could not be compiled: {reason}"));
        thread::scope(|scope| {
            let apart = thread::Builder::new().name("grammar".to_owned()).stack_size(limits::STACK);
            let compiling = apart.spawn_scoped(scope, || self.compile_here(source));
            let compiling = compiling.map_err(|e| failed(&format!("no thread: {e}")))?;
            compiling.join().unwrap_or_else(|_| Err(failed("its compiler failed")))
        })
    }

    fn compile_here(&self, source: &Source) -> Result<(Matcher, usize), GrammarError> {
        let parser = self.vocabulary.factory().create_parser(source.grammar()?);
        let parser = parser.map_err(|e| GrammarError::refused(&e))?;
        ends::check(parser.parser.grammar(), limits::parser())?;
        let bytes = parser.parser.lexer_stats().num_bytes + 1024 * source.len();
        let mut matcher = Matcher::new(parser, &self.vocabulary, &self.deadline);
        // Here and not in a step: it finds what is too complex, and each turn starts with its work done.
        matcher.mask()?;
        Ok((matcher, bytes))
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        // What is kept is whole whatever panicked.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, digest: [u8; 32]) -> Option<Matcher> {
        let mut kept = self.kept();
        let index = kept.iter().position(|kept| kept.digest == digest)?;
        kept[index..].rotate_left(1);
        kept.last().map(|kept| kept.matcher.fork(&self.deadline))
    }

    fn keep(&self, new: Kept) {
        let mut kept = self.kept();
        kept.retain(|kept| kept.digest != new.digest);
        if new.bytes > limits::KEPT_BYTES / 4 {
            return;
        }
        kept.push(new);
        while kept.len() > limits::KEPT
            || kept.iter().map(|kept| kept.bytes).sum::<usize>() > limits::KEPT_BYTES
        {
            kept.remove(0);
        }
    }
}
