//! Text to token ids and back, from a model's vocabulary.
//!
//! Invariant: what a token decodes to depends on that token alone, so replies can be decoded as they are made;
//! [`Detokenizer`] holds back bytes that are not whole characters yet.

mod detokenizer;
mod folder;
mod gguf;
mod spelling;

pub use detokenizer::Detokenizer;
pub(super) use folder::{TokenText, read as read_json};

/// A model's vocabulary and merges.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What each id stands for; empty for control tokens, which are not text.
    bytes: Vec<Box<[u8]>>,
    ends: Vec<u32>,
    prefix: SpacePrefix,
    /// What a document begins with, unless the tokenizer's own rules add it.
    start: Option<u32>,
    /// Bytes that no token stands for; texts with them would lose them without a word.
    unspellable: Vec<u8>,
    /// Bytes of the longest token, as text has it.
    longest: usize,
    digest: [u8; 32],
}

/// Why a text has no token ids. It is the text's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A control token that the tokenizer has and the model has not, as for images.
    #[error("the text has {0}, which this model does not know; leave it out")]
    Unknown(String),
    /// A code point that the vocabulary has no tokens for.
    #[error("the text has U+{0:04X}, for which this model's vocabulary has no tokens; leave it out")]
    Unspellable(u32),
    /// The tokenizer failed.
    #[error("the text cannot be tokenised: {0}")]
    Tokenizer(String),
}

/// Where a vocabulary sees a space that the text does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpacePrefix {
    /// Nowhere.
    Never,
    /// Where the text starts.
    AtStart,
    /// Where the text starts, and after each control token.
    AfterControls,
}

impl Tokenizer {
    /// A vocabulary of the given bytes without merges, for tests of what is made of tokens.
    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: Vec<Vec<u8>>, ends: Vec<u32>) -> Self {
        let inner = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
        let bytes = bytes.into_iter().map(Vec::into_boxed_slice).collect();
        Self::new(inner, bytes, ends, SpacePrefix::Never, [0; 32])
    }

    /// A byte-level vocabulary of all bytes, each a token with its value as id, and `controls` after them, of which the last ends
    /// replies.
    #[cfg(test)]
    pub(crate) fn of_text(controls: &[&str]) -> Self {
        use serde_json::{Map, Value, json};
        use tokenizers::pre_tokenizers::byte_level::ByteLevel;
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable_by_key(|c| spelling::Spelling::ByteLevel.bytes(&c.to_string()));
        let vocabulary: Map<String, Value> =
            alphabet.iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id))).collect();
        let added: Vec<Value> = controls
            .iter()
            .zip(vocabulary.len()..)
            .map(|(token, id)| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true})
            })
            .collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let size = vocabulary.len() + controls.len();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": bytes,
            "post_processor": null, "decoder": bytes, "added_tokens": added,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        let text = |name: &str| {
            Ok(match name {
                "tokenizer.json" => Some(tokenizer.to_string()),
                "generation_config.json" => Some(json!({"eos_token_id": size - 1}).to_string()),
                _ => None,
            })
        };
        Self::from_folder(text, size).expect("a tokenizer")
    }

    fn new(
        inner: tokenizers::Tokenizer,
        bytes: Vec<Box<[u8]>>,
        ends: Vec<u32>,
        prefix: SpacePrefix,
        digest: [u8; 32],
    ) -> Self {
        let name = |id: usize| inner.id_to_token(id as u32).map_or(0, |name| name.len());
        let lengths = bytes.iter().enumerate();
        let longest = lengths.map(|(id, bytes)| if bytes.is_empty() { name(id) } else { bytes.len() }).max();
        let longest = longest.unwrap_or(0).max(1);
        Self { inner, bytes, ends, prefix, start: None, unspellable: Vec::new(), longest, digest }
    }

    /// Notes which bytes no token stands for. Only of a vocabulary that has no token for what is unknown, and leaves it out.
    fn note_unspellable(&mut self) {
        let mut alone = [false; 256];
        for bytes in &self.bytes {
            if let [byte] = bytes[..] {
                alone[usize::from(byte)] = true;
            }
        }
        self.unspellable = (0..=u8::MAX).filter(|byte| !alone[usize::from(*byte)]).collect();
    }

    /// Token ids of `text`; control tokens written out in it are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, false)
    }

    /// Token ids of a text that is a whole document, with what documents begin with.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let ids = self.encode_with(text, true)?;
        let start = self.start.filter(|start| ids.first() != Some(start));
        Ok(start.into_iter().chain(ids).collect())
    }

    /// Whether a text of `bytes` bytes can have as few as `tokens` tokens.
    pub fn may_fit(&self, bytes: usize, tokens: usize) -> bool {
        bytes <= tokens.saturating_mul(self.longest)
    }

    fn encode_with(&self, text: &str, is_document: bool) -> Result<Vec<u32>, TextError> {
        let lost = |c: &char| c.encode_utf8(&mut [0; 4]).bytes().any(|byte| self.unspellable.contains(&byte));
        // ASCII is spellable in every vocabulary, and most text.
        if !self.unspellable.is_empty()
            && let Some(lost) = text.chars().filter(|c| !c.is_ascii()).find(lost)
        {
            return Err(TextError::Unspellable(lost as u32));
        }
        let encoding = self.inner.encode_fast(text, is_document);
        let encoding = encoding.map_err(|error| TextError::Tokenizer(error.to_string()))?;
        let ids = encoding.get_ids().to_vec();
        // Vocabularies have tokens for images that a text model has no rows for.
        match ids.iter().find(|id| **id as usize >= self.bytes.len()) {
            Some(id) => Err(TextError::Unknown(self.token(*id).unwrap_or_default())),
            None => Ok(ids),
        }
    }

    /// Token ids of `text` that goes on after `known` tokens; none where they cannot be told without those tokens' text.
    pub fn encode_after(&self, known: &[u32], text: &str) -> Result<Option<Vec<u32>>, TextError> {
        let ids = self.encode(text)?;
        let Some(last) = known.last() else { return Ok(Some(ids)) };
        let starts_anew = ids.first().is_none_or(|id| self.is_control(*id));
        match self.prefix {
            _ if starts_anew => Ok(Some(ids)),
            SpacePrefix::Never => Ok(Some(ids)),
            SpacePrefix::AfterControls => Ok(self.is_control(*last).then_some(ids)),
            SpacePrefix::AtStart => {
                // After a control token this text is not at the start.
                let Some(control) = self.ends.iter().find(|id| self.is_control(**id)) else {
                    return Ok(None);
                };
                let text = self.token(*control).unwrap_or_default() + text;
                let ids = self.encode(&text)?;
                Ok(ids.strip_prefix(&[*control]).map(<[u32]>::to_vec))
            }
        }
    }

    /// The text of `ids` with control tokens written out, as a chat template writes them.
    pub fn decode_with_controls(&self, ids: &[u32]) -> String {
        let mut text = Vec::new();
        let mut prefixed = self.prefix != SpacePrefix::Never;
        for id in ids {
            let bytes = self.bytes(*id);
            if bytes.is_empty() {
                text.extend_from_slice(self.token(*id).unwrap_or_default().as_bytes());
                prefixed = self.prefix == SpacePrefix::AfterControls;
                continue;
            }
            let space = usize::from(prefixed && bytes[0] == b' ');
            text.extend_from_slice(&bytes[space..]);
            prefixed = false;
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The bytes `id` adds to a reply; none for control tokens and ids outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// The text of a control or ordinary token, by id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Ids at which the model ends a reply.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Entries of the vocabulary, those that stand for nothing included.
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// BLAKE3 of everything that decides how text becomes ids.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The id of the control token that is written `text`.
    pub fn control(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text).filter(|id| (*id as usize) < self.bytes.len() && self.is_control(*id))
    }

    /// What `id` stands for, of a control token its name.
    pub fn spelling(&self, id: u32) -> Vec<u8> {
        match self.bytes(id) {
            [] => self.token(id).unwrap_or_default().into_bytes(),
            bytes => bytes.to_vec(),
        }
    }

    /// Whether `id` is no text: it steers the model, or stands for nothing.
    pub fn is_control(&self, id: u32) -> bool {
        self.bytes(id).is_empty()
    }
}

/// Control tokens at which replies end in chats, whatever else a file names: some name the end of a document only.
const ENDS_OF_TURN: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"];

/// `named` and the ends of turns among the control tokens, each once.
fn ends(
    named: impl IntoIterator<Item = u32>,
    inner: &tokenizers::Tokenizer,
    bytes: &[Box<[u8]>],
) -> Vec<u32> {
    let of_turns = ENDS_OF_TURN.iter().filter_map(|token| inner.token_to_id(token));
    let of_turns = of_turns.filter(|id| bytes.get(*id as usize).is_some_and(|bytes| bytes.is_empty()));
    let mut ends: Vec<u32> = Vec::new();
    for id in named.into_iter().chain(of_turns) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}

#[cfg(test)]
mod tests;
