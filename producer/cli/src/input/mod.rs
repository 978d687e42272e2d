//! Turns as JSON lines: one object a line, flags being the defaults for all.
//!
//! A wrong line is named by its number, and ends the input.

mod fields;
mod file;
mod numbers;
mod reply;

use futures::Stream;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use turnmill_client::NewTurn;
use turnmill_client::schema::envelope::MAX_ENVELOPE_BYTES;

pub use fields::Defaults;
pub use file::json_file;
pub use reply::read_tools;

/// Longest line, in bytes: above any turn that fits, however its text is escaped (`\u0001` is one byte in six).
const MAX_LINE_BYTES: u64 = 6 * MAX_ENVELOPE_BYTES as u64;

/// A turn, and the line that it stood in.
#[derive(Debug)]
pub struct Given {
    /// Counted from 1; none: it came from flags.
    pub line: Option<u64>,
    pub turn: NewTurn,
}

/// A line that is no turn.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct WrongLine {
    pub line: u64,
    /// What is wrong and what to do.
    pub reason: String,
}

/// The turns of `input`, up to the first line that is wrong. Blank lines are passed over.
pub fn turns(
    input: impl AsyncRead + Send + Unpin,
    defaults: Defaults,
) -> impl Stream<Item = Result<Given, WrongLine>> {
    let lines = Lines { input: BufReader::with_capacity(1 << 18, input), defaults, number: 0 };
    futures::stream::try_unfold(lines, |mut lines| async move {
        let turn = lines.next().await?;
        Ok(turn.map(|turn| (turn, lines)))
    })
}

struct Lines<R> {
    input: BufReader<R>,
    defaults: Defaults,
    number: u64,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    async fn next(&mut self) -> Result<Option<Given>, WrongLine> {
        loop {
            self.number += 1;
            let number = self.number;
            let wrong = |reason: String| WrongLine { line: number, reason };
            let mut line = Vec::new();
            let mut limited = (&mut self.input).take(MAX_LINE_BYTES + 1);
            let bytes =
                limited.read_until(b'\n', &mut line).await.map_err(|error| wrong(error.to_string()))?;
            if bytes == 0 {
                return Ok(None);
            }
            if bytes as u64 > MAX_LINE_BYTES {
                return Err(wrong(format!("it is longer than {MAX_LINE_BYTES} bytes")));
            }
            let text = text_of(&line).map_err(wrong)?;
            if !text.trim_ascii().is_empty() {
                let turn = self.defaults.read(text).map_err(wrong)?;
                return Ok(Some(Given { line: Some(number), turn }));
            }
        }
    }
}

/// The line as text, without a byte order mark: programs put one at the start of a file, and files are put together. Its
/// indentation stays, so that columns are those of the input.
fn text_of(line: &[u8]) -> Result<&str, String> {
    // JSON has no zero bytes, and in UTF-16 one of its first two bytes is zero unless they are the mark.
    if line.starts_with(&[0xff, 0xfe])
        || line.starts_with(&[0xfe, 0xff])
        || line.iter().take(2).any(|byte| *byte == 0)
    {
        return Err("the input is UTF-16; write it as UTF-8, or convert it: iconv -f UTF-16 -t UTF-8".into());
    }
    let text = std::str::from_utf8(line).map_err(|error| {
        let column = error.valid_up_to() + 1;
        format!("it is not UTF-8 from byte {column} on; write it as UTF-8, or convert it, as with iconv")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn lines_before_a_wrong_one_are_read_and_its_number_is_told() {
        let input =
            "{\"message\": \"a\"}\n\n{\"message\": \"b\"}\nnonsense\n{\"message\": \"c\"}\n".as_bytes();
        let read: Vec<_> = turns(input, Defaults::default()).collect().await;
        assert_eq!(read.len(), 3);
        assert!(read[0].is_ok() && read[1].is_ok());
        assert!(matches!(&read[2], Err(WrongLine { line: 4, .. })), "{read:?}");
    }

    #[tokio::test]
    async fn the_column_of_a_mistake_is_that_in_the_input() {
        for before in ["", "    ", "\t", "\u{feff}", "\u{feff}  "] {
            for (start, column) in [("{\"message\": ", 13), ("{\"agent\": \"wei\u{df}\", \"message\": ", 30)]
            {
                let input = format!("\n{before}{start}@}}\r\n");
                let read: Vec<_> = turns(input.as_bytes(), Defaults::default()).collect().await;
                // A mark has no column.
                let column = column + before.chars().filter(|c| *c != '\u{feff}').count();
                let said = format!("line 2: not a JSON object: expected value at column {column}");
                assert!(matches!(&read[..], [Err(wrong)] if wrong.to_string() == said), "{said}: {read:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let input = tokio::io::repeat(b'x');
        let read: Vec<_> = turns(input, Defaults::default()).take(2).collect().await;
        assert!(
            matches!(&read[..], [Err(WrongLine { line: 1, reason })] if reason.contains("longer")),
            "{read:?}"
        );
    }
}
