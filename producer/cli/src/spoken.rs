//! A reply as people read it: what was said, calls of tools on a line each, and on a terminal thoughts before it, dimmed.
//!
//! Invariant: however a reply is divided into deltas, the text is the same.

use std::io::{IsTerminal, stdout};

use turnmill_client::schema::ToolCall;
use turnmill_client::{Delta, FinishReason, Part, TurnResult};

use crate::text::visible;

const DIM: &str = "\x1b[2m";
const UNDIM: &str = "\x1b[22m";

/// Where it goes, and what was written of the reply.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spoken {
    /// A terminal, for which control characters are made visible.
    is_terminal: bool,
    /// Thoughts are dimmed there.
    dims: bool,
    /// What the last text was; none: nothing was written.
    last: Option<Part>,
    /// The text ends within a line.
    within_line: bool,
}

impl Spoken {
    /// A reply that goes to stdout.
    pub fn to_stdout() -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_terminal = stdout().is_terminal();
        Self { is_terminal, dims: is_terminal && !no_color, ..Self::default() }
    }

    /// What comes next.
    pub fn delta(&mut self, delta: &Delta) -> String {
        delta.parts().map(|(part, text)| self.part(part, text)).collect()
    }

    /// A whole reply.
    pub fn reply(&mut self, result: &TurnResult) -> String {
        let thoughts = result.reasoning.as_deref().map(|text| (Part::Reasoning, text));
        let content = result.text.as_deref().map(|text| (Part::Content, text));
        let calls = (0..).zip(&result.tool_calls).flat_map(|(index, ToolCall { name, arguments, .. })| {
            [(Part::ToolName(index), name.as_str()), (Part::ToolArguments(index), arguments)]
        });
        let parts = thoughts.into_iter().chain(content).chain(calls).filter(|(_, text)| !text.is_empty());
        parts.map(|(part, text)| self.part(part, text)).collect()
    }

    /// What stands behind the last part. A call that was cut short stays open.
    pub fn end(&mut self, finish: Option<FinishReason>) -> String {
        let mut text = String::new();
        if self.last.is_some_and(is_call) && finish == Some(FinishReason::ToolCalls) {
            text.push(')');
        }
        if self.within_line {
            text.push('\n');
        }
        self.within_line = false;
        text
    }

    fn part(&mut self, part: Part, text: &str) -> String {
        if part == Part::Reasoning && !self.is_terminal {
            return String::new();
        }
        let mut written = self.between(part);
        match part {
            Part::Content => written.push_str(&self.shown(text)),
            Part::Reasoning if self.dims => {
                written.extend([DIM, &self.shown(text), UNDIM]);
            }
            Part::Reasoning => written.push_str(&self.shown(text)),
            Part::ToolName(_) => written.extend([&*self.shown(text), "("]),
            Part::ToolArguments(_) => written.push_str(&self.shown(&one_line(text))),
        }
        self.within_line = !text.ends_with('\n') || is_call(part);
        self.last = Some(part);
        written
    }

    /// What stands between the last text and one that is `part`.
    fn between(&self, part: Part) -> String {
        let Some(last) = self.last.filter(|last| *last != part) else { return String::new() };
        let line_end = if self.within_line { "\n" } else { "" };
        match (last, part) {
            (Part::ToolName(_), Part::ToolArguments(_)) => String::new(),
            (Part::ToolName(_) | Part::ToolArguments(_), _) => ")\n".to_owned(),
            // The answer stands apart from the thoughts.
            (Part::Reasoning, _) | (_, Part::Reasoning) => format!("{line_end}\n"),
            _ => line_end.to_owned(),
        }
    }

    fn shown(&self, text: &str) -> String {
        if self.is_terminal { visible(text).into_owned() } else { text.to_owned() }
    }
}

fn is_call(part: Part) -> bool {
    matches!(part, Part::ToolName(_) | Part::ToolArguments(_))
}

/// A call as it is shown.
pub fn call_line(call: &ToolCall) -> String {
    format!("{}({})", call.name, one_line(&call.arguments))
}

/// JSON has line ends between its parts only, where a space says the same.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIPE: Spoken = Spoken { is_terminal: false, dims: false, last: None, within_line: false };
    const TERMINAL: Spoken = Spoken { is_terminal: true, dims: true, last: None, within_line: false };

    fn delta(parts: &[(Part, &str)]) -> Delta {
        let mut delta = Delta::default();
        parts.iter().for_each(|part| delta.push_parts(0, &[*part], None));
        delta
    }

    fn written(mut spoken: Spoken, parts: &[(Part, &str)], finish: FinishReason) -> String {
        spoken.delta(&delta(parts)) + &spoken.end(Some(finish))
    }

    #[test]
    fn a_reply_is_shown_in_its_parts() {
        let calls = [
            (Part::Reasoning, "Two to add."),
            (Part::Content, "I add."),
            (Part::ToolName(0), "add"),
            (Part::ToolArguments(0), "{\n\"a\": 1}"),
            (Part::ToolName(1), "add"),
            (Part::ToolArguments(1), "{}"),
        ];
        let add = "I add.\nadd({ \"a\": 1})\nadd({})\n";
        assert_eq!(written(PIPE, &calls, FinishReason::ToolCalls), add);
        let dimmed = format!("{DIM}Two to add.{UNDIM}\n\n{add}");
        assert_eq!(written(TERMINAL, &calls, FinishReason::ToolCalls), dimmed);
        let plain = format!("Two to add.\n\n{add}");
        assert_eq!(written(Spoken { dims: false, ..TERMINAL }, &calls, FinishReason::ToolCalls), plain);
        let cut = written(PIPE, &calls[2..4], FinishReason::Length);
        assert_eq!(cut, "add({ \"a\": 1}\n", "a call that was cut short is open");
        let last = [(Part::ToolName(0), "a"), (Part::Content, "Then\x1b.\n")];
        assert_eq!(written(PIPE, &last, FinishReason::Stop), "a()\nThen\x1b.\n");
        assert_eq!(written(TERMINAL, &last, FinishReason::Stop), "a()\nThen\\u{1b}.\n");
        assert_eq!(written(PIPE, &calls[..1], FinishReason::Length), "");
        assert_eq!(written(PIPE, &[], FinishReason::Stop), "");
    }

    fn part() -> impl Strategy<Value = (Part, &'static str)> {
        let part = prop_oneof![
            Just(Part::Content),
            Just(Part::Reasoning),
            (0_u32..3).prop_map(Part::ToolName),
            (0_u32..3).prop_map(Part::ToolArguments),
        ];
        (part, prop_oneof![Just("a"), Just("é\n"), Just("{\"b\":\n1}")])
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(parts in prop::collection::vec(part(), 0..12), cut in 0_usize..12, terminal: bool) {
            // The name of a call comes whole.
            let names: Vec<_> = parts.iter().map(|(part, _)| *part).collect();
            let whole = |pair: &[Part]| pair[0] != pair[1] || !matches!(pair[0], Part::ToolName(_));
            prop_assume!(names.windows(2).all(whole));
            let start = if terminal { Spoken { dims: false, ..TERMINAL } } else { PIPE };
            let (mut once, mut twice) = (start, start);
            let mut first = delta(&parts);
            let at_once = once.delta(&first) + &once.end(Some(FinishReason::Stop));
            let rest = first.split_off(cut).expect("it has lengths");
            let in_two = twice.delta(&first) + &twice.delta(&rest) + &twice.end(Some(FinishReason::Stop));
            prop_assert_eq!(&at_once, &in_two);
            prop_assert!(at_once.is_empty() || at_once.ends_with('\n'));
        }
    }
}
