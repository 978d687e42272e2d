//! The vocabulary in a safetensors folder: tokenizer.json, and the configuration files that say where replies end.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::Value;

use super::spelling::{SPACE, Spelling};
use super::{SpacePrefix, Tokenizer, ends};
use crate::model::ModelError;

/// A token's text, plain or with its properties.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum TokenText {
    /// Plain.
    Plain(String),
    /// With properties, which tokenizer.json has too.
    Added {
        /// The text.
        content: String,
    },
}

impl TokenText {
    /// The text.
    pub fn text(self) -> String {
        match self {
            Self::Plain(text) | Self::Added { content: text } => text,
        }
    }
}

/// Where replies end, in generation_config.json and config.json.
#[derive(Default, Deserialize)]
struct Ends {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

/// The part of tokenizer_config.json that is of interest here.
#[derive(Default, Deserialize)]
struct Configured {
    eos_token: Option<TokenText>,
}

impl Tokenizer {
    /// Reads the tokenizer of a folder, of a model with `vocabulary` entries; `text` gives a file's text.
    pub fn from_folder(
        text: impl Fn(&str) -> Result<Option<String>, ModelError>,
        vocabulary: usize,
    ) -> Result<Self, ModelError> {
        let json = text("tokenizer.json")?.ok_or_else(|| {
            ModelError::Unusable("its folder has no tokenizer.json; older tokenizers are not read".to_owned())
        })?;
        let broken = |e: tokenizers::Error| unusable("tokenizer.json", &e.to_string());
        let mut inner = tokenizers::Tokenizer::from_str(&json).map_err(broken)?;
        // How a file was trained with; prompts are neither cut nor filled up.
        inner.with_truncation(None).map_err(broken)?;
        inner.with_padding(None);
        let (spelling, prefix) = rules(&inner)?;
        let added = inner.get_added_tokens_decoder();
        let bytes = |id: u32| match (added.get(&id), inner.id_to_token(id)) {
            (Some(token), _) if token.special => Box::default(),
            (Some(token), _) => token.content.replace(SPACE, " ").into_bytes().into(),
            (None, Some(token)) => spelling.bytes(&token),
            (None, None) => Box::default(),
        };
        let bytes: Vec<Box<[u8]>> = (0..vocabulary as u32).map(bytes).collect();
        let named = named_ends(&text, &inner)?;
        let ends = ends(named, &inner, &bytes);
        let digest = *blake3::hash(json.as_bytes()).as_bytes();
        let mut tokenizer = Self::new(inner, bytes, ends, prefix, digest);
        if spelling == Spelling::ByteLevel {
            tokenizer.note_unspellable();
        }
        Ok(tokenizer)
    }
}

/// Reads the JSON file `name`; the default if there is no such file.
pub fn read<T: for<'de> Deserialize<'de> + Default>(
    text: &impl Fn(&str) -> Result<Option<String>, ModelError>,
    name: &str,
) -> Result<T, ModelError> {
    match text(name)? {
        Some(json) => serde_json::from_str(&json).map_err(|e| unusable(name, &e.to_string())),
        None => Ok(T::default()),
    }
}

fn unusable(name: &str, reason: &str) -> ModelError {
    ModelError::Unusable(format!("its {name} cannot be read: {reason}"))
}

fn named_ends(
    text: &impl Fn(&str) -> Result<Option<String>, ModelError>,
    inner: &tokenizers::Tokenizer,
) -> Result<Vec<u32>, ModelError> {
    let mut named = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        match read::<Ends>(text, name)?.eos_token_id {
            Some(Ids::One(id)) => named.push(id),
            Some(Ids::Many(ids)) => named.extend(ids),
            None => {}
        }
    }
    let configured = read::<Configured>(text, "tokenizer_config.json")?.eos_token;
    named.extend(configured.and_then(|token| inner.token_to_id(&token.text())));
    Ok(named)
}

/// How tokens are spelt and where spaces are added. What decides it is in the parts that encode and decode whole texts, which
/// are read as JSON: their types have no common accessor.
fn rules(inner: &tokenizers::Tokenizer) -> Result<(Spelling, SpacePrefix), ModelError> {
    let json = |part: serde_json::Result<Value>| part.unwrap_or_default();
    let decoder = json(serde_json::to_value(inner.get_decoder()));
    let before = [
        json(serde_json::to_value(inner.get_normalizer())),
        json(serde_json::to_value(inner.get_pre_tokenizer())),
    ];
    let spelling = if part(&decoder, "ByteLevel").is_some() {
        Spelling::ByteLevel
    } else if part(&decoder, "ByteFallback").or_else(|| part(&decoder, "Metaspace")).is_some() {
        Spelling::SentencePiece
    } else {
        return Err(ModelError::Unusable(
            "its tokenizer.json decodes neither as byte-level BPE nor as SentencePiece does".to_owned(),
        ));
    };
    let metaspace = before.iter().find_map(|value| part(value, "Metaspace"));
    let scheme = metaspace.and_then(|metaspace| metaspace.get("prepend_scheme")).and_then(Value::as_str);
    let prefix = match scheme {
        _ if before.iter().any(|value| part(value, "Prepend").is_some()) => SpacePrefix::AfterControls,
        Some("always") => SpacePrefix::AfterControls,
        Some("first") => SpacePrefix::AtStart,
        _ => SpacePrefix::Never,
    };
    Ok((spelling, prefix))
}

/// The part of the type `kind` in a pipeline: itself, or a member of its sequences.
fn part<'a>(value: &'a Value, kind: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) if map.get("type").and_then(Value::as_str) == Some(kind) => Some(value),
        Value::Object(map) => map.values().find_map(|value| part(value, kind)),
        Value::Array(values) => values.iter().find_map(|value| part(value, kind)),
        _ => None,
    }
}
