//! Text to token ids and back, from a model's vocabulary.
//!
//! Invariant: what a token decodes to depends on that token alone, so replies can be decoded as they are made;
//! [`Detokenizer`] holds back bytes that are not whole characters yet.

mod detokenizer;
mod folder;
mod gguf;
mod spelling;

use super::ModelError;

pub use detokenizer::Detokenizer;
pub(super) use folder::{TokenText, read as read_json};

/// A model's vocabulary and merges.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What each id stands for; empty for control tokens, which are not text.
    bytes: Vec<Box<[u8]>>,
    ends: Vec<u32>,
    prefix: SpacePrefix,
    digest: [u8; 32],
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
        Self { inner, bytes, ends, prefix: SpacePrefix::Never, digest: [0; 32] }
    }

    /// Token ids of `text`; control tokens written out in it are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| ModelError::Unusable(format!("cannot tokenise: {e}")))?;
        let ids = encoding.get_ids().to_vec();
        // Vocabularies have tokens for images that a text model has no rows for.
        match ids.iter().find(|id| **id as usize >= self.bytes.len()) {
            Some(id) => {
                let token = self.token(*id).unwrap_or_default();
                Err(ModelError::Unusable(format!("the text has {token}, which this model does not know")))
            }
            None => Ok(ids),
        }
    }

    /// Token ids of `text` that goes on after `known` tokens; none where they cannot be told without those tokens' text.
    pub fn encode_after(&self, known: &[u32], text: &str) -> Result<Option<Vec<u32>>, ModelError> {
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

    fn is_control(&self, id: u32) -> bool {
        self.bytes(id).is_empty()
    }
}

/// Control tokens at which replies end in chats, whatever else a file names: some name the end of a document only.
const ENDS_OF_TURN: [&str; 3] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>"];

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
