//! Text to token ids and back, from a model file's vocabulary.
//!
//! Invariant: what a token decodes to depends on that token alone (byte-level vocabularies), so replies can be
//! decoded as they are made; [`Detokenizer`] holds back bytes that are not whole characters yet.

use candle_core::quantized::tokenizer::TokenizerFromGguf;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use super::ModelError;
use super::gguf::Gguf;

/// A model's vocabulary and merges.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What each id stands for; empty for control tokens, which are not text.
    bytes: Vec<Box<[u8]>>,
    ends: Vec<u32>,
    digest: [u8; 32],
}

impl Tokenizer {
    /// Reads the vocabulary of a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let mut inner = tokenizers::Tokenizer::from_gguf(gguf.content())?;
        let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
        inner.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
        let vocabulary = inner.get_vocab_size(true);
        let id = |key: &str| gguf.number(key).and_then(|id| u32::try_from(id).ok());
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let kinds = gguf.get("tokenizer.ggml.token_type").and_then(|kinds| kinds.to_vec().ok());
        let kind =
            |id: u32| kinds.and_then(|kinds| kinds.get(id as usize)).and_then(|kind| kind.to_i32().ok());
        let bytes = (0..vocabulary as u32).map(|id| match (inner.id_to_token(id), kind(id)) {
            (Some(token), Some(USER_DEFINED)) => token.into_bytes().into(),
            (Some(token), None | Some(NORMAL | BYTE)) => token_bytes(&token),
            _ => Box::default(),
        });
        Ok(Self {
            bytes: bytes.collect(),
            ends: ends.into_iter().filter_map(id).collect(),
            digest: digest(gguf, &inner),
            inner,
        })
    }

    /// A vocabulary of the given bytes without merges, for tests of what is made of tokens.
    #[cfg(test)]
    pub(crate) fn of_bytes(bytes: Vec<Vec<u8>>, ends: Vec<u32>) -> Self {
        let inner = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
        let bytes = bytes.into_iter().map(Vec::into_boxed_slice).collect();
        Self { inner, bytes, ends, digest: [0; 32] }
    }

    /// Token ids of `text`; control tokens written out in it are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| ModelError::Unusable(format!("cannot tokenise: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids` with control tokens written out, as a chat template writes them.
    pub fn decode_with_controls(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            match self.bytes.get(*id as usize) {
                Some(text) if !text.is_empty() => bytes.extend_from_slice(text),
                _ => bytes.extend_from_slice(self.inner.id_to_token(*id).unwrap_or_default().as_bytes()),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
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

    /// Entries of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// BLAKE3 of everything that decides how text becomes ids.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// Kinds of token in GGUF files (llama.cpp's `llama_token_type`); the others are unknown, control and unused
/// tokens, which are no text.
const NORMAL: i32 = 1;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// How text is split before merging, by llama.cpp's name for it. An unknown name is refused: the ids would be
/// subtly wrong.
fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, ModelError> {
    match name {
        "gpt-2" | "default" => Ok(ByteLevel::new(false, true, true).into()),
        // One digit a token, then GPT-2's rules.
        "smollm" => {
            let parts = vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
            Ok(Sequence::new(parts).into())
        }
        other => Err(ModelError::Unusable(format!(
            "its tokenizer splits text by rules called {other:?}, which this version does not know"
        ))),
    }
}

fn digest(gguf: &Gguf, inner: &tokenizers::Tokenizer) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.pre"] {
        hasher.update(gguf.text(key).unwrap_or_default().as_bytes()).update(b"\0");
    }
    for id in 0..inner.get_vocab_size(true) as u32 {
        hasher.update(inner.id_to_token(id).unwrap_or_default().as_bytes()).update(b"\0");
    }
    if let Some(merges) = gguf.get("tokenizer.ggml.merges").and_then(|merges| merges.to_vec().ok()) {
        for merge in merges {
            hasher.update(merge.to_string().map_or("", |text| text).as_bytes()).update(b"\0");
        }
    }
    *hasher.finalize().as_bytes()
}

/// Undoes GPT-2's byte-to-character map: printable Latin-1 stands for itself, the other bytes were moved to
/// U+0100 and up, in order. A token with any other character is text as it stands.
fn token_bytes(token: &str) -> Box<[u8]> {
    let byte = |c: char| match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    };
    token.chars().map(byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec()).into()
}

/// Turns token bytes into text as they come, never emitting part of a character.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    held: Vec<u8>,
}

impl Detokenizer {
    /// Takes a token's bytes; returns the text that is now whole. Bytes that can start no character become
    /// U+FFFD at once.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let (whole, rest) = self.held.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    let Some(bad) = error.error_len() else {
                        self.held = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.held = rest[bad..].to_vec();
                }
            }
        }
    }

    /// What is left at the end: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gpt2_byte_map_is_undone_for_every_byte() {
        // The map as GPT-2's encoder builds it.
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let character = if printable {
                char::from(byte)
            } else {
                next += 1;
                char::from_u32(next - 1).expect("a code point")
            };
            assert_eq!(&*token_bytes(&character.to_string()), &[byte]);
        }
    }

    #[test]
    fn a_character_cut_in_two_comes_out_whole() {
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(&[b'a', 0xf0, 0x9f]), "a");
        assert_eq!(detokenizer.push(&[0x99]), "");
        assert_eq!(detokenizer.push(&[0x82, b'b']), "🙂b");
        assert_eq!(detokenizer.push(&[0xff, b'c', 0xe2]), "\u{fffd}c");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_text(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 1usize..5) {
            let mut detokenizer = Detokenizer::default();
            let mut text: String = bytes.chunks(cut).map(|piece| detokenizer.push(piece)).collect();
            text += &detokenizer.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
