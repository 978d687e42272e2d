//! `turnmill version`: this program and the formats it writes.

use std::io::{Write, stdout};

use turnmill_client::schema::envelope;

use crate::exit::Exit;

pub fn run() -> Result<(), Exit> {
    let envelope = envelope::VERSION;
    Ok(writeln!(stdout(), "turnmill {}\nenvelope version {envelope}", env!("CARGO_PKG_VERSION"))?)
}
