//! `chaos`: kills, stops, drains and cuts off everything for some minutes, then says what broke. `deploy/chaos` builds
//! what it needs and runs it; docs/CHAOS.md tells how to read it.
//!
//! Exit status: 0 nothing broke; 1 something did, a failover took too long, or something never happened, so that the run shows nothing
//! about it (named on standard error); 2 there is no result.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use turnmill_tests::chaos::{AppendFsync, ChaosSettings, Home, Outcome, run};
use turnmill_tests::until_signal::until_signal;

/// Hurts a queue under load for some minutes, and holds what is left against what was promised.
#[derive(Parser)]
#[command(name = "chaos")]
struct Chaos {
    /// How long faults come; starting, settling and comparing take longer.
    #[arg(long, default_value = "5", value_parser = minutes)]
    minutes: Duration,
    /// Of faults and turns; from the clock where none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Worker processes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=64))]
    workers: u16,
    /// Where the queue lives. Behind a proxy a turn must end within 5 s of each failover.
    #[arg(long, value_enum, default_value = "single")]
    redis: Home,
    /// When Redis syncs; everysec loses the last second at each crash of it.
    #[arg(long, value_enum, default_value = "always")]
    appendfsync: AppendFsync,
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number; 1 or 0.5 is one".to_owned())?;
    if (0.1..=1440.0).contains(&minutes) {
        Ok(Duration::from_secs_f64(60.0 * minutes))
    } else {
        Err("must be from 0.1 to 1440".to_owned())
    }
}

fn main() -> ExitCode {
    let chaos = Chaos::parse();
    if (chaos.redis, chaos.appendfsync) == (Home::Proxy, AppendFsync::Everysec) {
        let reason = "--appendfsync everysec says what a crash of Redis takes, and with --redis proxy it does not \
                      crash; leave one of them out";
        Chaos::command().error(ErrorKind::ArgumentConflict, reason).exit();
    }
    if std::env::var_os("TURNMILL_TEST_MODEL").is_none() {
        eprintln!("chaos: TURNMILL_TEST_MODEL must name the model's GGUF file; deploy/chaos sets it");
        return ExitCode::from(2);
    }
    let seed = chaos.seed.unwrap_or_else(seed_of_the_clock);
    eprintln!("chaos: seed {seed}");
    let Chaos { minutes, workers, redis, appendfsync, .. } = chaos;
    let settings =
        ChaosSettings { seed, run: minutes, workers: usize::from(workers), home: redis, appendfsync };
    match until_signal(run(settings)) {
        Ok(Some(outcome)) => tell(&outcome, chaos.json),
        Ok(None) => {
            eprintln!("chaos: interrupted (seed {seed})");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("chaos: {error} (seed {seed})");
            ExitCode::from(2)
        }
    }
}

fn seed_of_the_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The report to standard output; what is wrong, to standard error.
fn tell(outcome: &Outcome, json: bool) -> ExitCode {
    let Outcome { report, findings, logs } = outcome;
    let told = if json { serde_json::to_string(report) } else { report.for_people() };
    let written = told.map_err(std::io::Error::from).and_then(|text| writeln!(std::io::stdout(), "{text}"));
    let complaints = report.complaints(findings);
    if !complaints.is_empty() {
        complain(report.seed, &complaints, logs);
        return ExitCode::FAILURE;
    }
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: the report cannot be written: {error} (seed {})", report.seed);
            ExitCode::from(2)
        }
    }
}

fn complain(seed: u64, complaints: &[String], logs: &[(String, String)]) {
    for complaint in complaints {
        eprintln!("{complaint}");
    }
    match keep(seed, logs) {
        Ok(folder) => eprintln!("chaos: the workers' logs are in {}", folder.display()),
        Err(error) => eprintln!("chaos: the workers' logs cannot be kept: {error}"),
    }
    eprintln!("chaos: the run fails (seed {seed})");
}

fn keep(seed: u64, logs: &[(String, String)]) -> std::io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("turnmill-chaos-{seed}"));
    std::fs::create_dir_all(&folder)?;
    for (name, log) in logs {
        std::fs::write(folder.join(format!("{name}.log")), log)?;
    }
    Ok(folder)
}
