//! Starting, ready, failing, draining, stopped; and whether the worker should get traffic, or be ended.
//!
//! Invariants:
//! * phases only move forward;
//! * a probe waits neither for the engine nor for Redis: both leave their last word here, and nobody holds
//!   the lock for longer than it takes to read or write a few words;
//! * readiness and liveness are different questions. Not ready: leave it alone, it gets over it, unless it is failing and
//!   somebody must look. Not live: only a restart helps. Degraded is neither: it works, and slower.
//!
//! Time is passed in, so that every rule is tested without a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Loading the model, warming up, connecting.
    Starting,
    /// Claiming turns.
    Ready,
    /// Claims nothing more, because turns failed here that other workers completed; what runs goes on.
    Failing,
    /// Claims nothing more; finishes or requeues what runs.
    Draining,
    /// Nothing runs any more.
    Stopped,
}

impl Phase {
    /// The name that the queue's registry and metrics show.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failing => "failing",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }

    /// What it has against new work.
    fn reason(self) -> Option<Reason> {
        match self {
            Self::Starting => Some(Reason::new(ReasonCode::Starting, "the worker is starting")),
            Self::Ready => None,
            Self::Failing => Some(Reason::new(
                ReasonCode::Failing,
                "turns failed in a row on this worker that others completed; compare its model, chat template and settings with \
                 theirs, and restart it",
            )),
            Self::Draining => {
                Some(Reason::new(ReasonCode::Draining, "the worker finishes what it has and stops"))
            }
            Self::Stopped => Some(Reason::new(ReasonCode::Stopped, "the worker has stopped")),
        }
    }
}

/// What keeps a worker from being ready or live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// [`Phase::Starting`].
    Starting,
    /// [`Phase::Failing`].
    Failing,
    /// [`Phase::Draining`].
    Draining,
    /// [`Phase::Stopped`].
    Stopped,
    /// Redis cannot be reached, or refuses to serve the queue to this worker.
    RedisDisconnected,
    /// Too few KV blocks are free.
    PoolHeadroomLow,
    /// The engine has work and makes no steps.
    EngineStalled,
}

/// Why the worker is not ready or not live.
pub type Reason = turnmill_telemetry::probes::Reason<ReasonCode>;

/// What makes a worker slower and keeps it from nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DegradationCode {
    /// The object store does not do what it is asked; what would be restored from it is computed.
    StoreUnreachable,
}

/// One thing that slows the worker down.
pub type Degradation = turnmill_telemetry::probes::Reason<DegradationCode>;

/// Shares of the pool between which readiness keeps its last answer. `low < high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadroomLimits {
    /// Under it the worker is not ready.
    pub low: f64,
    /// Over it the worker is ready again.
    pub high: f64,
}

/// Free share of the pool, with hysteresis so that a pool near a limit does not make readiness flap.
#[derive(Debug)]
struct Headroom {
    limits: HeadroomLimits,
    ratio: f64,
    short: bool,
}

impl Headroom {
    fn set(&mut self, ratio: f64) {
        self.ratio = ratio;
        if ratio < self.limits.low {
            self.short = true;
        } else if ratio > self.limits.high {
            self.short = false;
        }
    }

    fn reason(&self) -> Option<Reason> {
        let (percent, limits) = (100.0 * self.ratio, self.limits);
        let (low, high) = (100.0 * limits.low, 100.0 * limits.high);
        let detail = format!(
            "{percent:.1}% of the KV blocks are free; the worker is not ready under {low:.1}%, and ready \
             again over {high:.1}%"
        );
        self.short.then(|| Reason::new(ReasonCode::PoolHeadroomLow, detail))
    }
}

/// The connection to the queue, as last heard.
#[derive(Debug)]
struct Connection {
    up: bool,
    since: Instant,
    /// What the last call that failed said.
    why: Option<String>,
}

impl Connection {
    fn set(&mut self, up: bool, why: Option<String>, now: Instant) {
        if self.up != up {
            self.since = now;
        }
        (self.up, self.why) = (up, why);
    }

    fn reason(&self, now: Instant) -> Option<Reason> {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        let why = self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let detail = format!("Redis has not served the queue for {seconds:.1} s{why}");
        (!self.up).then(|| Reason::new(ReasonCode::RedisDisconnected, detail))
    }
}

/// Everything that decides whether the worker should be given work.
#[derive(Debug)]
struct Readiness {
    phase: Phase,
    redis: Connection,
    headroom: Headroom,
}

impl Readiness {
    fn reasons(&self, now: Instant) -> Vec<Reason> {
        [self.phase.reason(), self.redis.reason(now), self.headroom.reason()].into_iter().flatten().collect()
    }
}

/// Whether the engine moves. One word, written by the tasks that give the engine work and by the engine's thread.
#[derive(Debug)]
pub struct EngineProgress {
    /// Milliseconds since `origin` of the last sign of life, or [`IDLE`]. One word for both, so that no
    /// reader sees "busy" together with the time of a step made before the engine fell idle.
    last_ms: AtomicU64,
    origin: Instant,
}

const IDLE: u64 = u64::MAX;

impl EngineProgress {
    fn new(origin: Instant) -> Self {
        Self { last_ms: AtomicU64::new(IDLE), origin }
    }

    /// Says whether the engine has work. Set it before the engine is given any: then an engine that never
    /// takes it up is noticed too. Repeating it while busy is no sign of life.
    pub fn set_busy(&self, busy: bool, now: Instant) {
        if busy {
            let begin = self.since_origin_ms(now);
            // Failing means that it was busy already.
            let _ = self.last_ms.compare_exchange(IDLE, begin, Ordering::Relaxed, Ordering::Relaxed);
        } else {
            self.last_ms.store(IDLE, Ordering::Relaxed);
        }
    }

    /// A step was made.
    pub fn step_done(&self, now: Instant) {
        let step = self.since_origin_ms(now);
        let busy = |last| (last != IDLE).then_some(step);
        // Failing means that it was idle; a step then changes nothing.
        let _ = self.last_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, busy);
    }

    /// How long the engine has had work and made no step. Zero while it has none.
    pub fn silence(&self, now: Instant) -> Duration {
        match self.last_ms.load(Ordering::Relaxed) {
            IDLE => Duration::ZERO,
            last => Duration::from_millis(self.since_origin_ms(now).saturating_sub(last)),
        }
    }

    fn since_origin_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_millis() as u64
    }
}

/// The worker's state, shared by everything that changes it or asks for it.
#[derive(Debug)]
pub struct Lifecycle {
    readiness: Mutex<Readiness>,
    engine: EngineProgress,
    stall: Duration,
    /// What is wrong with the object store, if there is one. It has no part in readiness, so it is kept apart from it.
    store_trouble: Mutex<Option<Option<String>>>,
}

impl Lifecycle {
    /// A worker that begins to start: not connected, its pool all free.
    pub fn new(limits: HeadroomLimits, stall: Duration, now: Instant) -> Self {
        let redis = Connection { up: false, since: now, why: None };
        let headroom = Headroom { limits, ratio: 1.0, short: false };
        let readiness = Readiness { phase: Phase::Starting, redis, headroom };
        Self {
            readiness: Mutex::new(readiness),
            engine: EngineProgress::new(now),
            stall,
            store_trouble: Mutex::default(),
        }
    }

    /// Where the worker's engine reports to.
    pub fn engine(&self) -> &EngineProgress {
        &self.engine
    }

    /// Moves to `phase`; a phase that is past stays past.
    pub fn advance(&self, phase: Phase) {
        let mut readiness = self.lock();
        readiness.phase = readiness.phase.max(phase);
    }

    /// Where the worker is in its life.
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Whether the worker has started; what it did since does not matter.
    pub fn started(&self) -> Result<(), Reason> {
        let phase = self.phase();
        match phase.reason() {
            Some(reason) if phase == Phase::Starting => Err(reason),
            _ => Ok(()),
        }
    }

    /// Says that Redis serves the queue.
    pub fn set_redis_connected(&self, now: Instant) {
        self.lock().redis.set(true, None, now);
    }

    /// Says that Redis does not serve the queue, and why.
    pub fn set_redis_trouble(&self, why: String, now: Instant) {
        self.lock().redis.set(false, Some(why), now);
    }

    /// Whether Redis served the queue when it was last asked.
    pub fn redis_connected(&self) -> bool {
        self.lock().redis.up
    }

    /// Says which share of the pool's blocks can be had, from 0 to 1: free ones, and those kept only in case
    /// their content is wanted again.
    pub fn set_headroom(&self, ratio: f64) {
        self.lock().headroom.set(ratio);
    }

    /// Share of blocks that can be handed out.
    pub fn headroom(&self) -> f64 {
        self.lock().headroom.ratio
    }

    /// Whether the worker should be given work, or every reason why not.
    pub fn ready(&self, now: Instant) -> Result<(), Vec<Reason>> {
        let mut reasons = self.lock().reasons(now);
        reasons.extend(self.live(now).err());
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// Says what is wrong with the object store, in a sentence, or that nothing is. The worker stays ready: a
    /// fleet without its store computes what it would have restored.
    pub fn set_store_trouble(&self, trouble: Option<String>) {
        *self.store_trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    /// Whether the object store does what it is asked; none without a store.
    pub fn store_up(&self) -> Option<bool> {
        let trouble = self.store_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_ref().map(Option::is_none)
    }

    /// Everything that slows the worker down.
    pub fn degraded(&self) -> Vec<Degradation> {
        let trouble = self.store_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().flatten();
        trouble.into_iter().map(|why| Degradation::new(DegradationCode::StoreUnreachable, why)).collect()
    }

    /// Whether the worker moves, or why only a restart helps.
    pub fn live(&self, now: Instant) -> Result<(), Reason> {
        if !self.engine_stalled(now) {
            return Ok(());
        }
        let (silence, stall) = (self.engine.silence(now).as_secs_f64(), self.stall.as_secs_f64());
        let detail =
            format!("the engine has work and has made no step for {silence:.1} s; {stall:.1} s are allowed");
        Err(Reason::new(ReasonCode::EngineStalled, detail))
    }

    /// Whether the engine hangs. Renewals must stop then: a hung engine has to lose its leases, so that
    /// another worker runs its turns.
    pub fn engine_stalled(&self, now: Instant) -> bool {
        self.engine.silence(now) > self.stall
    }

    fn lock(&self) -> MutexGuard<'_, Readiness> {
        // Every write leaves a whole value, so one that panicked elsewhere left nothing half done.
        self.readiness.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadroomLimits = HeadroomLimits { low: 0.05, high: 0.10 };
    const STALL: Duration = Duration::from_secs(30);

    fn ready_worker(now: Instant) -> Lifecycle {
        let lifecycle = Lifecycle::new(LIMITS, STALL, now);
        lifecycle.advance(Phase::Ready);
        lifecycle.set_redis_connected(now);
        lifecycle
    }

    fn codes(lifecycle: &Lifecycle, now: Instant) -> Vec<ReasonCode> {
        let reasons = lifecycle.ready(now).err().unwrap_or_default();
        reasons.into_iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn a_new_worker_says_everything_it_lacks() {
        let now = Instant::now();
        let lifecycle = Lifecycle::new(LIMITS, STALL, now);
        assert_eq!(codes(&lifecycle, now), [ReasonCode::Starting, ReasonCode::RedisDisconnected]);
        assert_eq!(lifecycle.live(now), Ok(()));
        assert_eq!(codes(&ready_worker(now), now), []);
    }

    #[test]
    fn phases_only_move_forward() {
        let now = Instant::now();
        let lifecycle = ready_worker(now);
        lifecycle.advance(Phase::Failing);
        lifecycle.advance(Phase::Ready);
        assert_eq!(codes(&lifecycle, now), [ReasonCode::Failing]);
        assert_eq!(lifecycle.live(now), Ok(()));
        lifecycle.advance(Phase::Draining);
        lifecycle.advance(Phase::Ready);
        assert_eq!(lifecycle.phase(), Phase::Draining);
        assert_eq!(codes(&lifecycle, now), [ReasonCode::Draining]);
        lifecycle.advance(Phase::Stopped);
        assert_eq!(codes(&lifecycle, now), [ReasonCode::Stopped]);
    }

    #[test]
    fn a_lost_connection_is_told_with_its_age() {
        let start = Instant::now();
        let lifecycle = ready_worker(start);
        lifecycle.set_redis_trouble("cannot reach it".into(), start + Duration::from_secs(5));
        // Hearing it again must not make it younger.
        lifecycle.set_redis_trouble("it refuses".into(), start + Duration::from_secs(6));
        let reasons = lifecycle.ready(start + Duration::from_secs(8)).expect_err("cut off");
        assert_eq!(reasons[0].detail, "Redis has not served the queue for 3.0 s: it refuses");
        let json = serde_json::json!(reasons[0]);
        assert_eq!(json["code"], "redis_disconnected");
        lifecycle.set_redis_connected(start + Duration::from_secs(9));
        assert_eq!(codes(&lifecycle, start + Duration::from_secs(9)), []);
    }

    #[test]
    fn a_worker_without_its_store_is_ready_and_degraded() {
        let now = Instant::now();
        let lifecycle = ready_worker(now);
        assert_eq!(lifecycle.degraded(), []);
        lifecycle.set_store_trouble(Some("no route".into()));
        assert_eq!(lifecycle.ready(now), Ok(()));
        let json = serde_json::json!(lifecycle.degraded());
        assert_eq!(json, serde_json::json!([{ "code": "store_unreachable", "detail": "no route" }]));
        lifecycle.set_store_trouble(None);
        assert_eq!(lifecycle.degraded(), []);
    }

    #[test]
    fn headroom_between_the_limits_keeps_the_last_answer() {
        let now = Instant::now();
        let lifecycle = ready_worker(now);
        let steps = [
            (0.07, true),
            (0.05, true),
            (0.04, false),
            (0.07, false),
            (0.10, false),
            (0.11, true),
            (0.06, true),
        ];
        for (ratio, ready) in steps {
            lifecycle.set_headroom(ratio);
            assert_eq!(lifecycle.ready(now).is_ok(), ready, "at {ratio}");
        }
    }

    #[test]
    fn an_engine_with_work_must_step_and_one_without_need_not() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let lifecycle = ready_worker(start);
        let engine = lifecycle.engine();
        assert!(!lifecycle.engine_stalled(after(1000)), "idle is not stalled");

        // Work that comes after a long idle time starts the clock anew.
        engine.set_busy(true, after(1000));
        assert!(!lifecycle.engine_stalled(after(1030)));
        assert!(lifecycle.engine_stalled(after(1031)), "it never took the work up");
        // More work is no sign of life.
        engine.set_busy(true, after(1031));
        assert!(lifecycle.engine_stalled(after(1031)));
        let reason = lifecycle.live(after(1040)).expect_err("stalled");
        assert_eq!(reason.detail, "the engine has work and has made no step for 40.0 s; 30.0 s are allowed");
        assert_eq!(codes(&lifecycle, after(1040)), [ReasonCode::EngineStalled]);

        engine.step_done(after(1041));
        assert_eq!(lifecycle.live(after(1071)), Ok(()));
        engine.set_busy(false, after(1072));
        assert_eq!(lifecycle.live(after(9999)), Ok(()));
        // The last step's report may come after the engine fell idle.
        engine.step_done(after(1073));
        assert_eq!(lifecycle.live(after(9999)), Ok(()));
    }

    proptest! {
        #[test]
        fn readiness_flips_only_outside_the_band(ratios in prop::collection::vec(0.0f64..0.2, 1..50)) {
            let now = Instant::now();
            let lifecycle = ready_worker(now);
            let mut ready = true;
            for ratio in ratios {
                lifecycle.set_headroom(ratio);
                let next = lifecycle.ready(now).is_ok();
                prop_assert!(next == ready || (next && ratio > LIMITS.high) || (!next && ratio < LIMITS.low));
                prop_assert!(ratio >= LIMITS.low || !next);
                prop_assert!(ratio <= LIMITS.high || next);
                ready = next;
            }
        }
    }
}
