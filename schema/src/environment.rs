//! The variables that Turnmill's programs read, and those that look like one and are none.
//!
//! Programs share an environment: the variables of one must not stop another, and a misspelt one must not pass in
//! silence. So there is one list for all of them.

/// What the variables of all programs begin with.
pub const PREFIX: &str = "TURNMILL_";

/// What `turnmill-worker` reads.
pub const WORKER: [&str; 57] = [
    "TURNMILL_BATCH_TOKENS",
    "TURNMILL_BLOCK_TOKENS",
    "TURNMILL_CHAT_TEMPLATE",
    "TURNMILL_CONFIG",
    "TURNMILL_DEAD_BYTES",
    "TURNMILL_DEVICE",
    "TURNMILL_DRAIN_MS",
    "TURNMILL_FLUSH_MS",
    "TURNMILL_HEADROOM_HIGH",
    "TURNMILL_HEADROOM_LOW",
    "TURNMILL_HOST_CACHE_BYTES",
    "TURNMILL_HTTP_ADDR",
    "TURNMILL_KEEP_STREAM_MS",
    "TURNMILL_KV_ANY_COMPUTE",
    "TURNMILL_KV_CODEC",
    "TURNMILL_KV_DTYPE",
    "TURNMILL_KV_KEYS",
    "TURNMILL_LEASE_MS",
    "TURNMILL_LOG",
    "TURNMILL_LOG_CONTENT",
    "TURNMILL_LOG_FORMAT",
    "TURNMILL_LOOK_AHEAD",
    "TURNMILL_MAX_ATTEMPTS",
    "TURNMILL_MAX_CONTEXT_TOKENS",
    "TURNMILL_MAX_CONTINUES",
    "TURNMILL_MAX_SEQUENCES",
    "TURNMILL_MODEL",
    "TURNMILL_MODEL_SHA256",
    "TURNMILL_NO_METRICS",
    "TURNMILL_OFFLOAD_BYTES",
    "TURNMILL_OTLP_ENDPOINT",
    "TURNMILL_OUTCOME_TTL_MS",
    "TURNMILL_PERSIST_WAIT_MS",
    "TURNMILL_POOL_BYTES",
    "TURNMILL_QUEUE",
    "TURNMILL_REDIS_CA",
    "TURNMILL_REDIS_URL",
    "TURNMILL_RESTORE_BASE_MS",
    "TURNMILL_RESULT_TTL_MS",
    "TURNMILL_RETAINED_BYTES",
    "TURNMILL_RETRY_BASE_MS",
    "TURNMILL_RETRY_MAX_MS",
    "TURNMILL_SAVE_QUEUE_BYTES",
    "TURNMILL_SHARDS",
    "TURNMILL_SPECULATION",
    "TURNMILL_SPECULATION_TOKENS",
    "TURNMILL_STALL_MS",
    "TURNMILL_STORE",
    "TURNMILL_STORE_MAX_BYTES",
    "TURNMILL_STORE_PARALLEL",
    "TURNMILL_STORE_TIMEOUT_MS",
    "TURNMILL_TENANT_MAX_RUNNING",
    "TURNMILL_THREADS",
    "TURNMILL_TOOL_FORMAT",
    "TURNMILL_TRANSFER_BYTES",
    "TURNMILL_WEIGHTS",
    "TURNMILL_WORKER_NAME",
];

/// What `turnmill` reads.
pub const PRODUCER: [&str; 7] = [
    "TURNMILL_MAX_DEPTH",
    "TURNMILL_QUEUE",
    "TURNMILL_REDIS_CA",
    "TURNMILL_REDIS_URL",
    "TURNMILL_STORE",
    "TURNMILL_TENANT",
    "TURNMILL_TENANT_MAX_DEPTH",
];

/// What the set-up scripts and the tests read. People may export them in the shell that a program starts from.
const OTHERS: [&str; 5] = [
    "TURNMILL_CACHE",
    "TURNMILL_FUZZ_SEED",
    "TURNMILL_SIM_SEED",
    "TURNMILL_SIM_SEEDS",
    "TURNMILL_TRACE_SEED",
];
/// Variables of tests begin with it.
const TESTS: &str = "TURNMILL_TEST_";

/// A variable that begins like ours and that nothing reads: most likely a misspelling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no setting reads the variable {name}{}; correct it or unset it", did_you_mean(*.nearest))]
pub struct UnknownVariable {
    /// The variable.
    pub name: String,
    /// The known variable most like it.
    pub nearest: Option<&'static str>,
}

/// Refuses the first of `variables` (names and values), in alphabetical order, that begins like ours and that nothing
/// reads. An empty variable counts as unset.
///
/// # Errors
/// The variable, with the one that was probably meant.
pub fn refuse_unknown(variables: impl Iterator<Item = (String, String)>) -> Result<(), UnknownVariable> {
    let stranger = |(name, value): &(String, String)| {
        name.starts_with(PREFIX)
            && !value.is_empty()
            && !name.starts_with(TESTS)
            && !known().any(|known| known == name)
            && !is_service_link(name, value)
    };
    match variables.filter(stranger).min() {
        Some((name, _)) => Err(UnknownVariable { nearest: nearest(&name), name }),
        None => Ok(()),
    }
}

fn known() -> impl Iterator<Item = &'static str> {
    WORKER.into_iter().chain(PRODUCER).chain(OTHERS)
}

/// The most similar name, if one is similar at all (clap's measure and bound for flags).
fn nearest(name: &str) -> Option<&'static str> {
    let tail = |name: &str| name.trim_start_matches(PREFIX).to_owned();
    let similarity = |other: &str| strsim::jaro(&tail(name), &tail(other));
    let best = known().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(best) > 0.7).then_some(best)
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

/// Kubernetes gives every container variables for each service of its namespace: a service `turnmill` makes
/// `TURNMILL_SERVICE_HOST` and `TURNMILL_PORT=tcp://…`. They are nobody's misspelling.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_endpoint = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_part =
        name.contains("_PORT_") && ["_PROTO", "_PORT", "_ADDR"].iter().any(|end| name.ends_with(end));
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || is_endpoint || is_part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(variables: &[(&str, &str)]) -> Option<String> {
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        refuse_unknown(variables).err().map(|error| error.to_string())
    }

    #[test]
    fn a_misspelt_variable_is_refused_with_the_name_that_was_meant() {
        for (misspelt, meant) in
            [("TURNMILL_REDIS_ULR", "TURNMILL_REDIS_URL"), ("TURNMILL_REDISURL", "TURNMILL_REDIS_URL")]
        {
            let refused = refusal(&[("PATH", "/bin"), (misspelt, "x")]).expect("refused");
            let said = format!(
                "no setting reads the variable {misspelt} (did you mean {meant}?); correct it or unset it"
            );
            assert_eq!(refused, said);
        }
        let refused = refusal(&[("TURNMILL_XYZZY", "x")]).expect("refused");
        assert!(!refused.contains("did you mean"), "{refused}");
    }

    #[test]
    fn known_foreign_empty_and_service_link_variables_pass() {
        let foreign = [
            ("TURNMILLER", "x"),
            ("TURNMILL_XYZZY", ""),
            ("TURNMILL_TEST_ANYTHING", "x"),
            ("TURNMILL_SERVICE_HOST", "10.0.0.1"),
            ("TURNMILL_SERVICE_PORT_HTTP", "9470"),
            ("TURNMILL_PORT", "tcp://10.0.0.1:9470"),
            ("TURNMILL_PORT_9470_TCP", "tcp://10.0.0.1:9470"),
            ("TURNMILL_PORT_9470_TCP_PROTO", "tcp"),
            ("TURNMILL_PORT_9470_TCP_ADDR", "10.0.0.1"),
        ];
        let passing: Vec<_> = known().map(|name| (name, "1")).chain(foreign).collect();
        assert_eq!(refusal(&passing), None);
    }
}
