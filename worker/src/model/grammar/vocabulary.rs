//! A model's vocabulary as grammars see it: a trie of the bytes of its tokens.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv, parse_numeric_token};

use super::error::rejected;
use super::{GrammarError, limits};
use crate::model::Tokenizer;

/// A character that no token begins with and no merge joins: what is put before text so that a vocabulary that sees a space at the start
/// sees it before this.
const BEFORE: &str = "\u{2}";

/// Bytes of text in UTF-8. Control characters and planes without characters are left out: some vocabularies lack them.
const TEXT: [RangeInclusive<u8>; 4] = [b'\t'..=b'\n', b' '..=b'~', 0x80..=0xbf, 0xc2..=0xf0];

/// Made once for a model: 0.2 s and 20 MB for 49k tokens, 1.4 s and 100 MB for 262k.
pub struct Vocabulary {
    factory: ParserFactory,
    ends: Vec<u32>,
    size: usize,
}

impl Vocabulary {
    /// Builds the trie. An error refuses constrained turns; the model itself can be used.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, GrammarError> {
        let size = tokenizer.vocabulary();
        let ends: Vec<u32> = tokenizer.ends().iter().copied().filter(|id| (*id as usize) < size).collect();
        if ends.is_empty() {
            return rejected(
                "this model names no token that ends a reply, so a reply that must fit a grammar could not end; send the turn \
                 without response_format and tools, or to another model",
            );
        }
        match catch_unwind(AssertUnwindSafe(|| factory(tokenizer, &ends))) {
            Ok(Ok(factory)) => Ok(Self { factory, ends, size }),
            _ => rejected(
                "this model's vocabulary cannot be used with grammars; send the turn without response_format and tools, or to \
                 another model",
            ),
        }
    }

    /// What compiles grammars for these tokens.
    pub(super) fn factory(&self) -> &ParserFactory {
        &self.factory
    }

    /// Tokens that end a reply.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Entries, those that stand for nothing included.
    pub fn size(&self) -> usize {
        self.size
    }
}

fn factory(tokenizer: Arc<Tokenizer>, ends: &[u32]) -> Result<ParserFactory, Box<dyn std::error::Error>> {
    let words: Vec<Vec<u8>> = (0..tokenizer.vocabulary() as u32).map(|id| word(&tokenizer, id)).collect();
    let info = TokRxInfo::new(u32::try_from(words.len())?, ends[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
    let spells_text = TEXT.iter().cloned().flatten().all(|byte| trie.token_id_at_bytes(&[byte]).is_some());
    let env: TokEnv = Arc::new(Env { trie, tokenizer, spells_text });
    let capabilities = InferenceCapabilities { ff_tokens: spells_text, ..InferenceCapabilities::default() };
    let mut factory = ParserFactory::new(&env, capabilities, &SlicedBiasComputer::general_slices())?;
    factory.quiet();
    *factory.limits_mut() = limits::parser();
    Ok(factory)
}

/// What `id` is in the trie: the bytes of an ordinary token; 0xFF and the name of a control token, so that text never makes one. A token
/// that ends replies is never text: it would end one in the middle of a word.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.bytes(id);
    if !bytes.is_empty() && !tokenizer.ends().contains(&id) {
        return bytes.to_vec();
    }
    let Some(name) = tokenizer.token(id).filter(|name| !name.is_empty()) else { return Vec::new() };
    // `0xFF [5]` is how grammars write token 5.
    let name = if parse_numeric_token(name.as_bytes()).is_some() { format!("<{name}>") } else { name };
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
}

struct Env {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
    /// Each byte of text is a token, so that no text is without tokens.
    spells_text: bool,
}

impl Env {
    /// Tokens of `text` that is not at the start of anything, as the model's own tokenizer splits it. None if their bytes are others:
    /// the text names a control token, or is normalised.
    fn tokens(&self, text: &str) -> Option<Vec<u32>> {
        let exact = |ids: &[u32]| {
            let bytes = ids.iter().flat_map(|id| self.tokenizer.bytes(*id));
            bytes.eq(text.as_bytes()) && !ids.iter().any(|id| self.trie.is_special_token(*id))
        };
        let ids = self.tokenizer.encode(text).ok()?;
        if exact(&ids) {
            return Some(ids);
        }
        // A space that is seen before text and is not in it.
        let before = self.tokenizer.encode(BEFORE).ok()?;
        let ids = self.tokenizer.encode(&format!("{BEFORE}{text}")).ok()?;
        let ids = ids.strip_prefix(before.as_slice())?.to_vec();
        exact(&ids).then_some(ids)
    }
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokens(text).unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }

    /// Whether bytes that a grammar forces may be forced as tokens: their tokens must have exactly these bytes.
    fn tokenize_is_canonical(&self) -> bool {
        self.spells_text
    }
}
