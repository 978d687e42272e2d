//! Which format a model was taught.

use serde_json::Value;
use turnmill_schema::{Part, ToolCall};

use super::format::{Arguments, Description, ToolFormat};
use super::parser::Parser;

impl ToolFormat {
    /// The format in which `rendered`, a conversation rendered by a model's chat template, has the call `sentinel`: the first that
    /// finds a call with its name and its arguments. [`ToolFormat::Generic`] is never found; it is what is left.
    pub fn detect(rendered: &str, sentinel: &ToolCall) -> Option<Self> {
        let arguments: Value = serde_json::from_str(&sentinel.arguments).ok()?;
        Self::ALL.into_iter().filter(|format| *format != Self::Generic).find(|format| {
            format.description().starts(rendered).any(|start| {
                let call = first_call(*format, &rendered[start..], &sentinel.name);
                call.is_some_and(|found| serde_json::from_str::<Value>(&found).is_ok_and(|v| v == arguments))
            })
        })
    }

    /// The format that `response_template` of a tokenizer_config.json describes: transformers' own description of a model's
    /// replies (<https://huggingface.co/docs/transformers/main/chat_response_parsing>). What opens a call there, a text or a
    /// regular expression, starts with a format's first marker or with a JSON object.
    pub fn from_response_template(template: &Value) -> Option<Self> {
        let calls = template.get("fields")?.get("tool_calls")?;
        let open = ["open", "open_pattern"].into_iter().find_map(|key| calls.get(key)?.as_str())?;
        // Markers have letters and punctuation, which a regular expression escapes.
        let open = open.replace('\\', "");
        let json = calls.get("content").and_then(Value::as_str) == Some("json");
        Self::ALL.into_iter().filter(|_| json).find(|format| {
            let Description { begin, begin_required, ref arguments, .. } = *format.description();
            let after = if begin_required { open.strip_prefix(begin) } else { Some(open.as_str()) };
            let after = after.map(|after| after.trim_start_matches("s*").trim_ascii_start());
            after.is_some_and(|after| match arguments {
                Arguments::Json { key } if begin_required => {
                    after.is_empty() || after.starts_with(['[', '{']) && *key == "arguments"
                }
                Arguments::Json { key } => after.starts_with('{') && after.contains(key),
                Arguments::AfterName { marker, .. } => after.contains(marker),
                Arguments::Bare { before_name, .. } => after.starts_with(before_name),
            })
        })
    }
}

impl Description {
    /// Where a call may start.
    fn starts<'a>(&'a self, rendered: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bare = if self.begin_required { None } else { Some("{") };
        let found = [Some(self.begin), bare].into_iter().flatten();
        found.flat_map(|start| rendered.match_indices(start)).map(|(at, _)| at).filter(|&at| {
            let before = rendered[..at].trim_ascii_end();
            self.preceded_by.is_empty() || self.preceded_by.iter().any(|known| before.ends_with(known))
        })
    }
}

/// The arguments of the call with which `text` starts, if it calls `name`.
fn first_call(format: ToolFormat, text: &str, name: &str) -> Option<String> {
    let mut parser = Parser::new(Some(format), None, false, [name]);
    let mut parts = Vec::new();
    parser.push(text, &mut parts);
    parser.finish(&mut parts);
    let mut parts = parts.into_iter();
    let named = parts.next().is_some_and(|(part, text)| part == Part::ToolName(0) && text == name);
    parts.next().filter(|(part, _)| named && *part == Part::ToolArguments(0)).map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sentinel() -> ToolCall {
        ToolCall {
            id: "call00000".into(),
            name: "turnmill_probe".into(),
            arguments: r#"{"text": "a b", "count": 3}"#.into(),
        }
    }

    #[test]
    fn a_format_is_found_in_what_a_template_renders() {
        let system = "<|im_start|>system\nReturn {\"name\": <name>, \"arguments\": <args>} within <tool_call></tool_call>";
        for (format, rendered) in [
            (
                Some(ToolFormat::Hermes),
                format!(
                    "{system}<|im_start|>assistant\n<tool_call>\n{{\"name\": \"turnmill_probe\", \"arguments\": {{\"count\": 3, \
                     \"text\": \"a b\"}}}}\n</tool_call><|im_end|>"
                ),
            ),
            (
                Some(ToolFormat::Mistral),
                "[TOOL_CALLS] [{\"name\": \"turnmill_probe\", \"arguments\": {\"text\": \"a b\", \"count\": 3}, \"id\": \
                 \"call00000\"}]</s>"
                    .to_owned(),
            ),
            (
                Some(ToolFormat::MistralArgs),
                "[TOOL_CALLS]turnmill_probe[CALL_ID]call00000[ARGS]{\"text\": \"a b\", \"count\": 3}</s>".to_owned(),
            ),
            (
                Some(ToolFormat::FunctionGemma),
                "<start_of_turn>model\n<start_function_call>call:turnmill_probe{count:3,text:<escape>a b<escape>}\
                 <end_function_call><start_function_response>"
                    .to_owned(),
            ),
            (
                Some(ToolFormat::Gemma),
                "<|turn>model\n<|tool_call>call:turnmill_probe{count:3,text:<|\"|>a b<|\"|>}<tool_call|><|tool_response>"
                    .to_owned(),
            ),
            (
                Some(ToolFormat::Llama3),
                "<|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"turnmill_probe\", \"parameters\": \
                 {\"text\": \"a b\", \"count\": 3}}<|eot_id|>"
                    .to_owned(),
            ),
            // Another marker, other arguments, other formats, no call.
            (
                None,
                "<|tool_call|>[{\"name\": \"turnmill_probe\", \"arguments\": {\"text\": \"a b\", \"count\": 3}}]".to_owned(),
            ),
            (
                None,
                "<tool_call>\n{\"name\": \"turnmill_probe\", \"arguments\": \"{\\\"count\\\": 3}\"}\n</tool_call>".to_owned(),
            ),
            (
                None,
                "<tool_call>\n<function=turnmill_probe>\n<parameter=count>\n3\n</parameter>\n</function>\n</tool_call>"
                    .to_owned(),
            ),
            (None, "<tool_call>turnmill_probe\n<arg_key>count</arg_key>\n<arg_value>3</arg_value>".to_owned()),
            (None, system.to_owned()),
        ] {
            assert_eq!(ToolFormat::detect(&rendered, &sentinel()), format, "{rendered}");
        }
    }

    #[test]
    fn every_format_finds_its_own_calls() {
        let sentinel = sentinel();
        for format in ToolFormat::ALL {
            let expected = if format == ToolFormat::Generic { ToolFormat::Hermes } else { format };
            let before = format.description().preceded_by.last().unwrap_or(&"<assistant>");
            let rendered =
                format!("{before}\n{}<end>", format.render_call(&sentinel.name, &sentinel.arguments));
            assert_eq!(ToolFormat::detect(&rendered, &sentinel), Some(expected));
        }
    }

    #[test]
    fn response_templates_name_formats() {
        let template = |open: Value, content: &str| {
            let mut calls = open;
            calls["content"] = json!(content);
            json!({"fields": {"tool_calls": calls}})
        };
        for (open, content, format) in [
            (json!({"open": "<tool_call>"}), "json", Some(ToolFormat::Hermes)),
            (json!({"open_pattern": "<tool_call>\\s*"}), "json", Some(ToolFormat::Hermes)),
            (json!({"open_pattern": r"<tool_call>\s*<function=(?P<name>[^\n>]+)>"}), "xml-inline", None),
            (
                json!({"open_pattern": r#"\{"name":\s*"(?P<name>[^"]+)",\s*"parameters":\s*"#}),
                "json",
                Some(ToolFormat::Llama3),
            ),
            (json!({"open_pattern": r"<\|tool_call>call:(?P<name>\w+)"}), "json", Some(ToolFormat::Gemma)),
            (
                json!({"open_pattern": r"\[TOOL_CALLS\](?P<name>\w+)\[ARGS\]"}),
                "json",
                Some(ToolFormat::MistralArgs),
            ),
            (json!({"open": "<|tool_call_start|>"}), "json", None),
        ] {
            assert_eq!(
                ToolFormat::from_response_template(&template(open.clone(), content)),
                format,
                "{open}"
            );
        }
        assert_eq!(ToolFormat::from_response_template(&json!({"fields": {"content": {}}})), None);
    }
}
