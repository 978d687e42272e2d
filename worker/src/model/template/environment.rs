//! The environment of templates: Jinja2 as transformers sets it up, in minijinja's terms.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::error::Raised;
use super::tojson::tojson;
use crate::model::ModelError;

/// Steps of the template engine after which a template is taken to be endless.
const FUEL: u64 = 50_000_000;

/// Python's methods of texts, lists and maps; blocks that take their line's spaces and its end with them; `raise_exception`; and
/// Python's `tojson`. `break` and `continue` are a feature of the crate, and no text is escaped, because the names of templates
/// have no ending.
pub(super) fn environment() -> Result<Environment<'static>, ModelError> {
    let mut environment = Environment::new();
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| ModelError::Unusable(e.to_string()))?);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", tojson);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", |text: Value| -> Result<Value, Error> {
        let text = text.to_string();
        Err(Error::new(ErrorKind::InvalidOperation, text.clone()).with_source(Raised(text)))
    });
    Ok(environment)
}

/// Whether Python can go through it: not through none, which minijinja takes for an empty list. Templates ask this of `tools`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Whether it is what Jinja2 takes for a sequence: something with a length and elements, so that texts and mappings are sequences
/// too.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Jinja2 3.1.6 says.
    #[test]
    fn tests_answer_as_jinja2s() {
        let environment = environment().expect("an environment");
        for (value, iterable, sequence) in [
            ("none", false, false),
            ("missing", true, true),
            ("'a'", true, true),
            ("[1]", true, true),
            ("(1, 2)", true, true),
            ("{'a': 1}", true, true),
            ("range(2)", true, true),
            ("1", false, false),
            ("1.5", false, false),
            ("true", false, false),
        ] {
            for (test, expected) in [("iterable", iterable), ("sequence", sequence)] {
                let answer = environment.render_str(&format!("{{{{ ({value}) is {test} }}}}"), ());
                let expected = if expected { "True" } else { "False" };
                assert_eq!(answer.expect("an answer"), expected, "{value} is {test}");
            }
        }
    }
}
