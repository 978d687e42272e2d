//! Deadlines of turns that somebody waits for. Workers end a turn whose deadline passes while it waits; if none does, its readers
//! do, so that nobody waits for ever.

use std::sync::atomic::{AtomicBool, Ordering};

use turnmill_redis::steps::{Expire, UnrunLimits};
use turnmill_redis::{Fault, Server, TurnState};
use turnmill_schema::keys::{DeadlineEntry, Keys};

use crate::new_turn::ms_from_now;
use crate::settings::Settings;

/// Ends turns that are past their deadline.
#[derive(Debug)]
pub(crate) struct Overdue {
    limits: UnrunLimits,
    /// This user may end no turns; workers may.
    is_forbidden: AtomicBool,
}

impl Overdue {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { limits: settings.unrun_limits(), is_forbidden: AtomicBool::new(false) }
    }

    /// Ends those of the turns whose deadline has passed by this machine's clock and by Redis's, and which no worker runs. Their
    /// readers learn of it as of any end. A failure changes nothing: the turns are looked at again.
    pub(crate) async fn end(&self, server: &Server, keys: &Keys, states: impl Iterator<Item = &TurnState>) {
        let now_ms = ms_from_now(std::time::Duration::ZERO);
        let items: Vec<Expire> = states
            .filter_map(|state| state.overdue(now_ms))
            .map(|DeadlineEntry { agent, entry }| Expire { agent, entry })
            .collect();
        if items.is_empty() || self.is_forbidden.load(Ordering::Relaxed) {
            return;
        }
        let answers = server.run_items(keys, &self.limits, &items).await;
        let faults = match answers {
            Ok(answers) => answers.into_iter().filter_map(Result::err).collect(),
            Err(fault) => vec![fault],
        };
        for fault in faults {
            if matches!(fault, Fault::Unsuitable(_)) {
                self.is_forbidden.store(true, Ordering::Relaxed);
            }
            tracing::debug!("a turn that is past its deadline is left to workers: {fault}");
        }
    }
}
