//! The one table of settings: name, variable, type, default and what it does.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use turnmill_schema::Name;
use turnmill_telemetry::settings;

use super::{
    AutoByteSize, ByteSize, ConfigError, DeviceKind, Effective, KvCodec, KvDtype, LogFilter, LogFormat,
    ModelDigest, OtlpUrl, RedisEndpoint, RedisUrl, SpeculationMode, StoreSetting, WeightsMode, WorkerName,
};
use crate::model::FormatChoice;

turnmill_telemetry::settings! {
    /// Everything a worker can be told. Valid as a whole when it comes from [`Settings::load`].
    Settings from "TURNMILL_CONFIG";

    /// The model: a GGUF file, a folder with safetensors, or a name on Hugging Face's hub: hf:OWNER/NAME, with @REVISION
    /// and /FILE.gguf if they are needed.
    ["TURNMILL_MODEL"] model: Option<PathBuf>;
    /// SHA-256 that the model file must have; of a folder: its safetensors files one after another.
    ["TURNMILL_MODEL_SHA256"] model_sha256: Option<ModelDigest>;
    /// What computes: auto is the GPU that this worker was built for, if there is one, and else the CPU.
    ["TURNMILL_DEVICE"] device: DeviceKind = "auto";
    /// A file with the chat template (Jinja) to use in place of the model's own.
    ["TURNMILL_CHAT_TEMPLATE"] chat_template: Option<PathBuf>;
    /// The format in which the model calls tools: auto, hermes, llama3, mistral, mistral-args, gemma, functiongemma, generic or none.
    ///
    /// By default the worker finds it: the one that response_template in the model's tokenizer_config.json describes, or else in which its
    /// chat template writes calls. If the template knows no tools, or the format is one that this version does not know, the generic
    /// format is used: tools are described in the system message, and calls are JSON between <tool_call> and </tool_call>. With none,
    /// turns that have tools are rejected.
    ["TURNMILL_TOOL_FORMAT"] tool_format: FormatChoice = "auto";
    /// How weights are kept and multiplied.
    ["TURNMILL_WEIGHTS"] weights: WeightsMode = "fast";
    /// Number format of K and V in the pool.
    ["TURNMILL_KV_DTYPE"] kv_dtype: KvDtype = "f16";

    /// Where the queue lives: redis://, rediss:// (TLS) or unix://, or the same with valkey. In user and password, percent-encode
    /// @ : / ? # % (as %40 %3A %2F %3F %23 %25).
    ["TURNMILL_REDIS_URL"] redis_url: RedisUrl = "redis://127.0.0.1:6379";
    /// For rediss://: trust the authorities in this PEM file instead of the system's.
    ["TURNMILL_REDIS_CA"] redis_ca: Option<PathBuf>;
    /// Where K and V are kept, and turns too large for Redis: auto (a folder for K and V in the user's caches), none, or a
    /// URL as in file:///var/lib/turnmill or s3://bucket/prefix, which producers share.
    ["TURNMILL_STORE"] store: StoreSetting = "auto";
    /// The queue to serve.
    ["TURNMILL_QUEUE"] queue: Name = "default";
    /// Shards of the queue, fixed when it is created; producers of this version write to one.
    ["TURNMILL_SHARDS"] shards: NonZeroU16 = "1";
    /// Name in results and logs; auto is host name and process id.
    ["TURNMILL_WORKER_NAME"] worker_name: WorkerName = "auto";

    /// Tokens a KV block holds.
    ["TURNMILL_BLOCK_TOKENS"] block_tokens: u32 = "16";
    /// Memory for KV blocks, as 268435456 or 256MiB; auto is 256MiB, on Metal a share of what the device recommends.
    ["TURNMILL_POOL_BYTES"] pool_bytes: AutoByteSize = "auto";
    /// Turns that run at once, at most.
    ["TURNMILL_MAX_SEQUENCES"] max_sequences: u32 = "32";
    /// Token rows a step computes, at most.
    ["TURNMILL_BATCH_TOKENS"] batch_tokens: u32 = "512";
    /// Longest conversation in tokens; 0 is the model's own limit.
    ["TURNMILL_MAX_CONTEXT_TOKENS"] max_context_tokens: u32 = "0";
    /// Threads that compute; 0 is all cores.
    ["TURNMILL_THREADS"] threads: u32 = "0";
    /// Whether tokens that follow like ones in prompt or reply are proposed and verified in one step; words stay the same.
    ["TURNMILL_SPECULATION"] speculation: SpeculationMode = "auto";
    /// Tokens that are proposed for a turn in a step, at most.
    ["TURNMILL_SPECULATION_TOKENS"] speculation_tokens: u32 = "7";

    /// How K and V are kept: f16 is exact if the pool is in f16 too; q8 and q4 are smaller and change words.
    ["TURNMILL_KV_CODEC"] kv_codec: KvCodec = "f16";
    /// A folder with a file TENANT.key a tenant, 64 hexadecimal digits: K and V are kept encrypted, and only those of
    /// tenants with a key.
    ["TURNMILL_KV_KEYS"] kv_keys: Option<PathBuf>;
    /// Take K and V that other kinds of machine computed; greedy text may then differ from one computed here.
    ["TURNMILL_KV_ANY_COMPUTE"] kv_any_compute: bool = "false";
    /// Memory for K and V that wait to be written; what does not fit is not kept.
    ["TURNMILL_SAVE_QUEUE_BYTES"] save_queue_bytes: ByteSize = "64MiB";
    /// Memory for stored K and V, between the pool and the store; 0 is none.
    ["TURNMILL_HOST_CACHE_BYTES"] host_cache_bytes: ByteSize = "256MiB";
    /// Memory for the blocks of preempted turns; 0 is none.
    ["TURNMILL_OFFLOAD_BYTES"] offload_bytes: ByteSize = "64MiB";
    /// Bytes copied between pool and memory between two steps, at most.
    ["TURNMILL_TRANSFER_BYTES"] transfer_bytes: ByteSize = "8MiB";
    /// Bytes of K and V that a queue keeps in a folder; beyond that, those used longest ago go first, and of a conversation its
    /// end. 0 is no limit; buckets have their own.
    ["TURNMILL_STORE_MAX_BYTES"] store_max_bytes: ByteSize = "16GiB";
    /// Objects of the store that are read at once.
    ["TURNMILL_STORE_PARALLEL"] store_parallel: u32 = "8";
    /// Longest time that reading one object may take.
    ["TURNMILL_STORE_TIMEOUT_MS"] store_timeout_ms: u64 = "5000";
    /// How long the end of a turn waits for its last K and V to be kept; what is kept later is noted later.
    ["TURNMILL_PERSIST_WAIT_MS"] persist_wait_ms: u64 = "100";
    /// Time that K and V may take to come back, besides the time in which they would be computed.
    ["TURNMILL_RESTORE_BASE_MS"] restore_base_ms: u64 = "1000";
    /// Turns claimed beyond max_sequences, so that their K and V come near meanwhile.
    ["TURNMILL_LOOK_AHEAD"] look_ahead: u32 = "2";

    /// Silence after which other workers take a turn over; renewals come three times as often.
    ["TURNMILL_LEASE_MS"] lease_ms: u64 = "15000";
    /// Time that running turns get to finish after a signal to stop.
    ["TURNMILL_DRAIN_MS"] drain_ms: u64 = "30000";
    /// Time without a step, while there is work, after which the engine counts as hung.
    ["TURNMILL_STALL_MS"] stall_ms: u64 = "60000";
    /// Tokens wait for others at most this long before they are published together: not at all while the worker makes few
    /// tokens a second, longer as it makes more.
    ["TURNMILL_FLUSH_MS"] flush_ms: u64 = "100";
    /// Attempts without progress after which a turn fails for good.
    ["TURNMILL_MAX_ATTEMPTS"] max_attempts: u32 = "5";
    /// Longest pause before the second attempt of a turn that failed; doubles with each, drawn at random below.
    ["TURNMILL_RETRY_BASE_MS"] retry_base_ms: u64 = "1000";
    /// Longest pause before any attempt.
    ["TURNMILL_RETRY_MAX_MS"] retry_max_ms: u64 = "60000";
    /// Turns in a row that a worker may take of one agent while others wait.
    #[arg(alias = "max-handovers")]
    ["TURNMILL_MAX_CONTINUES"] max_continues: u32 = "4";
    /// Turns of one tenant that may run at once in the whole fleet, per shard; 0 is no limit. Give all workers the same.
    ["TURNMILL_TENANT_MAX_RUNNING"] tenant_max_running: u64 = "0";
    /// How long result streams are kept after the end of their turn.
    ["TURNMILL_RESULT_TTL_MS"] result_ttl_ms: u64 = "3600000";
    /// How long result streams are kept whose reply is short and kept with the outcome: readers that follow need no more.
    ["TURNMILL_KEEP_STREAM_MS"] keep_stream_ms: u64 = "10000";
    /// How long outcomes and idempotency keys are kept.
    ["TURNMILL_OUTCOME_TTL_MS"] outcome_ttl_ms: u64 = "86400000";
    /// Memory that ended turns may take in Redis, per shard; beyond that the oldest are forgotten early.
    ["TURNMILL_RETAINED_BYTES"] retained_bytes: ByteSize = "256MiB";
    /// Memory that dead letters may take in Redis, per shard; beyond that the oldest are forgotten.
    ["TURNMILL_DEAD_BYTES"] dead_bytes: ByteSize = "64MiB";

    /// Address of the health and metrics server.
    ["TURNMILL_HTTP_ADDR"] http_addr: SocketAddr = "127.0.0.1:9470";
    /// Record nothing of the work or the process: `/metrics` tells about the queue and the worker's state alone.
    ["TURNMILL_NO_METRICS"] no_metrics: bool = "false";
    /// Share of free blocks under which the worker is not ready.
    ["TURNMILL_HEADROOM_LOW"] headroom_low: f64 = "0.05";
    /// Share of free blocks over which it is ready again.
    ["TURNMILL_HEADROOM_HIGH"] headroom_high: f64 = "0.10";
    /// How log lines look; auto is text on a terminal and JSON otherwise.
    ["TURNMILL_LOG_FORMAT"] log_format: LogFormat = "auto";
    /// Which log lines are written, as in info,turnmill_worker=debug.
    ["TURNMILL_LOG"] log: LogFilter = "info";
    /// Write what turns say into the log too, at debug: prompts and replies, which are nobody's business otherwise.
    ["TURNMILL_LOG_CONTENT"] log_content: bool = "false";
    /// Where spans go, as in http://127.0.0.1:4318 (OTLP over HTTP); unset is what OTEL_EXPORTER_OTLP_ENDPOINT says, or
    /// nowhere.
    ["TURNMILL_OTLP_ENDPOINT"] otlp_endpoint: Option<OtlpUrl>;
}

impl Settings {
    /// The worker's settings, read and checked by [`settings::load`].
    pub fn load(matches: &ArgMatches) -> Result<(Self, Vec<Effective>), ConfigError> {
        Ok(settings::load(matches)?)
    }

    /// The model, for commands that cannot do without.
    pub fn model_path(&self) -> Result<&Path, ConfigError> {
        self.model.as_deref().ok_or(ConfigError::NoModel)
    }

    /// Where Redis is, and who says that it is that one.
    pub fn redis(&self) -> RedisEndpoint {
        RedisEndpoint { url: self.redis_url.clone(), ca: self.redis_ca.clone() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use clap::{Args as _, FromArgMatches as _};
    use proptest::prelude::*;
    use turnmill_schema::environment::WORKER;
    use turnmill_telemetry::settings::{Source, Table, report};

    use super::super::SettingsArgs;
    use super::*;

    type File = <Settings as Table>::File;

    /// Settings from flags alone, not validated.
    pub fn settings(flags: &[&str]) -> Settings {
        // clap reads the environment of the process; here only flags and defaults may count.
        let command =
            Settings::augment_args(clap::Command::new("test")).mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from([&["test"], flags].concat()).expect("flags parse");
        Settings::from_arg_matches(&matches).expect("its own matches")
    }

    #[test]
    fn every_setting_has_the_variable_its_name_says_and_a_sentence_of_help() {
        let command = SettingsArgs::augment_args(clap::Command::new("settings"));
        let mut read: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_env).collect();
        read.sort();
        assert_eq!(read, WORKER);
        for arg in command.get_arguments() {
            let variable = format!("TURNMILL_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().map(|name| name.to_string_lossy().into_owned()), Some(variable));
            assert_eq!(arg.get_long(), Some(arg.get_id().as_str().replace('_', "-").as_str()));
            assert!(arg.get_help().is_some(), "{arg}");
        }
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused() {
        for (text, part) in [
            ("kv_dtype = \"int8\"", "unknown variant `int8`"),
            ("queue = \"a b\"", "allowed are A-Z"),
            ("tool_format = \"xml\"", "xml"),
        ] {
            let refused = toml::from_str::<File>(text).err().expect(text);
            assert!(refused.message().contains(part), "{refused}");
        }
    }

    /// Without comments at the ends of lines, which say where a value came from.
    fn values(effective: &[Effective]) -> Vec<(&'static str, serde_json::Value)> {
        effective.iter().map(|setting| (setting.name, setting.value.clone())).collect()
    }

    proptest! {
        #[test]
        fn what_is_printed_gives_the_same_settings_as_a_file(
            model in "\\PC*|[\u{0}-\u{ff}]*", drain_ms in 0u64..1 << 40, share in 0.0..1.0, name in "auto|[a-z]{1,9}",
            log_content: bool,
        ) {
            let mut given = settings(&["--worker-name", &name]);
            given.model = Some(model.into());
            (given.drain_ms, given.headroom_low, given.log_content) = (drain_ms, share, log_content);
            let effective = given.merge(File::default(), |_| Source::Default);
            let text = report::to_toml(&effective);
            let file = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let again = settings(&[]).merge(file, |_| Source::Default);
            prop_assert_eq!(values(&effective), values(&again));
        }
    }

    #[test]
    fn what_cannot_be_printed_is_left_out_by_name() {
        let secrets = [
            "--redis-url=redis://u:s3cret@h",
            "--store=s3://k:s3cret@b",
            "--otlp-endpoint=http://u:s3cret@h",
        ];
        let mut given = settings(&secrets);
        given.kv_keys = Some(OsStr::from_bytes(b"/k\xff").into());
        let effective = given.merge(File::default(), |_| Source::Flag);
        let text = report::to_toml(&effective);
        assert!(!text.contains("s3cret"), "{text}");
        let left_out = ["redis_url", "store", "otlp_endpoint", "kv_keys"];
        for name in left_out {
            assert!(text.contains(&format!("# {name} is left out: ")), "{text}");
        }
        let read: File = toml::from_str(&text).expect("the rest is a file");
        let again = settings(&secrets).merge(read, |_| Source::Default);
        for (setting, again) in effective.iter().zip(&again) {
            let has_no_line = left_out.contains(&setting.name) || setting.value.is_null();
            assert_eq!(again.source != Source::File, has_no_line, "{}", setting.name);
        }
    }
}
