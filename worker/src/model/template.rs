//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! The template is the model's own (Jinja, from its metadata), run by minijinja in a bounded environment: it
//! sees messages and token texts and can reach nothing else.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use turnmill_schema::Message;

use super::ModelError;
use super::checkpoint::gguf::Gguf;
use super::tokenizer::{TokenText, Tokenizer, read_json};

/// Steps of the template engine after which a template is taken to be endless.
const FUEL: u64 = 50_000_000;

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// What templates see of a message.
#[derive(Clone, Debug, Serialize)]
struct Spoken<'a> {
    role: turnmill_schema::Role,
    content: &'a str,
}

/// The part of tokenizer_config.json that is of interest here.
#[derive(Default, Deserialize)]
struct Configured {
    chat_template: Option<Templates>,
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
    /// The one for chats.
    fn chat(self) -> Option<String> {
        match self {
            Self::One(source) => Some(source),
            Self::Named(named) => {
                named.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
        }
    }
}

impl ChatTemplate {
    /// Reads the template in a GGUF file's metadata; or takes `source` in its place.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer, source: Option<&str>) -> Result<Self, ModelError> {
        let source = source.or_else(|| gguf.text("tokenizer.chat_template")).ok_or_else(missing)?;
        let text = |key: &str| {
            let id = gguf.number(key).and_then(|id| u32::try_from(id).ok());
            id.and_then(|id| tokenizer.token(id)).unwrap_or_default()
        };
        Self::new(source, text("tokenizer.ggml.bos_token_id"), text("tokenizer.ggml.eos_token_id"))
    }

    /// Reads the template of a folder, whose files `text` gives; or takes `source` in its place.
    pub fn from_folder(
        text: impl Fn(&str) -> Result<Option<String>, ModelError>,
        source: Option<&str>,
    ) -> Result<Self, ModelError> {
        let configured: Configured = read_json(&text, "tokenizer_config.json")?;
        let source = match (source, text("chat_template.jinja")?) {
            (Some(source), _) => source.to_owned(),
            (None, Some(source)) => source,
            (None, None) => configured.chat_template.and_then(Templates::chat).ok_or_else(missing)?,
        };
        let text = |token: Option<TokenText>| token.map(TokenText::text).unwrap_or_default();
        Self::new(&source, text(configured.bos_token), text(configured.eos_token))
    }

    fn new(source: &str, bos_token: String, eos_token: String) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        // What Hugging Face's renderer offers: Python's string methods, trimmed blocks, raise_exception.
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| ModelError::Unusable(e.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", |text: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|e| ModelError::Unusable(format!("its chat template cannot be read: {e}")))?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The prompt of a conversation, up to where the reply starts. The error is the template's own, for
    /// example that roles must alternate: it is the turn's fault.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let refused = |e: Error| TemplateError(e.detail().map_or_else(|| e.to_string(), str::to_owned));
        let messages: Vec<_> =
            messages.iter().map(|m| Spoken { role: m.role, content: &m.content }).collect();
        let template = self.environment.get_template("chat").map_err(refused)?;
        let values = context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        };
        template.render(values).map_err(refused)
    }
}

fn missing() -> ModelError {
    ModelError::Unusable(
        "it has no chat template; take an instruction-tuned model, or give one with --chat-template"
            .to_owned(),
    )
}

/// The template refused a conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's chat template refuses these messages: {0}")]
pub struct TemplateError(String);

#[cfg(test)]
mod tests {
    use super::*;
    use turnmill_schema::Role;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, "<s>".to_owned(), "</s>".to_owned()).expect("a valid template")
    }

    #[test]
    fn python_methods_and_token_texts_work() {
        let template = template(
            "{{ bos_token }}{% for m in messages %}\n{{ m['role'].upper() }}:{{ m.content.strip() }}\n\
             {% endfor %}{% if add_generation_prompt %}>{% endif %}",
        );
        let messages = [Message::new(Role::User, " hi ")];
        assert_eq!(template.render(&messages), Ok("<s>USER:hi\n>".to_owned()));
    }

    #[test]
    fn a_template_can_refuse_and_cannot_run_for_ever() {
        let refusing = template("{{ raise_exception('roles must alternate') }}");
        let error = refusing.render(&[]).expect_err("it raises");
        assert!(error.to_string().ends_with("roles must alternate"), "{error}");
        let endless =
            template("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
        assert!(endless.render(&[]).is_err());
        assert!(ChatTemplate::new("{% if %}", String::new(), String::new()).is_err());
    }
}
