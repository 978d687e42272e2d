//! Counting, forgetting ended turns, and checking that everything adds up. Nothing here repairs: what is in one process
//! loses no ticket.

use std::collections::{BTreeMap, BTreeSet};

use turnmill_schema::Priority;
use turnmill_worker::broker::{PriorityCounts, QueueCounts};

use super::MemorySettings;
use super::state::{Place, State, Tenant};

impl State {
    pub(super) fn counts(&self) -> QueueCounts {
        let of = |priority: Priority| PriorityCounts {
            runnable: self.ready(priority).waiting_len() as u64,
            leased: self.ready(priority).pending_len() as u64,
            open: self.open_turns[priority as usize],
        };
        QueueCounts {
            priorities: Priority::ALL.map(of),
            delayed: self.delayed.len() as u64,
            dead: self.dead.len() as u64,
            retained_bytes: self.retained_bytes,
            enqueued: self.enqueued,
            ended: self.ended_turns,
            lag: Some(Priority::ALL.map(of).iter().map(|counts| counts.runnable).sum()),
            paused: self.paused,
            oldest_ms: self.open.first().map(|(enqueued_ms, _)| self.now_ms.saturating_sub(*enqueued_ms)),
        }
    }

    /// Forgets ended turns, oldest first: those past their time, and the rest while they take more than they may.
    pub(super) fn sweep(&mut self, worker: &MemorySettings) {
        let now_ms = self.now_ms;
        while let Some(id) = self.ended.front().copied() {
            let ended = self.turns.get(&id).and_then(|turn| turn.ended.as_ref());
            let ended = ended.expect("turns are forgotten together with their place in the list");
            if ended.forget_ms > now_ms && self.retained_bytes <= worker.retained_bytes {
                break;
            }
            self.retained_bytes -= ended.bytes;
            self.ended.pop_front();
            self.turns.remove(&id);
        }
        self.idempotency.retain(|_, keyed| keyed.until_ms.is_none_or(|until_ms| until_ms > now_ms));
        for turn in self.turns.values_mut() {
            if turn.ended.as_ref().is_some_and(|ended| ended.results_until_ms <= now_ms) {
                turn.results = Vec::new();
            }
        }
        self.registry.forget_silent(now_ms);
    }

    /// Panics if indexes and counters do not say what agents and turns say.
    pub(super) fn check(&self) {
        let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
        let (mut open, mut delayed) = (BTreeSet::new(), BTreeSet::new());
        let mut tickets = 0;
        for (id, agent) in &self.agents {
            let tenant = tenants.entry(id.tenant().to_owned()).or_default();
            tenant.open += agent.backlog.len() as u64;
            let head = agent.backlog.front().map(|head| self.turns[head].enqueued_ms);
            if let Some(enqueued_ms) = head {
                open.insert((enqueued_ms, id.clone()));
            }
            assert!(head.is_some() || agent.is_at_rest(), "{id} has nothing to do and is {:?}", agent.place);
            match (&agent.place, head) {
                (Place::Ready(ticket) | Place::Leased { ticket, .. }, _) => {
                    assert!(self.ready(ticket.priority).has(ticket.number), "the ticket of {id} is lost");
                    tickets += 1;
                }
                (Place::Delayed { due_ms }, _) => assert!(delayed.insert((*due_ms, id.clone()))),
                (Place::Parked { since_ms }, Some(_)) => {
                    assert!(tenant.parked.insert((*since_ms, id.clone())));
                }
                _ => assert!(head.is_none() || agent.is_held(), "{id} has work and waits for nothing"),
            }
            tenant.leased += u64::from(matches!(agent.place, Place::Leased { .. }));
        }
        tenants.retain(|_, tenant| *tenant != Tenant::default());
        assert_eq!((&self.open, &self.delayed, &self.tenants), (&open, &delayed, &tenants));
        let known: usize = Priority::ALL
            .iter()
            .map(|priority| self.ready(*priority).waiting_len() + self.ready(*priority).pending_len())
            .sum();
        assert_eq!(known, tickets, "an agent has more than one ticket");
        self.check_turns();
    }

    fn check_turns(&self) {
        let mut open = [0; 2];
        for (id, turn) in &self.turns {
            let waits = self.agents.get(&turn.agent).is_some_and(|agent| agent.backlog.contains(id));
            assert_eq!(waits, turn.ended.is_none(), "turn {id} has ended or waits");
            open[turn.priority as usize] += u64::from(waits);
        }
        assert_eq!(self.open_turns, open);
        let bytes: u64 =
            self.ended.iter().filter_map(|id| self.turns[id].ended.as_ref()).map(|ended| ended.bytes).sum();
        assert_eq!(self.retained_bytes, bytes);
    }
}

impl super::state::Agent {
    fn is_held(&self) -> bool {
        matches!(self.place, Place::Held(_))
    }

    fn is_at_rest(&self) -> bool {
        self.is_held() || self.place == Place::Idle
    }
}
