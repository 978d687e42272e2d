//! `turnmill-worker check`: everything that can be wrong before the first turn, in one report.

use std::fmt::Display;
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use serde::Serialize;
use turnmill_telemetry::probes;
use turnmill_worker::app::{Loading, load_options, open_blocks};
use turnmill_worker::broker::redis::check_server;
use turnmill_worker::config::{Settings, SettingsArgs};
use turnmill_worker::hub;
use turnmill_worker::kv::BlockShape;
use turnmill_worker::model::{Checkpoint, CompiledKernel, ComputeDevice, Model, ToolSupport};

use super::loading::LoadingBar;
use super::{CommandError, print_json};

/// Check settings, model, queue and port, and report everything that is wrong.
#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    _settings: SettingsArgs,
    /// Print a JSON array of {name, status, detail}.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Failed,
}

/// One thing that was checked.
#[derive(Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    detail: String,
}

impl Finding {
    fn new<E: Display>(name: &'static str, outcome: Result<String, E>) -> Self {
        match outcome {
            Ok(detail) => Self { name, status: Status::Ok, detail },
            Err(error) => Self { name, status: Status::Failed, detail: error.to_string() },
        }
    }
}

/// Runs the command; exit status 1 if something failed.
pub fn run(args: &CheckArgs, matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let findings = match Settings::load(matches) {
        Err(error) => vec![Finding::new("settings", Err(error))],
        Ok((settings, _)) => check(&settings)?,
    };
    if args.json {
        print_json(&findings)?;
    } else {
        for Finding { name, status, detail } in &findings {
            let status = match status {
                Status::Ok => "ok     ",
                Status::Warning => "warning",
                Status::Failed => "FAILED ",
            };
            println!("{status}  {name:<9}  {detail}");
        }
    }
    let failed = findings.iter().any(|finding| finding.status == Status::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn check(settings: &Settings) -> Result<Vec<Finding>, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut findings = vec![Finding::new::<CommandError>("settings", Ok("valid".to_owned()))];
    findings.extend(runtime.block_on(check_queue(settings)));
    findings.extend(runtime.block_on(check_store(settings)));
    let port = probes::bind(settings.http_addr).map(|_| format!("{} is free", settings.http_addr));
    findings.push(Finding::new("port", port));
    findings.extend(check_model(settings));
    Ok(findings)
}

async fn check_queue(settings: &Settings) -> Vec<Finding> {
    match check_server(&settings.redis()).await {
        Err(error) => vec![Finding::new("queue", Err(error))],
        Ok(facts) => {
            let found = format!("Redis {} at {}", facts.version, settings.redis_url);
            let mut findings = vec![Finding::new::<CommandError>("queue", Ok(found))];
            findings.extend(facts.warning().map(|warning| Finding {
                name: "queue",
                status: Status::Warning,
                detail: warning.to_owned(),
            }));
            findings
        }
    }
}

/// Whether the store takes and gives back an object; nothing if there is none.
async fn check_store(settings: &Settings) -> Option<Finding> {
    let url = settings.store.for_kv()?;
    // What blocks look like is of no matter to a probe.
    let shape = BlockShape { layers: 1, block_tokens: 1, kv_heads: 1, head_dim: 1, dtype: settings.kv_dtype };
    let outcome = match open_blocks(settings, shape) {
        Ok(Some(store)) => store.check().await,
        outcome => outcome.map(drop),
    };
    Some(Finding::new("store", outcome.map(|()| format!("{url} can be written and read"))))
}

fn check_model(settings: &Settings) -> Vec<Finding> {
    let bar = LoadingBar::new();
    let named = match settings.model_path() {
        Ok(path) => path,
        Err(error) => return vec![Finding::new("model", Err(error))],
    };
    let path = match hub::resolve(named, &|fetching| bar.show(Loading::Fetching(fetching))) {
        Ok(path) => path,
        Err(error) => return vec![Finding::new("model", Err(error))],
    };
    let mut findings = Vec::new();
    if let Some(digest) = &settings.model_sha256 {
        let verified = Checkpoint::open(&path).and_then(|model| model.verify_sha256(digest.as_str()));
        findings.push(Finding::new("checksum", verified.map(|()| "as expected".to_owned())));
    }
    let device = match ComputeDevice::open(settings.device) {
        Ok(device) => device,
        Err(error) => {
            findings.push(Finding::new("device", Err(error)));
            return findings;
        }
    };
    findings.push(Finding::new::<CommandError>("device", Ok(device.to_string())));
    let layers = |done, all| bar.show(Loading::Layers { done, all });
    let model = Model::load_on(&device, &path, &load_options(settings), &layers);
    let described = match model {
        Err(error) => Err(error.to_string()),
        Ok(mut model) => {
            findings.extend(check_kernels(&device, model.config.head_dim));
            findings.push(check_template(model.dialogue.template().tools()));
            match model.warm_up() {
                Err(error) => Err(error.to_string()),
                Ok(()) => Ok(format!(
                    "{} layers, context {}, pool of {} blocks ({} tokens), computed on {}",
                    model.config.layers,
                    model.context_tokens,
                    model.blocks,
                    model.blocks * settings.block_tokens as usize,
                    model.compute_kind
                )),
            }
        }
    };
    findings.push(Finding::new("model", described));
    findings
}

/// What the chat template does with tools. One that fails without them is refused with the model.
fn check_template(tools: &ToolSupport) -> Finding {
    let (status, detail) = match tools {
        ToolSupport::Shown => (Status::Ok, "renders conversations with and without tools".to_owned()),
        ToolSupport::Ignored => (Status::Ok, "renders conversations; it knows of no tools".to_owned()),
        ToolSupport::Failed(reason) => (
            Status::Warning,
            format!(
                "fails if there are tools: {reason}; for turns with tools, correct it or give another one with \
                 --chat-template"
            ),
        ),
    };
    Finding { name: "template", status, detail }
}

/// Kernels of our own that are compiled on the machine itself; nothing if there are none. Without them attention is
/// slower and right.
fn check_kernels(device: &ComputeDevice, head_dim: usize) -> Vec<Finding> {
    let finding = |kernel: CompiledKernel| {
        let CompiledKernel { name, head_dim, dtype, outcome } = kernel;
        let what = format!("{name} for heads of {head_dim} in {dtype}");
        let (status, detail) = match outcome {
            Ok(()) => (Status::Ok, what),
            Err(reason) => {
                (Status::Warning, format!("{what}: {reason}; attention is gathered, which is slower"))
            }
        };
        Finding { name: "kernel", status, detail }
    };
    device.compile_kernels(head_dim).into_iter().map(finding).collect()
}
