//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! The template is the model's own (Jinja, from its metadata), run by minijinja in a bounded environment: it sees what
//! [`Rendering`] and the messages hold, and can reach nothing else. What it sees, and the functions and filters that it finds, are
//! those that transformers gives it (`render_jinja_template` of its `chat_template_utils`), because that is what templates are
//! written for. `tests/templates` holds real templates against Jinja2.

mod date;
mod environment;
mod error;
mod probe;
mod seen;
mod source;
mod tojson;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error};
use serde_json::Map;
use turnmill_schema::{Effort, Message, Tool};

pub use error::TemplateError;
pub use probe::ToolSupport;

use super::ModelError;
use super::checkpoint::gguf::Gguf;
use super::tokenizer::Tokenizer;
use crate::tools::ToolFormat;
use seen::{SeenMessage, SeenTool};
use source::Sources;

/// Names of the compiled templates: of conversations, and of those with tools if the model has another one for them.
const CHAT: &str = "chat";
const TOOL_USE: &str = "tool_use";

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    /// The first of them.
    source: String,
    tools: ToolSupport,
    /// The format of calls that the model's files name.
    format: Option<ToolFormat>,
    /// It takes ids of calls of 9 letters and digits only.
    short_ids: bool,
}

/// What a conversation is rendered with, besides its messages.
#[derive(Clone, Copy, Debug)]
pub struct Rendering<'a> {
    /// Tools that the model may call (`tools`, none if there are none).
    pub tools: &'a [Tool],
    /// The turn's own arguments. They win over what is below, not over messages, tools and `add_generation_prompt`.
    pub arguments: Option<&'a Map<String, serde_json::Value>>,
    /// Whether the model thinks (`enable_thinking` and `thinking`, the two names that templates know it by); none: as the template
    /// has it.
    pub thinks: Option<bool>,
    /// How hard it thinks (`reasoning_effort`).
    pub effort: Option<Effort>,
    /// When the agent's first turn began, in milliseconds since 1970: the date that the template is told, in UTC (`strftime_now`,
    /// `date_string`). None: it is told no date. Never the clock: the same conversation is rendered the same on any day.
    pub date_ms: Option<u64>,
    /// The prompt goes up to where the reply starts; otherwise it ends with the last message.
    pub generation_prompt: bool,
}

impl Rendering<'_> {
    /// Messages and nothing else, up to where the reply starts.
    pub fn plain() -> Self {
        Self {
            tools: &[],
            arguments: None,
            thinks: None,
            effort: None,
            date_ms: None,
            generation_prompt: true,
        }
    }
}

impl ChatTemplate {
    /// Reads the template in a GGUF file's metadata; or takes `source` in its place. A template that fails by itself is refused.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer, source: Option<&str>) -> Result<Self, ModelError> {
        let text = |key: &str| {
            let id = gguf.number(key).and_then(|id| u32::try_from(id).ok());
            id.and_then(|id| tokenizer.token(id)).unwrap_or_default()
        };
        let (bos, eos) = (text("tokenizer.ggml.bos_token_id"), text("tokenizer.ggml.eos_token_id"));
        Self::new(&Sources::of_gguf(|key| gguf.text(key), source)?, bos, eos)
    }

    /// Reads the template of a folder, whose files `text` gives; or takes `source` in its place. A template that fails by itself is
    /// refused.
    pub fn from_folder(
        text: impl Fn(&str) -> Result<Option<String>, ModelError>,
        source: Option<&str>,
    ) -> Result<Self, ModelError> {
        let (sources, bos, eos) = Sources::of_folder(text, source)?;
        Self::new(&sources, bos, eos)
    }

    fn new(sources: &Sources, bos_token: String, eos_token: String) -> Result<Self, ModelError> {
        let mut environment = environment::environment()?;
        let named = [(CHAT, Some(&sources.chat)), (TOOL_USE, sources.tool_use.as_ref())];
        for (name, source) in named.into_iter().filter_map(|(name, source)| Some((name, source?))) {
            environment.add_template_owned(name, source::normalised(source)).map_err(|e| {
                ModelError::Unusable(format!(
                    "its chat template cannot be read: {e}; correct it, or give another one with --chat-template"
                ))
            })?;
        }
        let tools = ToolSupport::Ignored;
        let (source, format) = (sources.chat.clone(), sources.format);
        let mut template =
            Self { environment, bos_token, eos_token, source, tools, format, short_ids: false };
        template.tools = template.probe()?;
        Ok(template)
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether tools can be given to it.
    pub fn tools(&self) -> &ToolSupport {
        &self.tools
    }

    /// Whether it shows tools, calls and results to the model.
    pub fn supports_tools(&self) -> bool {
        self.tools == ToolSupport::Shown
    }

    /// The text of a conversation.
    pub fn render(&self, messages: &[Message], with: &Rendering<'_>) -> Result<String, TemplateError> {
        let outcome = self.render_once(messages, with);
        let Err(TemplateError::Failed(reason)) = &outcome else { return outcome };
        // Any value may be an argument. If the template works without them, they are what is wrong.
        let without = Rendering { arguments: None, ..*with };
        let has_arguments = with.arguments.is_some_and(|arguments| !arguments.is_empty());
        match has_arguments && !matches!(self.render_once(messages, &without), Err(TemplateError::Failed(_)))
        {
            true => Err(TemplateError::Arguments(reason.clone())),
            false => outcome,
        }
    }

    fn render_once(&self, messages: &[Message], with: &Rendering<'_>) -> Result<String, TemplateError> {
        let name = if with.tools.is_empty() { CHAT } else { TOOL_USE };
        let template = self.environment.get_template(name).or_else(|_| self.environment.get_template(CHAT));
        let template = template.map_err(|e| TemplateError::of(&e))?;
        template.render(self.values(messages, with)).map_err(|e| TemplateError::of(&e))
    }

    /// The variables of a rendering; of two with one name the last one holds.
    fn values(&self, messages: &[Message], with: &Rendering<'_>) -> Value {
        let mut values: Vec<(&str, Value)> = vec![
            ("bos_token", Value::from(self.bos_token.as_str())),
            ("eos_token", Value::from(self.eos_token.as_str())),
            ("documents", Value::from(())),
        ];
        if let Some(thinks) = with.thinks {
            values.extend(["enable_thinking", "thinking"].map(|name| (name, Value::from(thinks))));
        }
        values.extend(with.effort.map(|effort| ("reasoning_effort", Value::from(effort.as_str()))));
        if let Some(ms) = with.date_ms {
            let now = move |format: &str| -> Result<String, Error> { date::strftime(ms, format) };
            values.push(("strftime_now", Value::from_function(now)));
            values.extend(date::strftime(ms, "%d %b %Y").ok().map(|date| ("date_string", Value::from(date))));
        }
        let arguments = with.arguments.into_iter().flatten();
        values.extend(arguments.map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        let messages: Vec<_> =
            messages.iter().map(|message| SeenMessage::new(message, self.short_ids)).collect();
        let tools: Vec<_> = with.tools.iter().map(SeenTool::new).collect();
        values.extend([
            ("messages", Value::from(Serde(messages))),
            ("tools", if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) }),
            ("add_generation_prompt", Value::from(with.generation_prompt)),
        ]);
        Value::from_pairs(values)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use turnmill_schema::{Role, ToolCall};

    use super::*;

    fn sources(chat: &str, tool_use: Option<&str>) -> Sources {
        Sources { chat: chat.to_owned(), tool_use: tool_use.map(str::to_owned), format: None }
    }

    fn template(source: &str) -> ChatTemplate {
        read(&sources(source, None)).expect("a template that works")
    }

    fn read(sources: &Sources) -> Result<ChatTemplate, ModelError> {
        ChatTemplate::new(sources, "<s>".to_owned(), "</s>".to_owned())
    }

    fn tool(name: &str) -> Tool {
        Tool { name: name.to_owned(), description: None, parameters: None }
    }

    fn plain(template: &ChatTemplate, messages: &[Message]) -> Result<String, TemplateError> {
        template.render(messages, &Rendering::plain())
    }

    #[test]
    fn templates_see_what_transformers_gives_them() {
        let template = template(
            "{{ messages|tojson }}\n{{ tools|tojson }}\n{{ documents is none }} {{ bos_token }} {{ eos_token }}\
             {% if add_generation_prompt %}>{% endif %}",
        );
        let call = ToolCall { id: "c".into(), name: "add".into(), arguments: r#"{"b":1, "a":[2.0]}"#.into() };
        let messages = [
            Message { name: Some("Ada".into()), ..Message::new(Role::User, "hi") },
            Message {
                reasoning: Some("hm".into()),
                tool_calls: vec![call],
                ..Message::new(Role::Assistant, "")
            },
            Message::tool_result("c", "3"),
        ];
        let said = concat!(
            r#"[{"role": "user", "content": "hi", "name": "Ada"}, "#,
            r#"{"role": "assistant", "content": "", "reasoning_content": "hm", "thinking": "hm", "tool_calls": "#,
            r#"[{"id": "c", "type": "function", "function": {"name": "add", "arguments": {"b": 1, "a": [2.0]}}}]}, "#,
            r#"{"role": "tool", "content": "3", "tool_call_id": "c"}]"#,
        );
        assert_eq!(plain(&template, &messages), Ok(format!("{said}\nnull\nTrue <s> </s>>")));
        let parameters = json!({"type": "object", "properties": {"b": {}, "a": {}}});
        let given = Tool {
            description: Some("Adds".into()),
            parameters: parameters.as_object().cloned(),
            ..tool("add")
        };
        let with =
            Rendering { tools: &[given, tool("stop")], generation_prompt: false, ..Rendering::plain() };
        let tools = concat!(
            r#"[{"type": "function", "function": {"name": "add", "description": "Adds", "#,
            r#""parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}}, "#,
            r#"{"type": "function", "function": {"name": "stop", "description": "", "#,
            r#""parameters": {"type": "object", "properties": {}}}}]"#,
        );
        assert_eq!(template.render(&[], &with), Ok(format!("[]\n{tools}\nTrue <s> </s>")));
    }

    #[test]
    fn python_methods_and_blocks_work_as_in_jinja2() {
        for (source, expected) in [
            (
                "{% for m in messages %}\n  {{ m['role'].upper() }}:{{ m.content.strip() }}\n  {% endfor %}\n>",
                "  USER:hi\n>",
            ),
            ("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n", "a\nb\nc"),
            ("\u{feff}{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x is defined }}", "aFalse"),
            (
                "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "013",
            ),
            ("{{ '<&>' }}{{ '<&>'|tojson }}{{ true }}{{ none }}", "<&>\"<&>\"TrueNone"),
            ("{{ strftime_now is defined }}{{ enable_thinking is defined }}", "FalseFalse"),
        ] {
            assert_eq!(
                plain(&template(source), &[Message::new(Role::User, " hi ")]),
                Ok(expected.to_owned())
            );
        }
    }

    #[test]
    fn what_a_turn_asks_for_reaches_the_template_and_no_more() {
        let template = template(
            "{{ enable_thinking }} {{ thinking }} {{ reasoning_effort }} {{ date_string }} {{ strftime_now('%Y-%m-%d') if \
             strftime_now is defined }} {{ own }} {{ messages|length }} {{ tools }} {{ add_generation_prompt }}",
        );
        let arguments = json!({
            "own": "x", "thinking": "always", "messages": 1, "tools": 2, "add_generation_prompt": 3,
        });
        let with = Rendering {
            arguments: arguments.as_object(),
            thinks: Some(false),
            effort: Some(Effort::Low),
            date_ms: Some(1_772_860_141_000),
            ..Rendering::plain()
        };
        let expected = "False always low 07 Mar 2026 2026-03-07 x 0 None True";
        assert_eq!(template.render(&[], &with), Ok(expected.to_owned()));
    }

    #[test]
    fn a_model_with_a_template_for_tools_has_it_used_with_tools() {
        let template = read(&sources("chat", Some("tools"))).expect("templates that work");
        assert_eq!(plain(&template, &[]), Ok("chat".to_owned()));
        let with = Rendering { tools: &[tool("a")], ..Rendering::plain() };
        assert_eq!(template.render(&[], &with), Ok("tools".to_owned()));
    }

    #[test]
    fn a_template_that_fails_by_itself_is_refused_at_once_and_one_that_refuses_turns_is_not() {
        let refusing = template(
            "{% macro check(m) %}{% if m.content != 'x' %}{{ raise_exception('say x, not ' + m.content) }}{% endif %}{% endmacro %}\
             {% for m in messages %}{{ check(m) }}{% endfor %}",
        );
        let error = plain(&refusing, &[Message::new(Role::User, "y")]).expect_err("it raises");
        assert!(error.is_turns_fault());
        assert_eq!(error, TemplateError::Refused("say x, not y".to_owned()));
        assert_eq!(*refusing.tools(), ToolSupport::Ignored);
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        for (source, named) in [
            (endless, "fuel"),
            ("{{ teleport() }}", "teleport"),
            ("{% macro a() %}{{ teleport() }}{% endmacro %}{{ a() }}", "callable"),
            ("{{ messages[0].content.teleport() }}", "teleport"),
            (
                "{% for m in messages %}{% if m.role == 'system' %}{{ none + 1 }}{% endif %}{% endfor %}",
                "operation",
            ),
            ("{% if %}", "cannot be read"),
        ] {
            let Err(error) = read(&sources(source, None)) else { panic!("{source} is taken") };
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_template_that_fails_with_tools_is_a_model_without_them() {
        let failing = template(
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{{ teleport() }}{% endif %}",
        );
        let ToolSupport::Failed(reason) = failing.tools() else { panic!("{:?}", failing.tools()) };
        assert!(reason.contains("teleport"));
        let with = Rendering { tools: &[tool("a")], ..Rendering::plain() };
        assert!(!failing.render(&[], &with).expect_err("it fails").is_turns_fault());
        let ignoring = template("{% for m in messages %}{{ m.content }}{% endfor %}");
        assert_eq!(*ignoring.tools(), ToolSupport::Ignored);
        let showing = template("{{ tools }}{{ messages }}");
        assert!(showing.supports_tools());
    }

    #[test]
    fn arguments_that_a_template_cannot_use_are_the_turns_fault() {
        let template = template("{{ 'a' + date_string|default('b') }}");
        let arguments = json!({"date_string": 7});
        let with = Rendering { arguments: arguments.as_object(), ..Rendering::plain() };
        let error = template.render(&[], &with).expect_err("a number is no text");
        assert!(error.is_turns_fault(), "{error}");
    }

    #[test]
    fn ids_of_calls_are_as_short_as_a_template_wants_them() {
        let source = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}\
                      {{ raise_exception('9!') }}{% endif %}{{ c.id }}{{ c.function }}{% endfor %}\
                      {% if m.role == 'tool' %}{{ m.tool_call_id }}{% endif %}{% endfor %}{{ tools }}";
        let strict = template(source);
        assert!(strict.supports_tools());
        let messages = |id: &str| {
            let call = ToolCall { id: id.to_owned(), name: String::new(), arguments: "{}".to_owned() };
            let calling = Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") };
            [calling, Message::tool_result(id, "")]
        };
        let text = plain(&strict, &messages("call_1")).expect("the id is made shorter");
        let id = &text[..9];
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric()) && text.matches(id).count() == 2, "{text}");
        assert!(plain(&strict, &messages("abcDEF123")).expect("fits").starts_with("abcDEF123"));
        let easy = template(&source.replace("{{ raise_exception('9!') }}", ""));
        assert!(plain(&easy, &messages("call_1")).expect("taken").contains("call_1"));
    }
}
