//! `turnmill-worker verify`: the model against reference outputs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use turnmill_worker::verify::{Options, Report, verify};

use super::model_args::ModelArgs;
use super::{CommandError, print_json, progress_bar};

/// Compare token ids, rendered prompts, log-probabilities and greedy replies with a reference.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Reference outputs, a JSON file; may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    reference: Vec<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command; exit status 1 if something differs more than rounding explains.
pub fn run(args: VerifyArgs) -> Result<ExitCode, CommandError> {
    let options = Options { model: args.model.choice()?, references: args.reference };
    let bar = progress_bar("verifying", "chats");
    let report = verify(&options, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    if args.json {
        print_json(&report)?;
    } else {
        print_text(&report);
    }
    let shortfalls = report.shortfalls(options.model.weights, options.model.kv_dtype);
    shortfalls.iter().for_each(|shortfall| eprintln!("turnmill-worker: {shortfall}"));
    Ok(if shortfalls.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_text(report: &Report) {
    println!("token ids         {} of {} equal", report.tokenize.equal, report.tokenize.cases);
    println!("rendered prompts  {} of {} equal", report.template.equal, report.template.cases);
    println!("greedy replies    {} of {} equal", report.greedy.equal, report.greedy.cases);
    let logprob = report.logprob;
    println!("likeliest token   {} of {} steps equal", logprob.top1, logprob.steps);
    println!("log-probability   largest difference {:.5}, mean KL {:.6}", logprob.max_diff, logprob.mean_kl);
}
