//! Real chat templates against Jinja2, set up as transformers sets it up; `tests/templates/README.md` says how.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use turnmill_schema::{Effort, Message, Tool};
use turnmill_worker::model::{ChatTemplate, Dialogue, FormatChoice, ModelError, Rendering, TemplateError};

/// 2026-03-07 05:09:01 UTC, as in `expect.py`.
const DATE_MS: u64 = 1_772_860_141_000;

/// A conversation of conversations.json.
#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<String>,
    enable_thinking: Option<bool>,
    reasoning_effort: Option<Effort>,
}

/// What differences.json says of a template.
#[derive(Deserialize)]
struct Difference {
    template: String,
    cases: BTreeSet<String>,
    reason: String,
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/templates").join(name);
    let text = std::fs::read(&path).expect("the file is part of the checkout");
    serde_json::from_slice(&text).expect("the file is as this test reads it")
}

fn sources() -> BTreeMap<String, String> {
    let folder = std::env::var_os("TURNMILL_TEST_TEMPLATES")
        .expect("TURNMILL_TEST_TEMPLATES names a folder of templates; deploy/test fetches it and sets this");
    let entries = PathBuf::from(folder).read_dir().expect("the folder can be read");
    let files = entries.map(|entry| entry.expect("the folder can be read").path());
    let named = files.filter_map(|file| {
        let name = file.file_name()?.to_str()?.strip_suffix(".jinja")?.to_owned();
        Some((name, std::fs::read_to_string(&file).expect("a template is text")))
    });
    named.collect()
}

/// A model of the template, alone or beside another one for conversations without tools.
fn template(source: &str, only_with_tools: bool) -> Result<ChatTemplate, ModelError> {
    let templates = match only_with_tools {
        false => json!(source),
        true => {
            json!([{"name": "default", "template": ""}, {"name": "tool_use", "template": source}])
        }
    };
    let config = json!({"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": templates}).to_string();
    let file = |name: &str| Ok((name == "tokenizer_config.json").then(|| config.clone()));
    ChatTemplate::from_folder(file, None)
}

/// Of a case: the digest of the text, `refused`, or why there is none.
fn outcome(template: &ChatTemplate, case: &Case, tools: &[Tool]) -> (String, String) {
    let tools: Vec<Tool> =
        case.tools.iter().filter_map(|name| tools.iter().find(|tool| tool.name == *name)).cloned().collect();
    let with = Rendering {
        tools: &tools,
        thinks: case.enable_thinking,
        effort: case.reasoning_effort,
        date_ms: Some(DATE_MS),
        ..Rendering::plain()
    };
    match template.render(&case.messages, &with) {
        Ok(text) => {
            let digest = Sha256::digest(text.as_bytes());
            (digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect(), text)
        }
        Err(TemplateError::Refused(text)) => ("refused".to_owned(), text),
        Err(error) => ("failed".to_owned(), error.to_string()),
    }
}

#[test]
fn real_templates_are_rendered_as_jinja2_renders_them() {
    let cases: BTreeMap<String, Case> = read("conversations.json");
    let tools: Vec<Tool> = read("tools.json");
    let expected: BTreeMap<String, BTreeMap<String, String>> = read("expected.json");
    let known: Vec<Difference> = read("differences.json");
    let sources = sources();
    assert_eq!(
        sources.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "the package's templates"
    );
    let shown = std::env::var_os("TURNMILL_TEST_SHOW_TEMPLATES").map(PathBuf::from);
    let (mut same, mut differing) = (BTreeMap::<&str, usize>::new(), BTreeSet::new());
    for (name, source) in &sources {
        let (alone, with_tools) = (template(source, false), template(source, true));
        for (case_name, case) in &cases {
            let template = if case.tools.is_empty() { &alone } else { &with_tools };
            let (found, text) = match template {
                Ok(template) => outcome(template, case, &tools),
                Err(error) => ("failed".to_owned(), error.to_string()),
            };
            let expected = &expected[name][case_name];
            if found == *expected && found != "failed" {
                *same.entry(case_name).or_default() += 1;
                continue;
            }
            differing.insert((name.as_str(), case_name.as_str()));
            if let Some(folder) = &shown {
                std::fs::write(folder.join(format!("{name}.{case_name}")), &text).expect("it can be written");
            }
            let told = if found.len() == 16 { "another text" } else { text.as_str() };
            println!("{name} {case_name}: Jinja2: {expected}; here: {found}: {told}");
        }
    }
    println!("equal of {}: {same:?}", sources.len());
    assert!(known.iter().all(|known| !known.reason.is_empty()));
    let listed: BTreeSet<_> = known
        .iter()
        .flat_map(|known| known.cases.iter().map(|case| (known.template.as_str(), case.as_str())))
        .collect();
    let unlisted: Vec<_> = differing.difference(&listed).collect();
    let mended: Vec<_> = listed.difference(&differing).collect();
    assert!(unlisted.is_empty(), "differ, and differences.json has no reason: {unlisted:?}");
    assert!(mended.is_empty(), "do not differ any more; take them out of differences.json: {mended:?}");
    // The bar: what a template engine reached before this one was set up.
    for (case, least) in [("plain", 64), ("tools", 61), ("loop", 58)] {
        assert!(same[case] >= least, "{case}: {} of at least {least}", same[case]);
    }
}

/// As a worker finds it when it starts with a model of the template.
#[test]
fn real_templates_have_the_formats_that_their_families_were_taught() {
    let expected: BTreeMap<String, String> = read("formats.json");
    let format = |source: &str| match template(source, false) {
        Ok(template) => {
            String::from(FormatChoice::Given(Dialogue::new(template, FormatChoice::Auto).tools()))
        }
        Err(_) => "refused".to_owned(),
    };
    let found: BTreeMap<String, String> =
        sources().into_iter().map(|(name, source)| (name, format(&source))).collect();
    let differing: Vec<_> =
        found.iter().filter(|(name, format)| expected.get(*name) != Some(format)).collect();
    assert!(differing.is_empty(), "formats.json says otherwise: {differing:?}");
    assert_eq!(found.len(), expected.len(), "the package's templates");
}
