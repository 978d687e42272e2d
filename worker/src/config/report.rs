//! What `turnmill-worker config` prints.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Effective, Source};

/// The settings as TOML with the source of each: what is printed can be used as a configuration file
/// (masked passwords apart).
pub fn to_toml(settings: &[Effective]) -> String {
    let lines: Vec<_> = settings.iter().map(|setting| (line(setting), source(setting))).collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (line, source)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line:width$}  # {source}");
        text
    })
}

/// The settings as a JSON array of `{name, value, source}`.
pub fn to_json(settings: &[Effective]) -> String {
    serde_json::json!(settings).to_string()
}

fn line(setting: &Effective) -> String {
    match &setting.value {
        Value::Null => format!("# {} is not set", setting.name),
        Value::String(text) => format!("{} = {}", setting.name, toml::Value::from(text.as_str())),
        number => format!("{} = {number}", setting.name),
    }
}

fn source(setting: &Effective) -> String {
    match setting.source {
        Source::Flag => format!("--{}", setting.name.replace('_', "-")),
        Source::Environment => format!("TURNMILL_{}", setting.name.to_uppercase()),
        Source::File => "file".to_owned(),
        Source::Default => "default".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::tests::settings as given;
    use super::super::settings::FileSettings;
    use super::*;

    #[test]
    fn what_is_printed_is_a_configuration_file_with_sources() {
        let mut settings = given(&["--model", "/models/a \"b\"\\n.gguf"]);
        let effective = settings.merge(FileSettings::default(), |name| match name {
            "shards" => Source::Flag,
            "queue" => Source::Environment,
            _ => Source::Default,
        });
        let text = to_toml(&effective);
        let mut read = given(&[]);
        read.merge(toml::from_str(&text).expect("it reads its own words"), |_| Source::Default);
        assert_eq!(read.model, settings.model);
        let has = |start: &str, end: &str| text.lines().any(|l| l.starts_with(start) && l.ends_with(end));
        assert!(has("shards = 1 ", "# --shards"), "{text}");
        assert!(has("queue = \"default\"", "# TURNMILL_QUEUE"), "{text}");
        assert!(has("# model_sha256 is not set", "# default"), "{text}");
        assert!(has("pool_bytes = \"auto\"", "# default"), "{text}");
        assert!(has("offload_bytes = 67108864", "# default"), "{text}");
    }

    #[test]
    fn json_names_value_and_source() {
        let setting = Effective::new("shards", &1u16, Source::File);
        assert_eq!(to_json(&[setting]), r#"[{"name":"shards","source":"file","value":1}]"#);
    }
}
