//! `turnmill-worker bench engine`: how fast the model alone is on this machine.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use indicatif::BinaryBytes;
use turnmill_worker::bench::engine::{self, Long, Options, Report};

use super::super::model_args::ModelArgs;
use super::super::{CommandError, spinner};
use super::print_figures;

/// Prompt and reply tokens per second of the model alone, time to the first token, and what memory gives.
#[derive(Args)]
pub struct EngineArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt lengths to measure.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128,512,2048,4096")]
    prefill: Vec<usize>,
    /// Prompt length before decoding.
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    context: usize,
    /// Tokens each sequence decodes.
    #[arg(long = "gen", value_name = "TOKENS", default_value = "64")]
    generate: usize,
    /// Numbers of sequences that decode at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,32")]
    batch: Vec<usize>,
    /// Prompt length before one sequence decodes alone, beside what memory gives; 0 leaves it out.
    #[arg(long, value_name = "TOKENS", default_value = "8000")]
    long_context: usize,
    /// Token rows a step computes, at most.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    batch_tokens: usize,
    /// Runs that each figure is the median of.
    #[arg(long, value_name = "N", default_value = "3")]
    runs: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: EngineArgs) -> Result<ExitCode, CommandError> {
    let options = Options {
        model: args.model.choice()?,
        prefill: args.prefill,
        context: args.context,
        generate: args.generate,
        batch: args.batch,
        long_context: args.long_context,
        batch_tokens: args.batch_tokens,
        runs: args.runs,
    };
    let spinner = spinner();
    let report = engine::run(&options, &|what| spinner.set_message(what))?;
    spinner.finish_and_clear();
    print_figures(args.json, &report, print_table)
}

fn print_table(report: &Report) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["figure", "tokens/s", "first token, ms"]);
    for figure in &report.prefill {
        let ttft = format!("{:.1}", figure.ttft_ms);
        table.add_row([format!("prefill {}", figure.tokens), format!("{:.0}", figure.tok_s), ttft]);
    }
    let decode = |batch, context, tok_s| {
        [format!("decode x{batch}, context {context}"), format!("{tok_s:.0}"), String::new()]
    };
    for figure in &report.decode {
        table.add_row(decode(figure.batch, figure.context, figure.tok_s));
    }
    if let Some(long) = &report.long {
        table.add_row(decode(1, long.context, long.tok_s));
    }
    println!("{table}");
    if let (Some(long), Some(machine)) = (&report.long, report.machine_read_bytes_per_s) {
        print_memory(long, machine, report.threads);
    }
    if let Some(peak) = report.peak_bytes {
        let pool = BinaryBytes(report.pool_bytes as u64);
        println!("memory: {} at most, {pool} of it the block pool", BinaryBytes(peak));
    }
}

fn print_memory(long: &Long, machine: f64, threads: usize) {
    let giga = |bytes: f64| bytes / 1e9;
    println!(
        "at {} tokens a step reads {:.0} MB of weights and {:.0} MB of K and V: {:.1} GB/s of the {:.1} GB/s that {threads} \
         threads get from memory",
        long.context,
        long.weight_bytes as f64 / 1e6,
        long.kv_bytes as f64 / 1e6,
        giga(long.read_bytes_per_s),
        giga(machine),
    );
}
