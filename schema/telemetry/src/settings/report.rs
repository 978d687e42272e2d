//! What a program's command `config` prints.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Effective, Source};

/// The settings as TOML with the source of each. What is printed can be used as a configuration file: it gives the same
/// settings again, except those that it names as left out.
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
    if let Some(why) = setting.left_out {
        return format!("# {} is left out: {why} ({})", setting.name, setting.value);
    }
    match &setting.value {
        Value::Null => format!("# {} is not set", setting.name),
        // JSON's texts are TOML's, and stay on one line; only one character may stand as it is in JSON alone.
        Value::String(_) => format!("{} = {}", setting.name, setting.value).replace('\u{7f}', "\\u007f"),
        number => format!("{} = {number}", setting.name),
    }
}

fn source(setting: &Effective) -> String {
    match setting.source {
        Source::Flag => format!("--{}", setting.name.replace('_', "-")),
        Source::Environment => setting.variable.to_owned(),
        Source::File => "file".to_owned(),
        Source::Default => "default".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use proptest::prelude::*;

    use super::super::Table as _;
    use super::super::sample::{Sample, sample};
    use super::*;

    type File = <Sample as super::super::Table>::File;

    #[test]
    fn every_value_says_where_it_came_from() {
        let effective = sample(&["--model", "a"]).merge(File::default(), |name| match name {
            "shards" => Source::Flag,
            "flush_ms" => Source::Environment,
            _ => Source::Default,
        });
        let text = to_toml(&effective);
        let has = |start: &str, end: &str| text.lines().any(|l| l.starts_with(start) && l.ends_with(end));
        assert!(has("shards = 1 ", "# --shards"), "{text}");
        assert!(has("flush_ms = 100 ", "# TURNMILL_FLUSH_MS"), "{text}");
        assert!(has("lease_ms = 15000 ", "# default"), "{text}");
        assert!(has("# otlp_endpoint is not set", "# default"), "{text}");
        assert!(has("pool_bytes = \"auto\"", "# default"), "{text}");
    }

    proptest! {
        #[test]
        fn what_is_printed_gives_the_same_settings_as_a_file(
            model in "\\PC*|[\u{0}-\u{ff}]*", flush_ms in 0u64..1 << 40, log_content: bool,
        ) {
            let mut settings = sample(&[]);
            settings.model = Some(model.into());
            (settings.flush_ms, settings.log_content) = (flush_ms, log_content);
            let effective = settings.merge(File::default(), |_| Source::Default);
            let text = to_toml(&effective);
            let file = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let again = sample(&[]).merge(file, |_| Source::Default);
            prop_assert!(effective.iter().map(line).eq(again.iter().map(line)), "{}", text);
        }
    }

    #[test]
    fn what_cannot_be_printed_is_left_out_by_name() {
        let mut settings = sample(&["--otlp-endpoint=http://u:s3cret@h"]);
        settings.model = Some(std::ffi::OsStr::from_bytes(b"/k\xff").into());
        let text = to_toml(&settings.merge(File::default(), |_| Source::Flag));
        assert!(!text.contains("s3cret"), "{text}");
        for name in ["otlp_endpoint", "model"] {
            assert!(text.contains(&format!("# {name} is left out: ")), "{text}");
        }
        toml::from_str::<File>(&text).expect("the rest is a file");
    }

    #[test]
    fn json_names_value_and_source() {
        let setting = Effective::new("shards", "TURNMILL_SHARDS", &1u16, Source::File);
        assert_eq!(to_json(&[setting]), r#"[{"name":"shards","value":1,"source":"file"}]"#);
    }
}
