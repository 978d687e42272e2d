//! `turnmill-worker bench queue`: how fast the queue alone is.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use turnmill_worker::bench::queue::{self, Latency, Options, Report};
use turnmill_worker::config::RedisUrl;

use super::super::{CommandError, runtime, spinner};
use super::print_figures;

/// Turns and token frames per second of the queue alone, with an engine that does nothing.
#[derive(Args)]
pub struct QueueArgs {
    /// Where Redis is; the bench uses a queue of its own and deletes it.
    #[arg(
        long,
        env = "TURNMILL_REDIS_URL",
        hide_env_values = true,
        default_value = "redis://127.0.0.1:6379"
    )]
    redis_url: RedisUrl,
    /// Turns to enqueue and to run.
    #[arg(long, value_name = "N", default_value = "100000")]
    turns: u32,
    /// Bytes of each turn's message.
    #[arg(long, value_name = "BYTES", default_value = "1024")]
    payload: u32,
    /// Workers at once.
    #[arg(long, value_name = "N", default_value = "4")]
    workers: u16,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: QueueArgs) -> Result<ExitCode, CommandError> {
    let options = Options {
        redis_url: args.redis_url,
        turns: args.turns.max(1000) as usize,
        payload: args.payload as usize,
        workers: usize::from(args.workers.max(1)),
    };
    let spinner = spinner();
    let report = runtime()?.block_on(queue::run(&options, &|what| spinner.set_message(what)))?;
    spinner.finish_and_clear();
    print_figures(args.json, &report, print_table)
}

fn print_table(report: &Report) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["figure", "value"]);
    for (name, per_s) in [
        ("raw XADD", report.xadd_per_s),
        ("enqueue, batched", report.enqueue_batched_per_s),
        ("enqueue, one by one", report.enqueue_single_per_s),
        ("full cycle", report.cycle_per_s),
        ("token frames", report.frames_per_s),
    ] {
        table.add_row([name.to_owned(), format!("{per_s:.0} /s")]);
    }
    let Latency { p50, p99 } = report.claim_latency_ms;
    table.add_row(["enqueue to lease, half load".to_owned(), format!("p50 {p50:.2} ms, p99 {p99:.2} ms")]);
    table.add_row(["Redis CPU a cycle".to_owned(), format!("{:.0} µs", report.redis_cpu_us_per_cycle)]);
    println!("{table}");
}
