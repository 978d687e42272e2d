//! End to end: real Redis, real model, real workers in processes of their own. These tests take turns on the machine
//! (see [`turnmill_tests::line`]); a worker loads the model for seconds, so tests that need the same flags share one.

mod act;
mod against;
mod bad_input;
mod faults;
mod health;
mod line;
mod logs;
mod loops;
mod metrics;
mod payloads;
mod queue;
mod real_redis;
mod refusals;
mod rolling;
mod same_words;
mod store_faults;
mod stored;
mod traces;
