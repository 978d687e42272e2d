//! How vocabularies spell the bytes that a token stands for.

/// A way to write bytes as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// GPT-2's: every byte is a printable character.
    ByteLevel,
    /// SentencePiece's: text with U+2581 for a space, and `<0x0A>` for a byte.
    SentencePiece,
}

/// What SentencePiece writes for a space.
pub const SPACE: char = '\u{2581}';

impl Spelling {
    /// The bytes that `token` stands for.
    pub fn bytes(self, token: &str) -> Box<[u8]> {
        match self {
            Self::ByteLevel => byte_level(token),
            Self::SentencePiece => match fallback_byte(token) {
                Some(byte) => [byte].into(),
                None => token.replace(SPACE, " ").into_bytes().into(),
            },
        }
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let are_two = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| are_two)
}

/// Undoes GPT-2's byte-to-character map: printable Latin-1 stands for itself, the other bytes were moved to
/// U+0100 and up, in order. A token with any other character is text as it stands.
fn byte_level(token: &str) -> Box<[u8]> {
    let byte = |c: char| match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    };
    token.chars().map(byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(&*byte_level(&character.to_string()), &[byte]);
        }
    }

    #[test]
    fn sentencepiece_writes_spaces_and_bytes() {
        for (token, bytes) in
            [("\u{2581}the", " the"), ("<0x0A>", "\n"), ("<0x0a", "<0x0a"), ("<0x+1>", "<0x+1>"), ("é", "é")]
        {
            assert_eq!(&*Spelling::SentencePiece.bytes(token), bytes.as_bytes(), "{token}");
        }
        assert_eq!(&*Spelling::SentencePiece.bytes("<0xFF>"), &[0xff]);
    }
}
