//! A look at a template before the first turn: whether it works, and what it does with tools.

use serde_json::json;
use turnmill_schema::{Message, Role, Tool, ToolCall};

use super::{ChatTemplate, Rendering, TemplateError};
use crate::model::ModelError;
use crate::tools::ToolFormat;

/// What a template does with tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolSupport {
    /// It tells the model of tools, of its calls and of their results.
    Shown,
    /// It leaves out one of these, or refuses such conversations: it was written for a model that does not know of tools.
    Ignored,
    /// It fails by itself if there are tools; the reason. Without tools it works.
    Failed(String),
}

// Words that no template has.
const NAME: &str = "probe_name";
const KEY: &str = "probe_key";
const ARGUMENT: &str = "probe-argument";
const RESULT: &str = "probe-result";
/// The form of our own ids ([`ToolCall::id_of`]), and one that Mistral's templates take.
const OWN_ID: &str = "call_0123456789abcdef01234567";

impl ChatTemplate {
    /// Renders small conversations. A template that fails with a plain one is refused; one that refuses a conversation, such as one with
    /// a system message, is not.
    pub(super) fn probe(&mut self) -> Result<ToolSupport, ModelError> {
        let say = Message::new;
        let plain = [
            say(Role::System, "Be brief."),
            say(Role::User, "a"),
            say(Role::Assistant, "b"),
            say(Role::User, "c"),
        ];
        let with = Rendering { date_ms: Some(0), ..Rendering::plain() };
        for messages in [&plain[..], &plain[1..], &plain[1..2]] {
            if let Err(TemplateError::Failed(reason)) = self.render(messages, &with) {
                return Err(ModelError::Unusable(format!(
                    "its chat template fails with a plain conversation: {reason}; correct it, or give another one with \
                     --chat-template"
                )));
            }
        }
        Ok(self.probe_tools(&with))
    }

    /// The format of calls that the model's files name (`response_template` in its tokenizer_config.json), or in which the template
    /// writes them; none if the template shows no tools, or the format is not known.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        if !self.supports_tools() {
            return None;
        }
        self.format.or_else(|| {
            let (tools, messages) = ([tool()], tool_loop());
            let with = Rendering { tools: &tools, date_ms: Some(0), ..Rendering::plain() };
            let text = self.render(&messages, &with).ok()?;
            messages[1].tool_calls.first().and_then(|call| ToolFormat::detect(&text, call))
        })
    }

    fn probe_tools(&mut self, with: &Rendering<'_>) -> ToolSupport {
        let tools = [tool()];
        let with = Rendering { tools: &tools, ..*with };
        let mut outcome = self.render(&tool_loop(), &with);
        if matches!(outcome, Err(TemplateError::Refused(_))) {
            self.short_ids = true;
            outcome = self.render(&tool_loop(), &with);
            self.short_ids = outcome.is_ok();
        }
        match outcome.and_then(|text| Ok((text, self.render(&tool_loop()[..1], &with)?))) {
            Ok((text, asked)) => {
                let shown =
                    asked.contains(NAME) && [NAME, ARGUMENT, RESULT].iter().all(|word| text.contains(word));
                if shown { ToolSupport::Shown } else { ToolSupport::Ignored }
            }
            Err(TemplateError::Failed(reason)) => ToolSupport::Failed(reason),
            Err(TemplateError::Refused(_) | TemplateError::Arguments(_)) => ToolSupport::Ignored,
        }
    }
}

/// A tool as most are: described, with typed properties.
fn tool() -> Tool {
    let parameters = json!({
        "type": "object",
        "properties": {KEY: {"type": "string", "description": "A word."}},
        "required": [KEY],
    });
    Tool {
        name: NAME.to_owned(),
        description: Some("Looks a word up.".to_owned()),
        parameters: parameters.as_object().cloned(),
    }
}

/// A question, a call and its result.
fn tool_loop() -> [Message; 3] {
    let call = ToolCall {
        id: OWN_ID.to_owned(),
        name: NAME.to_owned(),
        arguments: json!({KEY: ARGUMENT}).to_string(),
    };
    [
        Message::new(Role::User, "a"),
        Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") },
        Message { name: Some(NAME.to_owned()), ..Message::tool_result(OWN_ID, RESULT) },
    ]
}
