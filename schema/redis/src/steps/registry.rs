//! The registry of workers: who is there with what, and what an operator tells them. It lives in shard 0.

use redis::{FromRedisValue, ParsingError, Value};
use turnmill_schema::WorkerStatus;
use turnmill_schema::keys::Keys;

use crate::call::{Call, Step};

/// Enters a worker, and asks what it is told. See `register.lua`, which needs no other file.
#[derive(Clone, Copy, Debug)]
pub struct Register<'a> {
    /// The worker's consumer id.
    pub worker: &'a str,
    /// What it says of itself.
    pub status: &'a WorkerStatus,
    /// How long it is listed after it was last heard of, in milliseconds.
    pub listed_ms: u64,
}

impl Step for Register<'_> {
    const NAME: &'static str = "register";
    const SCRIPT: &'static str = concat!("#!lua flags=allow-oom\n", include_str!("register.lua"));
    /// The server's time in Unix milliseconds, and the order; empty: none.
    type Reply = (u64, String);

    fn call(&self, keys: &Keys) -> Call {
        let mut call = of_worker(keys, self.worker);
        call.text(self.listed_ms);
        for (field, value) in self.status.to_fields() {
            call.text(field).text(value);
        }
        call
    }

    fn read(reply: Value) -> Result<(u64, String), ParsingError> {
        FromRedisValue::from_redis_value(reply)
    }
}

/// Takes a worker that stops out of the registry. See `leave.lua`, which needs no other file.
#[derive(Clone, Copy, Debug)]
pub struct Leave<'a> {
    /// The worker's consumer id.
    pub worker: &'a str,
}

impl Step for Leave<'_> {
    const NAME: &'static str = "leave";
    const SCRIPT: &'static str = concat!("#!lua flags=allow-oom\n", include_str!("leave.lua"));
    /// Whether it was listed.
    type Reply = bool;

    fn call(&self, keys: &Keys) -> Call {
        of_worker(keys, self.worker)
    }

    fn read(reply: Value) -> Result<bool, ParsingError> {
        bool::from_redis_value(reply)
    }
}

/// Tells a worker to do something. See `order.lua`, which needs no other file.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The worker's consumer id.
    pub worker: &'a str,
    /// What: [`turnmill_schema::keys::ORDER_DRAIN`].
    pub order: &'a str,
    /// How long the order stands, in milliseconds.
    pub for_ms: u64,
}

impl Step for Order<'_> {
    const NAME: &'static str = "order";
    const SCRIPT: &'static str = concat!("#!lua flags=allow-oom\n", include_str!("order.lua"));
    type Reply = ();

    fn call(&self, keys: &Keys) -> Call {
        let mut call = Call::of_key(keys.order(self.worker));
        call.text(self.order).text(self.for_ms);
        call
    }

    fn read(_: Value) -> Result<(), ParsingError> {
        Ok(())
    }
}

fn of_worker(keys: &Keys, worker: &str) -> Call {
    let mut call = Call::default();
    call.keys([keys.workers(), keys.worker(worker), keys.order(worker)]).text(worker);
    call
}
