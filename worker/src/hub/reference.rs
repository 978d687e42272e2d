//! Names of models on the hub: `hf:OWNER/NAME[@REVISION][/FILE]`.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use super::HubError;

/// What such a name starts with.
const SCHEME: &str = "hf:";
/// The revision where none is named.
const MAIN: &str = "main";

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// Whose it is.
    pub owner: String,
    /// What it is called.
    pub name: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// One file of it; none for safetensors, or the only GGUF file.
    pub file: Option<String>,
}

impl HubModel {
    /// Whether `model`, the value of a setting, names a model on the hub rather than a path.
    pub fn is_named_by(model: &Path) -> bool {
        model.to_str().is_some_and(|text| text.starts_with(SCHEME))
    }

    /// `OWNER/NAME`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl FromStr for HubModel {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let bad = || HubError::BadName(text.to_owned());
        let (owner, rest) =
            text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        let (name, file) = rest.split_once('/').map_or((rest, None), |(name, file)| (name, Some(file)));
        let (name, revision) = name.split_once('@').unwrap_or((name, MAIN));
        if ![owner, name].into_iter().all(is_plain) || !is_revision(revision) || !file.is_none_or(is_relative)
        {
            return Err(bad());
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repository())?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, "/{file}"))
    }
}

/// What the hub allows in names.
fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.chars().all(allowed) && !name.starts_with('.') && !name.contains("..")
}

fn is_revision(revision: &str) -> bool {
    is_plain(revision)
}

/// Whether `path` stays within the folder it is in.
pub(super) fn is_relative(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && Path::new(path).components().all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_back() {
        for text in ["hf:a/b", "hf:a/b@v1.0", "hf:a/b/x.gguf", "hf:a-1/b_2.c@0123abc/q4/x.gguf"] {
            let model: HubModel = text.parse().expect(text);
            assert_eq!(model.to_string(), text);
            assert!(HubModel::is_named_by(Path::new(text)));
        }
        let model: HubModel = "hf:a/b@v1/q4/x.gguf".parse().expect("a name");
        assert_eq!((model.repository().as_str(), model.revision.as_str()), ("a/b", "v1"));
        assert_eq!(model.file.as_deref(), Some("q4/x.gguf"));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "hf:a",
            "hf:/b",
            "hf:a/",
            "hf:a/b/",
            "hf:a/../x",
            "hf:a/b/../c",
            "hf:a/b//c",
            "hf:a b/c",
            "hf:a/b@",
        ] {
            let refused = text.parse::<HubModel>().expect_err(text).to_string();
            assert!(refused.contains("hf:OWNER/NAME"), "{refused}");
        }
        assert!(!HubModel::is_named_by(Path::new("models/hf:x")));
    }
}
