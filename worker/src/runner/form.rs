//! What the reply of a turn has to look like: how its parts are told apart, and the grammar that it follows.

use std::sync::{Arc, OnceLock};

use turnmill_schema::{ResponseFormat, ToolChoice, Turn};

use crate::engine::{Begin, Form, Guide, Thinking};
use crate::model::{Constraint, Dialogue, GrammarError, Grammars, Tokenizer, Vocabulary};
use crate::tools::{Asked, Parser, ThinkMarkers, ToolFormat, response_grammar};

/// How a model calls tools and thinks, and what makes grammars of what turns ask for.
pub struct Forms {
    tokenizer: Arc<Tokenizer>,
    tools: Option<ToolFormat>,
    thoughts: Option<ThinkMarkers>,
    /// Made when it is first asked for, which takes a good part of a second: the vocabulary as a tree. An error stays.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
}

impl Forms {
    /// Of a model that is spoken to in `dialogue`.
    pub fn new(tokenizer: Arc<Tokenizer>, dialogue: &Dialogue) -> Self {
        let (tools, thoughts) = (dialogue.tools(), dialogue.thoughts());
        Self { tokenizer, tools, thoughts, grammars: OnceLock::new() }
    }

    /// The form of the reply to a turn whose prompt is `rendered`. Blocks: a grammar is compiled, for up to seconds.
    pub fn of(&self, turn: &Turn, rendered: &str) -> Result<Form, GrammarError> {
        let is_chat = turn.prompt.is_none();
        let thoughts = self.thoughts.filter(|_| is_chat);
        let thinks = thoughts.is_some_and(|markers| markers.starts_inside(rendered));
        let format = self.tools.filter(|_| !turn.callable_tools().is_empty());
        let begin = self.begin(turn, rendered, format);
        let guide = match self.constraint(turn, format, begin) {
            None => None,
            Some(constraint) => Some(Guide::new(self.grammars()?.compile(&constraint)?, begin)),
        };
        let thinking = thoughts.and_then(|markers| {
            let end = self.tokenizer.encode(&format!("\n{}\n\n", markers.close)).ok()?;
            Some(Thinking { budget: turn.reasoning.budget, end })
        });
        let markers = format.map(ToolFormat::markers).unwrap_or_default();
        let markers =
            markers.into_iter().chain(thoughts.iter().flat_map(|markers| [markers.open, markers.close]));
        let names = turn.tools.iter().map(|tool| tool.name.as_str());
        let parser = Parser::new(format, thoughts, thinks, names);
        let calls_only =
            format.is_some() && matches!(turn.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
        Ok(Form {
            shown: markers.filter_map(|text| self.tokenizer.control(text)).collect(),
            shows_controls: !turn.sampling.skip_special_tokens,
            parser: if calls_only { parser.calls_only() } else { parser },
            thinking,
            guide,
        })
    }

    /// From where on a grammar is in force.
    fn begin(&self, turn: &Turn, rendered: &str, format: Option<ToolFormat>) -> Begin {
        if format.is_some() && turn.tool_choice == ToolChoice::Auto && turn.response_format.is_text() {
            return Begin::Call;
        }
        let Some(markers) = self.thoughts.filter(|_| turn.prompt.is_none()) else { return Begin::Start };
        if markers.starts_inside(rendered) {
            return Begin::Thoughts;
        }
        // Unless the prompt has closed the thoughts already, the model may begin some.
        let is_over = rendered.trim_end().ends_with(markers.close) || turn.reasoning.enabled == Some(false);
        let open = self.tokenizer.encode(markers.open).unwrap_or_default();
        match open[..] {
            [open] if !is_over => Begin::StartOrThoughts(open),
            _ => Begin::Start,
        }
    }

    /// What the reply must be from there on; none: anything.
    fn constraint(&self, turn: &Turn, format: Option<ToolFormat>, begin: Begin) -> Option<Constraint> {
        let response = &turn.response_format;
        let after_thinking = matches!(begin, Begin::Thoughts | Begin::StartOrThoughts(_));
        if let Some(format) = format {
            let asked = Asked {
                tools: &turn.tools,
                choice: &turn.tool_choice,
                parallel: turn.parallel_tool_calls.unwrap_or(true),
                response,
                after_thinking,
            };
            return format.grammar(&asked, &|text| self.tokenizer.control(text)).map(Constraint::Lark);
        }
        if after_thinking {
            return response_grammar(response, true).map(Constraint::Lark);
        }
        match response {
            ResponseFormat::Text => None,
            ResponseFormat::JsonObject => Some(Constraint::JsonObject),
            ResponseFormat::JsonSchema { schema } => Some(Constraint::JsonSchema(schema.clone())),
            ResponseFormat::Regex { regex } => Some(Constraint::Regex(regex.clone())),
            ResponseFormat::Lark { grammar } => Some(Constraint::Lark(grammar.clone())),
        }
    }

    fn grammars(&self) -> Result<&Grammars, GrammarError> {
        let make = || Grammars::new(Vocabulary::new(Arc::clone(&self.tokenizer))?);
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }
}
