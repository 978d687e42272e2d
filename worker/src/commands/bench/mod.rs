//! `turnmill-worker bench`: how fast this machine is, and what codecs of K and V cost in words.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use turnmill_worker::bench::{drift, queue};
use turnmill_worker::config::{KvCodec, RedisUrl};

mod engine;
mod restore;
mod speculation;
mod stall;

use super::model_args::ModelArgs;
use super::{CommandError, print_json, progress_bar, runtime, spinner};

/// Measure a part of the worker.
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Drift(DriftArgs),
    Engine(engine::EngineArgs),
    Queue(QueueArgs),
    Restore(restore::RestoreArgs),
    Speculation(speculation::SpeculationArgs),
    Stall(stall::StallArgs),
}

/// Turns and token frames per second of the queue alone, with an engine that does nothing.
#[derive(Args)]
struct QueueArgs {
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

/// How far next-token distributions move when K and V are stored with a codec.
#[derive(Args)]
struct DriftArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Codecs to compare with f16.
    #[arg(long, value_name = "CODEC", value_delimiter = ',', default_value = "f16,q8,q4")]
    codec: Vec<KvCodec>,
    /// Print one JSON array, an object a codec.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<ExitCode, CommandError> {
    match args.what {
        What::Drift(args) => run_drift(args),
        What::Engine(args) => engine::run(args),
        What::Queue(args) => run_queue(args),
        What::Restore(args) => restore::run(args),
        What::Speculation(args) => speculation::run(args),
        What::Stall(args) => stall::run(&args),
    }
}

fn run_drift(args: DriftArgs) -> Result<ExitCode, CommandError> {
    let options = drift::Options { model: args.model.choice()?, codecs: args.codec };
    let bar = progress_bar("measuring drift", "tokens");
    let drifts = drift::run(&options, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    if args.json {
        print_json(&drifts)?;
    } else {
        print_drifts(&drifts);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_drifts(drifts: &[drift::Drift]) {
    let mut table = Table::new();
    let header = ["codec", "same likeliest token", "mean KL", "perplexity", "with f16", "bytes a token"];
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for drift in drifts {
        table.add_row([
            drift.codec.to_string(),
            format!("{:.2} %", 100.0 * drift.top1_agreement),
            format!("{:.6}", drift.mean_kl),
            format!("{:.4}", drift.perplexity),
            format!("{:.4}", drift.perplexity_f16),
            drift.bytes_per_token.to_string(),
        ]);
    }
    println!("{table}");
}

fn run_queue(args: QueueArgs) -> Result<ExitCode, CommandError> {
    let options = queue::Options {
        redis_url: args.redis_url,
        turns: args.turns.max(1000) as usize,
        payload: args.payload as usize,
        workers: usize::from(args.workers.max(1)),
    };
    let spinner = spinner();
    let report = runtime()?.block_on(queue::run(&options, &|what| spinner.set_message(what)))?;
    spinner.finish_and_clear();
    if args.json {
        print_json(&report)?;
    } else {
        print_queue(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_queue(report: &queue::Report) {
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
    let queue::Latency { p50, p99 } = report.claim_latency_ms;
    table.add_row(["enqueue to lease, half load".to_owned(), format!("p50 {p50:.2} ms, p99 {p99:.2} ms")]);
    table.add_row(["Redis CPU a cycle".to_owned(), format!("{:.0} µs", report.redis_cpu_us_per_cycle)]);
    println!("{table}");
}
