//! `turnmill version`: this program and the formats it writes.

use std::io::{Write, stdout};

use turnmill::schema::envelope;

use super::Exit;

pub fn run() -> Result<(), Exit> {
    let envelope = envelope::VERSION;
    Ok(writeln!(stdout(), "turnmill {}\nenvelope version {envelope}", env!("CARGO_PKG_VERSION"))?)
}
