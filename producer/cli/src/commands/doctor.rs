//! `turnmill doctor`: what is wrong, and what to do.

use clap::Args;
use turnmill_client::operate::Operator;
use turnmill_client::operate::doctor::{Check, Verdict};

use crate::cli::Global;
use crate::exit::Exit;
use crate::print::json_line;
use crate::table::{or_dash, print_table};

/// Leases are seconds long; a day is a mistake in the unit.
const MAX_LEASE_MS: u64 = 24 * 3600 * 1000;

#[derive(Debug, Args)]
pub struct Doctor {
    /// The setting lease_ms of the workers. A ticket that idles for three times as long is stuck.
    #[arg(long, value_name = "MS", default_value_t = 15_000, value_parser = lease_ms)]
    lease_ms: u64,
    /// One JSON object for each check.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub async fn run(self, global: &Global) -> Result<(), Exit> {
        let operator = Operator::reach(global.builder()).await?;
        let checks = operator.examine(self.lease_ms).await;
        if self.json {
            checks.iter().try_for_each(json_line)?;
        } else {
            print_table(&["CHECK", "", "FOUND", "WHAT TO DO"], checks.iter().map(row))?;
        }
        match checks.iter().any(|check| check.verdict == Verdict::Fail) {
            true => Err(Exit::NotCompleted),
            false => Ok(()),
        }
    }
}

fn lease_ms(text: &str) -> Result<u64, String> {
    let ms = text.parse().ok().filter(|ms| (300..=MAX_LEASE_MS).contains(ms));
    ms.ok_or_else(|| format!("give milliseconds from 300 to {MAX_LEASE_MS} (a day)"))
}

fn row(check: &Check) -> Vec<String> {
    let advice = or_dash(check.advice.as_ref());
    vec![check.check.to_owned(), check.verdict.as_str().to_owned(), check.found.clone(), advice]
}
