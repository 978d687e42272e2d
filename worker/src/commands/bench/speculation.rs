//! `turnmill-worker bench speculation`: what proposed tokens are worth on this machine.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use turnmill_worker::bench::speculation::{self, Figure, Options};
use turnmill_worker::schedule::Speculation;

use super::super::model_args::ModelArgs;
use super::super::{CommandError, spinner};
use super::print_figures;

/// Tokens per second with prompt lookup and without, of agents' turns and of questions.
#[derive(Args)]
pub struct SpeculationArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Numbers of turns at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8")]
    batch: Vec<usize>,
    /// Tokens each makes at most.
    #[arg(long = "gen", value_name = "TOKENS", default_value = "128")]
    generate: usize,
    /// How tokens are drawn; 0 takes the likeliest.
    #[arg(long, value_name = "T", default_value = "0")]
    temperature: f32,
    /// Tokens that are proposed for a turn in a step, at most.
    #[arg(long, value_name = "N", default_value = "7")]
    speculation_tokens: usize,
    /// Rows of a step, at most, for it to have proposals; those of the worker, unless given.
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Times that each is measured.
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: usize,
    /// Print one JSON array, an object a figure.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: SpeculationArgs) -> Result<ExitCode, CommandError> {
    if args.batch.contains(&0) || args.generate < 2 || args.rounds == 0 || args.speculation_tokens == 0 {
        return Err(CommandError::TooFew("--batch, --gen less one, --rounds or --speculation-tokens", 1));
    }
    let mut amount = Speculation::new(args.speculation_tokens);
    amount.rows = args.rows.unwrap_or(amount.rows);
    let options = Options {
        model: args.model.choice()?,
        batch: args.batch,
        generate: args.generate,
        temperature: args.temperature,
        speculation: amount,
        rounds: args.rounds,
    };
    let spinner = spinner();
    let figures = speculation::run(&options, &|what| spinner.set_message(what))?;
    spinner.finish_and_clear();
    print_figures(args.json, figures.as_slice(), print_table)
}

fn print_table(figures: &[Figure]) {
    let mut table = Table::new();
    let header = ["turns", "without, tokens/s", "with lookup", "ratio", "proposed of 100", "accepted"];
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for figure in figures {
        table.add_row([
            format!("{} x{}", figure.text, figure.batch),
            format!("{:.0}", figure.plain_tok_s),
            format!("{:.0}", figure.lookup_tok_s),
            format!("{:.2}", figure.ratio),
            format!("{:.0}", 100.0 * figure.proposed as f64 / figure.tokens as f64),
            format!("{:.0} %", 100.0 * figure.acceptance),
        ]);
    }
    println!("{table}");
}
