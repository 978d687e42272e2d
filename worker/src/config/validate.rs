//! Ranges of settings, and how they must relate. A rule is one sentence; all broken rules are told at once.

use std::fmt::Display;

use super::{AutoByteSize, ByteSize, ConfigError, OtlpUrl, Settings, StoreSetting, StoreUrl};

const SMALLEST_POOL: ByteSize = ByteSize::new(1 << 20);

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    /// Notes that `name` is not `rule`, unless it is.
    fn require(&mut self, holds: bool, name: &str, value: impl Display, rule: impl Display) {
        if !holds {
            self.0.push(format!("{name} is {value}; it must be {rule}"));
        }
    }
}

/// Redis refuses times to live near the end of its range, and a script that is refused there has written half.
const MAX_TTL_MS: u64 = 10 * 366 * 24 * 60 * 60 * 1000;

impl Settings {
    /// Checks everything that needs neither model nor Redis.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Problems::default();
        self.check_engine(&mut problems);
        self.check_store(&mut problems);
        self.check_queue(&mut problems);
        self.check_headroom(&mut problems);
        self.check_telling(&mut problems);
        if problems.0.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems.0)) }
    }

    fn check_engine(&self, problems: &mut Problems) {
        let Self { block_tokens, pool_bytes, max_sequences, batch_tokens, .. } = *self;
        let block_fits = block_tokens.is_power_of_two() && (8..=256).contains(&block_tokens);
        problems.require(block_fits, "block_tokens", block_tokens, "a power of two from 8 to 256");
        let rule = format!("at least {SMALLEST_POOL}");
        let pool_fits = !matches!(pool_bytes, AutoByteSize::Size(size) if size < SMALLEST_POOL);
        problems.require(pool_fits, "pool_bytes", pool_bytes, rule);
        problems.require(max_sequences >= 1, "max_sequences", max_sequences, "at least 1");
        // Every running sequence gets its token in every step, so the budget must hold one for each.
        let rule = format!("at least max_sequences ({max_sequences})");
        problems.require(batch_tokens >= max_sequences, "batch_tokens", batch_tokens, rule);
        let context = self.max_context_tokens;
        let rule = "0 (the model's own limit) or at least 2 (a token to read and one to make)";
        problems.require(context != 1, "max_context_tokens", context, rule);
        problems.require(self.threads <= 1024, "threads", self.threads, "at most 1024");
        let tokens = self.speculation_tokens;
        problems.require((1..=64).contains(&tokens), "speculation_tokens", tokens, "from 1 to 64");
    }

    fn check_store(&self, problems: &mut Problems) {
        let known = self.store.named().is_none_or(StoreUrl::has_known_scheme);
        problems.require(known, "store", &self.store, StoreSetting::RULE);
        let parallel = self.store_parallel;
        problems.require((1..=1024).contains(&parallel), "store_parallel", parallel, "from 1 to 1024");
        let timeout = self.store_timeout_ms;
        problems.require(timeout >= 100, "store_timeout_ms", timeout, "at least 100");
        let transfer = self.transfer_bytes;
        problems.require(transfer.bytes() >= 1, "transfer_bytes", transfer, "at least 1");
        let ahead = self.look_ahead;
        problems.require(ahead <= 1024, "look_ahead", ahead, "at most 1024");
    }

    fn check_queue(&self, problems: &mut Problems) {
        let schemes = "a URL that starts with redis://, rediss:// or unix://";
        problems.require(self.redis_url.has_known_scheme(), "redis_url", &self.redis_url, schemes);
        if let Some(file) = &self.redis_ca {
            // Who names authorities believes that the connection is encrypted.
            let rule = "left out unless redis_url starts with rediss://";
            problems.require(self.redis_url.is_tls(), "redis_ca", file.display(), rule);
        }
        // A third of it is the renewal, which one slow answer of Redis must not outlast.
        problems.require(self.lease_ms >= 300, "lease_ms", self.lease_ms, "at least 300");
        // A full step with a long context takes hundreds of milliseconds; shorter would end healthy workers.
        problems.require(self.stall_ms >= 1000, "stall_ms", self.stall_ms, "at least 1000");
        problems.require((1..=1000).contains(&self.flush_ms), "flush_ms", self.flush_ms, "from 1 to 1000");
        problems.require(self.max_attempts >= 1, "max_attempts", self.max_attempts, "at least 1");
        let (base, max) = (self.retry_base_ms, self.retry_max_ms);
        let rule = format!("at least retry_base_ms ({base}) and at most {MAX_TTL_MS} (ten years)");
        problems.require((base..=MAX_TTL_MS).contains(&max), "retry_max_ms", max, rule);
        let (result, outcome) = (self.result_ttl_ms, self.outcome_ttl_ms);
        let keep = self.keep_stream_ms;
        let rule = format!("from 1000 to {MAX_TTL_MS} (ten years)");
        problems.require((1000..=MAX_TTL_MS).contains(&result), "result_ttl_ms", result, &rule);
        problems.require((1000..=MAX_TTL_MS).contains(&keep), "keep_stream_ms", keep, rule);
        let rule = format!("from result_ttl_ms ({result}) to {MAX_TTL_MS} (ten years)");
        problems.require((result..=MAX_TTL_MS).contains(&outcome), "outcome_ttl_ms", outcome, rule);
    }

    fn check_headroom(&self, problems: &mut Problems) {
        let (low, high) = (self.headroom_low, self.headroom_high);
        let share = 0.0..=1.0;
        problems.require(share.contains(&low), "headroom_low", low, "from 0 to 1");
        problems.require(share.contains(&high), "headroom_high", high, "from 0 to 1");
        // Equal thresholds would make readiness flap around them.
        let rule = format!("below headroom_high ({high})");
        problems.require(low < high, "headroom_low", low, rule);
    }

    fn check_telling(&self, problems: &mut Problems) {
        if let Some(endpoint) = &self.otlp_endpoint {
            problems.require(endpoint.is_usable(), "otlp_endpoint", endpoint, OtlpUrl::RULE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::tests::settings;

    #[test]
    fn defaults_are_valid() {
        settings(&[]).validate().expect("defaults are valid");
    }

    #[test]
    fn every_rule_is_told_in_one_sentence() {
        let cases = [
            ("--block-tokens=24", "block_tokens is 24; it must be a power of two from 8 to 256"),
            ("--block-tokens=4", "block_tokens is 4; it must be a power of two from 8 to 256"),
            ("--block-tokens=512", "block_tokens is 512; it must be a power of two from 8 to 256"),
            ("--pool-bytes=64KiB", "pool_bytes is 64KiB; it must be at least 1MiB"),
            ("--max-sequences=0", "max_sequences is 0; it must be at least 1"),
            ("--batch-tokens=31", "batch_tokens is 31; it must be at least max_sequences (32)"),
            ("--threads=1025", "threads is 1025; it must be at most 1024"),
            ("--speculation-tokens=0", "speculation_tokens is 0; it must be from 1 to 64"),
            ("--speculation-tokens=65", "speculation_tokens is 65; it must be from 1 to 64"),
            (
                "--max-context-tokens=1",
                "max_context_tokens is 1; it must be 0 (the model's own limit) or at least 2 \
                 (a token to read and one to make)",
            ),
            (
                "--redis-url=http://:pw@h",
                "redis_url is http://:***@h; it must be a URL that starts with redis://, rediss:// or \
                 unix://",
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
            ("--store-timeout-ms=99", "store_timeout_ms is 99; it must be at least 100"),
            ("--transfer-bytes=0", "transfer_bytes is 0; it must be at least 1"),
            ("--look-ahead=1025", "look_ahead is 1025; it must be at most 1024"),
            ("--lease-ms=299", "lease_ms is 299; it must be at least 300"),
            ("--stall-ms=999", "stall_ms is 999; it must be at least 1000"),
            ("--flush-ms=0", "flush_ms is 0; it must be from 1 to 1000"),
            ("--max-attempts=0", "max_attempts is 0; it must be at least 1"),
            (
                "--keep-stream-ms=999",
                "keep_stream_ms is 999; it must be from 1000 to 316224000000 (ten years)",
            ),
            (
                "--retry-max-ms=999",
                "retry_max_ms is 999; it must be at least retry_base_ms (1000) and at most 316224000000 (ten years)",
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
            let refused = settings(&[flag]).validate().expect_err(flag);
            assert_eq!(refused.to_string(), sentence);
        }
        assert!(settings(&["--headroom-low=NaN"]).validate().is_err());
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let refused = settings(&["--lease-ms=0", "--flush-ms=0"]).validate().expect_err("two problems");
        assert_eq!(refused.to_string().lines().count(), 2);
    }
}
