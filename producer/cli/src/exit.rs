//! How the program ends: exit codes are part of its interface and listed in `--help`.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use turnmill_client::{BatchError, ClientError};

use crate::text::say;
use crate::words::words;

/// Why the program ends early.
#[derive(Debug)]
pub enum Exit {
    /// A turn did not complete; this was said already.
    NotCompleted,
    /// It ends with this code; why was said already.
    Told(u8),
    /// What it ends with, and what was done before.
    After(Box<Exit>, String),
    /// What it ends with, and which of several things it is about.
    Of(Box<Exit>, String),
    /// The command line or the input is wrong.
    BadInput(String),
    /// The queue could not do it.
    Queue(ClientError),
    /// What was asked about is not there.
    NotThere(String),
    /// What was asked for does not go with the state of things.
    Conflict(String),
    /// Somebody was asked and said no.
    Declined,
    /// Nobody reads our output any more, or it cannot be written.
    Output(io::Error),
}

impl Exit {
    /// Bad input, in one sentence.
    pub fn bad_input(reason: impl Display) -> Self {
        Self::BadInput(reason.to_string())
    }

    /// A state that does not allow it, in one sentence.
    pub fn conflict(reason: impl Display) -> Self {
        Self::Conflict(reason.to_string())
    }

    /// This, and what was done before.
    pub fn after(self, done: String) -> Self {
        Self::After(Box::new(self), done)
    }

    /// This, about one of several things. A message that names the thing stays as it is.
    pub fn of(self, name: String) -> Self {
        Self::Of(Box::new(self), name)
    }

    /// Whether Redis is away: whatever else is asked of it comes to the same.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Queue(error) => error.is_outage(),
            Self::After(exit, _) | Self::Of(exit, _) => exit.is_outage(),
            _ => false,
        }
    }

    /// Says what went wrong, once, and gives the exit code.
    pub fn report(self) -> ExitCode {
        ExitCode::from(self.tell())
    }

    /// Says what went wrong, for a program that goes on; gives the code that it is to end with.
    pub fn tell(self) -> u8 {
        let (code, message) = self.read();
        if let Some(message) = message {
            say(message);
        }
        code
    }

    /// The exit code, and what is to be said.
    pub fn read(self) -> (u8, Option<String>) {
        let (code, message) = match self {
            Self::NotCompleted => return (1, None),
            Self::Told(code) => return (code, None),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return (0, None),
            Self::After(exit, done) => {
                let (code, message) = exit.read();
                return (code, message.map(|message| format!("{message}; {done}")));
            }
            Self::Of(exit, name) => {
                let (code, message) = exit.read();
                let about = |message: String| match message.contains(&name) {
                    true => message,
                    false => format!("{name}: {message}"),
                };
                return (code, message.map(about));
            }
            Self::Output(error) => (1, format!("cannot write the output: {error}")),
            Self::BadInput(message) => (2, message),
            Self::NotThere(message) => (4, message),
            Self::Conflict(message) => (6, message),
            Self::Declined => (1, "nothing was done".to_owned()),
            Self::Queue(error) => (queue_code(&error), words(&error)),
        };
        (code, Some(message))
    }
}

/// The code of a command in which two things failed. The order in which they failed must not decide.
pub fn worse(one: u8, other: u8) -> u8 {
    /// What concerns every turn comes before what concerns one, and that before a turn that did not complete.
    const WORST_FIRST: [u8; 6] = [3, 2, 5, 4, 6, 1];
    WORST_FIRST.into_iter().find(|code| [one, other].contains(code)).unwrap_or(one)
}

fn queue_code(error: &ClientError) -> u8 {
    match error {
        ClientError::Batch(error) => queue_code(&error.source),
        ClientError::Unsure { source, .. } => queue_code(source),
        ClientError::InvalidTurn(_) | ClientError::Envelope(_) | ClientError::InvalidUrl(_) => 2,
        ClientError::InvalidSetting { .. } | ClientError::KeyTaken { .. } => 2,
        ClientError::StaleHead { .. } => 6,
        ClientError::InvalidStore { .. } | ClientError::NoStore { .. } => 2,
        ClientError::UnknownTurn { .. }
        | ClientError::UnknownAgent { .. }
        | ClientError::NotInHistory { .. }
        | ClientError::UnknownWorker { .. } => 4,
        ClientError::QueueFull { .. } => 5,
        ClientError::AgentBusy { .. } | ClientError::HistoryChanged { .. } => 6,
        ClientError::AgentTaken { .. } => 6,
        ClientError::OtherTenant { .. } | ClientError::AgentFile(_) | ClientError::File(_) => 2,
        ClientError::Gap { .. } => 1,
        _ => 3,
    }
}

impl From<ClientError> for Exit {
    fn from(error: ClientError) -> Self {
        Self::Queue(error)
    }
}

impl From<BatchError> for Exit {
    fn from(error: BatchError) -> Self {
        Self::Queue(error.into())
    }
}

impl From<io::Error> for Exit {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
