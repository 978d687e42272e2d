//! `turnmill-worker bench drift`: what codecs of K and V cost in words.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use turnmill_worker::bench::drift::{self, Drift, Options};
use turnmill_worker::config::KvCodec;

use super::super::model_args::ModelArgs;
use super::super::{CommandError, progress_bar};
use super::print_figures;

/// How far next-token distributions move when K and V are stored with a codec.
#[derive(Args)]
pub struct DriftArgs {
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
pub fn run(args: DriftArgs) -> Result<ExitCode, CommandError> {
    let options = Options { model: args.model.choice()?, codecs: args.codec };
    let bar = progress_bar("measuring drift", "tokens");
    let drifts = drift::run(&options, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    print_figures(args.json, drifts.as_slice(), print_table)
}

fn print_table(drifts: &[Drift]) {
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
