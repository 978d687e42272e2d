//! `turnmill-worker kv gc`: removing what nothing refers to any more.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use indicatif::{BinaryBytes, ProgressBar};
use serde::Serialize;
use turnmill_worker::broker::redis::{HoldError, RedisReferences};
use turnmill_worker::config::{Settings, SettingsArgs};
use turnmill_worker::store::garbage::{Collected, Found, Options, collect};
use turnmill_worker::store::inventory::Inventory;

use super::super::{CommandError, print_json, spinner};
use super::{duration, print_table};

/// Exit status if another process collects garbage.
const TAKEN: u8 = 3;

/// Find stored segments that no agent's manifest reaches and payloads that no turn refers to, and remove them.
///
/// Without --delete, nothing is removed.
#[derive(Args)]
pub struct GcArgs {
    #[command(flatten)]
    _settings: SettingsArgs,
    /// Remove what was found.
    #[arg(long)]
    delete: bool,
    /// Objects younger than this stay, as 7d, 12h or 0s; payloads stay for an hour at least.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration::parse)]
    retention: Duration,
    /// Headers read at once.
    #[arg(long, value_name = "N", default_value = "64")]
    parallel: u16,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What programs are told.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    #[serde(flatten)]
    collected: &'a Collected,
}

/// Runs the command; exit status 1 if something could not be removed, 3 if another process is at it.
pub async fn run(
    args: &GcArgs,
    settings: &Settings,
    inventory: &Inventory,
) -> Result<ExitCode, CommandError> {
    let references = RedisReferences::connect(&settings.redis(), &settings.queue).await?;
    let spinner = spinner();
    spinner.set_message("reading manifests");
    let progress = |collected: &Collected| tell(&spinner, collected);
    let work = collect(inventory, &references, options(args), progress);
    let done = references.collector().hold(&settings.worker_name.consumer_id(), work).await;
    spinner.finish_and_clear();
    let collected = match done {
        Err(taken @ HoldError::Taken(_)) => {
            eprintln!("turnmill-worker: {taken}");
            return Ok(ExitCode::from(TAKEN));
        }
        done => done??,
    };
    if args.json {
        print_json(&Report { dry_run: !args.delete, collected: &collected })?;
    } else {
        print_text(args, &collected);
    }
    Ok(match &collected.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            eprintln!("turnmill-worker: not everything could be removed: {failure}; run this again");
            ExitCode::FAILURE
        }
    })
}

fn options(args: &GcArgs) -> Options {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Options {
        delete: args.delete,
        retention: args.retention,
        parallel: usize::from(args.parallel),
        now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    }
}

fn kinds(collected: &Collected) -> [(&'static str, &Found); 3] {
    let Collected { segments, damaged, payloads, .. } = collected;
    [("segments", segments), ("damaged segments", damaged), ("payloads", payloads)]
}

fn tell(spinner: &ProgressBar, collected: &Collected) {
    let garbage: u64 = kinds(collected).iter().map(|(_, found)| found.garbage).sum();
    let deleted: u64 = kinds(collected).iter().map(|(_, found)| found.deleted).sum();
    spinner.set_message(format!("{garbage} objects are garbage, {deleted} of them removed"));
}

fn print_text(args: &GcArgs, collected: &Collected) {
    let Collected { agents, roots, broken, marked, foreign, .. } = collected;
    println!("{agents} agents, whose {roots} different manifests reach {marked} segments");
    if *broken > 0 {
        println!("{broken} manifests lead to a segment that is missing or damaged");
    }
    if *foreign > 0 {
        println!("{foreign} objects are named as nothing of this queue is; they stay");
    }
    let header = ["KIND", "KEPT", "GARBAGE", "BYTES", "REMOVED"];
    let rows = kinds(collected).map(|(kind, found)| {
        let bytes = BinaryBytes(found.garbage_bytes).to_string();
        vec![
            kind.to_owned(),
            found.kept.to_string(),
            found.garbage.to_string(),
            bytes,
            found.deleted.to_string(),
        ]
    });
    print_table(&header, rows);
    if !args.delete {
        println!("nothing was removed; --delete removes garbage");
    }
}
