//! Every metric the worker records: name, kind, help and buckets in one table, and a function for each event.
//!
//! Names end in their base unit (Prometheus's convention); label values come from closed lists. The queue's
//! own gauges are in [`super::QueueGauges`].

use std::time::Duration;

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use turnmill_schema::Outcome;

use super::ObserveError;
use crate::kv::PoolCounts;
use crate::schedule::Counts;

enum Kind {
    Counter,
    Gauge,
    /// Upper bounds of the buckets.
    Histogram(&'static [f64]),
}

struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
}

/// A decode step takes milliseconds, a full prefill step of a large model seconds.
const STEP_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Powers of two, as batches and budgets are.
const ROW_BUCKETS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];
/// From a warm agent on an idle worker to a long prompt behind others.
const FIRST_TOKEN_BUCKETS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0];
/// Under 0.025 is faster than people read; over 0.25 they notice.
const INTER_TOKEN_BUCKETS: &[f64] = &[0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// From a few blocks in the page cache to a long conversation in a slow store.
const RESTORE_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

macro_rules! metrics {
    ($($constant:ident = $kind:expr, $name:literal, $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+
        const METRICS: &[Metric] = &[$(Metric { name: $constant, help: $help, kind: $kind }),+];
    };
}

metrics! {
    BUILD_INFO = Kind::Gauge, "turnmill_build_info",
        "Always 1; its label is the worker's version.";

    TURNS_CLAIMED = Kind::Counter, "turnmill_turns_claimed_total",
        "Turns leased by this worker.";
    TURNS_RECLAIMED = Kind::Counter, "turnmill_turns_reclaimed_total",
        "Tokens taken over from workers that fell silent.";
    TURNS_FENCED = Kind::Counter, "turnmill_turns_fenced_total",
        "Turns this worker lost because another took them over, or because they were ended elsewhere.";
    TURNS_RETRIED = Kind::Counter, "turnmill_turns_retried_total",
        "Attempts that failed here and are made again.";
    TURNS_ENDED = Kind::Counter, "turnmill_turns_ended_total",
        "Turns ended by this worker, by outcome.";

    STEP_SECONDS = Kind::Histogram(STEP_BUCKETS), "turnmill_engine_step_seconds",
        "Duration of one step.";
    STEP_ROWS = Kind::Histogram(ROW_BUCKETS), "turnmill_engine_step_rows",
        "Token rows computed in one step.";
    RUNNING = Kind::Gauge, "turnmill_engine_running_sequences",
        "Sequences that hold blocks.";
    WAITING = Kind::Gauge, "turnmill_engine_waiting_sequences",
        "Sequences that wait for admission.";
    BAD_LOGITS = Kind::Counter, "turnmill_engine_bad_logits_total",
        "Turns that failed because their logits were not numbers.";
    PREEMPTED = Kind::Counter, "turnmill_engine_preempted_total",
        "Times a running sequence had to give up its blocks.";

    PROMPT_TOKENS = Kind::Counter, "turnmill_prompt_tokens_total",
        "Prompt tokens of admitted turns, cached ones included.";
    CACHED_TOKENS = Kind::Counter, "turnmill_cached_tokens_total",
        "Prompt tokens whose KV was found and not computed.";
    GENERATED_TOKENS = Kind::Counter, "turnmill_generated_tokens_total",
        "Tokens sampled.";
    PROPOSED_TOKENS = Kind::Counter, "turnmill_speculation_proposed_tokens_total",
        "Tokens that were proposed by prompt lookup and computed to be verified.";
    ACCEPTED_TOKENS = Kind::Counter, "turnmill_speculation_accepted_tokens_total",
        "Those of them that were sampled, each of which saved its turn a step.";

    POOL_BLOCKS = Kind::Gauge, "turnmill_pool_blocks",
        "KV blocks, by state.";
    POOL_HEADROOM = Kind::Gauge, "turnmill_pool_headroom_ratio",
        "Share of KV blocks that can be handed out: free and cached ones.";

    STORE_SAVES = Kind::Counter, "turnmill_store_saves_total",
        "Runs of KV blocks given to the object store, by what became of them.";
    STORE_SAVE_BYTES = Kind::Counter, "turnmill_store_save_bytes_total",
        "Bytes of those runs as the pool has them, by what became of them.";
    STORE_FETCHES = Kind::Counter, "turnmill_store_fetches_total",
        "Runs of KV blocks read from the object store.";
    STORE_FETCH_BYTES = Kind::Counter, "turnmill_store_fetch_bytes_total",
        "Bytes of those runs as they are stored.";
    STORE_MISSES = Kind::Counter, "turnmill_store_misses_total",
        "Runs of KV blocks that were asked for and not had, by reason.";
    STORE_TRIMMED = Kind::Counter, "turnmill_store_trimmed_bytes_total",
        "Bytes of stored runs that this worker removed because their folder was over its limit.";
    STORE_QUEUE = Kind::Gauge, "turnmill_store_save_queue_bytes",
        "Bytes of runs that wait to be written or are being written.";
    HOST_CACHE_HITS = Kind::Counter, "turnmill_host_cache_hits_total",
        "Runs of KV blocks found in the host cache.";
    RESTORES = Kind::Counter, "turnmill_restores_total",
        "Turns with stored runs, by what was decided: to restore them, or to prefill because that was expected to be faster, and how a restore ended.";
    RESTORED_TOKENS = Kind::Counter, "turnmill_restored_tokens_total",
        "Tokens whose KV came back from host cache or object store.";
    RESTORE_SECONDS = Kind::Histogram(RESTORE_BUCKETS), "turnmill_restore_seconds",
        "From room in the pool to the last run that came back, for each restored turn.";
    OFFLOADED = Kind::Counter, "turnmill_offloaded_blocks_total",
        "Blocks of preempted sequences that were copied out of the pool.";
    BROUGHT_BACK = Kind::Counter, "turnmill_offloaded_blocks_restored_total",
        "Those of them that came back.";
    HOST_CACHE = Kind::Gauge, "turnmill_host_cache_bytes",
        "Bytes of stored runs that the host cache holds.";

    FIRST_TOKEN_SECONDS = Kind::Histogram(FIRST_TOKEN_BUCKETS), "turnmill_first_token_seconds",
        "From enqueue to the first published token of a turn.";
    INTER_TOKEN_SECONDS = Kind::Histogram(INTER_TOKEN_BUCKETS), "turnmill_inter_token_seconds",
        "Between two tokens of a turn.";

    SPANS_DROPPED = Kind::Counter, "turnmill_spans_dropped_total",
        "Spans that were not exported, by reason.";
}

/// What may become of a turn with stored runs.
pub const RESTORE_OUTCOMES: [&str; 5] = ["restored", "partly", "missed", "timed_out", "prefilled"];

/// Makes this process record metrics. Once a process.
pub fn install() -> Result<PrometheusHandle, ObserveError> {
    let handle = builder()?.install_recorder()?;
    announce();
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, ObserveError> {
    let mut builder = PrometheusBuilder::new();
    for metric in METRICS {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    Ok(builder)
}

/// Gives every metric its help, and every counter its 0: a rate over a series that begins with its first
/// event misses that event. Gauges and histograms appear with their first value.
fn announce() {
    for Metric { name, help, kind } in METRICS {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Histogram(_) => describe_histogram!(*name, *help),
        }
    }
    let outcomes = [Outcome::Completed, Outcome::Failed, Outcome::Cancelled, Outcome::Expired];
    outcomes.iter().for_each(|outcome| counter!(TURNS_ENDED, "outcome" => outcome.as_str()).absolute(0));
    for fate in ["saved", "dropped", "failed", "evicted"] {
        for name in [STORE_SAVES, STORE_SAVE_BYTES] {
            counter!(name, "outcome" => fate).absolute(0);
        }
    }
    // Why else an object is a miss is the format's to say.
    for reason in ["absent", "unreachable", "timed_out"] {
        counter!(STORE_MISSES, "reason" => reason).absolute(0);
    }
    for outcome in RESTORE_OUTCOMES {
        counter!(RESTORES, "outcome" => outcome).absolute(0);
    }
    for reason in ["queue_full", "export_failed"] {
        counter!(SPANS_DROPPED, "reason" => reason).absolute(0);
    }
    let labelled = [TURNS_ENDED, STORE_SAVES, STORE_SAVE_BYTES, STORE_MISSES, RESTORES, SPANS_DROPPED];
    for Metric { name, .. } in
        METRICS.iter().filter(|m| matches!(m.kind, Kind::Counter) && !labelled.contains(&m.name))
    {
        counter!(*name).absolute(0);
    }
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// A turn was leased.
pub fn turn_claimed() {
    counter!(TURNS_CLAIMED).increment(1);
}

/// `count` tokens were taken over from silent workers.
pub fn turns_reclaimed(count: usize) {
    counter!(TURNS_RECLAIMED).increment(count as u64);
}

/// A lease turned out to be lost.
pub fn turn_fenced() {
    counter!(TURNS_FENCED).increment(1);
}

/// An attempt failed and is made again.
pub fn turn_retried() {
    counter!(TURNS_RETRIED).increment(1);
}

/// A turn was ended.
pub fn turn_ended(outcome: Outcome) {
    counter!(TURNS_ENDED, "outcome" => outcome.as_str()).increment(1);
}

/// A step over `rows` token rows took `duration`.
pub fn step_done(rows: usize, duration: Duration) {
    histogram!(STEP_SECONDS).record(duration);
    histogram!(STEP_ROWS).record(rows as f64);
}

/// What the scheduler holds.
pub fn schedule(counts: &Counts) {
    gauge!(RUNNING).set(counts.running as f64);
    gauge!(WAITING).set(counts.waiting as f64);
    counter!(PREEMPTED).absolute(counts.preempted_total);
}

/// What the pool holds, and the share of it that can be had.
pub fn pool(counts: &PoolCounts, headroom: f64) {
    for (state, blocks) in [("free", counts.free), ("cached", counts.cached), ("held", counts.held)] {
        gauge!(POOL_BLOCKS, "state" => state).set(blocks as f64);
    }
    gauge!(POOL_HEADROOM).set(headroom);
}

/// A turn with a prompt of `prompt` tokens was admitted; the KV of `cached` of them was found.
pub fn prompt_admitted(prompt: u32, cached: u32) {
    counter!(PROMPT_TOKENS).increment(prompt.into());
    counter!(CACHED_TOKENS).increment(cached.into());
}

/// A turn's logits were not numbers.
pub fn bad_logits() {
    counter!(BAD_LOGITS).increment(1);
}

/// `count` tokens were sampled.
pub fn tokens_generated(count: usize) {
    counter!(GENERATED_TOKENS).increment(count as u64);
}

/// Of `proposed` tokens `accepted` were those that were sampled.
pub fn speculated(proposed: usize, accepted: usize) {
    counter!(PROPOSED_TOKENS).increment(proposed as u64);
    counter!(ACCEPTED_TOKENS).increment(accepted as u64);
}

/// A run of so many bytes is in the object store.
pub fn run_saved(bytes: usize) {
    run_ended("saved", bytes);
}

/// There was no room in the queue for a run of so many bytes.
pub fn run_dropped(bytes: usize) {
    run_ended("dropped", bytes);
}

/// A run of so many bytes could not be written.
pub fn run_failed(bytes: usize) {
    run_ended("failed", bytes);
}

/// A run that was to be saved was evicted from the pool before it was copied.
pub fn run_withdrawn() {
    run_ended("evicted", 0);
}

fn run_ended(outcome: &'static str, bytes: usize) {
    counter!(STORE_SAVES, "outcome" => outcome).increment(1);
    counter!(STORE_SAVE_BYTES, "outcome" => outcome).increment(bytes as u64);
}

/// So many bytes of runs wait to be written or are being written.
pub fn save_queue(bytes: usize) {
    gauge!(STORE_QUEUE).set(bytes as f64);
}

/// A run was read from the object store, where it has so many bytes.
pub fn run_fetched(bytes: usize) {
    counter!(STORE_FETCHES).increment(1);
    counter!(STORE_FETCH_BYTES).increment(bytes as u64);
}

/// A run that was asked for was not had. `reason` comes from a closed list.
pub fn run_missed(reason: &'static str) {
    counter!(STORE_MISSES, "reason" => reason).increment(1);
}

/// A run was found in the host cache.
pub fn host_cache_hit() {
    counter!(HOST_CACHE_HITS).increment(1);
}

/// So many bytes of stored runs were removed for their folder's limit.
pub fn store_trimmed(bytes: u64) {
    counter!(STORE_TRIMMED).increment(bytes);
}

/// It was decided how a turn with stored runs gets its blocks; `what` comes from a closed list.
pub fn restore_decided(what: &'static str) {
    counter!(RESTORES, "outcome" => what).increment(1);
}

/// A turn got the KV of so many tokens back, in so much time.
pub fn restored(tokens: usize, took: Duration) {
    counter!(RESTORED_TOKENS).increment(tokens as u64);
    histogram!(RESTORE_SECONDS).record(took);
}

/// A preempted sequence's block was copied out of the pool.
pub fn block_offloaded() {
    counter!(OFFLOADED).increment(1);
}

/// A preempted sequence's block came back.
pub fn block_brought_back() {
    counter!(BROUGHT_BACK).increment(1);
}

/// The host cache holds so many bytes.
pub fn host_cache(bytes: usize) {
    gauge!(HOST_CACHE).set(bytes as f64);
}

/// A turn's first token was published, so long after it was enqueued.
pub fn first_token(after: Duration) {
    histogram!(FIRST_TOKEN_SECONDS).record(after);
}

/// A token came so long after the one before it.
pub fn inter_token(after: Duration) {
    histogram!(INTER_TOKEN_SECONDS).record(after);
}

/// So many spans were not exported; `reason` comes from a closed list.
pub fn spans_dropped(reason: &'static str, count: usize) {
    counter!(SPANS_DROPPED, "reason" => reason).increment(count as u64);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What is rendered after `record` ran, with a recorder of its own.
    pub(in crate::observe) fn recorded(record: impl FnOnce()) -> PrometheusHandle {
        let recorder = builder().expect("buckets are not empty").build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            announce();
            record();
        });
        recorder.handle()
    }

    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn counters_begin_at_zero_and_unread_gauges_are_absent() {
        let text = recorded(|| ()).render();
        assert_lines(
            &text,
            &[
                "turnmill_turns_claimed_total 0",
                "turnmill_turns_ended_total{outcome=\"failed\"} 0",
                concat!("turnmill_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            ],
        );
        assert!(!text.contains("turnmill_pool_blocks{") && !text.contains("running_sequences "), "{text}");
    }

    #[test]
    fn every_event_moves_its_metric() {
        let text = recorded(|| {
            turn_claimed();
            turns_reclaimed(2);
            turn_fenced();
            turn_ended(Outcome::Expired);
            step_done(33, Duration::from_millis(4));
            schedule(&Counts { running: 5, waiting: 6, preempted_total: 7 });
            pool(&PoolCounts { total: 10, free: 1, cached: 2, held: 7 }, 0.3);
            prompt_admitted(100, 64);
            tokens_generated(8);
            speculated(7, 3);
            run_saved(10);
            run_dropped(20);
            run_failed(30);
            save_queue(40);
            run_fetched(50);
            run_missed("timed_out");
            run_missed("checksum");
            host_cache_hit();
            host_cache(60);
            run_withdrawn();
            store_trimmed(70);
            restore_decided("partly");
            restored(80, Duration::from_millis(30));
            block_offloaded();
            block_brought_back();
            first_token(Duration::from_millis(300));
            inter_token(Duration::from_millis(9));
            spans_dropped("queue_full", 90);
        })
        .render();
        assert_lines(
            &text,
            &[
                "turnmill_turns_claimed_total 1",
                "turnmill_turns_reclaimed_total 2",
                "turnmill_turns_fenced_total 1",
                "turnmill_turns_ended_total{outcome=\"expired\"} 1",
                "turnmill_engine_step_seconds_bucket{le=\"0.0025\"} 0",
                "turnmill_engine_step_seconds_bucket{le=\"0.005\"} 1",
                "turnmill_engine_step_rows_bucket{le=\"32\"} 0",
                "turnmill_engine_step_rows_bucket{le=\"64\"} 1",
                "turnmill_engine_running_sequences 5",
                "turnmill_engine_waiting_sequences 6",
                "turnmill_engine_preempted_total 7",
                "turnmill_pool_blocks{state=\"free\"} 1",
                "turnmill_pool_blocks{state=\"cached\"} 2",
                "turnmill_pool_blocks{state=\"held\"} 7",
                "turnmill_pool_headroom_ratio 0.3",
                "turnmill_prompt_tokens_total 100",
                "turnmill_cached_tokens_total 64",
                "turnmill_generated_tokens_total 8",
                "turnmill_speculation_proposed_tokens_total 7",
                "turnmill_speculation_accepted_tokens_total 3",
                "turnmill_store_saves_total{outcome=\"saved\"} 1",
                "turnmill_store_saves_total{outcome=\"dropped\"} 1",
                "turnmill_store_saves_total{outcome=\"failed\"} 1",
                "turnmill_store_save_bytes_total{outcome=\"saved\"} 10",
                "turnmill_store_save_bytes_total{outcome=\"dropped\"} 20",
                "turnmill_store_save_bytes_total{outcome=\"failed\"} 30",
                "turnmill_store_save_queue_bytes 40",
                "turnmill_store_fetches_total 1",
                "turnmill_store_fetch_bytes_total 50",
                "turnmill_store_misses_total{reason=\"absent\"} 0",
                "turnmill_store_misses_total{reason=\"timed_out\"} 1",
                "turnmill_store_misses_total{reason=\"checksum\"} 1",
                "turnmill_host_cache_hits_total 1",
                "turnmill_host_cache_bytes 60",
                "turnmill_store_saves_total{outcome=\"evicted\"} 1",
                "turnmill_store_trimmed_bytes_total 70",
                "turnmill_restores_total{outcome=\"partly\"} 1",
                "turnmill_restores_total{outcome=\"restored\"} 0",
                "turnmill_restored_tokens_total 80",
                "turnmill_restore_seconds_bucket{le=\"0.05\"} 1",
                "turnmill_offloaded_blocks_total 1",
                "turnmill_offloaded_blocks_restored_total 1",
                "turnmill_first_token_seconds_bucket{le=\"0.25\"} 0",
                "turnmill_first_token_seconds_count 1",
                "turnmill_inter_token_seconds_bucket{le=\"0.01\"} 1",
                "turnmill_spans_dropped_total{reason=\"queue_full\"} 90",
                "turnmill_spans_dropped_total{reason=\"export_failed\"} 0",
            ],
        );
    }

    #[test]
    fn every_metric_is_ours_has_help_and_ends_as_its_kind_asks() {
        let units = ["_seconds", "_rows", "_sequences", "_blocks", "_bytes", "_ratio", "_info"];
        for Metric { name, help, kind } in METRICS {
            assert!(name.starts_with("turnmill_") && help.ends_with('.'), "{name}");
            match kind {
                Kind::Counter => assert!(name.ends_with("_total"), "{name}"),
                Kind::Gauge => assert!(units.iter().any(|unit| name.ends_with(unit)), "{name}"),
                Kind::Histogram(buckets) => {
                    assert!(units.iter().any(|unit| name.ends_with(unit)), "{name}");
                    assert!(buckets.is_sorted_by(|a, b| a < b), "{name}");
                }
            }
        }
    }
}
