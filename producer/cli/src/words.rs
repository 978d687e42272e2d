//! What the command line says of an error: the client's words, and which flag, variable or command helps.

use turnmill_client::schema::envelope::MAX_INLINE_BYTES;
use turnmill_client::{BatchError, ClientError, Fate, Fault};

/// The error in one line.
pub fn words(error: &ClientError) -> String {
    match error {
        ClientError::Batch(error) => of_batch(error),
        // What is said of the turn beside the error is said by who knows its line.
        ClientError::Unsure { source, .. } => words(source),
        ClientError::NoStore { bytes, .. } => format!(
            "the turn has {bytes} bytes; with more than {MAX_INLINE_BYTES} it goes through an object store, and none is \
             named: give --store or set TURNMILL_STORE, or send less text"
        ),
        ClientError::OtherTenant { found, tenant } => {
            format!("the file holds an agent of tenant {found}, not of {tenant}; give --tenant {found}")
        }
        ClientError::UnknownWorker { worker } => {
            format!("no worker has the id or name {worker}; see turnmill worker ls")
        }
        other => other.to_string(),
    }
}

/// How many turns are in the queue is said unless that goes without saying.
fn of_batch(error: &BatchError) -> String {
    let reason = words(&error.source);
    let is_lost = match &*error.source {
        ClientError::Queue(fault) => matches!(fault, Fault::Unreachable { .. } | Fault::Unreadable { .. }),
        other => matches!(other, ClientError::Unreadable { .. }),
    };
    let usual = if is_lost { Fate::Unknown } else { Fate::NotEnqueued };
    match error.fates.iter().all(|fate| *fate == usual) {
        true => reason,
        false => format!("{}: {reason}", error.summary()),
    }
}

#[cfg(test)]
mod tests {
    use turnmill_client::schema::TurnId;

    use super::*;

    #[test]
    fn what_helps_on_the_command_line_is_named() {
        let tenant = || "t".to_owned();
        for (error, part) in [
            (
                ClientError::NoStore { turn: TurnId::new(0), bytes: 300_000 },
                "give --store or set TURNMILL_STORE",
            ),
            (ClientError::OtherTenant { found: "other".to_owned(), tenant: tenant() }, "give --tenant other"),
            (ClientError::UnknownWorker { worker: "w".to_owned() }, "see turnmill worker ls"),
        ] {
            assert!(words(&error).contains(part), "{}", words(&error));
            assert!(!error.to_string().contains(part), "{error}");
        }
    }
}
