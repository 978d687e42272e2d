//! Whether what a grammar begins can always be ended.

use llguidance::api::ParserLimits;
use llguidance::earley::regexvec::LexemeSet;
use llguidance::earley::{CGrammar, CSymIdx};

use super::GrammarError;
use super::error::rejected;

/// Refuses a grammar with a part that no finite text matches: a schema that requires itself, a rule without an alternative that ends, a
/// terminal that matches nothing. A reply that came to such a part could not end, even if another part would have allowed it to.
pub fn check(grammar: &CGrammar, mut limits: ParserLimits) -> Result<(), GrammarError> {
    let reachable = reachable(grammar);
    let spec = grammar.lexer_spec();
    let mut lexer = spec.to_regex_vec(&mut limits).map_err(|e| GrammarError::refused(&e))?;
    let most = reachable.iter().map(|symbol| symbol.as_index() + 1).max().unwrap_or_default();
    let mut ends = vec![false; most];
    for symbol in &reachable {
        let data = grammar.sym_data(*symbol);
        ends[symbol.as_index()] = data.is_nullable
            || !data.cond_nullable.is_empty()
            || data.lexeme.is_some_and(|lexeme| {
                let mut one = LexemeSet::new(spec.lexemes.len());
                one.add(lexeme);
                let state = lexer.initial_state(&one);
                !lexer.state_desc(state).possible.is_empty()
            });
    }
    // Rules name symbols that are found to end later, so until nothing changes.
    loop {
        let mut changed = false;
        for symbol in reachable.iter().rev() {
            let ended = ends[symbol.as_index()];
            let now = ended
                || grammar.rules_of(*symbol).iter().any(|rule| {
                    let (parts, ..) = grammar.rule_rhs(*rule);
                    parts.iter().all(|part| ends[part.as_index()])
                });
            ends[symbol.as_index()] = now;
            changed |= now != ended;
        }
        if !changed {
            break;
        }
    }
    if reachable.iter().all(|symbol| ends[symbol.as_index()]) {
        return Ok(());
    }
    rejected(
        "the grammar allows nothing, or has a part that can never end (a schema that requires itself, a rule without an alternative \
         that ends, a terminal that matches nothing); make that part optional or remove it",
    )
}

/// The symbols that a sentence may be made of.
fn reachable(grammar: &CGrammar) -> Vec<CSymIdx> {
    let mut found = vec![grammar.start()];
    let mut seen = std::collections::HashSet::from([grammar.start()]);
    let mut next = 0;
    while let Some(symbol) = found.get(next).copied() {
        next += 1;
        for rule in grammar.rules_of(symbol) {
            found.extend(grammar.rule_rhs(*rule).0.iter().copied().filter(|part| seen.insert(*part)));
        }
    }
    found
}
