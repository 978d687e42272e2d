//! What the program writes: results and events, for people or one JSON object a line.

use std::io::{IsTerminal, Write, stdout};

use serde::Serialize;
use turnmill_client::schema::{AgentName, End, Event, Outcome, TurnId};
use turnmill_client::{Client, ClientError, Fault, Followed, StreamId, TurnResult};

use crate::exit::Exit;
use crate::spoken::Spoken;
use crate::text::{json_for, say};

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
    /// Writes the result of a turn that was waited for. True: it completed. An error if its text has expired.
    pub fn result(self, turn: TurnId, result: Result<TurnResult, ClientError>) -> Result<bool, Exit> {
        let mut result = result.map_err(|error| goes_on(turn, error))?;
        let is_kept = result.text.is_some();
        if self.json {
            if !self.tokens {
                result.tokens.clear();
                result.lengths.clear();
            }
            json_line(&result)?;
            return self.ended(turn, is_kept, result.outcome, result.error.as_deref());
        }
        if self.headed {
            let agent = result.agent.as_ref().map_or("no agent", AgentName::as_str);
            writeln!(stdout(), "==> {turn} ({agent}) <==")?;
        }
        let mut spoken = Spoken::to_stdout();
        write!(stdout(), "{}{}", spoken.reply(&result), spoken.end(result.finish))?;
        stdout().flush()?;
        self.ended(turn, is_kept, result.outcome, result.error.as_deref())
    }

    /// Follows the turn and writes its events, or its text as it is made. True: it completed. An error if its text has
    /// expired.
    pub async fn events(self, client: &Client, turn: TurnId, from: Option<StreamId>) -> Result<bool, Exit> {
        let mut events = client.follow(turn, from);
        let mut spoken = Spoken::to_stdout();
        while let Some(followed) = events.next().await {
            let followed = followed.map_err(|error| goes_on(turn, error))?;
            if self.json {
                json_line(&EventLine { turn, followed: &followed })?;
            }
            match followed.event {
                Event::Begin(_) => {}
                Event::Delta(_) if self.json => {}
                Event::Delta(delta) => {
                    write!(stdout(), "{}", spoken.delta(&delta))?;
                    stdout().flush()?;
                }
                Event::End(End { outcome, finish, error, .. }) => {
                    if !self.json {
                        write!(stdout(), "{}", spoken.end(finish))?;
                        stdout().flush()?;
                    }
                    return self.ended(turn, followed.id.is_some(), outcome, error.as_deref());
                }
            }
        }
        Ok(false)
    }

    /// What the command makes of an end. A reply that cannot be read any more is not success, whatever its outcome; that of
    /// a turn that did not complete says more.
    fn ended(self, turn: TurnId, is_kept: bool, outcome: Outcome, error: Option<&str>) -> Result<bool, Exit> {
        let how = match outcome {
            Outcome::Completed if is_kept => return Ok(true),
            Outcome::Completed => return Err(Exit::NotThere(expired(turn))),
            Outcome::Failed => "failed",
            Outcome::Cancelled => "was cancelled",
            Outcome::Expired => "was not run in time",
        };
        // With --json the object says it.
        if !self.json {
            if !is_kept {
                say(expired(turn));
            }
            let why = error.map(|error| format!(": {error}")).unwrap_or_default();
            say(format_args!("turn {turn} {how}{why}"));
        }
        Ok(false)
    }
}

/// Writes one JSON object and a newline to stdout, at once.
pub fn json_line(value: &impl Serialize) -> Result<(), Exit> {
    json_line_to(&mut stdout(), value)
}

/// Writes one JSON object and a newline, at once.
pub fn json_line_to(out: &mut (impl Write + IsTerminal), value: &impl Serialize) -> Result<(), Exit> {
    let line = json_for(out, serde_json::to_string(value).map_err(std::io::Error::from)?) + "\n";
    out.write_all(line.as_bytes())?;
    Ok(out.flush()?)
}

fn expired(turn: TurnId) -> String {
    format!("the text of turn {turn} has expired; only its outcome is kept: see turnmill turn show {turn}")
}

/// A turn does not end because nobody listens: says how to listen again.
fn goes_on(turn: TurnId, mut error: ClientError) -> Exit {
    if let ClientError::Queue(Fault::Unreachable { reason, .. } | Fault::Stale { reason, .. }) = &mut error {
        reason.push_str(&format!(" (the turn goes on; read it later with: turnmill tail {turn})"));
    }
    Exit::Queue(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completed_reply_that_has_expired_is_not_success() {
        for (outcome, is_kept, code) in [
            (Outcome::Completed, true, 0),
            (Outcome::Completed, false, 4),
            (Outcome::Failed, true, 1),
            (Outcome::Failed, false, 1),
            (Outcome::Cancelled, false, 1),
            (Outcome::Expired, false, 1),
        ] {
            for json in [false, true] {
                let show = Show { json, ..Show::default() };
                let found = match show.ended(TurnId::new(0), is_kept, outcome, Some("why")) {
                    Ok(completed) => u8::from(!completed),
                    Err(exit) => exit.read().0,
                };
                assert_eq!(found, code, "{outcome:?}, kept: {is_kept}, json: {json}");
            }
        }
    }
}
