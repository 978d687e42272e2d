//! `turnmill-worker bench`: how fast this machine is.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use turnmill_worker::bench::engine::{self, Options};

use super::model_args::ModelArgs;
use super::{CommandError, print_json, spinner};

/// Measure a part of the worker.
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Engine(EngineArgs),
}

/// Prompt and reply tokens per second of the model alone.
#[derive(Args)]
struct EngineArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt lengths to measure.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512,2048")]
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
    /// Token rows a step computes, at most.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    batch_tokens: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<ExitCode, CommandError> {
    let What::Engine(args) = args.what;
    let options = Options {
        model: args.model.model,
        weights: args.model.weights,
        kv_dtype: args.model.kv_dtype,
        prefill: args.prefill,
        context: args.context,
        generate: args.generate,
        batch: args.batch,
        batch_tokens: args.batch_tokens.max(1),
    };
    let spinner = spinner();
    let report = engine::run(&options, &|what| spinner.set_message(what))?;
    spinner.finish_and_clear();
    if args.json {
        print_json(&report)?;
    } else {
        print_table(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(report: &engine::Report) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["figure", "tokens/s"]);
    for figure in &report.prefill {
        table.add_row([format!("prefill {}", figure.tokens), format!("{:.0}", figure.tok_s)]);
    }
    for figure in &report.decode {
        let name = format!("decode x{}, context {}", figure.batch, figure.context);
        table.add_row([name, format!("{:.0}", figure.tok_s)]);
    }
    println!("{table}");
}
