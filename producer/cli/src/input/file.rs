//! Files that a flag names: one JSON value each.

use std::path::Path;

use serde_json::Value;
use tokio::io::AsyncReadExt;
use turnmill_client::schema::envelope::MAX_ENVELOPE_BYTES;

use super::text_of;
use crate::exit::Exit;

/// The JSON value in `file`. The error names the file and, if it is not JSON, the line.
pub async fn json_file(file: &Path) -> Result<Value, Exit> {
    let name = file.display();
    let mut bytes = Vec::new();
    let most = MAX_ENVELOPE_BYTES as u64;
    let read = match tokio::fs::File::open(file).await {
        Ok(opened) => opened.take(most + 1).read_to_end(&mut bytes).await,
        Err(error) => Err(error),
    };
    read.map_err(|error| Exit::bad_input(format!("cannot read {name}: {error}")))?;
    let wrong = |why: String| Exit::bad_input(format!("cannot use {name}: {why}"));
    if bytes.len() as u64 > most {
        return Err(wrong(format!("it has more than {most} bytes, which no turn can have")));
    }
    let text = text_of(&bytes).map_err(wrong)?;
    serde_json::from_str(text).map_err(|error| wrong(format!("it is not JSON: {error}")))
}
