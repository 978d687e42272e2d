//! `turnmill-worker bench stall`: whether K and V that come and go hold up those who decode.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use turnmill_schema::Name;
use turnmill_worker::bench::stall::{self, InterToken, Options, Report};
use turnmill_worker::bench::stored::Subject;
use turnmill_worker::config::{ByteSize, KvCodec, StoreUrl};

use super::super::model_args::ModelArgs;
use super::super::{CommandError, runtime, spinner};
use super::print_figures;

/// Time between two tokens while K and V are restored and saved, against the same undisturbed.
#[derive(Args)]
pub struct StallArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where K and V are kept meanwhile; what is stored is removed again.
    #[arg(long, value_name = "URL")]
    store: StoreUrl,
    /// How K and V are kept.
    #[arg(long, value_name = "CODEC", default_value = "f16")]
    codec: KvCodec,
    /// Sequences that decode.
    #[arg(long, value_name = "N", default_value = "8")]
    sequences: usize,
    /// Tokens each makes, in each round undisturbed and disturbed.
    #[arg(long = "gen", value_name = "TOKENS", default_value = "150")]
    tokens: usize,
    /// Bytes a second that come and go, together.
    #[arg(long, value_name = "BYTES", default_value = "60MB")]
    rate: ByteSize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &StallArgs) -> Result<ExitCode, CommandError> {
    if args.sequences == 0 || args.tokens < 2 || args.rate.bytes() == 0 {
        return Err(CommandError::TooFew("--sequences, --gen less one, or --rate", 1));
    }
    let subject = Subject {
        model: args.model.choice()?,
        store: args.store.clone(),
        codec: args.codec,
        queue: Name::new("bench").expect("letters make a name"),
    };
    let options = Options {
        subject,
        sequences: args.sequences,
        tokens: args.tokens,
        bytes_per_second: args.rate.bytes(),
    };
    let spinner = spinner();
    let report = runtime()?.block_on(stall::run(&options, &|what| spinner.set_message(what)))?;
    spinner.finish_and_clear();
    print_figures(args.json, &report, print_table)
}

fn print_table(report: &Report) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["between two tokens", "p50 ms", "p99 ms"]);
    for (name, InterToken { p50_ms, p99_ms }) in [("undisturbed", report.idle), ("disturbed", report.busy)] {
        table.add_row([name.to_owned(), format!("{p50_ms:.1}"), format!("{p99_ms:.1}")]);
    }
    println!("{table}");
    let Report { p99_ratio, restored_mb_per_s, saved_mb_per_s, .. } = report;
    println!(
        "p99 {p99_ratio:.2}x; {restored_mb_per_s:.0} MB/s came back, {saved_mb_per_s:.0} MB/s were saved"
    );
}
