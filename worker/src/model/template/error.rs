//! Why a conversation has no prompt, and whose fault it is.

use std::error::Error as _;

use minijinja::Error;

/// A conversation was not rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template says that it takes no such conversation (`raise_exception`).
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// It fails with the turn's own arguments, and works without them.
    #[error(
        "the model's chat template fails with these template_arguments: {0}; correct them, or leave them out"
    )]
    Arguments(String),
    /// It fails by itself: an unknown function, an operation that its values do not have, a loop without an end.
    #[error("the model's chat template fails: {0}; correct it, or give another one with --chat-template")]
    Failed(String),
}

impl TemplateError {
    /// What minijinja's error says.
    pub(super) fn of(error: &Error) -> Self {
        let mut inner: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = inner {
            if let Some(Raised(text)) = error.downcast_ref() {
                return Self::Refused(text.clone());
            }
            inner = error.source();
        }
        // Causes of a failure inside a macro or a filter, which the outermost error does not repeat.
        let (mut text, mut cause) = (error.to_string(), error.source());
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self::Failed(text)
    }

    /// Whether another turn would do better. Otherwise another template would.
    pub fn is_turns_fault(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Arguments(_) => true,
            Self::Failed(_) => false,
        }
    }
}

/// What a template says with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);
