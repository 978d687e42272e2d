//! How much of a worker one grammar may take. Measured on the attacks in `attacks`, in release builds, at 49k and 262k tokens.

use std::time::Duration;

use llguidance::api::ParserLimits;

/// Longest source, in bytes.
pub const SOURCE_BYTES: usize = 64 << 10;

/// Deepest nesting of JSON in a source.
pub const JSON_DEPTH: usize = 32;

/// Most schemas visited when a schema is read with its `$ref`s followed. Schemas that must be intersected are copied for each `$ref`, so
/// 30 small definitions can stand for 2^30 schemas.
pub const SCHEMAS: usize = 8_000;

/// Deepest nesting of schemas with their `$ref`s followed: llguidance recurses that deep.
pub const SCHEMA_DEPTH: usize = 512;

/// Most property names in a schema. Compiling takes quadratic time: 0.2 s for 1,000, 9 s for 7,000.
pub const PROPERTIES: usize = 1_000;

/// Most `patternProperties` in a schema. Each pair is tested for a common name, again for each intersection.
pub const PATTERN_PROPERTIES: usize = 32;

/// Most tests of pairs of `patternProperties`, at about 26 µs each.
pub const PATTERN_PAIRS: usize = 50_000;

/// Largest divisor of `multipleOf` once its decimals are moved away: its automaton has that many states. 999,983 takes 1.9 s and 160 MB.
pub const DIVISOR: u64 = 10_000;

/// Most definitions in a lark grammar.
pub const DEFINITIONS: usize = 1_000;

/// Most nesting of terminals in a lark grammar, all definitions summed: derivatives recurse that deep, on the threads that compute masks
/// (200 levels fit in 1 MiB).
pub const TERMINAL_NESTING: usize = 128;

/// Stack of the thread that compiles, in bytes. Touched only as deep as a source goes.
pub const STACK: usize = 64 << 20;

/// How slow a debug build of llguidance is beside a release build.
const SLOWNESS: u32 = if cfg!(debug_assertions) { 20 } else { 1 };

/// How long a reply's grammar may be worked on. These are the machine's times, so a grammar may be refused on a slow one; what is not
/// refused gives the same masks everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Longest time of one step, which is cancelled then. An ordinary one takes microseconds.
    pub step: Duration,
    /// What a step may take without being counted as slow.
    pub free: Duration,
    /// What all steps of a reply may take in all, beyond what each has free.
    pub patience: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let [step, free, patience] = [500, 2, 1_000].map(|millis| Duration::from_millis(millis) * SLOWNESS);
        Self { step, free, patience }
    }
}

/// Most compiled grammars kept.
pub const KEPT: usize = 64;

/// Most memory of the compiled grammars kept, in bytes, estimated.
pub const KEPT_BYTES: usize = 64 << 20;

/// llguidance's limits. Those below the defaults bound memory (`max_lexer_states`: 1 to 2 KiB each) and the time of one step.
pub fn parser() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 5_000,
        // It runs each large expression over the whole vocabulary, which a grammar used once never pays back.
        precompute_large_lexemes: false,
        // Errors would hold the reply's text.
        verbose_errors: false,
    }
}
