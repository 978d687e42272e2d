//! What was submitted, what became of it, and how the command ends.

use super::feed::{Stopped, Submitted};
use crate::exit::Exit;
use crate::exit::worse;

/// Counts as it goes.
#[derive(Debug, Default)]
pub struct Account {
    submitted: u64,
    first: Option<u64>,
    last: Option<u64>,
    /// A turn ended otherwise than as completed.
    not_completed: bool,
    /// The code to end with, unless 0: results could not be read.
    lost: u8,
    /// The output ends here.
    unwritten: Option<std::io::Error>,
    stopped: Option<Stopped>,
}

impl Account {
    /// A turn is in the queue.
    pub fn submitted(&mut self, turn: &Submitted) {
        self.submitted += 1;
        self.first = self.first.or(turn.line);
        self.last = turn.line;
    }

    /// Nothing more is enqueued. What is in the queue goes on to its end.
    pub fn stopped(&mut self, stopped: Stopped) {
        self.stopped = Some(stopped);
    }

    /// A turn's id was printed, or could not be.
    pub fn printed(&mut self, printed: Result<(), Exit>) {
        self.attended(printed.map(|()| true));
    }

    /// A turn was attended to: true if it completed. If its result cannot be read, this is said, and the others go on.
    pub fn attended(&mut self, attended: Result<bool, Exit>) {
        match attended {
            Ok(completed) => self.not_completed |= !completed,
            Err(Exit::Output(error)) => self.unwritten = Some(error),
            Err(other) => self.lost = worse(self.lost, other.tell()),
        }
    }

    /// Whether nobody reads the output any more, or it cannot be written. A command that writes to the queue is not
    /// ended half-way by that.
    pub fn is_unread(&self) -> bool {
        self.unwritten.is_some()
    }

    /// How the command ends.
    pub fn exit(mut self) -> Result<(), Exit> {
        match self.stopped.take() {
            Some(stopped) => Err(self.stopped_at(stopped)),
            None if self.submitted == 0 => Err(Exit::bad_input("nothing to submit: the input has no lines")),
            None => match (self.unwritten, self.lost) {
                (Some(error), _) => Err(Exit::Output(error)),
                (None, 0) if self.not_completed => Err(Exit::NotCompleted),
                (None, 0) => Ok(()),
                (None, code) => Err(Exit::Told(code)),
            },
        }
    }

    /// The error, with which lines are in the queue and which are not.
    fn stopped_at(&self, stopped: Stopped) -> Exit {
        let Stopped { why, unsure, line } = stopped;
        let last_unsure = unsure.last().and_then(|turn| turn.line);
        let lines = unsure.first().and_then(|turn| turn.line).zip(last_unsure).map(lines);
        let turn = unsure.first().map(|unsure| format!("turn {} (see turnmill turn show)", unsure.turn));
        let behind = last_unsure.map(|last| format!("all lines after {last}"));
        let parts = [
            ("enqueued", self.first.zip(self.last).map(self::lines)),
            ("perhaps enqueued", lines.or(turn)),
            ("not enqueued", line.map(|line| format!("line {line} and all after it")).or(behind)),
        ];
        let said = parts.into_iter().filter_map(|(what, which)| Some(format!("{what}: {}", which?)));
        match said.collect::<Vec<_>>().join("; ") {
            said if said.is_empty() => why,
            said => why.after(said),
        }
    }
}

fn lines((first, last): (u64, u64)) -> String {
    if first == last { format!("line {first}") } else { format!("lines {first} to {last}") }
}

#[cfg(test)]
mod tests {
    use turnmill_client::ClientError;
    use turnmill_client::schema::TurnId;

    use super::*;

    fn turn(line: Option<u64>) -> Submitted {
        Submitted { turn: TurnId::new(0), agent: None, line }
    }

    #[test]
    fn an_error_says_which_lines_are_in_the_queue() {
        for (enqueued, unsure, line, said) in [
            (0..0, 0..0, Some(1), "why; not enqueued: line 1 and all after it"),
            (1..2, 0..0, Some(3), "why; enqueued: line 1; not enqueued: line 3 and all after it"),
            (1..4, 0..0, Some(4), "why; enqueued: lines 1 to 3; not enqueued: line 4 and all after it"),
            (0..0, 1..2, None, "why; perhaps enqueued: line 1; not enqueued: all lines after 1"),
            (
                1..3,
                3..5,
                Some(5),
                "why; enqueued: lines 1 to 2; perhaps enqueued: lines 3 to 4; not enqueued: line 5 and all after it",
            ),
        ] {
            let mut account = Account::default();
            enqueued.for_each(|line| account.submitted(&turn(Some(line))));
            let unsure = unsure.map(|line| turn(Some(line))).collect();
            account.stopped(Stopped { why: Exit::bad_input("why"), unsure, line });
            assert_eq!(account.exit().expect_err("stopped").read(), (2, Some(said.to_owned())));
        }
    }

    #[test]
    fn the_order_in_which_results_come_does_not_decide_the_exit_code() {
        let gone = || Err(Exit::NotThere("the result has expired".to_owned()));
        let refused = || {
            let (what, reason) = ("a result".to_owned(), "it is a list".to_owned());
            Err(Exit::from(ClientError::Unreadable { what, reason }))
        };
        let mut results: [fn() -> Result<bool, Exit>; 4] = [|| Ok(false), gone, || Ok(true), refused];
        for _ in 0..results.len() {
            results.rotate_left(1);
            let mut account = Account::default();
            account.submitted(&turn(Some(1)));
            results.iter().for_each(|result| account.attended(result()));
            assert_eq!(account.exit().expect_err("results are lost").read(), (3, None));
        }
    }

    #[test]
    fn a_turn_from_flags_has_no_lines() {
        for (unsure, part) in [(vec![], ""), (vec![turn(None)], "; perhaps enqueued: turn ")] {
            let mut account = Account::default();
            account.stopped(Stopped { why: Exit::bad_input("why"), unsure, line: None });
            let (_, said) = account.exit().expect_err("stopped").read();
            assert!(
                said.is_some_and(|said| said.starts_with(&format!("why{part}")) && !said.contains("line"))
            );
        }
    }
}
