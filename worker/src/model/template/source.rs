//! Where a model's chat template is, and its text as Jinja2 would read it.

use serde::Deserialize;
use serde_json::Value;

use super::ModelError;
use crate::model::tokenizer::{TokenText, read_json};
use crate::tools::ToolFormat;

/// The texts of a model's templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sources {
    /// Of conversations.
    pub(super) chat: String,
    /// Of conversations with tools, if that is another one.
    pub(super) tool_use: Option<String>,
    /// The format of calls that the model's files name.
    pub(super) format: Option<ToolFormat>,
}

/// The part of tokenizer_config.json that is of interest here.
#[derive(Default, Deserialize)]
struct Configured {
    chat_template: Option<Templates>,
    /// How transformers reads the replies to it.
    response_template: Option<Value>,
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
}

/// One template, or several for different uses.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Templates {
    /// The names that transformers looks for.
    fn sources(self) -> Option<Sources> {
        match self {
            Self::One(chat) => Some(Sources::of_one(chat)),
            Self::Named(named) => {
                let find = |name: &str| {
                    named.iter().find(|named| named.name == name).map(|named| named.template.clone())
                };
                Some(Sources { tool_use: find("tool_use"), ..Sources::of_one(find("default")?) })
            }
        }
    }
}

impl Sources {
    fn of_one(chat: String) -> Self {
        Self { chat, tool_use: None, format: None }
    }

    /// Those of a GGUF file whose metadata `text` gives; or `source` in their place.
    pub(super) fn of_gguf<'a>(
        text: impl Fn(&str) -> Option<&'a str>,
        source: Option<&str>,
    ) -> Result<Self, ModelError> {
        if let Some(source) = source {
            return Ok(Self::of_one(source.to_owned()));
        }
        let chat = text("tokenizer.chat_template").ok_or_else(missing)?.to_owned();
        let tool_use = text("tokenizer.chat_template.tool_use").map(str::to_owned);
        Ok(Self { tool_use, ..Self::of_one(chat) })
    }

    /// Those of a folder whose files `text` gives, or `source` in their place; and the texts of the tokens that begin and end a
    /// text.
    pub(super) fn of_folder(
        text: impl Fn(&str) -> Result<Option<String>, ModelError>,
        source: Option<&str>,
    ) -> Result<(Self, String, String), ModelError> {
        let configured: Configured = read_json(&text, "tokenizer_config.json")?;
        let format = configured.response_template.as_ref().and_then(ToolFormat::from_response_template);
        let sources = match (source, text("chat_template.jinja")?) {
            // The model's description of replies belongs to its own template. Another one may ask for another format.
            (Some(source), _) => Self::of_one(source.to_owned()),
            (None, Some(chat)) => {
                Self { chat, tool_use: text("additional_chat_templates/tool_use.jinja")?, format }
            }
            (None, None) => {
                let named = configured.chat_template.and_then(Templates::sources).ok_or_else(missing)?;
                Self { format, ..named }
            }
        };
        let text = |token: Option<TokenText>| token.map(TokenText::text).unwrap_or_default();
        Ok((sources, text(configured.bos_token), text(configured.eos_token)))
    }
}

/// A template's text without what editors leave in files (a byte order mark, carriage returns: Jinja2 reads any line's end as a
/// line feed), and with transformers' own tag as one that minijinja knows.
pub(super) fn normalised(source: &str) -> String {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"))
}

/// `{% generation %}` marks what the model says, for training. What is inside is rendered as it is, in a scope of its own: that is
/// `{% with %}`.
fn without_generation_tags(source: &str) -> String {
    let mut made = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        made.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let word = tag[..end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let with = match word {
            "generation" => Some("with"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        match with {
            Some(with) => made.push_str(&tag[..end].replace(word, with)),
            None => made.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    made.push_str(rest);
    made
}

fn missing() -> ModelError {
    ModelError::Unusable(
        "it has no chat template; take an instruction-tuned model, or give one with --chat-template"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)], source: Option<&str>) -> Result<Sources, ModelError> {
        let text =
            |name: &str| Ok(files.iter().find(|(file, _)| *file == name).map(|(_, text)| (*text).to_owned()));
        Sources::of_folder(text, source).map(|(sources, ..)| sources)
    }

    #[test]
    fn templates_are_found_where_models_have_them() {
        let sources = |chat: &str, tool_use: Option<&str>| Sources {
            chat: chat.to_owned(),
            tool_use: tool_use.map(str::to_owned),
            format: None,
        };
        let config = ("tokenizer_config.json", r#"{"chat_template": "a"}"#);
        let named = (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
        );
        let file = ("chat_template.jinja", "f");
        let extra = ("additional_chat_templates/tool_use.jinja", "x");
        for (files, source, expected) in [
            (vec![config], None, sources("a", None)),
            (vec![named], None, sources("d", Some("t"))),
            (vec![named, file], None, sources("f", None)),
            (vec![named, file, extra], None, sources("f", Some("x"))),
            (vec![named, file, extra], Some("own"), sources("own", None)),
        ] {
            assert_eq!(folder(&files, source).expect("a template"), expected);
        }
        let described = (
            "tokenizer_config.json",
            r#"{"chat_template": "a", "response_template": {"fields": {"tool_calls": {"open": "[TOOL_CALLS]", "content": "json"}}}}"#,
        );
        let mistral = |sources| Sources { format: Some(ToolFormat::Mistral), ..sources };
        assert_eq!(folder(&[described], None).expect("a template"), mistral(sources("a", None)));
        assert_eq!(folder(&[described, file], None).expect("a template"), mistral(sources("f", None)));
        assert_eq!(folder(&[described], Some("own")).expect("a template"), sources("own", None));
        assert!(folder(&[], None).is_err());
        let tool_use = r#"{"chat_template": [{"name": "tool_use", "template": "t"}]}"#;
        assert!(folder(&[("tokenizer_config.json", tool_use)], None).is_err());
        let gguf = |key: &str| match key {
            "tokenizer.chat_template" => Some("g"),
            "tokenizer.chat_template.tool_use" => Some("t"),
            _ => None,
        };
        assert_eq!(Sources::of_gguf(gguf, None).expect("a template"), sources("g", Some("t")));
        assert_eq!(Sources::of_gguf(gguf, Some("own")).expect("a template"), sources("own", None));
        assert!(Sources::of_gguf(|_| None, None).is_err());
    }

    #[test]
    fn what_editors_and_training_put_into_a_template_is_no_part_of_prompts() {
        assert_eq!(normalised("\u{feff}a\r\nb\rc\n"), "a\nb\nc\n");
        assert_eq!(
            normalised("{%- generation -%}a{% endgeneration %}b{%+ generation\n%}{{ generation }}{% x"),
            "{%- with -%}a{% endwith %}b{%+ with\n%}{{ generation }}{% x"
        );
        assert_eq!(normalised("{% if generation %}"), "{% if generation %}");
    }
}
