//! The turn: an agent's next messages and how to sample the reply.
//!
//! A turn carries new messages only; the agent's history lives with the system (see [`crate::transcript`]).
//! [`Turn::validate`] is called by producers before anything is written and by workers before anything
//! runs, because producers in other languages exist.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::ids::{AgentId, TurnId};
use crate::message::{InvalidMessage, Message, check_messages};
use crate::names::{AgentName, IdempotencyKey, TenantName};
use crate::request_id::RequestId;
use crate::tool::{InvalidTools, Reasoning, ResponseFormat, Tool, ToolChoice, check_tools};
use crate::trace_context::{TraceParent, TraceState};

/// Which ready stream a turn's agent waits in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Somebody is waiting for the answer.
    #[default]
    Interactive,
    /// Nobody is.
    Batch,
}

impl Priority {
    /// Every priority, most urgent first.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Batch];

    /// The name used in keys and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Batch => "batch",
        }
    }

    /// The priority of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.as_str() == name)
    }
}

/// How to choose tokens and when to stop. Names, ranges and defaults are vLLM's and OpenAI's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 takes the likeliest token; otherwise logits are divided by it. 0 to 100.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probability reaches this. Above 0, at most 1.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the likeliest. 0 to 1.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens seen in prompt or reply. 0.01 to 100; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every token already in the reply. -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence in the reply. -2 to 2.
    pub frequency_penalty: f32,
    /// Added to logits, by token id. -100 to 100 each.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the counter-based generator; fixed at enqueue when absent.
    pub seed: Option<u64>,
    /// Tokens to make at most; absent means as many as the context leaves. 0 makes none: the prompt is rendered and tokenised,
    /// and the turn ends with its usage.
    pub max_tokens: Option<u32>,
    /// Tokens to make before an end-of-sequence token or a stop rule may end the turn.
    pub min_tokens: u32,
    /// Texts that end the reply; they are not part of it.
    pub stop: Vec<String>,
    /// Token ids that end the reply, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Do not end at the model's end-of-sequence token.
    pub ignore_eos: bool,
    /// Report each token's log-probability and this many of the likeliest alternatives (0 to 20).
    pub logprobs: Option<u8>,
    /// Leave control tokens out of the reply's text (vLLM's name).
    #[serde(skip_serializing_if = "is_true")]
    pub skip_special_tokens: bool,
}

fn is_true(value: &bool) -> bool {
    *value
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            skip_special_tokens: true,
        }
    }
}

/// Times in a turn are before this: 2200-01-01, in Unix milliseconds. A later one is a mistake in the unit, and scripts count
/// exactly up to 2^53.
pub const END_OF_TIME_MS: u64 = 7_258_118_400_000;
/// Most alternatives that [`Sampling::logprobs`] may ask for (OpenAI's limit).
pub const MAX_LOGPROBS: u8 = 20;
/// Most stop strings a turn may have.
pub const MAX_STOP_STRINGS: usize = 16;
/// Most entries of a turn's logit bias (OpenAI's limit is 300; a bias costs work each step).
pub const MAX_LOGIT_BIAS: usize = 1024;

/// One turn: what is said to an agent next, and how it is to answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Its id, made by the producer.
    pub id: TurnId,
    /// Whose turn it is; tenants never share anything.
    pub tenant: TenantName,
    /// The agent whose conversation it continues; none: the turn stands alone, without history or order.
    pub agent: Option<AgentName>,
    /// The new messages, oldest first; at least one, or a prompt.
    pub messages: Vec<Message>,
    /// What the model reads, as it stands, instead of messages. Such a turn stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Tools that the model may call. They are not part of the agent's history: each turn gives its own.
    #[serde(default, deserialize_with = "crate::message::nullable", skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Whether it calls them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tool_choice: ToolChoice,
    /// Whether it may call several at once; absent: it may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// The form of what it says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_format: ResponseFormat,
    /// How much it thinks before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reasoning: Reasoning,
    /// Arguments for the model's chat template.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub template_arguments: Map<String, Value>,
    /// Keep the exact tokens of earlier thoughts in the agent's history, though the chat template would drop them: then the prompt
    /// is longer, and nothing of it is computed again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_thoughts: bool,
    /// Forget the agent's history before this turn.
    #[serde(default)]
    pub new_session: bool,
    /// How to sample.
    #[serde(default)]
    pub sampling: Sampling,
    /// Which ready stream.
    #[serde(default)]
    pub priority: Priority,
    /// Unix milliseconds after which the turn is not worth running.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Unix milliseconds before which the turn does not run; it keeps its place in its agent's order meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    /// Enqueueing again under the same key returns the first turn.
    #[serde(default)]
    pub idempotency_key: Option<IdempotencyKey>,
    /// The dead letter of which this turn is another try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<TurnId>,
    /// What its producer calls the request; see [`Turn::request_id`].
    #[serde(default, deserialize_with = "valid", skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The span that it was enqueued in.
    #[serde(default, deserialize_with = "valid", skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
    /// What goes with that span.
    #[serde(default, deserialize_with = "valid", skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<TraceState>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A text that is what it should be; anything else is none. What only logs and traces use costs no turn.
fn valid<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Found {
        Text(String),
        Other(IgnoredAny),
    }
    Ok(match Option::<Found>::deserialize(deserializer)? {
        Some(Found::Text(text)) => text.parse().ok(),
        Some(Found::Other(_)) | None => None,
    })
}

/// Why a turn can never run. Retrying does not help: reject it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidTurn {
    /// There is nothing to answer.
    #[error("the turn has no messages; give at least one")]
    NoMessages,
    /// A number is outside its range.
    #[error("{field} is {value}; it must be {range}")]
    OutOfRange {
        /// The field's name in [`Sampling`].
        field: &'static str,
        /// What was given.
        value: f64,
        /// What is allowed, in words.
        range: &'static str,
    },
    /// `min_tokens` exceeds `max_tokens`.
    #[error("min_tokens ({min}) is larger than max_tokens ({max})")]
    MinAboveMax {
        /// Given `min_tokens`.
        min: u32,
        /// Given `max_tokens`.
        max: u32,
    },
    /// A time is so far away that its unit must be wrong.
    #[error("{field} is {value_ms}; it must be in Unix milliseconds and before the year 2200")]
    TooLate {
        /// The field's name in [`Turn`].
        field: &'static str,
        /// What was given.
        value_ms: u64,
    },
    /// An empty stop string would end every reply at once.
    #[error("a stop string is empty; leave it out")]
    EmptyStop,
    /// A raw prompt goes with nothing that makes a prompt.
    #[error("the turn has a prompt and {0}; a prompt stands alone: give messages instead, or leave that out")]
    PromptAnd(&'static str),
    /// A prompt of nothing.
    #[error("the prompt is empty; give a text")]
    EmptyPrompt,
    /// A message is none.
    #[error(transparent)]
    Message(#[from] InvalidMessage),
    /// Tools or grammar cannot be used.
    #[error(transparent)]
    Tools(#[from] InvalidTools),
}

impl Turn {
    /// A turn that stands alone; everything else as by default.
    pub fn new(id: TurnId, tenant: TenantName, messages: Vec<Message>) -> Self {
        Self {
            id,
            tenant,
            agent: None,
            messages,
            prompt: None,
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            parallel_tool_calls: None,
            response_format: ResponseFormat::default(),
            reasoning: Reasoning::default(),
            template_arguments: Map::new(),
            keep_thoughts: false,
            new_session: false,
            sampling: Sampling::default(),
            priority: Priority::default(),
            deadline_ms: None,
            not_before_ms: None,
            idempotency_key: None,
            replay_of: None,
            request_id: None,
            traceparent: None,
            tracestate: None,
        }
    }

    /// What its request goes by: the turn's own id, where its producer named none.
    pub fn request_id(&self) -> RequestId {
        self.request_id.clone().unwrap_or_else(|| self.id.into())
    }

    /// Sixteen hexadecimal digits of what is asked: equal for turns that ask the same of the same agent, whenever and under
    /// whatever id. A turn that comes again under its idempotency key is told from another one by it. BLAKE3 of the agent,
    /// the messages and how to sample, as MessagePack.
    pub fn asked_digest(&self) -> String {
        // A producer that was given no seed fixes that of the turn's id.
        let seed = self.sampling.seed.filter(|seed| *seed != self.id.seed());
        let sampling = Sampling { seed, ..self.sampling.clone() };
        let asked = (&self.agent, &self.messages, self.new_session, &sampling, self.priority);
        // What cannot be encoded is not enqueued either.
        let mut bytes = rmp_serde::to_vec(&asked).unwrap_or_default();
        let more = (
            &self.prompt,
            &self.tools,
            &self.tool_choice,
            self.parallel_tool_calls,
            &self.response_format,
            &self.reasoning,
            &self.template_arguments,
            self.keep_thoughts,
        );
        let nothing = Self::new(self.id, self.tenant.clone(), Vec::new());
        if self.asks_more_than(&nothing) {
            bytes.extend(rmp_serde::to_vec(&more).unwrap_or_default());
        }
        blake3::hash(&bytes).to_hex()[..16].to_owned()
    }

    fn asks_more_than(&self, plain: &Self) -> bool {
        self.prompt != plain.prompt
            || self.tools != plain.tools
            || self.tool_choice != plain.tool_choice
            || self.parallel_tool_calls != plain.parallel_tool_calls
            || self.response_format != plain.response_format
            || self.reasoning != plain.reasoning
            || self.template_arguments != plain.template_arguments
            || self.keep_thoughts != plain.keep_thoughts
    }

    /// Tools that the model is told of: none if it may not call any.
    pub fn callable_tools(&self) -> &[Tool] {
        if self.tool_choice == ToolChoice::None { &[] } else { &self.tools }
    }

    /// Sixteen hexadecimal digits of what the chat template is given besides messages; none if nothing. If they differ between two
    /// turns, the template may write what both have in common differently.
    pub fn rendering(&self) -> Option<String> {
        let tools = self.callable_tools();
        let Reasoning { enabled, effort, budget: _ } = &self.reasoning;
        if tools.is_empty() && self.template_arguments.is_empty() && enabled.is_none() && effort.is_none() {
            return None;
        }
        let given = (tools, &self.template_arguments, enabled, effort);
        let bytes = rmp_serde::to_vec(&given).unwrap_or_default();
        Some(blake3::hash(&bytes).to_hex()[..16].to_owned())
    }

    /// Whose backlog the turn waits in.
    pub fn agent_id(&self) -> AgentId {
        match &self.agent {
            Some(agent) => AgentId::named(&self.tenant, agent),
            None => AgentId::lone(&self.tenant, self.id),
        }
    }

    /// Checks everything that needs neither model nor Redis.
    pub fn validate(&self) -> Result<(), InvalidTurn> {
        if let Some(prompt) = &self.prompt {
            for (given, what) in [
                (!self.messages.is_empty(), "messages"),
                (self.agent.is_some(), "an agent"),
                (!self.tools.is_empty(), "tools"),
            ] {
                if given {
                    return Err(InvalidTurn::PromptAnd(what));
                }
            }
            if prompt.is_empty() {
                return Err(InvalidTurn::EmptyPrompt);
            }
        } else if self.messages.is_empty() {
            return Err(InvalidTurn::NoMessages);
        }
        check_messages(&self.messages)?;
        check_tools(&self.tools, &self.tool_choice)?;
        self.response_format.check()?;
        let has_grammar = !self.response_format.is_text()
            || matches!(self.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        if has_grammar && self.sampling.ignore_eos {
            return Err(InvalidTools::IgnoreEos.into());
        }
        for (field, time) in [("deadline_ms", self.deadline_ms), ("not_before_ms", self.not_before_ms)] {
            if let Some(value_ms) = time.filter(|ms| *ms >= END_OF_TIME_MS) {
                return Err(InvalidTurn::TooLate { field, value_ms });
            }
        }
        self.sampling.validate()
    }
}

impl Sampling {
    /// Checks every range. NaN is outside every range.
    pub fn validate(&self) -> Result<(), InvalidTurn> {
        let check = |ok: bool, field, value: f64, range| {
            if ok { Ok(()) } else { Err(InvalidTurn::OutOfRange { field, value, range }) }
        };
        let penalty = |v: f32| (-2.0..=2.0).contains(&v);
        let f = f64::from;
        check(
            (0.0..=100.0).contains(&self.temperature),
            "temperature",
            f(self.temperature),
            "from 0 to 100",
        )?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", f(self.top_p), "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", f(self.min_p), "from 0 to 1")?;
        let repetition = self.repetition_penalty;
        check((0.01..=100.0).contains(&repetition), "repetition_penalty", f(repetition), "from 0.01 to 100")?;
        check(penalty(self.presence_penalty), "presence_penalty", f(self.presence_penalty), "from -2 to 2")?;
        check(
            penalty(self.frequency_penalty),
            "frequency_penalty",
            f(self.frequency_penalty),
            "from -2 to 2",
        )?;
        for bias in self.logit_bias.values() {
            check((-100.0..=100.0).contains(bias), "logit_bias", f(*bias), "from -100 to 100")?;
        }
        let biases = self.logit_bias.len();
        check(biases <= MAX_LOGIT_BIAS, "logit_bias entries", biases as f64, "at most 1024")?;
        let logprobs = self.logprobs.unwrap_or(0);
        check(logprobs <= MAX_LOGPROBS, "logprobs", f64::from(logprobs), "from 0 to 20")?;
        check(self.stop.len() <= MAX_STOP_STRINGS, "stop strings", self.stop.len() as f64, "at most 16")?;
        if let Some(max) = self.max_tokens.filter(|max| self.min_tokens > *max) {
            return Err(InvalidTurn::MinAboveMax { min: self.min_tokens, max });
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(InvalidTurn::EmptyStop);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Role;

    fn turn() -> Turn {
        let tenant = TenantName::new("default").expect("valid");
        Turn::new(TurnId::new(0), tenant, vec![Message::new(Role::User, "hi")])
    }

    fn refused(change: impl FnOnce(&mut Sampling)) -> String {
        let mut sampling = Sampling::default();
        change(&mut sampling);
        sampling.validate().expect_err("must be refused").to_string()
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Sampling::default().validate(), Ok(()));
    }

    #[test]
    fn times_are_before_2200() {
        for (ms, valid) in [(0, true), (END_OF_TIME_MS - 1, true), (END_OF_TIME_MS, false), (u64::MAX, false)]
        {
            let (mut early, mut late) = (turn(), turn());
            (early.not_before_ms, late.deadline_ms) = (Some(ms), Some(ms));
            for (turn, field) in [(early, "not_before_ms"), (late, "deadline_ms")] {
                let refused = turn.validate().err().map(|error| error.to_string());
                assert_eq!(refused.is_none(), valid, "{refused:?}");
                assert!(refused.is_none_or(|said| said.starts_with(&format!("{field} is {ms}; "))));
            }
        }
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let tool = |name: &str| Tool { name: name.into(), description: None, parameters: None };
        let refused = |change: &dyn Fn(&mut Turn)| {
            let mut turn = turn();
            change(&mut turn);
            turn.validate().expect_err("must be refused").to_string()
        };
        let raw = |turn: &mut Turn| {
            turn.messages.clear();
            turn.prompt = Some("Once".into());
        };
        let mut alone = turn();
        raw(&mut alone);
        assert_eq!(alone.validate(), Ok(()));
        assert!(refused(&|turn| turn.prompt = Some("Once".into())).contains("a prompt and messages"));
        assert!(refused(&|turn| turn.messages.clear()).contains("no messages"));
        let with_tools = refused(&|turn| {
            raw(turn);
            turn.tools = vec![tool("a")];
        });
        assert!(with_tools.contains("a prompt and tools"));
        let with_agent = refused(&|turn| {
            raw(turn);
            turn.agent = AgentName::new("a").ok();
        });
        assert!(with_agent.contains("a prompt and an agent"));
        let endless = refused(&|turn| {
            turn.response_format = ResponseFormat::JsonObject;
            turn.sampling.ignore_eos = true;
        });
        assert!(endless.contains("ignore_eos"));
        assert!(refused(&|turn| turn.tool_choice = ToolChoice::Required).contains("no tools"));
        let thoughtful = refused(&|turn| turn.messages[0].reasoning = Some("hm".into()));
        assert!(thoughtful.contains("number 1 has reasoning"));
    }

    #[test]
    fn turns_that_ask_different_things_have_different_digests() {
        let (plain, mut other) = (turn(), turn());
        other.id = plain.id;
        assert_eq!((plain.asked_digest(), plain.rendering()), (other.asked_digest(), None));
        other.tools = vec![Tool { name: "a".into(), description: None, parameters: None }];
        assert_ne!(plain.asked_digest(), other.asked_digest());
        let with_tools = other.rendering();
        assert!(with_tools.is_some());
        other.reasoning.budget = Some(5);
        assert_eq!(other.rendering(), with_tools, "the template does not see a budget");
        other.tool_choice = ToolChoice::None;
        assert_eq!(other.rendering(), None, "tools that may not be called are not rendered");
    }

    #[test]
    fn every_bad_number_is_named_with_its_range() {
        assert_eq!(refused(|s| s.temperature = -1.0), "temperature is -1; it must be from 0 to 100");
        assert!(refused(|s| s.temperature = f32::NAN).contains("NaN"));
        assert!(refused(|s| s.top_p = 0.0).starts_with("top_p"));
        assert!(refused(|s| s.min_p = 1.5).starts_with("min_p"));
        assert!(refused(|s| s.repetition_penalty = 0.0).starts_with("repetition_penalty"));
        assert!(refused(|s| s.presence_penalty = 3.0).starts_with("presence_penalty"));
        assert!(refused(|s| s.frequency_penalty = -3.0).starts_with("frequency_penalty"));
        assert!(refused(|s| s.logit_bias = [(1, 1e6)].into()).starts_with("logit_bias"));
        assert!(refused(|s| s.logprobs = Some(21)).starts_with("logprobs"));
        assert!(refused(|s| s.stop = vec![String::new()]).contains("empty"));
        let both = refused(|s| {
            s.min_tokens = 9;
            s.max_tokens = Some(8);
        });
        assert!(both.contains("larger"));
    }
}
