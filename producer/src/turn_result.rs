//! A turn's whole result, put together from its events.

use serde::{Serialize, Serializer};
use turnmill_schema::{
    AgentId, AgentName, Delta, End, Event, FinishReason, Message, Outcome, StopRule, Timing, TokenLogprobs,
    ToolCall, TurnId, Usage,
};

use crate::client::Client;
use crate::error::ClientError;
use crate::follow::{Followed, Reader};

/// What became of a turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TurnResult {
    /// The turn.
    pub turn: TurnId,
    /// Its agent; none for a turn that stood alone.
    pub agent: Option<AgentName>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why generation ended, for completed turns.
    pub finish: Option<FinishReason>,
    /// Which stop string or stop token ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopRule>,
    /// What the model said, as far as it was made. None: the result stream has expired.
    pub text: Option<String>,
    /// What it thought before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Tools that it called. Run them, and enqueue their results as the agent's next turn: see [`Message::tool_result`].
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "tool_calls")]
    pub tool_calls: Vec<ToolCall>,
    /// The reply's token ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u32>,
    /// For each token, how many bytes of the reply, thoughts and calls included, it made visible; empty if that is not known. See [`Delta::lengths`].
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

/// Calls in OpenAI's spelling.
fn tool_calls<S: Serializer>(calls: &[ToolCall], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Call<'a> {
        id: &'a str,
        r#type: &'static str,
        function: Function<'a>,
    }
    #[derive(Serialize)]
    struct Function<'a> {
        name: &'a str,
        arguments: &'a str,
    }
    serializer.collect_seq(calls.iter().map(|ToolCall { id, name, arguments }| Call {
        id,
        r#type: "function",
        function: Function { name, arguments },
    }))
}

/// The reply so far.
#[derive(Debug, Default)]
pub(crate) struct Reply(Delta);

impl Reply {
    /// Takes what comes next of the turn; its End, once that is there, and whether the reply is whole: the stream may have expired
    /// before it was read to its end.
    pub(crate) fn take(&mut self, followed: Followed) -> Option<(End, bool)> {
        match followed.event {
            Event::Begin(_) => None,
            Event::Delta(delta) => {
                self.0.extend(delta);
                None
            }
            Event::End(end) => Some((end, followed.id.is_some())),
        }
    }

    /// The result. A part of a reply is not told as the whole.
    pub(crate) fn ended(
        self,
        turn: TurnId,
        agent: Option<&AgentId>,
        (end, is_whole): (End, bool),
    ) -> TurnResult {
        let reply = if is_whole { self.0 } else { Delta::default() };
        let Message { content, reasoning, tool_calls, .. } = reply.message(&turn);
        let Delta { tokens, lengths, logprobs, .. } = reply;
        let End { outcome, finish, stop, error, usage, timing, worker } = end;
        TurnResult {
            turn,
            agent: agent.and_then(AgentId::agent),
            outcome,
            finish,
            stop,
            text: is_whole.then_some(content),
            reasoning,
            tool_calls,
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

impl Client {
    /// Waits for the turn's end. A turn that failed is a result, not an error.
    pub async fn wait(&self, turn: TurnId) -> Result<TurnResult, ClientError> {
        let mut reader = Reader::new(self, turn, None);
        let mut reply = Reply::default();
        while let Some(followed) = reader.next().await? {
            if let Some(end) = reply.take(followed) {
                return Ok(reply.ended(turn, reader.agent(), end));
            }
        }
        Err(self.unknown_turn(turn))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnmill_schema::Part;

    use super::*;

    fn end(finish: FinishReason, stop: Option<StopRule>) -> End {
        End {
            outcome: Outcome::Completed,
            finish: Some(finish),
            stop,
            error: None,
            usage: Usage { prompt_tokens: 7, cached_tokens: 0, completion_tokens: 4, reasoning_tokens: 1 },
            timing: Timing::default(),
            worker: None,
        }
    }

    fn written(turn: TurnId, parts: &[(Part, &str)], end: End) -> String {
        let mut delta = Delta::default();
        delta.push_parts(7, parts, None);
        let result =
            Reply(Delta { tokens: Vec::new(), lengths: Vec::new(), ..delta }).ended(turn, None, (end, true));
        serde_json::to_string(&result).expect("JSON")
    }

    /// Programs read this line, and people see its order.
    #[test]
    fn a_result_is_json_in_openais_spelling() {
        let turn = TurnId::new(0);
        let calls = [
            (Part::Reasoning, "Sum."),
            (Part::Content, "I add."),
            (Part::ToolName(0), "add"),
            (Part::ToolArguments(0), r#"{"b": 1}"#),
        ];
        let id = ToolCall::id_of(&turn, 0);
        let arguments = json!(r#"{"b": 1}"#);
        let start = format!(r#"{{"turn":"{turn}","agent":null,"outcome":"completed","finish":"#);
        let usage = r#""usage":{"prompt_tokens":7,"cached_tokens":0,"completion_tokens":4,"reasoning_tokens":1},"timing":{"queued_ms":0,"first_token_ms":null,"total_ms":0},"worker":null}"#;
        assert_eq!(
            written(turn, &calls, end(FinishReason::ToolCalls, None)),
            format!(
                r#"{start}"tool_calls","text":"I add.","reasoning":"Sum.","tool_calls":[{{"id":"{id}","type":"function","function":{{"name":"add","arguments":{arguments}}}}}],{usage}"#
            )
        );
        for (rule, said) in
            [(StopRule::Text("END".into()), r#"{"text":"END"}"#), (StopRule::Token(5), r#"{"token":5}"#)]
        {
            assert_eq!(
                written(turn, &[(Part::Content, "hi")], end(FinishReason::Stop, Some(rule))),
                format!(r#"{start}"stop","stop":{said},"text":"hi",{usage}"#)
            );
        }
    }
}
