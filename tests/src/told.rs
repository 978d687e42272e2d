//! What a result stream told, once it is known to be sound.

use turnmill_schema::{Begin, CutError, Delta, End, Event, Span};

/// A whole result stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// One for each attempt.
    pub begins: Vec<Begin>,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// All text.
    pub text: String,
    /// For each token, how many bytes of the text it made visible.
    pub lengths: Vec<u32>,
    /// Which bytes of it are what.
    pub spans: Vec<Span>,
    /// The terminal result.
    pub end: End,
}

impl Told {
    /// Reads raw entries. Panics unless they start with a Begin, give every token index once and in order, have one
    /// End, last, and epochs that grow, each from where the one before left off.
    pub fn read(events: &[Event]) -> Self {
        let Some((Event::End(end), before)) = events.split_last() else {
            panic!("the stream does not end with an End: {events:?}")
        };
        assert!(matches!(before.first(), Some(Event::Begin(_))), "{events:?}");
        let mut told = Self {
            begins: Vec::new(),
            tokens: Vec::new(),
            text: String::new(),
            lengths: Vec::new(),
            spans: Vec::new(),
            end: end.clone(),
        };
        let mut reply = Delta::default();
        for event in before {
            told.add(event, &mut reply);
        }
        told.spans = reply.spans;
        assert_eq!(told.end.usage.completion_tokens as usize, told.tokens.len(), "the count of tokens");
        told
    }

    fn add(&mut self, event: &Event, reply: &mut Delta) {
        match event {
            Event::Begin(begin) => {
                assert!(self.begins.iter().all(|before| before.epoch < begin.epoch), "{begin:?}");
                assert_eq!(begin.resume_from as usize, self.tokens.len(), "{begin:?}");
                self.begins.push(begin.clone());
            }
            Event::Delta(delta) => {
                assert_eq!(delta.index as usize, self.tokens.len(), "a token twice or missing: {delta:?}");
                assert!(!delta.tokens.is_empty(), "a delta without tokens");
                // Programs of an older commit, on which tests can be run too, write no lengths.
                let lengths = delta.check_lengths();
                assert!(matches!(lengths, Ok(()) | Err(CutError::NoLengths)), "{lengths:?}: {delta:?}");
                reply.extend(delta.clone());
                self.tokens.extend(&delta.tokens);
                self.text.push_str(&delta.text);
                self.lengths.extend(&delta.lengths);
            }
            Event::End(end) => panic!("a second End: {end:?}"),
        }
    }

    /// What must be the same however the turn was run.
    pub fn words(&self) -> (Vec<u32>, String, Vec<u32>, Vec<Span>) {
        (self.tokens.clone(), self.text.clone(), self.lengths.clone(), self.spans.clone())
    }
}
