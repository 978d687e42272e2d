//! What the program writes: results and events, for people or one JSON object a line.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::pin::pin;

use futures::StreamExt;
use serde::Serialize;
use turnmill::schema::{End, Event, Name, Outcome, TurnId};
use turnmill::{Fault, Followed, Producer, ProducerError, StreamId, TurnResult};

use super::Exit;
use super::terminal::{for_stdout, json_for_stdout, visible};

/// How to show what turns make.
#[derive(Clone, Copy, Debug, Default)]
pub struct Show {
    /// JSON lines.
    pub json: bool,
    /// Token ids in results, and how much text each has.
    pub tokens: bool,
    /// Several turns share the output: say whose each text is, as `tail` does for files.
    pub headed: bool,
}

/// An event line of `--stream --json` and `tail --json`.
#[derive(Serialize)]
struct EventLine<'a> {
    turn: TurnId,
    #[serde(flatten)]
    followed: &'a Followed,
}

impl Show {
    /// Writes the result of a turn that was waited for. True: it completed.
    pub fn result(self, turn: TurnId, result: Result<TurnResult, ProducerError>) -> Result<bool, Exit> {
        let mut result = result.map_err(|error| goes_on(turn, error))?;
        if self.json {
            if !self.tokens {
                result.tokens.clear();
                result.lengths.clear();
            }
            json_line(&result)?;
            return Ok(result.outcome == Outcome::Completed);
        }
        if self.headed {
            let agent = result.agent.as_ref().map_or("no agent", Name::as_str);
            writeln!(stdout(), "==> {turn} ({agent}) <==")?;
        }
        match &result.text {
            Some(text) if text.is_empty() => {}
            Some(text) => writeln!(stdout(), "{}", for_stdout(text))?,
            None => expired(turn),
        }
        let TurnResult { outcome, error, .. } = result;
        Ok(ended(turn, outcome, error.as_deref()))
    }

    /// Follows the turn and writes its events, or its text as it is made. True: it completed.
    pub async fn events(
        self,
        producer: &Producer,
        turn: TurnId,
        from: Option<StreamId>,
    ) -> Result<bool, Exit> {
        let mut events = pin!(producer.follow(turn, from));
        let mut last_byte = b'\n';
        while let Some(followed) = events.next().await {
            let followed = followed.map_err(|error| goes_on(turn, error))?;
            if self.json {
                json_line(&EventLine { turn, followed: &followed })?;
            }
            match followed.event {
                Event::Begin(_) => {}
                Event::Delta(_) if self.json => {}
                Event::Delta(delta) => {
                    last_byte = delta.text.bytes().last().unwrap_or(last_byte);
                    write!(stdout(), "{}", for_stdout(&delta.text))?;
                    stdout().flush()?;
                }
                Event::End(End { outcome, .. }) if self.json => return Ok(outcome == Outcome::Completed),
                Event::End(end) => {
                    if last_byte != b'\n' {
                        writeln!(stdout())?;
                    }
                    if followed.id.is_none() {
                        expired(turn);
                    }
                    return Ok(ended(turn, end.outcome, end.error.as_deref()));
                }
            }
        }
        Ok(false)
    }
}

/// Writes one JSON object and a newline, at once.
pub fn json_line(value: &impl Serialize) -> Result<(), Exit> {
    let line = json_for_stdout(serde_json::to_string(value).map_err(std::io::Error::from)?) + "\n";
    let mut out = stdout();
    out.write_all(line.as_bytes())?;
    Ok(out.flush()?)
}

/// Says something on stderr. If nobody reads that, nothing else is to be said or done about it.
pub fn say(message: impl Display) {
    let _ = writeln!(stderr(), "turnmill: {}", visible(&message.to_string()));
}

/// What became of a line of output, for a command that changes one thing after the other: it is not ended half-way because
/// nobody reads what it prints.
pub fn unless_closed(printed: Result<(), Exit>) -> Result<(), Exit> {
    match printed {
        Err(Exit::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Says on stderr how a turn ended, unless it completed.
fn ended(turn: TurnId, outcome: Outcome, error: Option<&str>) -> bool {
    let how = match outcome {
        Outcome::Completed => return true,
        Outcome::Failed => "failed",
        Outcome::Cancelled => "was cancelled",
        Outcome::Expired => "was not run in time",
    };
    match error {
        Some(error) => say(format_args!("turn {turn} {how}: {error}")),
        None => say(format_args!("turn {turn} {how}")),
    }
    false
}

fn expired(turn: TurnId) {
    say(format_args!("the text of turn {turn} has expired; only its outcome is kept"));
}

/// A turn does not end because nobody listens: says how to listen again.
fn goes_on(turn: TurnId, mut error: ProducerError) -> Exit {
    if let ProducerError::Queue(Fault::Unreachable { reason, .. } | Fault::Stale { reason, .. }) = &mut error
    {
        reason.push_str(&format!(" (the turn goes on; read it later with: turnmill tail {turn})"));
    }
    Exit::Queue(error)
}
