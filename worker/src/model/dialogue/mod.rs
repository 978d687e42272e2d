//! How a model is spoken to: its chat template, the format in which it calls tools, and what encloses its thoughts.

mod spoken;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use turnmill_schema::Message;

use super::template::{ChatTemplate, Rendering, TemplateError};
use crate::tools::{ThinkMarkers, ToolFormat, UnknownFormat};

/// Which format of calls a model is taken to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FormatChoice {
    /// The one that its `response_template` describes, or else in which its chat template writes calls. If the template shows no tools,
    /// or the format is not known here, the generic one.
    #[default]
    Auto,
    /// This one; none: it calls no tools.
    Given(Option<ToolFormat>),
}

impl FromStr for FormatChoice {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        if name == "auto" { Ok(Self::Auto) } else { ToolFormat::from_name(name).map(Self::Given) }
    }
}

impl TryFrom<String> for FormatChoice {
    type Error = UnknownFormat;

    fn try_from(name: String) -> Result<Self, UnknownFormat> {
        name.parse()
    }
}

impl From<FormatChoice> for String {
    fn from(choice: FormatChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for FormatChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Given(None) => f.write_str("none"),
            Self::Given(Some(format)) => format.fmt(f),
        }
    }
}

/// A model's way to speak.
pub struct Dialogue {
    template: ChatTemplate,
    tools: Option<ToolFormat>,
    thoughts: Option<ThinkMarkers>,
}

impl Dialogue {
    /// Of a model with this template.
    pub fn new(template: ChatTemplate, choice: FormatChoice) -> Self {
        let tools = match choice {
            FormatChoice::Auto => Some(template.tool_format().unwrap_or(ToolFormat::Generic)),
            FormatChoice::Given(format) => format,
        };
        let thoughts = ThinkMarkers::detect(template.source());
        Self { template, tools, thoughts }
    }

    /// Its template, which sees what the messages hold.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The format of its calls; none: it calls no tools.
    pub fn tools(&self) -> Option<ToolFormat> {
        self.tools
    }

    /// What encloses its thoughts; none: it has none.
    pub fn thoughts(&self) -> Option<ThinkMarkers> {
        self.thoughts
    }

    /// The text of a conversation. In the generic format the template sees plain messages, with tools, calls and results as text.
    pub fn render(&self, messages: &[Message], with: &Rendering<'_>) -> Result<String, TemplateError> {
        if self.tools != Some(ToolFormat::Generic) {
            return self.template.render(messages, with);
        }
        let plain = Rendering { tools: &[], ..*with };
        let text = self.template.render(&spoken::spoken(messages, with.tools, false), &plain);
        if !with.tools.is_empty() && matches!(text, Err(TemplateError::Refused(_))) {
            // Some templates take no message of the system.
            let in_user = self.template.render(&spoken::spoken(messages, with.tools, true), &plain);
            return in_user.or(text);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Shows tools, and writes calls as Hermes does.
    const HERMES: &str = "{{ tools }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n\
        {\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments|tojson }}}\n</tool_call>{% endfor %}{% endfor %}";

    fn format(config: &Value, source: Option<&str>, choice: FormatChoice) -> Option<ToolFormat> {
        let config = config.to_string();
        let file = |name: &str| Ok((name == "tokenizer_config.json").then(|| config.clone()));
        let template = ChatTemplate::from_folder(file, source).expect("a template that works");
        Dialogue::new(template, choice).tools()
    }

    #[test]
    fn a_format_is_given_or_described_or_found_or_the_generic_one() {
        let calls = |open: &str| json!({"fields": {"tool_calls": {"open": open, "content": "json"}}});
        let plain = json!({"chat_template": HERMES});
        let described = json!({"chat_template": HERMES, "response_template": calls("[TOOL_CALLS]")});
        let unknown = json!({"chat_template": HERMES, "response_template": calls("<other>")});
        let no_tools = json!({
            "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
            "response_template": calls("[TOOL_CALLS]"),
        });
        let (auto, given) = (FormatChoice::Auto, FormatChoice::Given);
        for (config, source, choice, expected) in [
            (&plain, None, auto, Some(ToolFormat::Hermes)),
            (&described, None, auto, Some(ToolFormat::Mistral)),
            (&described, None, given(Some(ToolFormat::Gemma)), Some(ToolFormat::Gemma)),
            (&described, None, given(None), None),
            (&described, Some(HERMES), auto, Some(ToolFormat::Hermes)),
            (&unknown, None, auto, Some(ToolFormat::Hermes)),
            // The model would not be told of its tools.
            (&no_tools, None, auto, Some(ToolFormat::Generic)),
        ] {
            assert_eq!(format(config, source, choice), expected, "{config} {source:?}");
        }
    }
}
