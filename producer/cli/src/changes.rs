//! Commands about several turns: each turn is attended to, whatever comes of the others.
//!
//! Invariants: an error ends the command for its own turn only, unless Redis is away and every other turn would meet the
//! same error; what is changed does not depend on whether somebody reads the output.

use std::io::{Write, stdout};

use serde::Serialize;
use turnmill_client::schema::{Outcome, TurnId};

use crate::exit::Exit;
use crate::exit::worse;
use crate::print::json_line;

/// What a command did to a turn.
#[derive(Serialize)]
pub struct Done {
    pub turn: TurnId,
    /// `cancelled`; `ended` if it had ended before; `runs_now`; `replayed`, `purged`; with --dry-run `would_be_replayed`,
    /// `would_be_purged`.
    pub status: &'static str,
    /// How it had ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The new turn of a replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_as: Option<TurnId>,
}

impl Done {
    pub fn new(turn: TurnId, status: &'static str) -> Self {
        Self { turn, status, outcome: None, replayed_as: None }
    }

    pub fn print(&self, json: bool) -> Result<(), Exit> {
        if json {
            return json_line(self);
        }
        let Self { turn, status, outcome, replayed_as } = self;
        let how = outcome.map(|outcome| format!(" before: {}", outcome.as_str())).unwrap_or_default();
        let new = replayed_as.map(|new| format!(" as {new}")).unwrap_or_default();
        Ok(writeln!(stdout(), "{turn} {}{how}{new}", status.replace('_', " "))?)
    }
}

/// Turns, by the names that errors have for them.
pub fn named(turns: impl IntoIterator<Item = TurnId>) -> impl Iterator<Item = (String, TurnId)> {
    turns.into_iter().map(|turn| (format!("turn {turn}"), turn))
}

/// Shows each thing. Ends when nobody reads the output any more.
pub async fn show_each<T>(
    things: impl Iterator<Item = (String, T)>,
    show: impl AsyncFnMut(T) -> Result<(), Exit>,
) -> Result<(), Exit> {
    attend(things, show, |unwritten| Err(Exit::Output(unwritten))).await
}

/// Changes each thing and prints what was done, also when nobody reads that any more.
pub async fn change_each<T>(
    things: impl Iterator<Item = (String, T)>,
    change: impl AsyncFnMut(T) -> Result<(), Exit>,
) -> Result<(), Exit> {
    attend(things, change, Ok).await
}

/// Tells each error with the name of its thing, and ends with the worst code. `go_on` says whether to go on without output.
async fn attend<T>(
    things: impl Iterator<Item = (String, T)>,
    mut act: impl AsyncFnMut(T) -> Result<(), Exit>,
    go_on: impl Fn(std::io::Error) -> Result<std::io::Error, Exit>,
) -> Result<(), Exit> {
    let mut things = things.peekable();
    let (mut code, mut unwritten) = (0, None);
    while let Some((name, thing)) = things.next() {
        match act(thing).await {
            Ok(()) => {}
            Err(Exit::Output(error)) => unwritten = unwritten.or(Some(go_on(error)?)),
            Err(exit) => {
                let is_outage = exit.is_outage();
                let exit = match things.peek().filter(|_| is_outage) {
                    Some((next, _)) => exit.of(name).after(format!("not tried: {next} and all after it")),
                    None => exit.of(name),
                };
                code = worse(code, exit.tell());
                if is_outage {
                    break;
                }
            }
        }
    }
    if let Some(error) = unwritten {
        code = worse(code, Exit::Output(error).tell());
    }
    if code == 0 { Ok(()) } else { Err(Exit::Told(code)) }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use turnmill_client::{ClientError, Fault};

    use super::*;

    /// How a thing fails.
    type Fails = fn() -> Exit;

    fn away() -> Exit {
        ClientError::from(Fault::Unreachable { address: "h:1".to_owned(), reason: "refused".to_owned() })
            .into()
    }

    fn closed() -> Exit {
        Exit::Output(ErrorKind::BrokenPipe.into())
    }

    /// Which of four things are attended to if the second one fails, and the code of the end.
    async fn attended(fails: Fails, changes: bool) -> (Vec<usize>, u8) {
        let things = (0..4).map(|thing| (format!("thing {thing}"), thing));
        let mut attended = Vec::new();
        let act = async |thing| {
            attended.push(thing);
            if thing == 1 { Err(fails()) } else { Ok(()) }
        };
        let end = if changes { change_each(things, act).await } else { show_each(things, act).await };
        (attended, end.map_or_else(|exit| exit.read().0, |()| 0))
    }

    #[tokio::test]
    async fn an_error_of_one_thing_keeps_no_other_from_being_attended_to() {
        let missing = || Exit::NotThere("it is gone".to_owned());
        let full = || Exit::Output(ErrorKind::StorageFull.into());
        let cases: [(Fails, bool, usize, u8); 9] = [
            (missing, true, 4, 4),
            (missing, false, 4, 4),
            (|| Exit::conflict("it has ended"), true, 4, 6),
            // The others would wait as long for the same error.
            (away, true, 2, 3),
            (away, false, 2, 3),
            (closed, true, 4, 0),
            (closed, false, 2, 0),
            (full, true, 4, 1),
            (full, false, 2, 1),
        ];
        for (fails, changes, attends, code) in cases {
            let expected = ((0..attends).collect(), code);
            assert_eq!(attended(fails, changes).await, expected, "{:?}, changes: {changes}", fails());
        }
    }

    #[tokio::test]
    async fn the_worst_code_is_the_end_in_whatever_order_errors_come() {
        let unreadable = || {
            let (what, reason) = ("a turn".to_owned(), "it is a list".to_owned());
            Exit::from(ClientError::Unreadable { what, reason })
        };
        let mut fails: [Fails; 3] =
            [unreadable, || Exit::NotThere("it is gone".to_owned()), || Exit::conflict("it has ended")];
        for _ in 0..fails.len() {
            fails.rotate_left(1);
            let things = fails.iter().map(|fails| ("thing".to_owned(), fails));
            let end = change_each(things, async |fails| Err(fails())).await;
            assert_eq!(end.expect_err("all failed").read(), (3, None));
        }
    }
}
