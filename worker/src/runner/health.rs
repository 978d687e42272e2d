//! Whether Redis serves the queue: told to the lifecycle, and to the log once an episode.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::broker::{Advice, BrokerError};
use crate::lifecycle::Lifecycle;
use crate::surroundings::Surroundings;

/// A refusal stands for as long as this, unless the refused call is answered sooner. Redis may refuse one command and answer
/// the others: their answers must not make readiness flap.
const REFUSAL_STANDS: Duration = Duration::from_secs(15);

/// The state of the queue, as the worker's calls find it. Clones share it.
#[derive(Clone)]
pub struct QueueHealth {
    pub(super) surroundings: Surroundings,
    lifecycle: Arc<Lifecycle>,
    state: Arc<Mutex<State>>,
}

/// What the last calls found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Serves,
    /// Redis cannot be reached, or is not the queue's primary now.
    Away,
    /// Redis answers, and does not let this worker do its work.
    Refuses {
        call: &'static str,
        last: Instant,
    },
}

impl State {
    /// Whether a refusal still stands when `call` is told something else: none, if it is about no call of the queue.
    fn refuses_still(self, call: Option<&str>, now: Instant) -> bool {
        match self {
            Self::Refuses { call: refused, last } => {
                call != Some(refused) && now.saturating_duration_since(last) < REFUSAL_STANDS
            }
            Self::Serves | Self::Away => false,
        }
    }
}

impl QueueHealth {
    /// That of a queue that has just answered.
    pub fn new(lifecycle: Arc<Lifecycle>, surroundings: Surroundings) -> Self {
        lifecycle.set_redis_connected(surroundings.now());
        Self { surroundings, lifecycle, state: Arc::new(Mutex::new(State::Serves)) }
    }

    /// Notes what came of `call`, and returns it. Errors about a single turn count as answers.
    pub fn note<T>(&self, call: &'static str, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        self.note_at(call, result.as_ref().err(), self.surroundings.now());
        result
    }

    fn note_at(&self, call: &'static str, error: Option<&BrokerError>, now: Instant) {
        // The lifecycle is told under the lock: otherwise an older call might have the last word.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) if error.is_outage() => {
                if !state.refuses_still(None, now) {
                    if *state != State::Away {
                        warn!(%error, "the queue does not answer; trying again until it does");
                    }
                    *state = State::Away;
                }
                self.lifecycle.set_redis_trouble(error.to_string(), now);
            }
            Some(error) if error.advice() == Advice::Stop => {
                if !matches!(*state, State::Refuses { .. }) {
                    error!(%error, call, "Redis refuses this worker; trying again until it is allowed");
                }
                *state = State::Refuses { call, last: now };
                self.lifecycle.set_redis_trouble(error.to_string(), now);
            }
            _ if *state == State::Serves || state.refuses_still(Some(call), now) => {}
            _ => {
                info!("the queue answers again");
                *state = State::Serves;
                self.lifecycle.set_redis_connected(now);
            }
        }
    }

    /// For a call that is repeated whatever comes of it. `without` is what the log says of a failure.
    pub(super) fn repeated(&self, call: &'static str, without: &'static str) -> Repeated {
        Repeated { health: self.clone(), call, without, told: false }
    }
}

/// A call that is repeated whatever comes of it.
pub(super) struct Repeated {
    health: QueueHealth,
    call: &'static str,
    without: &'static str,
    /// The log says already that it fails.
    told: bool,
}

impl Repeated {
    /// Notes what came of the call. Of failures in a row the log tells the first that the queue's health does not tell.
    pub(super) fn note<T>(&mut self, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        let result = self.health.note(self.call, result);
        match &result {
            Ok(_) => self.told = false,
            Err(error) if error.is_outage() || error.advice() == Advice::Stop => {}
            Err(error) => self.tell(error),
        }
        result
    }

    /// As [`Self::note`], for a call that the worker can do without: a refusal is told, and does not count against readiness.
    pub(super) fn note_optional<T>(&mut self, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        match &result {
            Err(error) if error.advice() == Advice::Stop => {
                self.tell(error);
                result
            }
            _ => self.note(result),
        }
    }

    fn tell(&mut self, error: &BrokerError) {
        if !std::mem::replace(&mut self.told, true) {
            warn!(error = error.without_content(), call = self.call, "{}; trying again", self.without);
        }
    }
}

/// Calls until there is an answer, or trying again cannot help.
pub(super) async fn until_answered<T, F>(
    health: &QueueHealth,
    name: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<T, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match health.note(name, call().await) {
            Err(error) if error.advice() == Advice::Retry => backoff.pause(&health.surroundings).await,
            result => return result,
        }
    }
}

/// Pauses between tries: doubling from 50 ms to 1.6 s.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    /// Whether nothing was waited for yet.
    pub fn is_fresh(&self) -> bool {
        self.tries == 0
    }

    /// Waits before the next try.
    pub async fn pause(&mut self, surroundings: &Surroundings) {
        let pause = Duration::from_millis(50 << self.tries.min(5));
        self.tries += 1;
        surroundings.sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use turnmill_redis::Fault;
    use turnmill_schema::TurnId;

    use super::*;
    use crate::lifecycle::{HeadroomLimits, Phase};

    fn refused() -> BrokerError {
        Fault::Unsuitable("Redis at h:1 wants another user or password (NOAUTH)".into()).into()
    }

    fn away() -> BrokerError {
        Fault::Unreachable { address: "h:1".into(), reason: "refused".into() }.into()
    }

    fn fenced() -> BrokerError {
        BrokerError::Fenced { turn: TurnId::new(0) }
    }

    fn full() -> BrokerError {
        Fault::Full { step: "renew", reason: "OOM".into() }.into()
    }

    struct Setting {
        health: QueueHealth,
        lifecycle: Arc<Lifecycle>,
        now: Instant,
    }

    impl Setting {
        fn new() -> Self {
            let now = Instant::now();
            let limits = HeadroomLimits { low: 0.0, high: 0.1 };
            let lifecycle = Arc::new(Lifecycle::new(limits, Duration::from_secs(60), now));
            lifecycle.advance(Phase::Ready);
            let health = QueueHealth::new(Arc::clone(&lifecycle), Surroundings::machine());
            Self { health, lifecycle, now }
        }

        /// Why the worker is not ready after `call` came to `error`, `seconds` after the start.
        fn after(&self, seconds: u64, call: &'static str, error: Option<BrokerError>) -> Option<String> {
            let now = self.now + Duration::from_secs(seconds);
            self.health.note_at(call, error.as_ref(), now);
            let reasons = self.lifecycle.ready(now).err()?;
            assert_eq!(reasons.len(), 1, "{reasons:?}");
            assert!(!self.lifecycle.redis_connected());
            Some(reasons[0].detail.clone())
        }
    }

    #[test]
    fn a_worker_that_redis_refuses_is_not_ready_and_says_why() {
        let setting = Setting::new();
        let reason = setting.after(1, "renew", Some(refused())).expect("not ready");
        assert!(reason.contains("wants another user or password"), "{reason}");
        assert_eq!(setting.after(2, "renew", None), None);
    }

    #[test]
    fn answers_to_other_calls_do_not_end_a_refusal_before_its_time() {
        let setting = Setting::new();
        assert!(setting.after(0, "append", Some(refused())).is_some());
        for seconds in 1..15 {
            assert!(setting.after(seconds, "read", None).is_some(), "after {seconds} s");
            assert!(setting.after(seconds, "finish", Some(fenced())).is_some(), "after {seconds} s");
        }
        assert_eq!(setting.after(15, "read", None), None, "nobody appends any more");
        // An outage meanwhile is over with the call that was refused.
        assert!(setting.after(20, "append", Some(refused())).is_some());
        assert!(setting.after(21, "read", Some(away())).is_some());
        assert!(setting.after(22, "read", None).is_some());
        assert_eq!(setting.after(23, "append", None), None);
    }

    #[test]
    fn any_answer_ends_an_outage() {
        for answer in [None, Some(fenced()), Some(full())] {
            let setting = Setting::new();
            let reason = setting.after(1, "read", Some(away())).expect("not ready");
            assert!(reason.contains("cannot reach Redis at h:1"), "{reason}");
            assert_eq!(setting.after(2, "renew", answer), None);
        }
    }

    #[test]
    fn a_failure_in_a_row_is_told_once() {
        let setting = Setting::new();
        let mut renew = setting.health.repeated("renew", "leases were not renewed");
        for (result, told) in [
            (Err(away()), false),
            (Err(full()), true),
            (Err(full()), true),
            (Ok(()), false),
            (Err(full()), true),
        ] {
            let _ = renew.note(result);
            assert_eq!(renew.told, told);
        }
        // What is refused is told by the queue's health, unless the worker is ready without it.
        let mut hear = setting.health.repeated("hear", "cancellations are found by renewals only");
        assert!(hear.note_optional::<()>(Err(refused())).is_err());
        assert!(hear.told && setting.lifecycle.redis_connected());
        assert!(renew.note::<()>(Err(refused())).is_err());
        assert!(!setting.lifecycle.redis_connected());
    }
}
