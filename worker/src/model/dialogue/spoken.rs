//! Tools for models that were not taught to call any: descriptions, calls and results as text in messages, in the generic format.
//!
//! Invariant: what is written for a message depends on that message and its neighbours, so that a longer conversation starts as a
//! shorter one does.

use turnmill_schema::{Message, Role, Tool};

use crate::tools::{ToolFormat, system_text};

/// The conversation in messages that any template takes. If `in_user` is set the tools are described in the first message of the
/// user, for templates that take no system message.
pub(super) fn spoken(messages: &[Message], tools: &[Tool], in_user: bool) -> Vec<Message> {
    let mut said: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    // Whether the last message holds results, which a user's next words join: templates want roles to alternate.
    let mut open = false;
    for message in messages {
        match message.role {
            Role::Assistant => {
                let calls = message.tool_calls.iter();
                let calls = calls.map(|call| ToolFormat::Generic.render_call(&call.name, &call.arguments));
                let content = Some(message.content.clone()).filter(|content| !content.is_empty());
                let content: Vec<String> = content.into_iter().chain(calls).collect();
                let plain = Message::new(Role::Assistant, content.join("\n"));
                said.push(Message { reasoning: message.reasoning.clone(), ..plain });
                open = false;
            }
            Role::Tool | Role::User => {
                let is_result = message.role == Role::Tool;
                let text = match is_result {
                    true => format!("<tool_response>\n{}\n</tool_response>", message.content),
                    false => message.content.clone(),
                };
                match said.last_mut().filter(|_| open) {
                    Some(last) => last.content += &format!("\n{text}"),
                    None => said.push(Message::new(Role::User, text)),
                }
                open = is_result;
            }
            Role::System => {
                said.push(message.clone());
                open = false;
            }
        }
    }
    if !tools.is_empty() {
        describe(&mut said, system_text(tools), if in_user { Role::User } else { Role::System });
    }
    said
}

/// Adds `text` to the first message, if that is of `role`; else it becomes the first.
fn describe(said: &mut Vec<Message>, text: String, role: Role) {
    match said.first_mut().filter(|first| first.role == role) {
        Some(first) if role == Role::System => first.content += &format!("\n\n{text}"),
        Some(first) => first.content = format!("{text}\n\n{}", first.content),
        None => said.insert(0, Message::new(role, text)),
    }
}

#[cfg(test)]
mod tests {
    use turnmill_schema::ToolCall;

    use super::*;

    fn tool() -> Tool {
        Tool { name: "add".into(), description: None, parameters: None }
    }

    fn call(id: &str) -> ToolCall {
        ToolCall { id: id.into(), name: "add".into(), arguments: "{\"a\": 1}".into() }
    }

    fn looped() -> Vec<Message> {
        let calling =
            Message { tool_calls: vec![call("1"), call("2")], ..Message::new(Role::Assistant, "Two.") };
        vec![
            Message::new(Role::User, "hi"),
            calling,
            Message::tool_result("1", "3"),
            Message::tool_result("2", "4"),
            Message::new(Role::User, "and?"),
        ]
    }

    #[test]
    fn calls_and_results_are_text_and_roles_alternate() {
        let said = spoken(&looped(), &[tool()], false);
        let roles: Vec<Role> = said.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
        let written = ToolFormat::Generic.render_call("add", "{\"a\": 1}");
        assert_eq!(said[2].content, format!("Two.\n{written}\n{written}"));
        let results =
            ["3", "4"].map(|result| format!("<tool_response>\n{result}\n</tool_response>\n")).concat();
        assert_eq!(said[3].content, results + "and?");
        assert!(said[0].content.contains("add"));
        let in_user = spoken(&looped(), &[tool()], true);
        assert_eq!((in_user.len(), in_user[0].role), (3, Role::User));
        assert!(in_user[0].content.ends_with("\n\nhi") && in_user[0].content.contains("add"));
    }

    #[test]
    fn a_longer_conversation_starts_as_a_shorter_one() {
        let messages = looped();
        // Up to a reply: what follows it is never joined with what is before.
        let (shorter, longer) =
            (spoken(&messages[..2], &[tool()], false), spoken(&messages, &[tool()], false));
        assert_eq!(longer[..shorter.len()], shorter);
    }
}
