//! The flags for what a reply may or must be: tools, the form of the answer, thoughts. JSON lines have the same by OpenAI's names:
//! see [`crate::input`].

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value};
use turnmill_client::schema::tool::check_tools;
use turnmill_client::{Effort, NewTurn, Reasoning, ResponseFormat, Tool, ToolChoice};

use crate::exit::Exit;
use crate::input::{json_file, read_tools};

/// What the model may call, and what it has to answer.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Reply")]
pub struct ReplyArgs {
    /// Let the model call the tools in FILE: a JSON array of OpenAI's tools, [{"type": "function", "function": {name, description,
    /// parameters}}]. Calls are printed, and nothing runs them: give their results as messages of the role tool. Tools are not
    /// kept in the agent's history; give them with each turn.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    tools: Option<PathBuf>,
    /// Whether the model calls tools: auto, as it likes; none, it does not and is told of none; required, at least one; or the NAME
    /// of the tool that it must call [default: auto].
    #[arg(long, value_name = "auto|none|required|NAME", allow_hyphen_values = true)]
    tool_choice: Option<String>,
    /// Let the model call one tool at a time.
    #[arg(long)]
    no_parallel_tool_calls: bool,
    /// Make the answer a JSON value that fits the JSON Schema in FILE. If --max-tokens cuts it short, it does not fit: its finish is
    /// then length.
    #[arg(long, value_name = "FILE", conflicts_with = "json_object", allow_hyphen_values = true)]
    response_schema: Option<PathBuf>,
    /// Make the answer a JSON object.
    #[arg(long)]
    json_object: bool,
    /// How much the model thinks before it answers, if it can: off; on; on with an effort that its template knows; or on with at
    /// most BUDGET tokens of thoughts [default: as its template has it].
    #[arg(long, value_name = "off|on|minimal|low|medium|high|BUDGET", allow_negative_numbers = true)]
    reasoning: Option<Thinking>,
    /// Keep the exact tokens of earlier thoughts in the agent's history, even if the template would drop them. The prompt is longer,
    /// and nothing of it is computed again.
    #[arg(long)]
    keep_thoughts: bool,
    /// Give the chat template the keys of this object as variables, such as {"enable_thinking": false}.
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    template_arguments: Option<TemplateArguments>,
}

/// A `--reasoning`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking(pub Reasoning);

impl FromStr for Thinking {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let on = Reasoning { enabled: Some(true), ..Reasoning::default() };
        let effort = [Effort::Minimal, Effort::Low, Effort::Medium, Effort::High]
            .into_iter()
            .find(|effort| effort.as_str() == word);
        let budget = word.parse().ok();
        Ok(Self(match word {
            "off" | "none" => Reasoning { enabled: Some(false), ..on },
            "on" => on,
            _ if effort.is_some() => Reasoning { effort, ..on },
            // No thoughts at all, also if the model's template cannot keep it from thinking.
            _ if budget == Some(0) => Reasoning { enabled: Some(false), budget, ..on },
            _ if budget.is_some() => Reasoning { budget, ..on },
            _ => {
                return Err(format!(
                    "{word:?} is no way to think; give off, on, minimal, low, medium, high or a number of tokens"
                ));
            }
        }))
    }
}

/// A `--template-arguments`.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateArguments(Map<String, Value>);

impl FromStr for TemplateArguments {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |error| format!("{error}; give a JSON object, such as {{\"enable_thinking\": false}}");
        serde_json::from_str(text).map(Self).map_err(wrong)
    }
}

impl ReplyArgs {
    /// The flags over the defaults. Reads the files.
    pub async fn apply(&self, turn: NewTurn) -> Result<NewTurn, Exit> {
        let tools = match &self.tools {
            Some(file) => tools_of(file, json_file(file).await?)?,
            None => Vec::new(),
        };
        let response_format = match &self.response_schema {
            Some(file) => {
                let format = ResponseFormat::JsonSchema { schema: json_file(file).await? };
                format.check().map_err(|error| cannot_use(file, error))?;
                format
            }
            None if self.json_object => ResponseFormat::JsonObject,
            None => ResponseFormat::Text,
        };
        let thinking = self.reasoning.clone().map(|Thinking(reasoning)| reasoning);
        let arguments = self.template_arguments.clone().map(|TemplateArguments(arguments)| arguments);
        Ok(NewTurn {
            tools,
            tool_choice: self.choice(),
            parallel_tool_calls: self.no_parallel_tool_calls.then_some(false),
            response_format,
            reasoning: thinking.unwrap_or_default(),
            keep_thoughts: self.keep_thoughts,
            template_arguments: arguments.unwrap_or_default(),
            ..turn
        })
    }

    fn choice(&self) -> ToolChoice {
        match self.tool_choice.as_deref() {
            None | Some("auto") => ToolChoice::Auto,
            Some("none") => ToolChoice::None,
            Some("required") => ToolChoice::Required,
            Some(name) => ToolChoice::Named(name.to_owned()),
        }
    }
}

/// The tools in `file`. Whether the choice among them can be met is checked with the whole turn: a JSON line may have its own.
fn tools_of(file: &Path, json: Value) -> Result<Vec<Tool>, Exit> {
    let Value::Array(tools) = json else {
        return Err(cannot_use(
            file,
            "it holds no JSON array; put the tools in one: [{\"type\": \"function\", …}]",
        ));
    };
    let tools = read_tools(tools).map_err(|error| cannot_use(file, error))?;
    check_tools(&tools, &ToolChoice::Auto).map_err(|error| cannot_use(file, error))?;
    Ok(tools)
}

fn cannot_use(file: &Path, why: impl std::fmt::Display) -> Exit {
    Exit::bad_input(format!("cannot use {}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
        file.write_all(bytes).expect("it can be written");
        file
    }

    fn tools(bytes: &[u8]) -> (ReplyArgs, tempfile::NamedTempFile) {
        let file = file(bytes);
        (ReplyArgs { tools: Some(file.path().into()), ..ReplyArgs::default() }, file)
    }

    fn schema(bytes: &[u8]) -> (ReplyArgs, tempfile::NamedTempFile) {
        let file = file(bytes);
        (ReplyArgs { response_schema: Some(file.path().into()), ..ReplyArgs::default() }, file)
    }

    async fn turn(flags: &ReplyArgs) -> Result<NewTurn, String> {
        let error = |exit: Exit| exit.read().1.unwrap_or_default();
        flags.apply(NewTurn::user("hi")).await.map_err(error)
    }

    #[tokio::test]
    async fn no_flag_means_the_defaults() {
        assert_eq!(turn(&ReplyArgs::default()).await, Ok(NewTurn::user("hi")));
    }

    #[tokio::test]
    async fn flags_are_the_turns_fields() {
        let both = b"\xef\xbb\xbf[{\"type\": \"function\", \"function\": {\"name\": \"b\", \"parameters\": {\"z\": 1.0, \"a\": 1}}},
            {\"name\": \"a\"}]\r\n";
        let (flags, _file) = tools(both);
        let flags = ReplyArgs { tool_choice: Some("a".into()), no_parallel_tool_calls: true, ..flags };
        let asked = turn(&flags).await.expect("valid");
        let names: Vec<&str> = asked.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!((names, asked.tool_choice), (vec!["b", "a"], ToolChoice::Named("a".into())));
        assert_eq!(asked.parallel_tool_calls, Some(false));
        let parameters = serde_json::to_string(&asked.tools[0].parameters).expect("JSON");
        assert_eq!(parameters, r#"{"z":1.0,"a":1}"#, "the model reads them as they were written");
        let (flags, _file) = schema(br#"{"type": "object"}"#);
        let format = ResponseFormat::JsonSchema { schema: json!({"type": "object"}) };
        assert_eq!(turn(&flags).await.map(|turn| turn.response_format), Ok(format));
    }

    #[test]
    fn a_choice_is_a_word_or_a_name() {
        for (given, expected) in [
            (None, ToolChoice::Auto),
            (Some("auto"), ToolChoice::Auto),
            (Some("none"), ToolChoice::None),
            (Some("required"), ToolChoice::Required),
            (Some("add"), ToolChoice::Named("add".into())),
        ] {
            let flags = ReplyArgs { tool_choice: given.map(str::to_owned), ..ReplyArgs::default() };
            assert_eq!(flags.choice(), expected);
        }
    }

    #[tokio::test]
    async fn a_bad_file_is_named_with_the_place() {
        let deep = "[".repeat(200);
        for ((flags, file), says) in [
            (tools(b""), "EOF while parsing a value at line 1 column 0"),
            (tools(b"[\n  {\"name\": }]"), "expected value at line 2 column 12"),
            (tools(b"{\"name\": \"a\"}"), "it holds no JSON array"),
            (
                tools(b"[{\"name\": \"a\"}, {\"description\": \"x\"}]"),
                "tools: number 2: a tool has no name; give one",
            ),
            (tools(b"[{\"name\": \"a\"}, {\"name\": \"a\"}]"), "two are called a"),
            (tools(b"[{\"name\": \"a b\"}]"), "number 1 has the name \"a b\""),
            (tools(b"[{\"name\": \"caf\xe9\"}]"), "it is not UTF-8 from byte 15 on"),
            (tools(b"[\0]\0"), "the input is UTF-16"),
            (schema(b"[1, 2]"), "the schema of response_format is no JSON Schema"),
            (schema(deep.as_bytes()), "recursion limit exceeded at line 1 column 128"),
        ] {
            let said = turn(&flags).await.expect_err(says);
            let name = file.path().display().to_string();
            assert!(said.contains(says) && said.contains(&name) && !said.contains('\n'), "{said}");
        }
        let flags = ReplyArgs { tools: Some("nowhere.json".into()), ..ReplyArgs::default() };
        let said = turn(&flags).await.expect_err("not there");
        assert!(said.starts_with("cannot read nowhere.json: "), "{said}");
        let here = ReplyArgs { tools: Some(".".into()), ..ReplyArgs::default() };
        let said = turn(&here).await.expect_err("a folder");
        assert!(said.starts_with("cannot read .: "), "{said}");
    }

    #[test]
    fn thinking_is_a_word_or_a_budget() {
        let read = |word: &str| word.parse().map(|Thinking(reasoning)| reasoning);
        let of = |enabled, effort, budget| Ok(Reasoning { enabled: Some(enabled), effort, budget });
        assert_eq!(read("off"), of(false, None, None));
        assert_eq!(read("on"), of(true, None, None));
        assert_eq!(read("high"), of(true, Some(Effort::High), None));
        assert_eq!(read("512"), of(true, None, Some(512)));
        assert_eq!(read("0"), of(false, None, Some(0)));
        for wrong in ["", "very", "-1", "1.5", "4294967296", "High"] {
            assert!(read(wrong).expect_err(wrong).contains("give off, on, minimal"));
        }
    }

    #[test]
    fn template_arguments_are_an_object() {
        let said = |text: &str| text.parse::<TemplateArguments>().expect_err(text);
        for wrong in ["", "[]", "{a: 1}", "1"] {
            assert!(said(wrong).contains("give a JSON object"), "{}", said(wrong));
        }
        let given = "{\"z\": 1.0, \"a\": null}".parse();
        let expected = [("z".to_owned(), json!(1.0)), ("a".to_owned(), Value::Null)];
        assert_eq!(given, Ok(TemplateArguments(expected.into_iter().collect())));
    }
}
