//! A turn's span: one for its log lines and its trace, with the same name and the same times.
//!
//! The trace's side is made with OpenTelemetry's own calls, not by a bridge from `tracing`: a turn's span begins when its
//! lease was asked for, before anybody knew which turn it would be; prefill and decode are timed by the engine's thread,
//! which makes no spans; and the ids of an attempt's span follow from turn and epoch. Phases are reported once they are
//! over, so a turn costs a few spans and a token none.
//!
//! Invariant: nothing that a turn says gets into a span.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue};
use tracing::{Span, error_span, field};
use turnmill_schema::{RequestId, Turn, Usage, trace_context};

use super::Traces;
use crate::broker::Lease;

/// When the lease of a turn was asked for, and had.
#[derive(Clone, Copy, Debug)]
pub struct Claimed {
    /// Asked for.
    pub from: Instant,
    /// Had.
    pub to: Instant,
}

/// A turn's span in this worker: an attempt. Ends when it is dropped, if not before.
pub struct TurnSpan {
    log: Span,
    /// Log lines have the request's id.
    called: bool,
    trace: Option<Trace>,
    /// How the turn left.
    left: OnceLock<&'static str>,
}

/// The side that is exported.
struct Trace {
    traces: Traces,
    /// Of the turn's own span: its children's parent.
    context: Context,
    /// The same moment on both clocks.
    now: (Instant, SystemTime),
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    tokens: u32,
    cached_tokens: u32,
}

impl TurnSpan {
    /// A span for log lines; what is exported begins with [`Self::begin`].
    pub fn new(lease: &Lease, request: Option<&RequestId>) -> Self {
        let agent = &lease.agent;
        let log = error_span!(
            "turn",
            turn = %lease.turn, agent = agent.own(), tenant = agent.tenant(), request_id = field::Empty,
            trace_id = field::Empty, span_id = field::Empty,
        );
        let mut span = Self { log, called: false, trace: None, left: OnceLock::new() };
        if let Some(request) = request {
            span.call(request);
        }
        span
    }

    /// Gives log lines the request's id. Once: on a terminal the second would stand beside the first.
    fn call(&mut self, request: &RequestId) {
        if !std::mem::replace(&mut self.called, true) {
            self.log.record("request_id", request.as_str());
        }
    }

    /// What log lines of the turn are written in.
    pub fn log(&self) -> &Span {
        &self.log
    }

    /// The turn is known now, or will not be: whose child its span is, and what it is called. `earlier` is the epoch of the
    /// attempt before.
    pub fn begin(
        &mut self,
        traces: &Traces,
        lease: &Lease,
        turn: Option<&Turn>,
        (claimed, earlier): (Claimed, Option<u64>),
    ) {
        let request = turn.map_or_else(|| lease.turn.into(), Turn::request_id);
        self.call(&request);
        let parent = turn.and_then(parent).unwrap_or_default();
        let trace = match parent.has_active_span() {
            true => parent.span().span_context().trace_id(),
            false => TraceId::from_bytes(trace_context::trace_of(lease.turn)),
        };
        let queue = traces.queue();
        if queue.is_some() || parent.has_active_span() {
            self.log.record("trace_id", field::display(trace));
        }
        let Some(queue) = queue else { return };
        let now = (Instant::now(), SystemTime::now());
        let span_id = |epoch| SpanId::from_bytes(trace_context::span_of(lease.turn, epoch));
        let links =
            earlier.map(|epoch| Link::with_context(remote(trace, span_id(epoch), true, TraceState::NONE)));
        let builder = SpanBuilder::from_name("turn")
            .with_kind(SpanKind::Consumer)
            .with_start_time(at(now, claimed.from))
            .with_attributes(attributes(queue, lease, &request))
            .with_links(links.into_iter().collect());
        let Some(span) = traces.span(builder, &parent, Some((trace, span_id(lease.epoch)))) else { return };
        self.log.record("span_id", field::display(span.span_context().span_id()));
        let trace = Trace {
            traces: traces.clone(),
            context: Context::new().with_span(span),
            now,
            admitted: None,
            first_token: None,
            last_token: None,
            tokens: 0,
            cached_tokens: 0,
        };
        trace.phase("claim", (claimed.from, claimed.to), Vec::new());
        self.trace = Some(trace);
    }

    /// Stored K and V of `tokens` tokens came back; `when` it began and ended.
    pub fn restored(&self, when: (Instant, Instant), outcome: &'static str, tokens: usize) {
        let Some(trace) = &self.trace else { return };
        let attributes =
            vec![KeyValue::new("turnmill.outcome", outcome), KeyValue::new("turnmill.tokens", tokens as i64)];
        trace.phase("restore", when, attributes);
    }

    /// The engine admitted the turn.
    pub fn admitted(&mut self, at: Instant, cached_tokens: u32) {
        if let Some(trace) = &mut self.trace {
            trace.admitted = Some(at);
            trace.cached_tokens = cached_tokens;
        }
    }

    /// The engine made a token.
    pub fn token(&mut self, at: Instant) {
        let Some(trace) = &mut self.trace else { return };
        trace.tokens += 1;
        trace.last_token = Some(at);
        if trace.first_token.is_none() {
            trace.first_token = Some(at);
            let cached = KeyValue::new("turnmill.cached_tokens", i64::from(trace.cached_tokens));
            trace.phase("prefill", (trace.admitted.unwrap_or(at), at), vec![cached]);
        }
    }

    /// The engine is done with the turn.
    pub fn computed(&self) {
        let Some(trace) = &self.trace else { return };
        if let (Some(first), Some(last)) = (trace.first_token, trace.last_token) {
            let tokens = KeyValue::new("turnmill.tokens", i64::from(trace.tokens));
            trace.phase("decode", (first, last), vec![tokens]);
        }
    }

    /// Says how the turn left. The first word stands.
    pub fn left(&self, how: &'static str) {
        let _ = self.left.set(how);
    }

    /// Ends the span. `leaving` is when the turn began to leave, and when it had left.
    pub fn end(self, leaving: (Instant, Instant), usage: Usage) {
        let Some(trace) = &self.trace else { return };
        let outcome = self.left.get().copied().unwrap_or("lost");
        trace.phase("finish", leaving, Vec::new());
        let span = trace.context.span();
        span.set_attribute(KeyValue::new("turnmill.outcome", outcome));
        span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", i64::from(usage.prompt_tokens)));
        span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", i64::from(trace.tokens)));
        if ["failed", "dead", "retried", "abandoned"].contains(&outcome) {
            // What went wrong is in the turn's result: it may quote what the turn says.
            span.set_status(Status::error(outcome));
        }
        span.end();
    }
}

impl Trace {
    /// A child that is over.
    fn phase(&self, name: &'static str, (from, to): (Instant, Instant), attributes: Vec<KeyValue>) {
        let builder =
            SpanBuilder::from_name(name).with_start_time(at(self.now, from)).with_attributes(attributes);
        if let Some(mut span) = self.traces.span(builder, &self.context, None) {
            span.end_with_timestamp(at(self.now, to));
        }
    }
}

/// `instant` on the clock that spans have.
fn at((instant, time): (Instant, SystemTime), wanted: Instant) -> SystemTime {
    match wanted.checked_duration_since(instant) {
        Some(after) => time + after,
        None => time - instant.duration_since(wanted),
    }
}

fn remote(trace: TraceId, span: SpanId, sampled: bool, state: TraceState) -> SpanContext {
    SpanContext::new(trace, span, TraceFlags::default().with_sampled(sampled), true, state)
}

/// The context that the turn was enqueued in, if it says so.
fn parent(turn: &Turn) -> Option<Context> {
    let parent = turn.traceparent?;
    let state = turn.tracestate.as_ref().and_then(|state| state.as_str().parse().ok()).unwrap_or_default();
    let (trace, span) = (TraceId::from_bytes(parent.trace_id()), SpanId::from_bytes(parent.span_id()));
    Some(Context::new().with_remote_span_context(remote(trace, span, parent.is_sampled(), state)))
}

/// Whose span it is, in the words of OpenTelemetry's conventions for messaging, and in ours.
fn attributes(queue: &str, lease: &Lease, request: &RequestId) -> Vec<KeyValue> {
    let agent = &lease.agent;
    let text = |key: &'static str, value: &dyn ToString| KeyValue::new(key, value.to_string());
    vec![
        KeyValue::new("messaging.system", "turnmill"),
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("messaging.operation.name", "turn"),
        text("messaging.destination.name", &queue),
        text("messaging.message.id", &lease.turn),
        text("turnmill.turn", &lease.turn),
        text("turnmill.agent", &agent.own()),
        text("turnmill.tenant", &agent.tenant()),
        text("turnmill.queue", &queue),
        text("turnmill.request_id", request),
        KeyValue::new("turnmill.priority", lease.ticket().priority.as_str()),
        KeyValue::new("turnmill.attempt", i64::from(lease.attempt)),
        KeyValue::new("turnmill.epoch", lease.epoch as i64),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry_sdk::trace::SpanData;
    use turnmill_schema::{AgentId, Message, Role, TurnId};

    use super::super::traces::tests::recorded;
    use super::*;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a name")
    }

    fn turn(traceparent: Option<&str>) -> Turn {
        let messages = vec![Message::new(Role::User, "a secret")];
        let traceparent = traceparent.map(|text| text.parse().expect("a traceparent"));
        Turn { agent: Some(name("ada")), traceparent, ..Turn::new(TurnId::new(0), name("acme"), messages) }
    }

    fn lease(turn: &Turn, epoch: u64) -> Lease {
        let agent = AgentId::named(&turn.tenant, &name("ada"));
        Lease::example(turn.id, agent, epoch)
    }

    /// An attempt that begins a second ago, and leaves as `how` after three tokens.
    fn attempt(traces: &Traces, turn: &Turn, (epoch, earlier): (u64, Option<u64>), how: &'static str) {
        let now = Instant::now();
        let ago = |ms| now.checked_sub(Duration::from_millis(ms)).expect("the machine is up for a second");
        let lease = lease(turn, epoch);
        let mut span = TurnSpan::new(&lease, None);
        span.begin(traces, &lease, Some(turn), (Claimed { from: ago(1000), to: ago(900) }, earlier));
        span.restored((ago(850), ago(800)), "restored", 256);
        span.admitted(ago(800), 16);
        for ms in [500, 400, 300] {
            span.token(ago(ms));
        }
        span.computed();
        span.left(how);
        span.left("lost");
        span.end((ago(200), now), Usage { prompt_tokens: 20, ..Usage::default() });
    }

    fn find<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
        spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"))
    }

    fn attribute(span: &SpanData, key: &str) -> String {
        let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == key);
        found.unwrap_or_else(|| panic!("no {key}")).value.to_string()
    }

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn an_attempt_is_a_child_of_its_producers_span_and_its_phases_are_its_children() {
        let turn = turn(Some(PARENT));
        let spans = recorded(|traces| attempt(traces, &turn, (7, None), "completed"));
        let root = find(&spans, "turn");
        assert_eq!(root.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!((&root.span_kind, root.parent_span_is_remote), (&SpanKind::Consumer, true));
        for phase in ["claim", "restore", "prefill", "decode", "finish"] {
            assert_eq!(find(&spans, phase).parent_span_id, root.span_context.span_id(), "{phase}");
        }
        assert_eq!(spans.len(), 6);
        assert!(spans.iter().all(|span| span.span_context.trace_id().to_string() == PARENT[3..35]));
        let took = |name| {
            let span = find(&spans, name);
            span.end_time.duration_since(span.start_time).expect("forwards").as_millis()
        };
        assert_eq!(["claim", "prefill", "decode"].map(took), [100, 300, 200]);
        assert!(took("turn") >= 1000, "from the lease on");
        for (key, value) in [
            ("turnmill.agent", "ada"),
            ("turnmill.tenant", "acme"),
            ("turnmill.outcome", "completed"),
            ("messaging.message.id", &turn.id.to_string()),
            ("gen_ai.usage.output_tokens", "3"),
        ] {
            assert_eq!(attribute(root, key), value);
        }
        assert!(!format!("{spans:?}").contains("secret"));
    }

    #[test]
    fn a_later_attempt_is_in_the_same_trace_and_links_to_the_one_before() {
        for traceparent in [None, Some(PARENT)] {
            let turn = turn(traceparent);
            let first = recorded(|traces| attempt(traces, &turn, (7, None), "retried"));
            let second = recorded(|traces| attempt(traces, &turn, (9, Some(7)), "completed"));
            let (first, second) = (find(&first, "turn"), find(&second, "turn"));
            assert_eq!(first.span_context.trace_id(), second.span_context.trace_id());
            assert_ne!(first.span_context.span_id(), second.span_context.span_id());
            let links: Vec<_> = second.links.iter().map(|link| link.span_context.span_id()).collect();
            assert_eq!(links, [first.span_context.span_id()]);
            assert!(first.links.is_empty());
            assert!(matches!(first.status, Status::Error { .. }) && second.status == Status::Unset);
        }
    }

    #[test]
    fn what_the_producer_does_not_record_is_not_recorded_here() {
        let turn = turn(Some(&PARENT.replace("-01", "-00")));
        assert!(recorded(|traces| attempt(traces, &turn, (7, None), "completed")).is_empty());
        attempt(&Traces::off(), &turn, (7, None), "completed");
    }

    #[test]
    fn a_turn_that_cannot_be_read_has_a_span_all_the_same() {
        let turn = turn(None);
        let spans = recorded(|traces| {
            let lease = lease(&turn, 7);
            let mut span = TurnSpan::new(&lease, None);
            let now = Instant::now();
            span.begin(traces, &lease, None, (Claimed { from: now, to: now }, None));
            span.left("dead");
            span.end((now, now), Usage::default());
        });
        assert_eq!(attribute(find(&spans, "turn"), "turnmill.request_id"), turn.id.to_string());
    }
}
