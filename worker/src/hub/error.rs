//! Why a model does not come from the hub.

use std::path::PathBuf;

/// Each is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not a name of a model on the hub.
    #[error(
        "{0:?} names no model on the hub; write hf:OWNER/NAME, hf:OWNER/NAME/FILE.gguf or hf:OWNER/NAME@REVISION"
    )]
    BadName(String),
    /// `HF_ENDPOINT` is no address.
    #[error("HF_ENDPOINT is {0:?}, which is no address; unset it or give one such as https://huggingface.co")]
    BadEndpoint(String),
    /// The user has no home folder.
    #[error("there is no home folder to keep models in; set HF_HOME")]
    NoHome,
    /// 401.
    #[error(
        "{repository} does not exist on {endpoint}, or is private; check the name, and set HF_TOKEN if you have access"
    )]
    Unauthorised {
        /// Which.
        repository: String,
        /// Where.
        endpoint: String,
    },
    /// 403.
    #[error(
        "{endpoint} does not let this HF_TOKEN read {repository}; accept its terms at {endpoint}/{repository}, or take a \
         token with access"
    )]
    Forbidden {
        /// Which.
        repository: String,
        /// Where.
        endpoint: String,
    },
    /// 404.
    #[error("{what} is not on {endpoint}; check its name and revision")]
    NotFound {
        /// A repository at a revision, or a file in it.
        what: String,
        /// Where.
        endpoint: String,
    },
    /// Any other refusal.
    #[error("{endpoint} answered {status} for {what}; try again later")]
    Refused {
        /// What was asked for.
        what: String,
        /// Where.
        endpoint: String,
        /// The status.
        status: u16,
    },
    /// No connection.
    #[error("cannot reach {endpoint}: {reason}; check the network and HF_ENDPOINT")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// Offline, and nothing in the cache.
    #[error("{0} was not fetched before, and HF_HUB_OFFLINE is set; unset it once to fetch the model")]
    NotKept(String),
    /// The answer is not the hub's.
    #[error("{endpoint} does not answer as the hub does: {reason}; check HF_ENDPOINT")]
    NotTheHub {
        /// Where.
        endpoint: String,
        /// What is odd.
        reason: String,
    },
    /// The repository has no such file.
    #[error("{repository} has no GGUF file {file}; its GGUF files: {has}")]
    NoSuchFile {
        /// Which repository.
        repository: String,
        /// Which file.
        file: String,
        /// Those it has.
        has: String,
    },
    /// The repository has more than one GGUF file and no safetensors.
    #[error("{repository} has several GGUF files; name one as hf:{repository}/FILE: {has}")]
    Several {
        /// Which repository.
        repository: String,
        /// Those it has.
        has: String,
    },
    /// The repository has nothing a worker can load.
    #[error("{0} has neither a GGUF file nor model.safetensors with config.json; take another repository")]
    NothingUsable(String),
    /// A download broke off again and again.
    #[error(
        "the download of {file} broke off after {done} bytes: {reason}; run this again to go on from there"
    )]
    BrokeOff {
        /// Which file.
        file: String,
        /// How far it was.
        done: u64,
        /// Why it broke off.
        reason: String,
    },
    /// What arrived is not what the hub has.
    #[error("{file} arrived damaged ({reason}) and was removed; run this again to fetch it anew")]
    Damaged {
        /// Which file.
        file: String,
        /// What differs.
        reason: String,
    },
    /// The cache cannot be written or read.
    #[error("cannot keep models in {path}: {reason}; make room or set HF_HOME to another folder")]
    Cache {
        /// Where.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The operating system.
    #[error("the system refused: {0}")]
    System(std::io::Error),
}
