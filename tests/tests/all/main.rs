//! Every integration test, in one program, because linking a program takes longer than most of its tests. A new file becomes a
//! module here; `cargo test --release -p turnmill-tests --test all -- e2e::` runs one module.
//!
//! Tests run side by side in threads. [`turnmill_tests::machine`] keeps apart those that would disturb each other. Nothing may
//! change what the process shares: environment, working directory.

mod block_store;
mod broker_memory;
mod broker_redis;
mod broker_troubles;
mod cli_edges;
mod client_mistakes;
mod e2e;
mod failing_worker;
mod followers;
mod front_door;
mod golden;
mod histories;
mod kv_commands;
mod mutations;
mod observability;
mod operate;
mod operator_cli;
mod payloads;
mod producer_cli;
mod prometheus;
mod retention;
mod s3;
mod scripted_worker;
mod simulation;
mod submit_many;
mod submit_partly;
mod submit_room;
mod terminal_output;
mod top;
mod traces;
mod wait_many;
