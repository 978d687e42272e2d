//! Every metric that events move: name, kind, label, help and buckets in one table, and a function for each event.
//!
//! Invariant: what the recorder records is in the table; a label's values are listed there and nowhere else.

use std::time::Duration;

use ::metrics::{counter, gauge, histogram};
use turnmill_schema::{DeadReason, Outcome};
use turnmill_telemetry::metrics::{Described, Kind};

use crate::kv::PoolCounts;
use crate::schedule::Counts;

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

/// From a short reply of a warm agent to a long one behind others.
const TURN_BUCKETS: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
/// From an idle worker at hand to a queue that somebody should look at.
const QUEUED_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1800.0];
/// From a local disk to an object store far away.
const STORE_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How a worker ends turns; cancelling is the queue's.
const OUTCOMES: &[&str] = &[Outcome::Completed.as_str(), Outcome::Failed.as_str(), Outcome::Expired.as_str()];
const DEAD_REASONS: &[&str] =
    &[DeadReason::Attempts.as_str(), DeadReason::Rejected.as_str(), DeadReason::Unreadable.as_str()];
const BLOCK_STATES: &[&str] = &["free", "cached", "held"];
const SAVE_OUTCOMES: &[&str] = &["saved", "dropped", "failed", "evicted"];

/// Why a stored segment may be missed.
#[rustfmt::skip]
pub const MISS_REASONS: &[&str] = &[
    "absent", "unreachable", "timed_out",
    "length", "magic", "version", "flags", "namespace", "parent", "hash", "chain", "tokens", "position", "shape", "codec",
    "header_checksum", "layer_checksum", "key_missing", "plain", "sealed",
];

/// What may become of a turn with stored segments.
pub const RESTORE_OUTCOMES: &[&str] = &["restored", "partly", "missed", "timed_out", "prefilled"];

macro_rules! metrics {
    ($($constant:ident = $kind:expr, $name:literal $({$label:ident in $values:expr})?, $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+
        pub(super) const RECORDED: &[Described] = &[$(Described {
            name: $constant,
            kind: $kind,
            labels: &[$(stringify!($label))?],
            values: metrics!(@values $($values)?),
            help: $help,
        }),+];
    };
    (@values) => { &[] };
    (@values $values:expr) => { $values };
}

metrics! {
    BUILD_INFO = Kind::Gauge, "turnmill_build_info"{version in &[]},
        "Always 1; its label is the worker's version.";

    TURNS_CLAIMED = Kind::Counter, "turnmill_turns_claimed_total",
        "Turns leased by this worker.";
    TURNS_RECLAIMED = Kind::Counter, "turnmill_turns_reclaimed_total",
        "Agents made runnable again whose worker fell silent.";
    TURNS_FENCED = Kind::Counter, "turnmill_turns_fenced_total",
        "Turns this worker lost because another took them over, or because they were cancelled or ended elsewhere.";
    TURNS_RETRIED = Kind::Counter, "turnmill_turns_retried_total",
        "Attempts that failed here and are made again.";
    TURNS_ENDED = Kind::Counter, "turnmill_turns_ended_total"{outcome in OUTCOMES},
        "Turns ended by this worker, by outcome; those cancelled under its hands count as fenced.";
    TURNS_DEAD = Kind::Counter, "turnmill_turns_dead_total"{reason in DEAD_REASONS},
        "Turns that this worker ended as dead letters, by reason.";
    TURNS_REQUEUED = Kind::Counter, "turnmill_turns_requeued_total",
        "Turns requeued at the head of their agents' backlogs, as a drain does; the attempt does not count.";
    TURNS_HELD = Kind::Gauge, "turnmill_turns_held",
        "Turns that this worker holds leases for.";
    TURN_QUEUED_SECONDS = Kind::Histogram(QUEUED_BUCKETS), "turnmill_turn_queued_seconds",
        "From enqueue to the first lease of a turn, the time behind others of its agent included.";
    TURN_SECONDS = Kind::Histogram(TURN_BUCKETS), "turnmill_turn_seconds",
        "From enqueue to the end of a turn, whatever its outcome.";

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
        "Times a running sequence was preempted.";

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

    POOL_BLOCKS = Kind::Gauge, "turnmill_pool_blocks"{state in BLOCK_STATES},
        "KV blocks, by state.";
    POOL_HEADROOM = Kind::Gauge, "turnmill_pool_headroom_ratio",
        "Share of KV blocks that can be handed out: free and cached ones.";
    POOL_EVICTIONS = Kind::Counter, "turnmill_pool_evictions_total",
        "Cached blocks whose content was given up for room.";

    STORE_SAVES = Kind::Counter, "turnmill_store_saves_total"{outcome in SAVE_OUTCOMES},
        "Segments of KV blocks given to the object store, by what became of them.";
    STORE_SAVE_BYTES = Kind::Counter, "turnmill_store_save_bytes_total"{outcome in SAVE_OUTCOMES},
        "Bytes of those segments as the pool has them, by what became of them.";
    STORE_FETCHES = Kind::Counter, "turnmill_store_fetches_total",
        "Segments of KV blocks read from the object store.";
    STORE_FETCH_BYTES = Kind::Counter, "turnmill_store_fetch_bytes_total",
        "Bytes of those segments as they are stored.";
    STORE_PUT_SECONDS = Kind::Histogram(STORE_BUCKETS), "turnmill_store_put_seconds",
        "Time to encode and write one segment.";
    STORE_GET_SECONDS = Kind::Histogram(STORE_BUCKETS), "turnmill_store_get_seconds",
        "Time to read and verify one segment.";
    STORE_MISSES = Kind::Counter, "turnmill_store_misses_total"{reason in MISS_REASONS},
        "Segments of KV blocks that were asked for and not had, by reason.";
    STORE_TRIMMED = Kind::Counter, "turnmill_store_trimmed_bytes_total",
        "Bytes of stored segments that this worker removed because their folder was over its limit.";
    STORE_QUEUE = Kind::Gauge, "turnmill_store_save_queue_bytes",
        "Bytes of segments that wait to be written or are being written.";
    HOST_CACHE_HITS = Kind::Counter, "turnmill_host_cache_hits_total",
        "Segments of KV blocks found in the host cache.";
    RESTORES = Kind::Counter, "turnmill_restores_total"{outcome in RESTORE_OUTCOMES},
        "Turns with stored segments, by what was decided: to restore them, or to prefill because that was expected to be faster, and how a restore ended.";
    RESTORED_TOKENS = Kind::Counter, "turnmill_restored_tokens_total",
        "Tokens whose KV came back from host cache or object store.";
    RESTORE_SECONDS = Kind::Histogram(RESTORE_BUCKETS), "turnmill_restore_seconds",
        "From room in the pool to the last segment that came back, for each restored turn.";
    OFFLOADED = Kind::Counter, "turnmill_offloaded_blocks_total",
        "Blocks of preempted sequences that were copied out of the pool.";
    BROUGHT_BACK = Kind::Counter, "turnmill_offloaded_blocks_restored_total",
        "Those of them that came back.";
    HOST_CACHE = Kind::Gauge, "turnmill_host_cache_bytes",
        "Bytes of stored segments that the host cache holds.";

    FIRST_TOKEN_SECONDS = Kind::Histogram(FIRST_TOKEN_BUCKETS), "turnmill_first_token_seconds",
        "From enqueue to the first published token of a turn.";
    INTER_TOKEN_SECONDS = Kind::Histogram(INTER_TOKEN_BUCKETS), "turnmill_inter_token_seconds",
        "Between two tokens of a turn.";
}

/// A turn was leased. `queued`: the time since it was enqueued; none if it had been leased before.
pub fn turn_claimed(queued: Option<Duration>) {
    counter!(TURNS_CLAIMED).increment(1);
    if let Some(queued) = queued {
        histogram!(TURN_QUEUED_SECONDS).record(queued);
    }
}

/// This worker holds `count` leases.
pub fn turns_held(count: usize) {
    gauge!(TURNS_HELD).set(count as f64);
}

/// A turn was requeued.
pub fn turn_requeued() {
    counter!(TURNS_REQUEUED).increment(1);
}

/// A turn became a dead letter.
pub fn turn_dead(reason: DeadReason) {
    counter!(TURNS_DEAD, "reason" => reason.as_str()).increment(1);
}

/// `count` agents of silent workers were made runnable again.
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

/// A turn was ended, `after` it was enqueued.
pub fn turn_ended(outcome: Outcome, after: Duration) {
    counter!(TURNS_ENDED, "outcome" => outcome.as_str()).increment(1);
    histogram!(TURN_SECONDS).record(after);
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
    counter!(POOL_EVICTIONS).absolute(counts.evicted_total);
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

/// A segment of `bytes` bytes is in the object store.
pub fn segment_saved(bytes: usize) {
    segment_ended("saved", bytes);
}

/// Encoding and writing a segment `took` this time.
pub fn segment_written(took: Duration) {
    histogram!(STORE_PUT_SECONDS).record(took);
}

/// There was no room for a segment of `bytes` bytes: in the queue, or in its folder, where all that is left is wanted more.
pub fn segment_dropped(bytes: usize) {
    segment_ended("dropped", bytes);
}

/// A segment of `bytes` bytes could not be written.
pub fn segment_failed(bytes: usize) {
    segment_ended("failed", bytes);
}

/// A segment that was to be saved was evicted from the pool before it was copied.
pub fn segment_withdrawn() {
    segment_ended("evicted", 0);
}

fn segment_ended(outcome: &'static str, bytes: usize) {
    counter!(STORE_SAVES, "outcome" => outcome).increment(1);
    counter!(STORE_SAVE_BYTES, "outcome" => outcome).increment(bytes as u64);
}

/// Segments of `bytes` bytes wait to be written or are being written.
pub fn save_queue(bytes: usize) {
    gauge!(STORE_QUEUE).set(bytes as f64);
}

/// A segment that takes `bytes` in the object store was read and verified.
pub fn segment_fetched(bytes: usize, took: Duration) {
    histogram!(STORE_GET_SECONDS).record(took);
    counter!(STORE_FETCHES).increment(1);
    counter!(STORE_FETCH_BYTES).increment(bytes as u64);
}

/// A segment that was asked for was not had. `reason` comes from a closed list.
pub fn segment_missed(reason: &'static str) {
    counter!(STORE_MISSES, "reason" => reason).increment(1);
}

/// A segment was found in the host cache.
pub fn host_cache_hit() {
    counter!(HOST_CACHE_HITS).increment(1);
}

/// Stored segments of `bytes` bytes were removed for their folder's limit.
pub fn store_trimmed(bytes: u64) {
    counter!(STORE_TRIMMED).increment(bytes);
}

/// It was decided how a turn with stored segments gets its blocks; `what` comes from a closed list.
pub fn restore_decided(what: &'static str) {
    counter!(RESTORES, "outcome" => what).increment(1);
}

/// A turn got the KV of `tokens` tokens back.
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

/// The host cache holds `bytes` bytes.
pub fn host_cache(bytes: usize) {
    gauge!(HOST_CACHE).set(bytes as f64);
}

/// A turn's first token was published, `after` the turn was enqueued.
pub fn first_token(after: Duration) {
    histogram!(FIRST_TOKEN_SECONDS).record(after);
}

/// A token came `after` the one before it.
pub fn inter_token(after: Duration) {
    histogram!(INTER_TOKEN_SECONDS).record(after);
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::CATALOGUE;
    use super::*;

    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn counters_and_histograms_begin_at_zero_and_unread_gauges_are_absent() {
        let text = CATALOGUE.recorded_while(|| ()).render();
        assert_lines(
            &text,
            &[
                "turnmill_turns_claimed_total 0",
                "turnmill_turns_ended_total{outcome=\"failed\"} 0",
                "turnmill_store_get_seconds_count 0",
                concat!("turnmill_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            ],
        );
        assert!(!text.contains("turnmill_pool_blocks{") && !text.contains("running_sequences "), "{text}");
    }

    /// Everything that can happen to a worker, once.
    pub(in crate::observe) fn every_event() {
        turn_claimed(Some(Duration::from_millis(3)));
        turns_held(9);
        turn_requeued();
        turn_dead(DeadReason::Rejected);
        turns_reclaimed(2);
        turn_fenced();
        turn_retried();
        turn_ended(Outcome::Expired, Duration::from_secs(2));
        step_done(33, Duration::from_millis(4));
        schedule(&Counts { running: 5, waiting: 6, preempted_total: 7 });
        pool(&PoolCounts { total: 10, free: 1, cached: 2, held: 7, evicted_total: 8 }, 0.3);
        prompt_admitted(100, 64);
        bad_logits();
        tokens_generated(8);
        speculated(7, 3);
        segment_saved(10);
        segment_dropped(20);
        segment_failed(30);
        save_queue(40);
        segment_fetched(50, Duration::from_millis(2));
        segment_written(Duration::from_millis(2));
        segment_missed("timed_out");
        segment_missed("header_checksum");
        host_cache_hit();
        host_cache(60);
        segment_withdrawn();
        store_trimmed(70);
        restore_decided("partly");
        restored(80, Duration::from_millis(30));
        block_offloaded();
        block_brought_back();
        first_token(Duration::from_millis(300));
        inter_token(Duration::from_millis(9));
    }

    #[test]
    fn every_event_moves_its_metric() {
        let text = CATALOGUE.recorded_while(every_event).render();
        assert_lines(
            &text,
            &[
                "turnmill_turns_claimed_total 1",
                "turnmill_turn_queued_seconds_bucket{le=\"0.005\"} 1",
                "turnmill_turns_held 9",
                "turnmill_turns_requeued_total 1",
                "turnmill_turns_dead_total{reason=\"rejected\"} 1",
                "turnmill_turns_dead_total{reason=\"attempts\"} 0",
                "turnmill_turn_seconds_bucket{le=\"2.5\"} 1",
                "turnmill_pool_evictions_total 8",
                "turnmill_store_get_seconds_count 1",
                "turnmill_store_put_seconds_count 1",
                "turnmill_turns_reclaimed_total 2",
                "turnmill_turns_fenced_total 1",
                "turnmill_turns_retried_total 1",
                "turnmill_engine_bad_logits_total 1",
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
                "turnmill_store_misses_total{reason=\"header_checksum\"} 1",
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
            ],
        );
    }
}
