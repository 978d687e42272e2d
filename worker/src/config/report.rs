//! What `turnmill-worker config` prints.

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
        Source::Environment => format!("TURNMILL_{}", setting.name.to_uppercase()),
        Source::File => "file".to_owned(),
        Source::Default => "default".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use proptest::prelude::*;

    use super::super::Settings;
    use super::super::load::tests::settings as given;
    use super::super::settings::FileSettings;
    use super::*;

    #[test]
    fn every_value_says_where_it_came_from() {
        let mut settings = given(&["--model", "a"]);
        let effective = settings.merge(FileSettings::default(), |name| match name {
            "shards" => Source::Flag,
            "queue" => Source::Environment,
            _ => Source::Default,
        });
        let text = to_toml(&effective);
        let has = |start: &str, end: &str| text.lines().any(|l| l.starts_with(start) && l.ends_with(end));
        assert!(has("shards = 1 ", "# --shards"), "{text}");
        assert!(has("queue = \"default\"", "# TURNMILL_QUEUE"), "{text}");
        assert!(has("# model_sha256 is not set", "# default"), "{text}");
        assert!(has("pool_bytes = \"auto\"", "# default"), "{text}");
        assert!(has("offload_bytes = 67108864", "# default"), "{text}");
    }

    /// What `settings` print, and what a worker prints that reads this as its file.
    fn twice(mut settings: Settings) -> (String, String) {
        let effective = settings.merge(FileSettings::default(), |_| Source::Default);
        let text = to_toml(&effective);
        let mut read = given(&[]);
        let file = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let again = read.merge(file, |_| Source::Default);
        let unsourced = |all: &[Effective]| all.iter().map(line).collect::<Vec<_>>().join("\n");
        (unsourced(&effective), unsourced(&again))
    }

    proptest! {
        #[test]
        fn what_is_printed_gives_the_same_settings_as_a_file(
            model in "\\PC*|[\u{0}-\u{ff}]*", drain_ms in 0u64..1 << 40, share in 0.0..1.0, name in "auto|[a-z]{1,9}",
            log_content: bool,
        ) {
            let mut settings = given(&["--worker-name", &name]);
            settings.model = Some(model.into());
            (settings.drain_ms, settings.headroom_low, settings.log_content) = (drain_ms, share, log_content);
            let (printed, again) = twice(settings);
            prop_assert_eq!(printed, again);
        }
    }

    #[test]
    fn what_cannot_be_printed_is_left_out_by_name() {
        let secrets = [
            "--redis-url=redis://u:s3cret@h",
            "--store=s3://k:s3cret@b",
            "--otlp-endpoint=http://u:s3cret@h",
        ];
        let mut settings = given(&secrets);
        settings.kv_keys = Some(std::ffi::OsStr::from_bytes(b"/k\xff").into());
        let effective = settings.merge(FileSettings::default(), |_| Source::Flag);
        let text = to_toml(&effective);
        assert!(!text.contains("s3cret"), "{text}");
        for name in ["redis_url", "store", "otlp_endpoint", "kv_keys"] {
            assert!(text.contains(&format!("# {name} is left out: ")), "{text}");
        }
        let read: FileSettings = toml::from_str(&text).expect("the rest is a file");
        let again = given(&secrets).merge(read, |_| Source::Default);
        for (setting, again) in effective.iter().zip(&again) {
            let has_no_line = setting.left_out.is_some() || setting.value.is_null();
            assert_eq!(again.source != Source::File, has_no_line, "{}", setting.name);
        }
    }

    #[test]
    fn json_names_value_and_source() {
        let setting = Effective::new("shards", &1u16, Source::File);
        assert_eq!(to_json(&[setting]), r#"[{"name":"shards","value":1,"source":"file"}]"#);
    }
}
