//! A turn's whole result, put together from its events.

use serde::Serialize;
use turnmill_schema::{
    AgentId, Delta, End, Event, FinishReason, Name, Outcome, Timing, TokenLogprobs, TurnId, Usage,
};

use crate::error::ProducerError;
use crate::follow::Reader;
use crate::producer::Producer;

/// What became of a turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TurnResult {
    /// The turn.
    pub turn: TurnId,
    /// Its agent; none for a turn that stood alone.
    pub agent: Option<Name>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why generation ended, for completed turns.
    pub finish: Option<FinishReason>,
    /// The reply, as far as it was made. None: the result stream has expired.
    pub text: Option<String>,
    /// The reply's token ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u32>,
    /// For each token, how many bytes of the text it made visible; empty if that is not known. See [`Delta::lengths`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<u32>,
    /// One entry a token, where asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Token counts.
    pub usage: Usage,
    /// Where its time went.
    pub timing: Timing,
    /// The worker that ended it; none where no worker had it.
    pub worker: Option<String>,
    /// What was wrong and what to do, unless completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The reply so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply(Delta);

impl Reply {
    /// Appends what [`Producer::follow`] gave.
    pub fn push(&mut self, delta: Delta) {
        self.0.extend(delta);
    }

    /// What there is of it, as one delta.
    pub fn so_far(&self) -> &Delta {
        &self.0
    }

    /// The result. `kept` is false if the stream expired before it was read to its end: what was read may be a part of the
    /// reply, and a part is not told as the whole.
    pub fn ended(self, turn: TurnId, agent: Option<Name>, end: End, kept: bool) -> TurnResult {
        let Delta { tokens, text, lengths, logprobs, .. } = if kept { self.0 } else { Delta::default() };
        let text = kept.then_some(text);
        let End { outcome, finish, error, usage, timing, worker } = end;
        TurnResult {
            turn,
            agent,
            outcome,
            finish,
            text,
            tokens,
            lengths,
            logprobs,
            usage,
            timing,
            worker,
            error,
        }
    }
}

impl Producer {
    /// Waits for the turn's end. A turn that failed is a result, not an error.
    pub async fn wait(&self, turn: TurnId) -> Result<TurnResult, ProducerError> {
        let mut reader = Reader::new(self, turn, None);
        let mut reply = Reply::default();
        while let Some(followed) = reader.next().await? {
            match followed.event {
                Event::Begin(_) => {}
                Event::Delta(delta) => reply.push(delta),
                Event::End(end) => {
                    let agent = reader.agent().and_then(AgentId::agent);
                    return Ok(reply.ended(turn, agent, end, followed.id.is_some()));
                }
            }
        }
        Err(ProducerError::UnknownTurn { turn, queue: self.queue.name.to_string() })
    }
}
