//! Script calls: KEYS and ARGV, and what makes a script a step of the protocol.

use redis::{ParsingError, Value};
use turnmill_schema::keys::Keys;

use crate::shared_keys::shared_keys;

/// KEYS and ARGV of a script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// KEYS, all in one slot.
    pub keys: Vec<String>,
    /// ARGV.
    pub args: Vec<Vec<u8>>,
}

impl Call {
    /// A call with the keys that all agents of a shard share, and no arguments yet.
    pub fn new(keys: &Keys) -> Self {
        Self { keys: shared_keys(keys), args: Vec::new() }
    }

    /// A call with one key and no arguments yet.
    pub fn of_key(key: String) -> Self {
        Self { keys: vec![key], args: Vec::new() }
    }

    /// Adds keys.
    pub fn keys(&mut self, keys: impl IntoIterator<Item = String>) -> &mut Self {
        self.keys.extend(keys);
        self
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl Into<Vec<u8>>) -> &mut Self {
        self.args.push(arg.into());
        self
    }

    /// Adds an argument as text.
    pub fn text(&mut self, arg: impl ToString) -> &mut Self {
        self.arg(arg.to_string())
    }
}

/// An atomic step of the protocol: one script, its arguments (the fields of the type that implements this) and its reply.
///
/// The same step again gives the same answer, so a caller may repeat it after a lost reply.
pub trait Step {
    /// What errors call it; unlike that of any other step.
    const NAME: &'static str;
    /// The script's whole text.
    const SCRIPT: &'static str;
    /// What it answers.
    type Reply;

    /// KEYS and ARGV, for the shard of `keys`.
    fn call(&self, keys: &Keys) -> Call;

    /// Reads the answer.
    ///
    /// # Errors
    /// The answer is not one of this step.
    fn read(reply: Value) -> Result<Self::Reply, ParsingError>;
}

/// A step that many agents take in one call, each with an answer of its own: one that cannot be read costs the others nothing.
pub trait ItemStep: Send {
    /// What errors call it; unlike that of any other step.
    const NAME: &'static str;
    /// The script's whole text. It answers the server's time in milliseconds, then an answer for each item.
    const SCRIPT: &'static str;
    /// What all items of a call have in common.
    type Common: Send + Sync;
    /// What it answers for one item.
    type Answer: Send;

    /// Adds the arguments that stand before the items'.
    fn begin(common: &Self::Common, call: &mut Call);

    /// Adds the item's keys and arguments.
    fn add(&self, keys: &Keys, call: &mut Call);

    /// Bytes of its arguments, about: calls are kept short.
    fn bytes(&self) -> usize {
        0
    }

    /// Reads the answer of one item.
    ///
    /// # Errors
    /// The answer is not one of this step.
    fn read(answer: Value) -> Result<Self::Answer, ParsingError>;
}
