//! `turnmill submit`: turns from flags or JSON lines into the queue and, if asked for, what becomes of them.

mod account;
mod feed;

use std::collections::HashMap;
use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt, stream};
use tokio::io::AsyncRead;
use turnmill_client::NewTurn;
use turnmill_client::schema::{
    AgentName, IdempotencyKey, Message, Priority, RequestId, Role, TraceParent, TraceState, TurnId,
};

use self::account::Account;
use self::feed::{Feed, Submitted};
use crate::cli::Global;
use crate::exit::Exit;
use crate::input::{Defaults, Given, WrongLine, turns};
use crate::moment::{Moment, Seconds};
use crate::print::{Show, json_line};
use crate::reply::ReplyArgs;
use crate::sampling::SamplingArgs;
use crate::traces::Traces;

/// Turns followed at once; reading further lines waits for one of them to end.
const MAX_FOLLOWED: usize = 256;
/// Turns waited for at once, all over one connection. Fewer than the ends that the queue's stream of events holds.
const MAX_WAITED: usize = 4096;

const AFTER_HELP: &str = "\
JSON lines:
  One object a line: agent, message or messages [{role, content}], system, new_session, priority,
  deadline and delay (seconds from now), at (as --at), idempotency_key, request_id, traceparent, tracestate,
  tools, tool_choice, parallel_tool_calls, response_format, reasoning (as --reasoning, or an object {enabled,
  effort, budget}) or reasoning_effort, template_arguments (or chat_template_kwargs), keep_thoughts, prompt,
  and the sampling parameters by their names (top_k, stop_token_ids, …), beside the others or under
  \"sampling\". What OpenAI's API has is spelled as there; messages may have tool_calls, tool_call_id, name,
  reasoning (or reasoning_content), and text parts as content. Flags are the defaults for all lines; null
  means no value, whatever the flags say. The input is UTF-8.
  Lines before a wrong one are submitted; the error says which lines are in the queue and which are not.

Output:
  Turn ids, one a line; with --json objects {turn, agent}.
  --wait: texts in the order in which turns end, each call of a tool on a line of its own, as in
  add({\"a\": 1, \"b\": 2}); thoughts are shown on a terminal only. With --json objects {turn, agent, outcome,
  finish, text, usage, timing, worker}; reasoning, tool_calls [{id, type, function {name, arguments}}], stop
  and error if there are any; tokens, lengths and logprobs if asked for.
  --stream: the same as it is made; with --json one object for each event.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Submit {
    /// JSON lines, one turn each; - is stdin, which is also read if neither --message nor --prompt is given.
    #[arg(value_name = "FILE", conflicts_with = "message")]
    file: Option<PathBuf>,
    /// The agent whose turn it is; without it the turn stands alone.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    agent: Option<AgentName>,
    /// What the user says; may be given again.
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    message: Vec<String>,
    /// Have the model go on with TEXT as it stands, without messages and chat template. The turn has neither agent nor tools.
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with_all = ["file", "message", "system", "agent", "tools"],
        allow_hyphen_values = true
    )]
    prompt: Option<String>,
    /// Instructions, put before the messages; give them on an agent's first turn.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Forget the agent's history before this turn.
    #[arg(long)]
    new_session: bool,
    /// The turn's class: interactive turns mostly go before batch turns.
    #[arg(long, value_name = "CLASS", default_value = "interactive", value_parser = priority_parser())]
    priority: Priority,
    /// Enqueue once: submitting again under the same key gives the first turn.
    #[arg(long, value_name = "KEY", conflicts_with = "file", allow_hyphen_values = true)]
    idempotency_key: Option<IdempotencyKey>,
    /// The request's name in logs and traces [default: the turn's id].
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    request_id: Option<RequestId>,
    /// The span in which the turns are enqueued, as W3C trace context [default: the variable TRACEPARENT].
    #[arg(long, value_name = "CONTEXT")]
    traceparent: Option<TraceParent>,
    /// The trace state for --traceparent. Without --traceparent it is that of the variable TRACESTATE.
    #[arg(long, value_name = "LIST", requires = "traceparent")]
    tracestate: Option<TraceState>,
    /// Expire the turn if it has not finished SECONDS from now.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    deadline: Option<Seconds>,
    /// Do not run the turn until SECONDS have passed; the agent's later turns wait for it.
    #[arg(long, value_name = "SECONDS", conflicts_with = "at", allow_negative_numbers = true)]
    delay: Option<Seconds>,
    /// Do not run the turn before this time: RFC 3339, or Unix seconds.
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    at: Option<Moment>,
    /// Refuse turns if N already wait or run in the queue.
    #[arg(long, value_name = "N", env = "TURNMILL_MAX_DEPTH", default_value_t = 100_000)]
    max_depth: u64,
    /// Refuse turns if N of --tenant already wait or run.
    #[arg(long, value_name = "N", env = "TURNMILL_TENANT_MAX_DEPTH", default_value_t = 100_000)]
    tenant_max_depth: u64,
    /// If the queue is full, wait until there is room.
    #[arg(long)]
    wait_for_room: bool,
    /// Wait for the end and print the result.
    #[arg(long)]
    wait: bool,
    /// Print the reply as it is made.
    #[arg(long, conflicts_with = "wait")]
    stream: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
    /// With --wait --json: print the reply's token ids, and how many bytes of the text each one made visible.
    #[arg(long, requires = "wait", requires = "json")]
    tokens: bool,
    #[command(flatten)]
    reply: ReplyArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

fn priority_parser() -> impl TypedValueParser<Value = Priority> {
    PossibleValuesParser::new(Priority::ALL.map(Priority::as_str))
        .map(|name| Priority::ALL.into_iter().find(|priority| priority.as_str() == name).unwrap_or_default())
}

impl Submit {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let defaults = self.defaults().await?;
        if self.is_one() {
            let system = self.system.iter().map(|text| Message::new(Role::System, text));
            let messages = self.message.iter().map(|text| Message::new(Role::User, text));
            let prompt = self.prompt.clone();
            let turn = NewTurn { messages: system.chain(messages).collect(), prompt, ..defaults.turn };
            let turns = stream::iter([Ok(Given { line: None, turn })]);
            return self.submit_all(global, turns).await;
        }
        self.check_lines()?;
        let turns = turns(self.input().await?, defaults);
        self.submit_all(global, turns).await
    }

    /// Whether the flags are a turn by themselves; otherwise lines are.
    fn is_one(&self) -> bool {
        !self.message.is_empty() || self.prompt.is_some()
    }

    /// The flags, checked.
    async fn defaults(&self) -> Result<Defaults, Exit> {
        let sampling = self.sampling.to_sampling();
        sampling.validate().map_err(Exit::bad_input)?;
        let (traceparent, tracestate) = self.trace_context();
        let turn = NewTurn {
            agent: self.agent.clone(),
            new_session: self.new_session,
            sampling,
            priority: self.priority,
            idempotency_key: self.idempotency_key.clone(),
            request_id: self.request_id.clone(),
            traceparent,
            tracestate,
            ..NewTurn::default()
        };
        let turn = match self.deadline {
            Some(seconds) => turn.deadline_in(seconds.duration()),
            None => turn,
        };
        let turn = match (self.delay, self.at) {
            (Some(seconds), _) => turn.delay(seconds.duration()),
            (None, Some(Moment { unix_ms })) => turn.run_at(unix_ms),
            (None, None) => turn,
        };
        let turn = self.reply.apply(turn).await?;
        Ok(Defaults { turn, system: self.system.clone() })
    }

    /// The flags, or the variables: a program that runs this one need not know of its traces. What is wrong in a variable is passed over.
    fn trace_context(&self) -> (Option<TraceParent>, Option<TraceState>) {
        if self.traceparent.is_some() {
            return (self.traceparent, self.tracestate.clone());
        }
        let variable = |name| std::env::var(name).ok();
        (
            variable("TRACEPARENT").and_then(|text| text.parse().ok()),
            variable("TRACESTATE").and_then(|text| text.parse().ok()),
        )
    }

    /// What makes no sense for several turns.
    fn check_lines(&self) -> Result<(), Exit> {
        if self.file.is_none() && stdin().is_terminal() {
            return Err(Exit::bad_input("nothing to submit: give --message TEXT, or JSON lines on stdin"));
        }
        if self.idempotency_key.is_some() {
            return Err(Exit::bad_input("give idempotency_key on each line: one key means one turn"));
        }
        if self.stream && !self.json {
            return Err(Exit::bad_input(
                "texts of several turns would mix: add --json to --stream, or use --wait",
            ));
        }
        Ok(())
    }

    async fn input(&self) -> Result<Box<dyn AsyncRead + Send + Unpin>, Exit> {
        match self.file.as_deref().filter(|file| file.as_os_str() != "-") {
            None => Ok(Box::new(tokio::io::stdin())),
            Some(file) => match tokio::fs::File::open(file).await {
                Ok(file) => Ok(Box::new(file)),
                Err(error) => Err(Exit::bad_input(format!("cannot read {}: {error}", file.display()))),
            },
        }
    }

    /// Enqueues turns as they come, and attends to those that are in the queue.
    ///
    /// Both are polled together to the end; no arm awaits. Enqueueing must never be awaited while the followers are not
    /// polled: they share a connection, and a follower that stands still in the line for it holds up everybody behind it.
    async fn submit_all(
        &self,
        global: &Global,
        lines: impl Stream<Item = Result<Given, WrongLine>>,
    ) -> Result<(), Exit> {
        let traces = Traces::from_environment(&global.queue);
        let limited = global.builder().max_depth(self.max_depth).tenant_max_depth(self.tenant_max_depth);
        let client = limited.connect().await?;
        let mut feed = std::pin::pin!(Feed::new(&client, &traces, self.wait_for_room, lines).into_stream());
        let mut waited = client.wait_many();
        // Lines under one idempotency key are one turn, and each of them has a result.
        let mut lines_of: HashMap<TurnId, usize> = HashMap::new();
        let mut followers = FuturesUnordered::new();
        let mut done = Account::default();
        let show = Show { json: self.json, tokens: self.tokens, headed: !self.is_one() };
        let mut more = true;
        loop {
            tokio::select! {
                fed = feed.next(), if more && followers.len() < MAX_FOLLOWED && waited.waiting() < MAX_WAITED => match fed {
                    Some(Ok(submitted)) => for turn in submitted {
                        done.submitted(&turn);
                        if done.is_unread() {
                            // Nobody listens; what is left of the input goes into the queue all the same.
                        } else if self.wait {
                            *lines_of.entry(turn.turn).or_default() += 1;
                            waited.add(turn.turn);
                        } else if self.stream {
                            followers.push(show.events(&client, turn.turn, None));
                        } else {
                            done.printed(self.print_id(&turn));
                        }
                    },
                    Some(Err(stopped)) => done.stopped(stopped),
                    None => more = false,
                },
                Some(attended) = followers.next() => done.attended(attended),
                Some((turn, result)) = waited.next() => {
                    let again = lines_of.remove(&turn).unwrap_or(1).saturating_sub(1);
                    for result in result.iter().cloned().cycle().take(again) {
                        done.attended(show.result(turn, Ok(result)));
                    }
                    done.attended(show.result(turn, result));
                }
                else => break,
            }
            if done.is_unread() {
                followers.clear();
                if waited.waiting() > 0 {
                    waited = client.wait_many();
                }
            }
        }
        done.exit()
    }

    fn print_id(&self, submitted: &Submitted) -> Result<(), Exit> {
        if self.json { json_line(submitted) } else { Ok(writeln!(stdout(), "{}", submitted.turn)?) }
    }
}
