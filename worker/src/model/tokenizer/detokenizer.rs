//! Bytes of tokens to text, as they come.

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

    /// Whether no character is begun and not whole.
    pub fn is_whole(&self) -> bool {
        self.held.is_empty()
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
