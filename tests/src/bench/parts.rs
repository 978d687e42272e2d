//! The worker's other benches, at sizes that take minutes together.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::build::Build;
use super::report::Parts;
use super::{BenchError, say};
use crate::redis_server::RedisServer;

/// Measures stored K and V, codecs and the queue.
pub(super) async fn measure(
    model: &Path,
    scratch: &Path,
    quick: bool,
    began: Instant,
) -> Result<Parts, BenchError> {
    let folder = scratch.join("store");
    std::fs::create_dir_all(&folder)?;
    let store = format!("file://{}", folder.display());
    let contexts = if quick { "1024" } else { "1024,4096" };
    let turns = if quick { "5000" } else { "20000" };

    say(began, "stored K and V: restore");
    let flags = ["--store", &store, "--context", contexts, "--codec", "f16"];
    let build = Build::here();
    let restore = build.bench("restore", Some(model), &flags).await?;
    let (mut stall, mut drift) = (Value::Null, Value::Null);
    if !quick {
        say(began, "stored K and V: stall");
        stall = build.bench("stall", Some(model), &["--store", &store, "--gen", "100"]).await?;
        say(began, "stored K and V: drift");
        drift = build.bench("drift", Some(model), &["--codec", "q8,q4"]).await?;
    }
    say(began, "the queue");
    let redis = RedisServer::start();
    let queue = build.bench("queue", None, &["--redis-url", &redis.url(), "--turns", turns]).await?;
    Ok(Parts { restore, stall, drift, queue })
}
