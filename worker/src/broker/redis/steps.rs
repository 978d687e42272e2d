//! The scripts, ready to be called by their digest.

use std::sync::LazyLock;

use redis::Script;
use turnmill_schema::scripts;

/// A step of the protocol: its name in errors, and its script.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) script: LazyLock<Script>,
}

macro_rules! steps {
    ($($constant:ident $name:literal)*) => {$(
        pub(super) static $constant: Step =
            Step { name: $name, script: LazyLock::new(|| Script::new(scripts::$constant)) };
    )*};
}

steps! {
    LEASE "lease"
    DISCARD "discard"
    HEARTBEAT "heartbeat"
    FINISH "finish"
    RELEASE "release"
    PUT_BACK "put_back"
    REPAIR "repair"
    CONSUMERS "consumers"
    COUNTS "counts"
}
