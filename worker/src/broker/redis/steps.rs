//! The scripts, ready to be called by their digest; the client sends a script again where the server lost it.

use redis::{Script, ScriptInvocation};
use turnmill_schema::scripts::{self, Call};

/// A step of the protocol: its name in errors, and its script.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    script: Script,
}

impl Step {
    /// A step that the operators' commands of this program take, and no worker.
    pub(super) fn of_operators(name: &'static str, text: &str) -> Self {
        Self { name, script: Script::new(text) }
    }

    /// The script with its keys and arguments.
    pub(super) fn invocation(&self, call: &Call) -> ScriptInvocation<'_> {
        let mut invocation = self.script.prepare_invoke();
        for key in &call.keys {
            invocation.key(key.as_str());
        }
        for arg in &call.args {
            invocation.arg(arg.as_slice());
        }
        invocation
    }
}

macro_rules! scripts {
    ($($(#[$meta:meta])* $field:ident $constant:ident;)*) => {
        /// The texts of the steps a worker takes. [`Default`] is the protocol; tests that show what a step's check is for
        /// leave the check out.
        #[derive(Clone, Debug)]
        pub struct Scripts {
            $($(#[$meta])* pub $field: String,)*
        }

        impl Default for Scripts {
            fn default() -> Self {
                Self { $($field: scripts::$constant.to_owned(),)* }
            }
        }

        /// Every step a worker takes.
        #[derive(Debug)]
        pub(super) struct Steps {
            $(pub(super) $field: Step,)*
        }

        impl From<Scripts> for Steps {
            fn from(texts: Scripts) -> Self {
                Self { $($field: Step { name: stringify!($field), script: Script::new(&texts.$field) },)* }
            }
        }
    };
}

scripts! {
    /// [`scripts::LEASE`]
    lease LEASE;
    /// [`scripts::FINISH`]
    finish FINISH;
    /// [`scripts::REQUEUE`]
    requeue REQUEUE;
    /// [`scripts::ADVANCE`]
    advance ADVANCE;
    /// [`scripts::APPEND`]
    append APPEND;
    /// [`scripts::RENEW`]
    renew RENEW;
    /// [`scripts::RETURN_TICKET`]
    return_ticket RETURN_TICKET;
    /// [`scripts::PROMOTE`]
    promote PROMOTE;
    /// [`scripts::REPAIR`]
    repair REPAIR;
    /// [`scripts::CONSUMERS`]
    consumers CONSUMERS;
    /// [`scripts::TRIM`]
    trim TRIM;
    /// [`scripts::COUNTS`]
    counts COUNTS;
}
