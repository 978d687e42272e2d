//! The worker's integration tests, in one program, because linking a program takes longer than most of its tests.
//! `cargo test --release -p turnmill-worker --test all -- engine::` runs one module. `allocations` is a program of its own: its
//! allocator counts what the whole process allocates.
//!
//! A test that computes holds [`common::only_me`]. Nothing may change what the process shares: environment, working directory.

#![allow(clippy::disallowed_methods, reason = "tests run on a machine")]

#[path = "../common/mod.rs"]
mod common;
mod decoder;
mod engine;
mod families;
mod gemma;
mod hub;
mod same_bits;
mod schemas;
mod speculation;
mod stored;
mod templates;
mod tensor;
