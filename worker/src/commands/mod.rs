//! The subcommands, one file each; what they share.

pub mod bench;
pub mod check;
pub mod config;
pub mod kv;
mod loading;
pub mod man;
mod model_args;
pub mod serve;
mod threads;
pub mod verify;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use turnmill_worker::app::AppError;
use turnmill_worker::bench::speculation::SpeculationError;
use turnmill_worker::bench::stored::BenchError;
use turnmill_worker::bench::{drift, engine, queue};
use turnmill_worker::broker::BrokerError;
use turnmill_worker::broker::redis::HoldError;
use turnmill_worker::config::ConfigError;
use turnmill_worker::hub::HubError;
use turnmill_worker::store::StoreError;
use turnmill_worker::store::garbage::GarbageError;
use turnmill_worker::store::keys::KeysError;
use turnmill_worker::verify::VerifyError;

/// Why a command failed; printed as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The worker could not start or had to stop.
    #[error(transparent)]
    App(#[from] AppError),
    /// Nothing could be measured.
    #[error(transparent)]
    BenchEngine(#[from] engine::BenchError),
    /// A codec could not be measured.
    #[error(transparent)]
    BenchDrift(#[from] drift::DriftError),
    /// The queue could not be measured.
    #[error(transparent)]
    BenchQueue(#[from] queue::BenchError),
    /// What proposed tokens are worth could not be measured.
    #[error(transparent)]
    BenchSpeculation(#[from] SpeculationError),
    /// What stored K and V are worth could not be measured.
    #[error(transparent)]
    BenchStored(#[from] BenchError),
    /// A model that is not on this machine.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A number asks for nothing.
    #[error("{0} is too small; give {1} or more")]
    TooFew(&'static str, u32),
    /// A verification could not be made.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A command about the object store without one.
    #[error("there is no object store to look at: name it with --store or TURNMILL_STORE")]
    NoStore,
    /// The object store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tenants' keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The queue.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The right to collect garbage.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// Garbage was not collected.
    #[error(transparent)]
    Garbage(#[from] GarbageError),
    /// The operating system.
    #[error("the system refused: {0}")]
    System(#[from] std::io::Error),
    /// A result cannot be written as JSON.
    #[error("cannot write the result as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints one JSON value on a line.
pub fn print_json(value: &(impl Serialize + ?Sized)) -> Result<(), CommandError> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// A bar on a terminal's standard error; silent elsewhere.
pub fn progress_bar(what: &'static str, unit: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{msg}} {{wide_bar}} {{pos}}/{{len}} {unit}"));
    ProgressBar::new(0).with_message(what).with_style(style.expect("the template is well formed"))
}

/// What the async side runs on.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    // Turns mostly wait, for the engine and for Redis; the cores belong to the engine.
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// A line that says what goes on, on a terminal's standard error; silent elsewhere.
pub fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
