//! `turnmill-worker bench restore`: what stored K and V are worth.

use std::io;
use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use indicatif::BinaryBytes;
use turnmill_schema::Name;
use turnmill_worker::bench::restore::{self, Figures, Options, Part};
use turnmill_worker::bench::stored::Subject;
use turnmill_worker::config::{KvCodec, StoreUrl};
use turnmill_worker::model::ModelChoice;

use super::super::model_args::ModelArgs;
use super::super::{CommandError, print_json, runtime, spinner};
use super::print_figures;

/// Time to the first token of a conversation that is nowhere, in the pool, or only in the store.
#[derive(Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Where K and V are kept meanwhile; what is stored is removed again.
    #[arg(long, value_name = "URL")]
    store: StoreUrl,
    /// Prompt lengths.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "1024,2048,4096,8000")]
    context: Vec<usize>,
    /// How K and V are kept.
    #[arg(long, value_name = "CODEC", value_delimiter = ',', default_value = "f16,q8,q4")]
    codec: Vec<KvCodec>,
    /// Print a JSON array, an object a context and codec.
    #[arg(long)]
    json: bool,
    /// For the processes that this command starts: which part to measure.
    #[arg(long, hide = true, requires = "queue")]
    part: Option<Part>,
    /// For the same: where the other process stored.
    #[arg(long, hide = true)]
    queue: Option<Name>,
}

/// Runs the command.
pub fn run(args: RestoreArgs) -> Result<ExitCode, CommandError> {
    if args.context.iter().any(|context| *context < 32) {
        return Err(CommandError::TooFew("--context", 32));
    }
    restore::check_shared(&args.store)?;
    let own = args.queue.clone().unwrap_or_else(|| Name::new("bench").expect("letters make a name"));
    let subject = Subject {
        model: args.model.choice()?,
        store: args.store,
        codec: args.codec.first().copied().unwrap_or(KvCodec::F16),
        queue: own,
    };
    let runtime = runtime()?;
    if let Some(part) = args.part {
        let context = args.context.first().copied().unwrap_or_default();
        print_json(&runtime.block_on(restore::run_one(part, &subject, context))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options { subject, contexts: args.context, codecs: args.codec };
    let spinner = spinner();
    let figures =
        runtime.block_on(restore::run(&options, &part_command, &|what| spinner.set_message(what)))?;
    spinner.finish_and_clear();
    print_figures(args.json, figures.as_slice(), print_table)
}

/// This program once more, for one part.
fn part_command(part: Part, subject: &Subject, context: usize) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "restore"]).arg("--model").arg(&subject.model.path);
    command.arg("--store").arg(subject.store.expose()).arg("--queue").arg(subject.queue.to_string());
    let ModelChoice { device, weights, kv_dtype, .. } = &subject.model;
    command.arg("--device").arg(device.to_string()).arg("--weights").arg(weights.to_string());
    command.arg("--kv-dtype").arg(kv_dtype.to_string());
    command.arg("--codec").arg(subject.codec.to_string()).arg("--context").arg(context.to_string());
    if let Some(part) = part.to_possible_value() {
        command.arg("--part").arg(part.get_name());
    }
    Ok(command)
}

fn print_table(figures: &[Figures]) {
    let mut table = Table::new();
    let header = ["context", "codec", "stored", "cold ms", "warm ms", "hot ms", "raw read ms", "cold/warm"];
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for figures in figures {
        table.add_row([
            figures.context.to_string(),
            figures.codec.to_string(),
            BinaryBytes(figures.bytes as u64).to_string(),
            format!("{:.0}", figures.cold_ttft_ms),
            format!("{:.1}", figures.warm_ttft_ms),
            format!("{:.1}", figures.hot_ttft_ms),
            format!("{:.1}", figures.raw_read_ms),
            format!("{:.0}x", figures.cold_ttft_ms / figures.warm_ttft_ms),
        ]);
    }
    println!("{table}");
}
