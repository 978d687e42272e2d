//! A turn as a program writes it, before it has an id and a tenant.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use turnmill_schema::{
    AgentName, IdempotencyKey, Message, Priority, Reasoning, RequestId, ResponseFormat, Role, Sampling,
    TenantName, Tool, ToolChoice, TraceParent, TraceState, Turn, TurnId,
};

/// What an agent hears next and how to sample the answer.
///
/// ```
/// use std::time::Duration;
/// use turnmill_client::{NewTurn, Sampling};
///
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let turn = NewTurn::user("Name a mill.")
///     .agent("ada".parse()?)
///     .idempotency_key("order-17".parse()?)
///     .sampling(Sampling { temperature: 0.2, max_tokens: Some(100), ..Sampling::default() })
///     .deadline_in(Duration::from_secs(60));
/// # assert_eq!(turn.agent.map(|agent| agent.to_string()).as_deref(), Some("ada"));
/// # Ok(())
/// # }
/// # example().unwrap();
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewTurn {
    /// Whose turn it is; none: it stands alone, without history or order.
    pub agent: Option<AgentName>,
    /// The new messages, oldest first; at least one.
    pub messages: Vec<Message>,
    /// The turn that this one must follow; none: it follows whatever turn is its agent's newest.
    pub after: Option<TurnId>,
    /// What the model reads, as it stands, instead of messages. Such a turn stands alone.
    pub prompt: Option<String>,
    /// Tools that the model may call. They are not part of the agent's history: each turn gives its own.
    pub tools: Vec<Tool>,
    /// Whether it calls them.
    pub tool_choice: ToolChoice,
    /// Whether it may call several at once; none: it may.
    pub parallel_tool_calls: Option<bool>,
    /// The form of what it says.
    pub response_format: ResponseFormat,
    /// How much it thinks before.
    pub reasoning: Reasoning,
    /// Arguments for the model's chat template.
    pub template_arguments: Map<String, Value>,
    /// Keep the exact tokens of earlier thoughts, though the chat template would drop them.
    pub keep_thoughts: bool,
    /// Forget the agent's history before this turn.
    pub new_session: bool,
    /// How to sample. A missing seed is fixed when the turn is enqueued.
    pub sampling: Sampling,
    /// Which ready stream.
    pub priority: Priority,
    /// Unix milliseconds after which the turn is not worth running.
    pub deadline_ms: Option<u64>,
    /// Unix milliseconds before which the turn does not run. It keeps its place in its agent's order: later turns of the
    /// agent wait for it.
    pub not_before_ms: Option<u64>,
    /// Enqueueing again under the same key returns the first turn.
    pub idempotency_key: Option<IdempotencyKey>,
    /// What the request is called in logs and traces; none: the turn's id.
    pub request_id: Option<RequestId>,
    /// The span that the turn is enqueued in, as the caller's tracing library has it: workers' spans become its children.
    pub traceparent: Option<TraceParent>,
    /// What goes with it.
    pub tracestate: Option<TraceState>,
}

impl NewTurn {
    /// One user message; everything else as by default.
    pub fn user(content: impl Into<String>) -> Self {
        Self { messages: vec![Message::new(Role::User, content)], ..Self::default() }
    }

    /// The next turn of `agent`.
    pub fn agent(self, agent: AgentName) -> Self {
        Self { agent: Some(agent), ..self }
    }

    /// To be enqueued only if `turn` is the agent's newest turn: the last one that waits or runs, else the last one that completed.
    /// Otherwise [`ClientError::StaleHead`](crate::ClientError::StaleHead) names the newest one. So two programs that speak to one
    /// agent do not answer past each other.
    ///
    /// A turn that failed, expired or was cancelled leaves the agent's newest turn as it was. In a batch it may be a turn that stands
    /// before this one.
    ///
    /// ```no_run
    /// use turnmill_client::{AgentName, Client, ClientError, NewTurn, TurnId};
    ///
    /// # async fn example(client: Client, ada: AgentName, last: TurnId) -> Result<(), ClientError> {
    /// match client.enqueue(NewTurn::user("And then?").agent(ada).after(last)).await {
    ///     Ok(enqueued) => println!("turn {} follows turn {last}", enqueued.turn),
    ///     Err(ClientError::StaleHead { head: Some(newest), .. }) => println!("read turn {newest} first"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn after(self, turn: TurnId) -> Self {
        Self { after: Some(turn), ..self }
    }

    /// Safe to enqueue again: the tenant's turns under `key` are one turn.
    pub fn idempotency_key(self, key: IdempotencyKey) -> Self {
        Self { idempotency_key: Some(key), ..self }
    }

    /// The model may call `tools`, and must if `choice` says so.
    pub fn tools(self, tools: Vec<Tool>, choice: ToolChoice) -> Self {
        Self { tools, tool_choice: choice, ..self }
    }

    /// The answer has the form `format`.
    pub fn response_format(self, format: ResponseFormat) -> Self {
        Self { response_format: format, ..self }
    }

    /// Sampled as `sampling` says.
    pub fn sampling(self, sampling: Sampling) -> Self {
        Self { sampling, ..self }
    }

    /// Not worth running once `duration` has passed, by this machine's clock.
    pub fn deadline_in(self, duration: Duration) -> Self {
        Self { deadline_ms: Some(ms_from_now(duration)), ..self }
    }

    /// Not to be run before `unix_ms`, in Unix milliseconds.
    pub fn run_at(self, unix_ms: u64) -> Self {
        Self { not_before_ms: Some(unix_ms), ..self }
    }

    /// Not to be run until `duration` has passed, by this machine's clock.
    pub fn delay(self, duration: Duration) -> Self {
        self.run_at(ms_from_now(duration))
    }

    /// Called `id` in logs and traces.
    pub fn request_id(self, id: RequestId) -> Self {
        Self { request_id: Some(id), ..self }
    }

    /// Enqueued in the span of `parent`.
    pub fn traceparent(self, parent: TraceParent) -> Self {
        Self { traceparent: Some(parent), ..self }
    }

    /// The turn with its id. The seed is fixed here, so that every attempt samples the same words.
    pub(crate) fn into_turn(self, id: TurnId, tenant: TenantName) -> Turn {
        let mut sampling = self.sampling;
        sampling.seed.get_or_insert(id.seed());
        Turn {
            id,
            tenant,
            agent: self.agent,
            messages: self.messages,
            prompt: self.prompt,
            tools: self.tools,
            tool_choice: self.tool_choice,
            parallel_tool_calls: self.parallel_tool_calls,
            response_format: self.response_format,
            reasoning: self.reasoning,
            template_arguments: self.template_arguments,
            keep_thoughts: self.keep_thoughts,
            new_session: self.new_session,
            sampling,
            priority: self.priority,
            deadline_ms: self.deadline_ms,
            not_before_ms: self.not_before_ms,
            idempotency_key: self.idempotency_key,
            replay_of: None,
            request_id: Some(self.request_id.unwrap_or_else(|| id.into())),
            traceparent: self.traceparent,
            tracestate: self.tracestate.filter(|_| self.traceparent.is_some()),
        }
    }
}

/// `duration` from now, in Unix milliseconds.
pub(crate) fn ms_from_now(duration: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_add(duration).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_seed_is_fixed_and_a_given_one_kept() {
        let tenant = || TenantName::new("default").expect("valid");
        let id = TurnId::new(0);
        assert_eq!(NewTurn::user("hi").into_turn(id, tenant()).sampling.seed, Some(id.seed()));
        let given = NewTurn::user("hi").sampling(Sampling { seed: Some(7), ..Sampling::default() });
        assert_eq!(given.into_turn(id, tenant()).sampling.seed, Some(7));
    }

    #[test]
    fn a_missing_request_id_is_made_and_a_given_one_kept() {
        let tenant = || TenantName::new("default").expect("valid");
        let id = TurnId::new(0);
        assert_eq!(NewTurn::user("hi").into_turn(id, tenant()).request_id, Some(id.into()));
        let given: RequestId = "r-1".parse().expect("valid");
        let turn = NewTurn::user("hi").request_id(given.clone()).into_turn(id, tenant());
        assert_eq!(turn.request_id, Some(given));
    }
}
