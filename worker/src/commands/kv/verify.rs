//! `turnmill-worker kv verify`: reading everything back.

use std::process::ExitCode;

use clap::Args;
use indicatif::BinaryBytes;
use turnmill_worker::config::{Settings, SettingsArgs};
use turnmill_worker::store::inventory::{DamagedSegment, Inventory, Verified, count, verify};
use turnmill_worker::store::keys::Keys;

use super::super::{CommandError, print_json, progress_bar};

/// Read all stored segments back and check header, tokens and checksums; exit status 1 if one is damaged.
#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    _settings: SettingsArgs,
    /// Objects read at once.
    #[arg(long, value_name = "N", default_value = "8")]
    parallel: u16,
    /// Print a JSON object for each damaged segment, and what was found of all on the last line.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(
    args: &VerifyArgs,
    settings: &Settings,
    inventory: &Inventory,
) -> Result<ExitCode, CommandError> {
    let keys = settings.kv_keys.as_deref().map(Keys::open).transpose()?;
    let bar = progress_bar("verifying", "segments");
    let (counts, _) = count(inventory).await?;
    bar.set_length(counts.values().map(|count| count.objects).sum());
    let tell = |damaged: DamagedSegment| bar.suspend(|| print_damaged(args.json, &damaged));
    let progress = |read| bar.set_position(read);
    let verified = verify(inventory, keys.as_ref(), usize::from(args.parallel), tell, progress).await;
    bar.finish_and_clear();
    let verified = verified?;
    if args.json {
        print_json(&verified)?;
    } else {
        print_text(&verified);
    }
    if verified.sealed > 0 {
        let sealed = verified.sealed;
        eprintln!(
            "turnmill-worker: {sealed} encrypted segments could not be checked; give their keys with --kv-keys"
        );
    }
    Ok(if verified.all_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_damaged(json: bool, damaged: &DamagedSegment) {
    if json {
        // Texts and words only: there is nothing that JSON cannot hold.
        println!("{}", serde_json::json!(damaged));
    } else {
        println!("{}: {}", damaged.path, damaged.detail);
    }
}

fn print_text(verified: &Verified) {
    println!("{} segments are whole; {} were read", verified.good, BinaryBytes(verified.bytes));
    for (reason, segments) in &verified.damaged {
        println!("{segments} are damaged: {reason}");
    }
    if verified.gone > 0 {
        println!("{} were removed meanwhile", verified.gone);
    }
}
