//! Ranges of settings, and how they must relate. A rule is one sentence; all broken rules are told at once.

use turnmill_telemetry::settings::{Checked, MOST, MOST_BYTES, Problems};

use super::{AutoByteSize, ByteSize, OtlpUrl, Settings, StoreSetting, StoreUrl};

const SMALLEST_POOL: ByteSize = ByteSize::new(1 << 20);

impl Checked for Settings {
    /// Checks everything that needs neither model nor Redis.
    fn check(&self, problems: &mut Problems) {
        self.check_engine(problems);
        self.check_store(problems);
        self.check_queue(problems);
        self.check_kept(problems);
        self.check_headroom(problems);
        self.check_telling(problems);
    }
}

impl Settings {
    fn check_engine(&self, problems: &mut Problems) {
        let Self { block_tokens, max_sequences, .. } = *self;
        let block_fits = block_tokens.is_power_of_two() && (8..=256).contains(&block_tokens);
        problems.require(block_fits, "block_tokens", block_tokens, "a power of two from 8 to 256");
        if let AutoByteSize::Size(size) = self.pool_bytes {
            problems.within("pool_bytes", size, SMALLEST_POOL..=MOST_BYTES);
        }
        if problems.within("max_sequences", max_sequences, 1..=65_536) {
            // Every running sequence gets its token in every step, so the budget must hold one for each.
            let (rows, most) = (self.batch_tokens, 1 << 20);
            let rule = format!("from max_sequences ({max_sequences}) to {most}");
            problems.require((max_sequences..=most).contains(&rows), "batch_tokens", rows, rule);
        }
        let (context, most) = (self.max_context_tokens, 1 << 24);
        let rule = format!("0 (the model's own limit) or from 2 (a token to read and one to make) to {most}");
        problems.require(context != 1 && context <= most, "max_context_tokens", context, rule);
        problems.within("threads", self.threads, 0..=1024);
        problems.within("speculation_tokens", self.speculation_tokens, 1..=64);
        // A full step with a long context takes hundreds of milliseconds; shorter would end healthy workers.
        problems.wait("stall_ms", self.stall_ms, 1000);
    }

    fn check_store(&self, problems: &mut Problems) {
        let known = self.store.named().is_none_or(StoreUrl::has_known_scheme);
        problems.require(known, "store", &self.store, StoreSetting::RULE);
        let zero = ByteSize::new(0);
        for (name, size, least) in [
            ("save_queue_bytes", self.save_queue_bytes, zero),
            ("host_cache_bytes", self.host_cache_bytes, zero),
            ("offload_bytes", self.offload_bytes, zero),
            ("transfer_bytes", self.transfer_bytes, ByteSize::new(1)),
            ("store_max_bytes", self.store_max_bytes, zero),
        ] {
            problems.within(name, size, least..=MOST_BYTES);
        }
        problems.within("store_parallel", self.store_parallel, 1..=1024);
        problems.wait("store_timeout_ms", self.store_timeout_ms, 100);
        problems.wait("persist_wait_ms", self.persist_wait_ms, 0);
        problems.wait("restore_base_ms", self.restore_base_ms, 0);
        problems.within("look_ahead", self.look_ahead, 0..=1024);
    }

    fn check_queue(&self, problems: &mut Problems) {
        if let Some(problem) = self.redis_url.problem() {
            problems.note(format!("redis_url {problem}"));
        }
        if let Some(file) = &self.redis_ca {
            // An operator who names authorities believes that the connection is encrypted.
            let rule = "left out unless redis_url starts with rediss://";
            problems.require(self.redis_url.is_tls(), "redis_ca", file.display(), rule);
        }
        problems.within("shards", self.shards.get(), 1..=1024);
        // Leases are renewed three times each: at less than 100 ms apart, one slow answer of Redis would cost them.
        problems.wait("lease_ms", self.lease_ms, 300);
        problems.wait("drain_ms", self.drain_ms, 0);
        problems.within("flush_ms", self.flush_ms, 1..=1000);
        problems.within("max_attempts", self.max_attempts, 1..=MOST);
        problems.within("max_continues", self.max_continues, 0..=MOST);
        problems.within("tenant_max_running", self.tenant_max_running, 0..=MOST.into());
    }

    fn check_kept(&self, problems: &mut Problems) {
        let (base, result) = (self.retry_base_ms, self.result_ttl_ms);
        if problems.time_to_live("retry_base_ms", base, 0, 0) {
            let said = format!("retry_base_ms ({base})");
            problems.time_to_live("retry_max_ms", self.retry_max_ms, base, said);
        }
        problems.time_to_live("keep_stream_ms", self.keep_stream_ms, 1000, 1000);
        if problems.time_to_live("result_ttl_ms", result, 1000, 1000) {
            let said = format!("result_ttl_ms ({result})");
            problems.time_to_live("outcome_ttl_ms", self.outcome_ttl_ms, result, said);
        }
        problems.within("retained_bytes", self.retained_bytes, ByteSize::new(0)..=MOST_BYTES);
        problems.within("dead_bytes", self.dead_bytes, ByteSize::new(0)..=MOST_BYTES);
    }

    fn check_headroom(&self, problems: &mut Problems) {
        let (low, high) = (self.headroom_low, self.headroom_high);
        let low_fits = problems.within("headroom_low", low, 0.0..=1.0);
        if problems.within("headroom_high", high, 0.0..=1.0) && low_fits {
            // Equal thresholds would make readiness flap around them.
            let rule = format!("below headroom_high ({high})");
            problems.require(low < high, "headroom_low", low, rule);
        }
    }

    fn check_telling(&self, problems: &mut Problems) {
        if let Some(endpoint) = &self.otlp_endpoint {
            problems.require(endpoint.is_usable(), "otlp_endpoint", endpoint, OtlpUrl::RULE);
        }
    }
}

#[cfg(test)]
mod tests {
    use turnmill_telemetry::settings::Problems;

    use super::super::settings::tests::settings;

    #[test]
    fn defaults_are_valid() {
        Problems::of(&settings(&[])).expect("defaults are valid");
    }

    #[test]
    fn every_rule_is_told_in_one_sentence() {
        let cases = [
            ("--block-tokens=24", "block_tokens is 24; it must be a power of two from 8 to 256"),
            ("--block-tokens=4", "block_tokens is 4; it must be a power of two from 8 to 256"),
            ("--block-tokens=512", "block_tokens is 512; it must be a power of two from 8 to 256"),
            ("--pool-bytes=64KiB", "pool_bytes is 64KiB; it must be from 1MiB to 1024TiB"),
            ("--max-sequences=0", "max_sequences is 0; it must be from 1 to 65536"),
            ("--batch-tokens=31", "batch_tokens is 31; it must be from max_sequences (32) to 1048576"),
            ("--threads=1025", "threads is 1025; it must be from 0 to 1024"),
            ("--speculation-tokens=0", "speculation_tokens is 0; it must be from 1 to 64"),
            ("--speculation-tokens=65", "speculation_tokens is 65; it must be from 1 to 64"),
            (
                "--max-context-tokens=1",
                "max_context_tokens is 1; it must be 0 (the model's own limit) or from 2 (a token to read and one to \
                 make) to 16777216",
            ),
            (
                "--redis-url=http://:pw@h",
                "redis_url is not a Redis URL; write it as redis://USER:PASSWORD@HOST:6379/0, with rediss:// for TLS, or \
                 unix:///PATH, and percent-encode @ : / ? # % in user and password",
            ),
            (
                "--redis-ca=/ca.pem",
                "redis_ca is /ca.pem; it must be left out unless redis_url starts with rediss://",
            ),
            (
                "--store=ftp://u:pw@h",
                "store is ftp://u:***@h; it must be auto, none or a URL that starts with file:///, s3://, gs://, \
                 az:// or memory:///",
            ),
            ("--store-parallel=0", "store_parallel is 0; it must be from 1 to 1024"),
            ("--store-timeout-ms=99", "store_timeout_ms is 99; it must be from 100 to 604800000 (a week)"),
            ("--transfer-bytes=0", "transfer_bytes is 0; it must be from 1 to 1024TiB"),
            ("--look-ahead=1025", "look_ahead is 1025; it must be from 0 to 1024"),
            ("--lease-ms=299", "lease_ms is 299; it must be from 300 to 604800000 (a week)"),
            ("--stall-ms=999", "stall_ms is 999; it must be from 1000 to 604800000 (a week)"),
            ("--flush-ms=0", "flush_ms is 0; it must be from 1 to 1000"),
            ("--max-attempts=0", "max_attempts is 0; it must be from 1 to 1000000000"),
            (
                "--keep-stream-ms=999",
                "keep_stream_ms is 999; it must be from 1000 to 316224000000 (ten years)",
            ),
            (
                "--retry-max-ms=999",
                "retry_max_ms is 999; it must be from retry_base_ms (1000) to 316224000000 (ten years)",
            ),
            ("--result-ttl-ms=999", "result_ttl_ms is 999; it must be from 1000 to 316224000000 (ten years)"),
            (
                "--outcome-ttl-ms=5",
                "outcome_ttl_ms is 5; it must be from result_ttl_ms (3600000) to 316224000000 (ten years)",
            ),
            (
                "--outcome-ttl-ms=316224000001",
                "outcome_ttl_ms is 316224000001; it must be from result_ttl_ms (3600000) to 316224000000 (ten years)",
            ),
            ("--headroom-low=0.1", "headroom_low is 0.1; it must be below headroom_high (0.1)"),
            (
                "--otlp-endpoint=grpc://u:pw@h",
                "otlp_endpoint is grpc://u:***@h; it must be a URL that starts with http:// or https://, such as \
                 http://127.0.0.1:4318",
            ),
            ("--headroom-high=1.5", "headroom_high is 1.5; it must be from 0 to 1"),
        ];
        for (flag, sentence) in cases {
            let refused = Problems::of(&settings(&[flag])).expect_err(flag);
            assert_eq!(refused.to_string(), sentence);
        }
        assert!(Problems::of(&settings(&["--headroom-low=NaN"])).is_err());
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let refused = Problems::of(&settings(&["--lease-ms=0", "--flush-ms=0"])).expect_err("two problems");
        assert_eq!(refused.to_string().lines().count(), 2);
    }
}
