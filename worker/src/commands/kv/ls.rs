//! `turnmill-worker kv ls`: how much is stored, by namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use clap::Args;
use indicatif::BinaryBytes;
use jiff::Timestamp;
use serde::Serialize;
use turnmill_schema::Digest;
use turnmill_worker::broker::redis::RedisReferences;
use turnmill_worker::broker::{BrokerError, Manifests, References};
use turnmill_worker::config::{Settings, SettingsArgs};
use turnmill_worker::store::inventory::{Inventory, NamespaceCount, count};

use super::super::{CommandError, print_json, spinner};
use super::print_table;

/// Digits of a namespace that people are shown.
const SHOWN_DIGITS: usize = 16;

/// Count what is stored, by namespace: of one tenant, one model and one way of computing it.
#[derive(Args)]
pub struct LsArgs {
    #[command(flatten)]
    _settings: SettingsArgs,
    /// Print a JSON object a namespace, and {"total": …} on the last line.
    #[arg(long)]
    json: bool,
}

/// One namespace.
#[derive(Serialize)]
struct Row {
    namespace: String,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Clone, Copy, Serialize)]
struct Figures {
    #[serde(flatten)]
    count: NamespaceCount,
    /// Agents whose manifests point there; none if Redis does not say.
    agents: Option<u64>,
}

/// Runs the command.
pub async fn run(
    args: &LsArgs,
    settings: &Settings,
    inventory: &Inventory,
) -> Result<ExitCode, CommandError> {
    let spinner = spinner();
    spinner.set_message("reading manifests");
    let manifests = manifests(settings).await;
    spinner.set_message("listing objects");
    let counted = count(inventory).await;
    spinner.finish_and_clear();
    let (counts, foreign) = counted?;
    if let Err(error) = &manifests {
        eprintln!("turnmill-worker: how many agents point there is unknown: {error}");
    }
    if foreign > 0 {
        eprintln!(
            "turnmill-worker: {foreign} objects in the folder of queue {} are no segments",
            settings.queue
        );
    }
    let manifests = manifests.ok();
    let agents = manifests.as_ref().map(by_namespace);
    // A namespace that manifests point to and that has no objects is worth a line too.
    let pointed_to = agents.iter().flat_map(|agents| agents.keys());
    let namespaces: BTreeSet<Digest> = counts.keys().chain(pointed_to).copied().collect();
    let rows = namespaces.into_iter().map(|namespace| {
        let agents = agents.as_ref().map(|agents| agents.get(&namespace).copied().unwrap_or_default());
        let count = counts.get(&namespace).copied().unwrap_or_default();
        Row { namespace: namespace.to_string(), figures: Figures { count, agents } }
    });
    let rows: Vec<Row> = rows.collect();
    let total = Figures {
        count: rows.iter().fold(NamespaceCount::default(), |sum, row| sum.and(row.figures.count)),
        agents: rows.iter().map(|row| row.figures.agents).sum(),
    };
    print(args.json, &rows, total)?;
    Ok(ExitCode::SUCCESS)
}

async fn manifests(settings: &Settings) -> Result<Manifests, BrokerError> {
    RedisReferences::connect(&settings.redis(), &settings.queue).await?.manifests().await
}

fn by_namespace(manifests: &Manifests) -> BTreeMap<Digest, u64> {
    let mut agents = BTreeMap::new();
    for (root, count) in &manifests.roots {
        *agents.entry(root.namespace).or_default() += count;
    }
    agents
}

fn print(json: bool, rows: &[Row], total: Figures) -> Result<(), CommandError> {
    if json {
        rows.iter().try_for_each(print_json)?;
        return print_json(&serde_json::json!({ "total": total }));
    }
    let header = ["NAMESPACE", "OBJECTS", "BYTES", "OLDEST", "NEWEST", "AGENTS"];
    let shown = rows.iter().map(|row| cells(&row.namespace[..SHOWN_DIGITS], row.figures));
    print_table(&header, shown.chain([cells("total", total)]));
    Ok(())
}

fn cells(name: &str, figures: Figures) -> Vec<String> {
    let Figures { count, agents } = figures;
    let time = |ms| if count.objects == 0 { "-".to_owned() } else { time(ms) };
    vec![
        name.to_owned(),
        count.objects.to_string(),
        BinaryBytes(count.bytes).to_string(),
        time(count.oldest_ms),
        time(count.newest_ms),
        agents.map_or_else(|| "unknown".to_owned(), |agents| agents.to_string()),
    ]
}

/// A moment, as RFC 3339 in UTC.
fn time(unix_ms: u64) -> String {
    let moment = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| format!("{unix_ms} ms"), |moment| format!("{moment:.0}"))
}
