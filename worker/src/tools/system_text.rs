//! What is said to models that were not taught to call tools.

use serde_json::{Map, Value, json};
use turnmill_schema::Tool;

use super::format::ToolFormat;

/// A text for the system message that says which tools there are and how [`ToolFormat::Generic`] calls them. It is a function of
/// the tools, so that the prompts of an agent's turns begin alike.
pub fn system_text(tools: &[Tool]) -> String {
    let mut text =
        "You can call these tools. Each line describes one; its parameters are a JSON Schema.\n\n".to_owned();
    for tool in tools {
        let mut line = Map::new();
        line.insert("name".to_owned(), json!(tool.name));
        if let Some(description) = &tool.description {
            line.insert("description".to_owned(), json!(description));
        }
        if let Some(parameters) = &tool.parameters {
            line.insert("parameters".to_owned(), Value::Object(parameters.clone()));
        }
        text.push_str(&Value::Object(line).to_string());
        text.push('\n');
    }
    text.push_str(
        "\nTo call a tool, write this and nothing after it, with the tool's name and its arguments:\n\n",
    );
    text.push_str(&ToolFormat::Generic.render_call("NAME", "{\"PARAMETER\": VALUE}"));
    text.push_str(
        "\n\nTo call several tools, write one after the other. The results are given to you, and then you go on. \
         If no tool is needed, answer without calling one.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_and_format_are_described() {
        let tools: Vec<Tool> = serde_json::from_value(json!([
            {"name": "add", "description": "Adds \"two\"\nnumbers", "parameters": {"type": "object", "b": 1, "a": 2}},
            {"name": "now"},
        ]))
        .expect("tools");
        let text = system_text(&tools);
        assert!(text.contains(
            "{\"name\":\"add\",\"description\":\"Adds \\\"two\\\"\\nnumbers\",\"parameters\":{\"type\":\"object\",\"b\":1,\"a\":2}}\n\
             {\"name\":\"now\"}\n"
        ));
        assert!(text.contains(
            "<tool_call>\n{\"name\": \"NAME\", \"arguments\": {\"PARAMETER\": VALUE}}\n</tool_call>"
        ));
    }
}
