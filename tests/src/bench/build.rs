//! The two programs of Turnmill, built from one tree.
//!
//! A build may be older than the code that asks it. Invariant: it is asked only through commands, flags and JSON keys that
//! stay the same (docs/CLI.md).

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tokio::process::Command;

use super::BenchError;
use super::command::{json, output};
use crate::{program, without_settings};

const WORKER: &str = "turnmill-worker";
const CLIENT: &str = "turnmill";

/// A folder with both programs.
#[derive(Clone, Debug)]
pub struct Build {
    /// How it is called in tables.
    pub name: String,
    folder: PathBuf,
}

impl Build {
    /// The programs that were built together with the running one.
    pub(super) fn here() -> Self {
        let worker = program(WORKER);
        let folder = worker.parent().expect("a program lies in a folder").to_owned();
        Self { name: "this tree".to_owned(), folder }
    }

    /// The programs in `folder`, which are those of `name`.
    pub fn at(name: &str, folder: &Path) -> Result<Self, BenchError> {
        for program in [WORKER, CLIENT] {
            let path = folder.join(program);
            if !path.is_file() {
                return Err(BenchError::NotBuilt(path));
            }
        }
        Ok(Self { name: name.to_owned(), folder: folder.to_owned() })
    }

    /// `turnmill-worker`, without arguments.
    pub(super) fn worker(&self) -> Command {
        self.command(WORKER)
    }

    /// `turnmill`, without arguments.
    pub(super) fn client(&self) -> Command {
        self.command(CLIENT)
    }

    /// What `turnmill-worker bench <what> --json` prints. It dies with the future.
    pub(super) async fn bench<T: DeserializeOwned>(
        &self,
        what: &str,
        model: Option<&Path>,
        flags: &[&str],
    ) -> Result<T, BenchError> {
        let mut command = self.worker();
        command.args(["bench", what, "--json"]).args(flags);
        if let Some(model) = model {
            command.arg("--model").arg(model);
        }
        json(&format!("{WORKER} bench {what}"), &output(&mut command).await?)
    }

    /// A program that no setting of this machine reaches.
    fn command(&self, program: &str) -> Command {
        without_settings(std::process::Command::new(self.folder.join(program))).into()
    }
}
