//! How many threads compute.
//!
//! Candle and rayon size their pools from the environment when they are first used, and a process cannot
//! change its own environment safely; so a worker that is told a number starts itself once more with it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::CommandError;

/// What rayon and candle read.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Returns where this process computes with `threads` threads (0: all cores); otherwise replaces it by one
/// that does, with the same process id.
pub fn with_threads(threads: u32) -> Result<(), CommandError> {
    let wanted = threads.to_string();
    if threads == 0 || std::env::var(VARIABLE).is_ok_and(|current| current == wanted) {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    Err(Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, wanted).exec().into())
}
