//! Digests of files, read once from beginning to end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::model::ModelError;
use crate::model::error::unreadable;

/// Compares `files`, one after another, with a SHA-256 in hexadecimal. `path` is what the error names.
pub fn verify_sha256(path: &Path, files: &[PathBuf], expected: &str) -> Result<(), ModelError> {
    let found = sha256(files)?;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(ModelError::WrongChecksum { path: path.to_owned(), expected: expected.to_owned(), found })
}

/// SHA-256 of `files`, one after another, in hexadecimal.
pub fn sha256(files: &[PathBuf]) -> Result<String, ModelError> {
    let mut hasher = Sha256::new();
    for file in files {
        each_chunk(file, 0, |chunk| hasher.update(chunk))?;
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives `path` from byte `start` on to `use_chunk`, piece by piece.
pub fn each_chunk(path: &Path, start: u64, mut use_chunk: impl FnMut(&[u8])) -> Result<(), ModelError> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    file.seek(SeekFrom::Start(start)).map_err(unreadable(path))?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).map_err(unreadable(path))? {
            0 => return Ok(()),
            n => use_chunk(&chunk[..n]),
        }
    }
}
