//! The formats in which models call tools.

use std::fmt;

use serde_json::Value;

use super::bare;

/// A format of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>`: Qwen2.5, Qwen3, SmolLM3, Hermes.
    Hermes,
    /// `[TOOL_CALLS]` and a JSON list of objects with `name` and `arguments`: Mistral up to Small 3.1.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}`: Mistral from Small 3.2.
    MistralArgs,
    /// `<|tool_call>call:name{key:<|"|>text<|"|>}<tool_call|>`: Gemma 4.
    Gemma,
    /// `<start_function_call>call:name{key:<escape>text<escape>}<end_function_call>`: FunctionGemma.
    FunctionGemma,
    /// A JSON object with `name` and `parameters`, and nothing around it: Llama 3.1 to 3.3.
    Llama3,
    /// [`ToolFormat::Hermes`] for models that were not taught a format; [`super::system_text`] teaches it.
    Generic,
}

/// A format as data.
#[derive(Debug)]
pub(super) struct Description {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// The marker before a call, or before a list of calls.
    pub(super) begin: &'static str,
    /// Whether the marker is always there. Else `{` at the start of a reply may begin a call as well.
    pub(super) begin_required: bool,
    /// The marker after a call; empty if there is none.
    pub(super) end: &'static str,
    /// Between the markers and the call.
    pub(super) padding: &'static str,
    /// Between two calls.
    pub(super) between: &'static str,
    /// Whether calls are items of a JSON list, which has the markers around it. Else each call has markers.
    pub(super) list: bool,
    /// How name and arguments are written.
    pub(super) arguments: Arguments,
    /// Texts that stand before a call in a rendered conversation, one of them; empty: anything may. Without a marker, JSON
    /// objects of other formats look alike.
    pub(super) preceded_by: &'static [&'static str],
}

/// How name and arguments are written. Formats with one element for each parameter get a variant of their own when the first of
/// their families is supported.
#[derive(Debug)]
pub(super) enum Arguments {
    /// `{"name": N, KEY: {…}}`.
    Json {
        /// The key of the arguments.
        key: &'static str,
    },
    /// The name, a marker, and a JSON object.
    AfterName {
        /// The marker.
        marker: &'static str,
        /// A marker before an id of the call, which may stand between name and marker. Ids are not written under a grammar.
        id: &'static str,
    },
    /// The name and an object whose keys are bare and whose texts stand between markers, so that they need no escapes.
    Bare {
        /// What stands before the name.
        before_name: &'static str,
        /// The marker before and after texts.
        quote: &'static str,
    },
}

const HERMES: Description = Description {
    name: "hermes",
    begin: "<tool_call>",
    begin_required: true,
    end: "</tool_call>",
    padding: "\n",
    between: "\n",
    list: false,
    arguments: Arguments::Json { key: "arguments" },
    preceded_by: &[],
};

const MISTRAL: Description = Description {
    name: "mistral",
    begin: "[TOOL_CALLS]",
    begin_required: true,
    end: "",
    padding: "",
    between: ", ",
    list: true,
    arguments: Arguments::Json { key: "arguments" },
    preceded_by: &[],
};

const MISTRAL_ARGS: Description = Description {
    name: "mistral-args",
    between: "",
    list: false,
    arguments: Arguments::AfterName { marker: "[ARGS]", id: "[CALL_ID]" },
    ..MISTRAL
};

const GEMMA: Description = Description {
    name: "gemma",
    begin: "<|tool_call>",
    begin_required: true,
    end: "<tool_call|>",
    padding: "",
    between: "",
    list: false,
    arguments: Arguments::Bare { before_name: "call:", quote: "<|\"|>" },
    preceded_by: &[],
};

const FUNCTION_GEMMA: Description = Description {
    name: "functiongemma",
    begin: "<start_function_call>",
    end: "<end_function_call>",
    arguments: Arguments::Bare { before_name: "call:", quote: "<escape>" },
    ..GEMMA
};

/// Several calls are divided as vLLM reads them.
const LLAMA3: Description = Description {
    name: "llama3",
    begin: "<|python_tag|>",
    begin_required: false,
    end: "",
    padding: "",
    between: "; ",
    list: false,
    arguments: Arguments::Json { key: "parameters" },
    preceded_by: &["<|python_tag|>", "<|end_header_id|>"],
};

const GENERIC: Description = Description { name: "generic", ..HERMES };

/// Something is called a format and is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no tool format; use hermes, mistral, mistral-args, gemma, functiongemma, llama3, generic or none"
)]
pub struct UnknownFormat(pub String);

impl ToolFormat {
    /// All, in the order in which they are looked for: those that could be mistaken for others come last.
    pub const ALL: [Self; 7] = [
        Self::Hermes,
        Self::Mistral,
        Self::MistralArgs,
        Self::Gemma,
        Self::FunctionGemma,
        Self::Llama3,
        Self::Generic,
    ];

    /// The format that is called `name`; `none` is no format.
    pub fn from_name(name: &str) -> Result<Option<Self>, UnknownFormat> {
        if name == "none" {
            return Ok(None);
        }
        let found = Self::ALL.into_iter().find(|format| format.description().name == name);
        found.map(Some).ok_or_else(|| UnknownFormat(name.to_owned()))
    }

    /// Texts that a model writes around calls, which are control tokens in some vocabularies.
    pub fn markers(self) -> Vec<&'static str> {
        let Description { begin, end, arguments, .. } = self.description();
        let more = match arguments {
            Arguments::Json { .. } => ["", ""],
            Arguments::AfterName { marker, id } => [*marker, *id],
            Arguments::Bare { quote, .. } => [*quote, ""],
        };
        [*begin, *end].into_iter().chain(more).filter(|marker| !marker.is_empty()).collect()
    }

    pub(super) fn description(self) -> &'static Description {
        match self {
            Self::Hermes => &HERMES,
            Self::Mistral => &MISTRAL,
            Self::MistralArgs => &MISTRAL_ARGS,
            Self::Gemma => &GEMMA,
            Self::FunctionGemma => &FUNCTION_GEMMA,
            Self::Llama3 => &LLAMA3,
            Self::Generic => &GENERIC,
        }
    }

    /// The call of `name` with `arguments`, JSON text of an object, as a model writes it. JSON formats hold the text as it is.
    pub fn render_call(self, name: &str, arguments: &str) -> String {
        let Description { begin, begin_required, end, padding, list, .. } = *self.description();
        let call = match self.description().arguments {
            Arguments::Json { key } => {
                format!("{{\"name\": {}, \"{key}\": {arguments}}}", Value::from(name))
            }
            Arguments::AfterName { marker, .. } => format!("{name}{marker}{arguments}"),
            Arguments::Bare { before_name, quote } => {
                let object =
                    serde_json::from_str(arguments).unwrap_or_else(|_| Value::Object(Default::default()));
                format!("{before_name}{name}{}", bare::render(&object, quote))
            }
        };
        let begin = if begin_required { begin } else { "" };
        let (open, close) = if list { ("[", "]") } else { ("", "") };
        format!("{begin}{padding}{open}{call}{close}{padding}{end}")
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description().name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_formats() {
        for format in ToolFormat::ALL {
            assert_eq!(ToolFormat::from_name(&format.to_string()), Ok(Some(format)));
        }
        assert_eq!(ToolFormat::from_name("none"), Ok(None));
        let refused = ToolFormat::from_name("xml").expect_err("is none").to_string();
        for format in ToolFormat::ALL {
            assert!(refused.contains(&format.to_string()), "{refused}");
        }
    }

    #[test]
    fn calls_are_written_as_the_families_templates_write_them() {
        let arguments = r#"{"city": "Paris", "days": 2}"#;
        for (format, expected) in [
            (
                ToolFormat::Hermes,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"Paris\", \"days\": 2}}\n</tool_call>",
            ),
            (
                ToolFormat::Mistral,
                "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"city\": \"Paris\", \"days\": 2}}]",
            ),
            (ToolFormat::MistralArgs, "[TOOL_CALLS]f[ARGS]{\"city\": \"Paris\", \"days\": 2}"),
            (ToolFormat::Gemma, "<|tool_call>call:f{city:<|\"|>Paris<|\"|>,days:2}<tool_call|>"),
            (
                ToolFormat::FunctionGemma,
                "<start_function_call>call:f{city:<escape>Paris<escape>,days:2}<end_function_call>",
            ),
            (ToolFormat::Llama3, "{\"name\": \"f\", \"parameters\": {\"city\": \"Paris\", \"days\": 2}}"),
        ] {
            assert_eq!(format.render_call("f", arguments), expected);
        }
    }
}
