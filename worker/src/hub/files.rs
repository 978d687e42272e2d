//! Which files of a repository a worker needs.

use super::reference::is_relative;
use super::{HubError, HubModel};

/// Weights in one file, and the list of files where there are more.
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Read beside the weights; the first is needed, the others if they are there.
const CONFIG: &str = "config.json";
const BESIDE: [&str; 6] = [
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    // transformers saves other templates than the default one beside it; this one is for conversations with tools.
    "additional_chat_templates/tool_use.jinja",
];
/// Names told in an error.
const TOLD: usize = 12;

/// The files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needed {
    /// One GGUF file.
    Gguf(String),
    /// Safetensors and what goes with them.
    Safetensors(Vec<String>),
}

impl Needed {
    /// Their names.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Gguf(file) => std::slice::from_ref(file),
            Self::Safetensors(files) => files,
        }
    }
}

/// Of `all` files of the repository those that `model` needs: the named one, or safetensors, or the only GGUF file.
pub fn needed(model: &HubModel, all: &[String]) -> Result<Needed, HubError> {
    let repository = model.repository();
    let ggufs: Vec<&String> = all.iter().filter(|file| is_gguf(file) && is_relative(file)).collect();
    if let Some(file) = &model.file {
        return match all.contains(file) && is_gguf(file) {
            true => Ok(Needed::Gguf(file.clone())),
            false => Err(HubError::NoSuchFile { repository, file: file.clone(), has: told(&ggufs) }),
        };
    }
    let has = |name: &str| all.iter().any(|file| file == name);
    if has(CONFIG) && (has(WHOLE) || has(INDEX)) {
        let weights: Vec<&str> = match has(WHOLE) {
            true => vec![WHOLE],
            false => all.iter().map(String::as_str).filter(|file| is_shard(file) || *file == INDEX).collect(),
        };
        let beside = BESIDE.into_iter().filter(|name| has(name));
        return Ok(Needed::Safetensors(beside.chain(weights).map(str::to_owned).collect()));
    }
    match ggufs.as_slice() {
        [] => Err(HubError::NothingUsable(repository)),
        [only] => Ok(Needed::Gguf((*only).clone())),
        several => Err(HubError::Several { has: told(several), repository }),
    }
}

fn is_gguf(file: &str) -> bool {
    file.ends_with(".gguf")
}

/// `model-00001-of-00002.safetensors`.
fn is_shard(file: &str) -> bool {
    file.starts_with("model-") && file.ends_with(".safetensors") && !file.contains('/')
}

fn told(files: &[&String]) -> String {
    match files {
        [] => "none".to_owned(),
        files => {
            let names: Vec<&str> = files.iter().take(TOLD).map(|file| file.as_str()).collect();
            let more = if files.len() > TOLD { ", ..." } else { "" };
            names.join(", ") + more
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(model: &str, files: &[&str]) -> Result<Needed, String> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        needed(&model.parse().expect("a name"), &files).map_err(|error| error.to_string())
    }

    #[test]
    fn safetensors_come_with_what_is_read_beside_them() {
        let files = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "onnx/model.onnx"];
        let expected = ["config.json", "tokenizer.json", "model.safetensors"].map(str::to_owned).to_vec();
        assert_eq!(chosen("hf:a/b", &files), Ok(Needed::Safetensors(expected)));
        let sharded =
            ["config.json", INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(chosen("hf:a/b", &sharded).expect("a choice").names().len(), 4);
        let templates = [
            "additional_chat_templates/rag.jinja",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
        ];
        let files = [&templates[..], &["config.json", "model.safetensors"]].concat();
        let expected = ["config.json", templates[2], templates[1], "model.safetensors"];
        assert_eq!(chosen("hf:a/b", &files).expect("a choice").names(), expected);
    }

    #[test]
    fn a_gguf_file_is_named_where_there_are_several() {
        let one = Ok(Needed::Gguf("x.gguf".to_owned()));
        assert_eq!(chosen("hf:a/b", &["x.gguf", "README.md"]), one);
        assert_eq!(chosen("hf:a/b/x.gguf", &["x.gguf", "y.gguf"]), one);
        let said = chosen("hf:a/b", &["x.gguf", "y.gguf"]).expect_err("two");
        assert!(said.contains("x.gguf, y.gguf"), "{said}");
        let said = chosen("hf:a/b/z.gguf", &["x.gguf"]).expect_err("another");
        assert!(said.contains("z.gguf") && said.contains("x.gguf"), "{said}");
        assert!(chosen("hf:a/b", &["pytorch_model.bin"]).is_err());
    }
}
