//! What a chat template writes around messages, learnt from the template itself: so a prompt that is nothing but tokens tells which
//! message it asks and where its reply starts.
//!
//! Templates that write into the user's messages (a system prompt in front of the first one, as Gemma's does) make what they wrote a part
//! of the message.

use turnmill_schema::{Message, Role};
use turnmill_worker::model::{ChatTemplate, Rendering, TemplateError, Tokenizer};

/// Messages that no template contains.
const MARKS: [&str; 3] = ["first-mark", "second-mark", "third-mark"];

/// What stands around messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Before each message of the user.
    before_user: String,
    /// After each message of the user, whichever role speaks next.
    after_user: String,
    /// Before the reply: all that follows the last message.
    before_reply: String,
    /// The token that ends a reply.
    end: u32,
}

/// What a prompt asks, and what is said of the reply already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The last message of the user; empty if there is none.
    pub message: String,
    /// Index of the reply's first token.
    pub reply_starts: usize,
}

/// Why prompts of a template cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It refuses a plain conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Its text does not show who says what.
    #[error(
        "a scripted worker cannot tell from the model's chat template {0}; take another model, or give a template with \
         --chat-template"
    )]
    Unclear(&'static str),
    /// There is no token to end replies with.
    #[error("the model's vocabulary names no token at which replies end; take another model")]
    NoEnd,
}

impl Frame {
    /// Learns what `template` writes around messages.
    pub fn new(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Self, FrameError> {
        let render = |roles: &[Role]| {
            let messages: Vec<Message> =
                roles.iter().zip(MARKS).map(|(role, mark)| Message::new(*role, mark)).collect();
            template.render(&messages, &Rendering::plain())
        };
        let asked = render(&[Role::User])?;
        let answered = render(&[Role::User, Role::Assistant, Role::User])?;
        let (start, before_reply) =
            asked.split_once(MARKS[0]).ok_or(FrameError::Unclear("where messages are"))?;
        let unclear = || FrameError::Unclear("where messages end");
        let after_user = between(&answered, MARKS[0], MARKS[1]).ok_or_else(unclear)?;
        let after_reply = between(&answered, MARKS[1], MARKS[2]).ok_or_else(unclear)?;
        let mut after_user = common_start(before_reply, after_user);
        // Each role that may speak next. Not every template knows all of them.
        for role in [Role::Tool, Role::System, Role::User] {
            let shorter = render(&[Role::User, role]).ok().and_then(|text| {
                between(&text, MARKS[0], MARKS[1]).map(|after| common_start(&after_user, after))
            });
            after_user = shorter.filter(|shorter| !shorter.is_empty()).unwrap_or(after_user);
        }
        let frame = Self {
            before_user: common_end(start, after_reply),
            after_user,
            before_reply: before_reply.to_owned(),
            end: end(tokenizer, after_reply)?,
        };
        if frame.before_user.is_empty() {
            return Err(FrameError::Unclear("where the user's messages start"));
        }
        if frame.after_user.is_empty() {
            return Err(FrameError::Unclear("where replies start"));
        }
        Ok(frame)
    }

    /// The token that ends a reply.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// What `tokens` ask: a prompt, and as much of its reply as there is. None: no prompt of this template's.
    pub fn asked(&self, tokenizer: &Tokenizer, tokens: &[u32]) -> Option<Asked> {
        let text = tokenizer.decode_with_controls(tokens);
        let starts = text.rfind(&self.before_reply)?;
        let message = self.last_message(&text[..starts + self.before_reply.len()]).to_owned();
        let starts = starts + self.before_reply.len();
        if starts == text.len() {
            return Some(Asked { message, reply_starts: tokens.len() });
        }
        // The reply's tokens were made after the prompt's, so one of them begins exactly there.
        let mut range = 0..tokens.len();
        while !range.is_empty() {
            let middle = range.start.midpoint(range.end);
            if tokenizer.decode_with_controls(&tokens[..middle]).len() < starts {
                range.start = middle + 1;
            } else {
                range.end = middle;
            }
        }
        Some(Asked { message, reply_starts: range.start })
    }

    fn last_message<'a>(&self, prompt: &'a str) -> &'a str {
        let message = prompt.rsplit_once(&self.before_user).map_or("", |(_, message)| message);
        message.split_once(&self.after_user).map_or(message, |(message, _)| message)
    }
}

fn end(tokenizer: &Tokenizer, after_reply: &str) -> Result<u32, FrameError> {
    let ends = tokenizer.ends();
    let written = tokenizer.encode(after_reply).unwrap_or_default();
    let written = written.first().filter(|token| ends.contains(token));
    written.or(ends.first()).copied().ok_or(FrameError::NoEnd)
}

/// What `text` has between `a` and `b`.
fn between<'a>(text: &'a str, a: &str, b: &str) -> Option<&'a str> {
    Some(text.split_once(a)?.1.split_once(b)?.0)
}

fn common_start(a: &str, b: &str) -> String {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

fn common_end(a: &str, b: &str) -> String {
    let common = a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b);
    let length: usize = common.map(|(a, _)| a.len_utf8()).sum();
    a[a.len() - length..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_texts_share_is_found_at_both_ends() {
        assert_eq!(common_end("<bos><user>\n", "</s>\n<user>\n"), "<user>\n");
        assert_eq!(common_end("é", "è"), "");
        assert_eq!(common_start("</s>\n<model>\n<think>", "</s>\n<model>\nhi"), "</s>\n<model>\n");
    }

    #[test]
    fn the_last_message_of_the_user_ends_where_something_else_is_said() {
        let frame = Frame {
            before_user: "<user>".to_owned(),
            after_user: "</s>".to_owned(),
            before_reply: "</s><model>".to_owned(),
            end: 0,
        };
        assert_eq!(frame.last_message("<user>one</s><model>"), "one");
        assert_eq!(frame.last_message("<user>one</s><model>two</s><user>three</s><model>"), "three");
        assert_eq!(frame.last_message("<user>one</s><tool>two</s><model>"), "one");
        assert_eq!(frame.last_message("one</s><model>"), "");
    }
}
