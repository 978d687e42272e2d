//! What can be wrong with a model. Loading stops the worker: another file is needed.

use std::path::{Path, PathBuf};

/// Why a model cannot be loaded. The answer to every one is "stop": nothing is retried.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be opened or read.
    #[error(
        "cannot read the model {path}: {reason}; give a GGUF file, a folder with safetensors, or hf:OWNER/NAME with --model"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Not a file of its format, or a damaged one.
    #[error("{path} is not a whole {format} file: {reason}; fetch it again")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The format's name.
        format: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is not the one that was asked for.
    #[error("{path} has SHA-256 {found}, not {expected}; fetch it again or correct model_sha256")]
    WrongChecksum {
        /// Which file.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What it has.
        found: String,
    },
    /// A model family that the decoder does not cover.
    #[error(
        "the model's architecture is {0:?}; this version runs llama (Llama 2 and 3, SmolLM2), mistral, qwen2 (2 and 2.5), \
         qwen3 and gemma3 (text)"
    )]
    Architecture(String),
    /// The device that was asked for is not there.
    #[error("{0}")]
    Device(String),
    /// The chat template's file cannot be read.
    #[error("cannot read the chat template {path}: {reason}; correct chat_template")]
    Template {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Something the family needs is missing or odd.
    #[error("the model cannot be used: {0}")]
    Unusable(String),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        // Candle's Display carries a backtrace after the first line.
        Self::Unusable(first_line(&error))
    }
}

/// Candle's errors print a backtrace after their first line; people want the first line.
pub(super) fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or("unknown candle error").to_owned()
}

/// The system could not open or read `path`.
pub(super) fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> ModelError {
    |e| ModelError::Unreadable { path: path.to_owned(), reason: e.to_string() }
}

/// `path` is no whole file of `format`.
pub(super) fn damaged(path: &Path, format: &'static str, reason: String) -> ModelError {
    ModelError::Damaged { path: path.to_owned(), format, reason }
}
