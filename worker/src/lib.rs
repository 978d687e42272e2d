//! Turnmill's worker: claims agent turns, computes them in continuously batched steps, publishes tokens.
//!
//! | room | owns |
//! |---|---|
//! | [`config`] | flags, environment and file become validated settings before anything binds |
//! | [`app`] | the one place that knows every concrete type |
//! | [`lifecycle`] | starting, ready, failing, draining, stopped; readiness from pool headroom |
//! | [`runner`] | one turn's life, from claim to terminal result |
//! | [`broker`] | the port to the queue, and its Redis adapter |
//! | [`schedule`] | pure: which rows the next step computes |
//! | [`kv`] | pure: block pool, block tables, prefix hashes |
//! | [`hub`] | models from Hugging Face's hub, and the cache they are kept in |
//! | [`model`] | the port to the model; the only room that knows candle |
//! | [`store`] | what lies in the object store; the only room that knows object_store |
//! | [`surroundings`] | time, chance and tasks: the machine's, or a simulation's |
//! | [`engine`] | the step loop on its own thread, between async turns and the model |
//! | [`observe`] | metrics, spans of turns, answers to probes |
//! | [`verify`] | the model against reference outputs |
//! | [`tools`] | pure: what models write to call tools and to think, as grammars and as parsers |
//! | [`mod@bench`] | how fast it is |

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "unit tests run on a machine"))]

pub mod app;
pub mod bench;
pub mod broker;
pub mod config;
mod cryptography;
pub mod engine;
pub mod hub;
pub mod kv;
pub mod lifecycle;
pub mod model;
pub mod observe;
pub mod runner;
pub mod schedule;
pub mod store;
pub mod surroundings;
pub mod tools;
pub mod verify;

use turnmill_telemetry::Program;

/// What this program is called.
pub const PROGRAM: Program =
    Program { name: "turnmill-worker", noun: "worker", version: env!("CARGO_PKG_VERSION") };
