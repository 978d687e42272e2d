//! The prompt of a turn: its agent's exact history, then what is new.
//!
//! A chat template is a function of the whole conversation, so the whole conversation is rendered and the new
//! part is what follows the history's tokens. Where the rendered text starts with the history's text the exact
//! tokens are kept (and their blocks found again), and the template completes what a `length` finish left
//! open. Where it does not, because a template rewrites old turns, everything is tokenised again.

use turnmill_schema::{History, Message};

use super::ModelError;
use super::template::{ChatTemplate, TemplateError};
use super::tokenizer::Tokenizer;

/// A turn's prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// All of it, history first.
    pub tokens: Vec<u32>,
    /// How many tokens of the history it starts with.
    pub kept: usize,
    /// The history had to be tokenised again.
    pub retokenised: bool,
}

/// Why no prompt can be made of a turn. It is the turn's fault: reject it.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The template refused the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The text cannot be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] ModelError),
}

/// Makes the prompt for `messages` after `history`.
pub fn prompt(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    history: &History,
    messages: &[Message],
) -> Result<Prompt, PromptError> {
    let conversation: Vec<Message> = history.messages.iter().chain(messages).cloned().collect();
    let rendered = template.render(&conversation)?;
    let known = tokenizer.decode_with_controls(&history.tokens);
    let new = rendered.strip_prefix(known.as_str()).map(|new| tokenizer.encode_after(&history.tokens, new));
    if let Some(Some(new)) = new.transpose()? {
        let mut tokens = history.tokens.clone();
        tokens.extend(new);
        return Ok(Prompt { tokens, kept: history.tokens.len(), retokenised: false });
    }
    let tokens = tokenizer.encode(&rendered)?;
    let kept = tokens.iter().zip(&history.tokens).take_while(|(a, b)| a == b).count();
    Ok(Prompt { tokens, kept, retokenised: true })
}
