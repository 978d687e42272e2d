//! The forward pass: the script's next token for every row that samples, far above all others.
//!
//! Invariant: the next token is a function of the script and the sequence's tokens alone, which are read from its blocks. What is remembered
//! of a running sequence saves reading them again for each token.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use turnmill_worker::kv::BlockId;
use turnmill_worker::model::{Engine, EngineError, Logits, Tokenizer};
use turnmill_worker::schedule::{PlannedSequence, SequenceId, StepPlan};

use super::frame::Frame;
use super::memory::Memory;
use super::script::{Pace, Rule, Script, ScriptError};
use super::spelling::Spelling;

/// Logit of the script's token. No temperature up to 100, penalty or bias makes another one likelier, whose logits are 0.
const CHOSEN: f32 = 1e6;
/// Logit of what is said instead of the end, if the turn may not end yet.
const SECOND: f32 = CHOSEN / 2.0;
/// Sequences that are remembered, beyond those that run.
const REMEMBERED: usize = 4096;

/// Who says what: a script in the tokens of one model.
pub struct Cast {
    script: Script,
    frame: Frame,
    spelling: Spelling,
}

impl Cast {
    /// Refuses a script that the model's vocabulary cannot spell.
    pub fn new(script: Script, frame: Frame, spelling: Spelling) -> Result<Self, ScriptError> {
        for (number, rule) in (1..).zip(script.rules()).filter(|(_, rule)| rule.is_fixed()) {
            spelling
                .tokens(rule.said())
                .map_err(|error| ScriptError::Rule { number, problem: error.to_string() })?;
        }
        Ok(Self { script, frame, spelling })
    }

    /// What is said after `tokens`.
    fn part(&self, tokenizer: &Tokenizer, tokens: &[u32]) -> Result<Part, EngineError> {
        let unknown = || EngineError::Step("the script does not understand this prompt".to_owned());
        let asked = self.frame.asked(tokenizer, tokens).ok_or_else(unknown)?;
        let (text, rule) = self.script.text(&asked.message);
        let said = self
            .spelling
            .tokens(&text)
            .map_err(|error| EngineError::Step(format!("the reply that the script calls for {error}")))?;
        Ok(Part {
            starts: asked.reply_starts,
            length: rule.and_then(Rule::tokens).unwrap_or(said.len()),
            said,
            end: self.frame.end(),
            failure: rule.and_then(Rule::failure).map(str::to_owned),
            pace: self.script.pace(rule),
        })
    }
}

/// A reply to one prompt.
#[derive(Clone, Debug)]
struct Part {
    /// Index of its first token in the sequence.
    starts: usize,
    /// Its text, to be repeated.
    said: Vec<u32>,
    /// Tokens of it, without the end.
    length: usize,
    end: u32,
    failure: Option<String>,
    pace: Pace,
}

impl Part {
    /// Fills the logits of token `index` of the reply.
    fn speak(&self, index: usize, logits: &mut [f32]) -> Result<(), EngineError> {
        let said = self.said.get(index % self.said.len().max(1)).copied();
        if index < self.length
            && let Some(said) = said
        {
            logits[said as usize] = CHOSEN;
        } else if let Some(sentence) = &self.failure {
            return Err(EngineError::Step(sentence.clone()));
        } else {
            said.into_iter().for_each(|said| logits[said as usize] = SECOND);
            logits[self.end as usize] = CHOSEN;
        }
        Ok(())
    }
}

/// A script as an engine.
pub struct ScriptedEngine {
    cast: Cast,
    memory: Memory,
    tokenizer: Arc<Tokenizer>,
    parts: HashMap<SequenceId, Part>,
    /// When the last step ended.
    ended: Instant,
}

impl ScriptedEngine {
    /// Says what `cast` says over blocks in `memory`.
    pub fn new(cast: Cast, memory: Memory, tokenizer: Arc<Tokenizer>) -> Self {
        Self { cast, memory, tokenizer, parts: HashMap::new(), ended: Instant::now() }
    }

    /// What is said to a sequence that samples; remembered.
    fn part(&mut self, sequence: &PlannedSequence) -> Result<&Part, EngineError> {
        if !self.parts.contains_key(&sequence.id) {
            // Proposed tokens are no part of it yet.
            let known = sequence.context_tokens + 1 - sequence.samples;
            let tokens = self.memory.sequence(&sequence.blocks, known as usize)?;
            let part = self.cast.part(&self.tokenizer, &tokens)?;
            self.parts.insert(sequence.id, part);
        }
        Ok(&self.parts[&sequence.id])
    }

    /// Nobody tells the engine that a sequence is over.
    fn forget(&mut self, plan: &StepPlan) {
        if self.parts.len() > REMEMBERED + plan.sequences.len() {
            let runs = |id: &SequenceId| plan.sequences.iter().any(|sequence| sequence.id == *id);
            self.parts.retain(|id, _| runs(id));
        }
    }
}

impl Engine for ScriptedEngine {
    /// A step takes as long as the slowest of its replies wants for a token: a pace is one of the whole worker while such a reply runs, as
    /// a model's is.
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        let began = Instant::now();
        self.memory.write(plan);
        self.forget(plan);
        let vocabulary = self.cast.spelling.vocabulary();
        let rows: u32 = plan.sequences.iter().map(|sequence| sequence.samples).sum();
        let mut logits = Logits::new(vec![0.0; rows as usize * vocabulary], vocabulary);
        let mut unsaid = logits.rows_mut();
        let (mut first, mut next) = (Duration::ZERO, Duration::ZERO);
        for sequence in plan.sequences.iter().filter(|sequence| sequence.samples > 0) {
            let context = sequence.context_tokens as usize;
            let part = self.part(sequence)?;
            // The row of a token gives the token after it.
            for token in context + 1 - sequence.samples as usize..=context {
                let row = unsaid.next().expect("a row for each sample");
                let index = token.saturating_sub(part.starts);
                part.speak(index, row)?;
                match index {
                    0 => first = first.max(part.pace.first),
                    _ => next = next.max(part.pace.next),
                }
            }
        }
        drop(unsaid);
        // A reply's first token has none before it from which its time would count.
        let left = next.saturating_sub(self.ended.elapsed()).max(first.saturating_sub(began.elapsed()));
        std::thread::sleep(left);
        self.ended = Instant::now();
        Ok(logits)
    }

    /// There is nothing to warm.
    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>, EngineError> {
        Ok(self.memory.read_blocks(blocks))
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError> {
        self.memory.write_blocks(skip, blocks, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(said: &[u32], length: usize) -> Part {
        Part { starts: 3, said: said.to_vec(), length, end: 9, failure: None, pace: Pace::default() }
    }

    /// The likeliest token, and the one after it.
    fn likeliest(part: &Part, index: usize) -> (u32, Option<u32>) {
        let mut logits = vec![0.0; 10];
        part.speak(index, &mut logits).expect("it does not fail");
        let at = |value| logits.iter().position(|logit| *logit == value).map(|token| token as u32);
        (at(CHOSEN).expect("one is chosen"), at(SECOND))
    }

    #[test]
    fn a_reply_is_said_then_ended_and_goes_on_if_it_may_not_end() {
        let two = part(&[4, 5], 2);
        assert_eq!([0, 1, 2, 3].map(|index| likeliest(&two, index).0), [4, 5, 9, 9]);
        assert_eq!(likeliest(&two, 2).1, Some(4));
        assert_eq!(likeliest(&part(&[], 0), 0), (9, None));
    }

    #[test]
    fn a_reply_of_so_many_tokens_is_repeated_or_cut() {
        assert_eq!([0, 1, 2, 3].map(|index| likeliest(&part(&[4, 5], 3), index).0), [4, 5, 4, 9]);
        assert_eq!(likeliest(&part(&[4, 5], 1), 1).0, 9);
    }

    #[test]
    fn a_rule_that_fails_does_so_after_its_words() {
        let failing = Part { failure: Some("so it is".to_owned()), ..part(&[4], 1) };
        assert_eq!(likeliest(&failing, 0).0, 4);
        let error = failing.speak(1, &mut [0.0; 10]).expect_err("it fails");
        assert_eq!(error.to_string(), "the step failed: so it is");
    }
}
