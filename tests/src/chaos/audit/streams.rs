//! One turn's result stream and hash: one End, last; every token once; nothing from a worker that lost the turn.

use turnmill_schema::{Begin, Delta, End, Event, TurnId};

use super::{Finding, Violation};
use crate::chaos::stored::{Entry, StoredTurn};

/// What is wrong with a turn that was acknowledged. `stored` is none where no key of it is left.
pub(super) fn check(turn: TurnId, stored: Option<&StoredTurn>) -> Vec<Finding> {
    let Some(stored) = stored else {
        return vec![Finding::new(Violation::Lost, turn, "none of its keys is left")];
    };
    let mut replay = Replay { turn, tokens: Vec::new(), begin: None, end: None, findings: Vec::new() };
    stored.entries.iter().for_each(|entry| replay.entry(entry));
    replay.hash(stored);
    replay.findings
}

/// What is known of a turn after some entries.
struct Replay<'a> {
    turn: TurnId,
    tokens: Vec<u32>,
    /// The last one.
    begin: Option<&'a Begin>,
    end: Option<&'a End>,
    findings: Vec<Finding>,
}

impl<'a> Replay<'a> {
    fn found(&mut self, violation: Violation, detail: impl Into<String>) {
        self.findings.push(Finding::new(violation, self.turn, detail));
    }

    fn entry(&mut self, entry: &'a Entry) {
        let epoch = entry.epoch;
        match &entry.event {
            Event::End(_) if self.end.is_some() => self.found(Violation::Duplicated, "it has a second End"),
            _ if self.end.is_some() => {
                self.found(Violation::PostFence, format!("epoch {epoch} was written after the End"));
            }
            Event::Begin(begin) => self.begin(epoch, begin),
            Event::Delta(delta) => self.delta(epoch, delta),
            Event::End(end) => self.end(epoch, end),
        }
    }

    fn begin(&mut self, epoch: u64, begin: &'a Begin) {
        if begin.epoch != epoch {
            self.found(
                Violation::PostFence,
                format!("a Begin of epoch {} stands under {epoch}", begin.epoch),
            );
        }
        if let Some(last) = self.begin.filter(|last| last.epoch >= begin.epoch) {
            let detail = format!("a Begin of epoch {} follows one of {}", begin.epoch, last.epoch);
            self.found(Violation::PostFence, detail);
        }
        let (from, published) = (begin.resume_from as usize, self.tokens.len());
        if from > published {
            self.found(
                Violation::Lost,
                format!("it resumes from token {from}, and {published} are published"),
            );
        } else if from < published {
            let detail = format!("it resumes from token {from}, though {published} are published");
            self.found(Violation::Duplicated, detail);
        }
        self.begin = Some(begin);
    }

    fn delta(&mut self, epoch: u64, delta: &Delta) {
        let index = delta.index as usize;
        match self.begin {
            Some(begin) if begin.epoch == epoch => {}
            Some(begin) => {
                let detail =
                    format!("token {index} has epoch {epoch}, not {} of the Begin before", begin.epoch);
                self.found(Violation::PostFence, detail);
            }
            None => self.found(Violation::PostFence, format!("token {index} stands before any Begin")),
        }
        if index > self.tokens.len() {
            self.found(Violation::Lost, format!("tokens {} to {} are missing", self.tokens.len(), index - 1));
            return;
        }
        let known = self.tokens.len() - index;
        if self.tokens[index..].iter().zip(&delta.tokens).any(|(known, again)| known != again) {
            self.found(Violation::Duplicated, format!("token {index} and on came again with other tokens"));
        }
        self.tokens.extend(delta.tokens.iter().skip(known));
    }

    fn end(&mut self, epoch: u64, end: &'a End) {
        if let Some(begin) = self.begin {
            if epoch < begin.epoch {
                self.found(Violation::PostFence, format!("the End has epoch {epoch}, below {}", begin.epoch));
            }
            if let Some(worker) = end.worker.as_deref().filter(|worker| !is_of(&begin.worker, worker)) {
                self.found(Violation::PostFence, format!("{worker} ended it, and {} had it", begin.worker));
            }
        }
        let (counted, published) = (end.usage.completion_tokens as usize, self.tokens.len());
        if counted > published {
            self.found(
                Violation::Lost,
                format!("the End counts {counted} tokens, {published} are published"),
            );
        }
        self.end = Some(end);
    }

    fn hash(&mut self, stored: &StoredTurn) {
        let Some(end) = self.end else {
            let state = stored.state.as_deref().unwrap_or("gone");
            return self.found(Violation::Lost, format!("it has no End; its hash is {state}"));
        };
        match (stored.state.as_deref(), stored.outcome.as_deref()) {
            (None, _) => self.found(Violation::Lost, "its hash is gone"),
            (Some("ended"), Some(outcome)) if outcome == end.outcome.as_str() => {}
            (state, outcome) => {
                let detail = format!("it ended {:?}, and its hash says {state:?}, {outcome:?}", end.outcome);
                self.found(Violation::PostFence, detail);
            }
        }
    }
}

/// Whether a consumer id (`<name>:<process>`) is that of the worker called `name`.
fn is_of(consumer: &str, name: &str) -> bool {
    consumer.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}
