//! Text to tokens that come out as that very text. A tokenizer alone does not promise it: it reads control tokens that are written out, and
//! some put a space in front. Then the text is spelt from the longest tokens that fit.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use turnmill_worker::model::Tokenizer;

/// A vocabulary, to write with.
pub struct Spelling {
    tokenizer: Arc<Tokenizer>,
    /// Made when it is first needed.
    pieces: OnceLock<Pieces>,
}

/// The vocabulary has no token for a character.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("has the character {0:?}, which the model's vocabulary cannot spell")]
pub struct Unspellable(pub char);

impl Spelling {
    /// Writes with the vocabulary of `tokenizer`.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, pieces: OnceLock::new() }
    }

    /// Entries of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.vocabulary()
    }

    /// Tokens that come out as `text`, none of which ends a reply.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, Unspellable> {
        match self.tokenizer.encode(text) {
            Ok(tokens) if self.says(&tokens, text) => Ok(tokens),
            _ => self.pieces.get_or_init(|| Pieces::of(&self.tokenizer)).spell(text),
        }
    }

    fn says(&self, tokens: &[u32], text: &str) -> bool {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| self.tokenizer.bytes(*token)).copied().collect();
        let ends = self.tokenizer.ends();
        bytes == text.as_bytes() && !tokens.iter().any(|token| ends.contains(token))
    }
}

/// Tokens by the bytes that they stand for.
#[derive(Debug, Default)]
struct Pieces {
    tokens: HashMap<Vec<u8>, u32>,
    longest: usize,
}

impl Pieces {
    fn of(tokenizer: &Tokenizer) -> Self {
        let ids = 0..tokenizer.vocabulary() as u32;
        let said = ids.filter(|id| !tokenizer.ends().contains(id));
        Self::new(said.map(|id| (tokenizer.bytes(id).to_vec(), id)))
    }

    fn new(tokens: impl Iterator<Item = (Vec<u8>, u32)>) -> Self {
        let mut pieces = Self::default();
        for (bytes, token) in tokens.filter(|(bytes, _)| !bytes.is_empty()) {
            pieces.longest = pieces.longest.max(bytes.len());
            pieces.tokens.entry(bytes).or_insert(token);
        }
        pieces
    }

    fn spell(&self, text: &str) -> Result<Vec<u32>, Unspellable> {
        let bytes = text.as_bytes();
        let (mut tokens, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let longest = self.longest.min(bytes.len() - at);
            let piece = (1..=longest)
                .rev()
                .find_map(|length| self.tokens.get(&bytes[at..at + length]).map(|token| (length, *token)));
            let Some((length, token)) = piece else {
                // Its first bytes may be spelt already.
                let rest = &text[text.floor_char_boundary(at)..];
                return Err(Unspellable(rest.chars().next().expect("bytes are left")));
            };
            tokens.push(token);
            at += length;
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_spelt_from_the_longest_pieces_or_refused_by_its_character() {
        let pieces = ["", "a", "ab", "abc", "b", "ab", "\u{e9}", " "];
        let pieces = Pieces::new(pieces.iter().map(|text| text.as_bytes().to_vec()).zip(0..));
        assert_eq!(pieces.spell("abcab ba"), Ok(vec![3, 2, 7, 4, 1]));
        assert_eq!(pieces.spell("b\u{e9}"), Ok(vec![4, 6]));
        assert_eq!(pieces.spell(""), Ok(vec![]));
        assert_eq!(pieces.spell("ab\u{e8}"), Err(Unspellable('\u{e8}')));
        assert_eq!(pieces.spell("abx"), Err(Unspellable('x')));
    }
}
