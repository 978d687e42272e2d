//! Histories of agents whose turns this worker ended lately. An agent that goes on here has what it said before read from Redis once, and
//! not with every turn.
//!
//! Invariants:
//! * a history ends with an entry that this worker stored itself, under a mark of its own, on top of the history that came with the
//!   lease; Redis is asked with every lease whether that entry still stands where it did;
//! * never more bytes than the budget; those used longest ago go first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use turnmill_redis::steps::KnownHistory;
use turnmill_schema::{AgentId, History, MarkedEntry, Message, ToolCall, TranscriptEntry};

/// Bytes that are kept: the histories of some hundred long conversations, or of ten thousand short ones. Little beside the pool, whose
/// blocks of as many tokens take a thousand times as much.
const MOST_BYTES: usize = 64 << 20;
/// What a history takes besides its texts and tokens, about: its places in the lists, its agent, the start of its last entry.
const BYTES_A_HISTORY: usize = 512;

/// A part of an agent's transcript, from its first entry on.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) history: Arc<History>,
    /// How many entries it has.
    pub(super) entries: u64,
    /// The agent's seeding when it was read.
    pub(super) seeding: String,
}

/// The whole transcript as of a lease, and after the end of its turn.
#[derive(Debug)]
struct Kept {
    part: Part,
    /// Of the last lease that brought it.
    epoch: u64,
    /// What its last entry begins with, if this worker stored that.
    last_begins: Option<Vec<u8>>,
    bytes: usize,
    used: u64,
}

/// What is kept.
#[derive(Debug)]
pub(super) struct Histories {
    state: Mutex<State>,
    budget: usize,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<AgentId, Kept>,
    by_use: BTreeMap<u64, AgentId>,
    bytes: usize,
    uses: u64,
}

impl Default for Histories {
    fn default() -> Self {
        Self::within(MOST_BYTES)
    }
}

impl Histories {
    fn within(budget: usize) -> Self {
        Self { state: Mutex::default(), budget }
    }

    /// What is known of the agent's history, and how to ask whether it is still that.
    pub(super) fn known(&self, agent: &AgentId) -> Option<(KnownHistory, Part)> {
        let state = self.lock();
        let Kept { part, last_begins, .. } = state.kept.get(agent)?;
        let Part { entries, seeding, .. } = part.clone();
        Some((KnownHistory { entries, last_begins: last_begins.clone()?, seeding }, part.clone()))
    }

    /// The agent's turn is leased, on the history of `part`.
    pub(super) fn leased(&self, agent: &AgentId, epoch: u64, part: &Part) {
        if agent.is_lone() {
            return;
        }
        let mut state = self.lock();
        let same =
            |kept: &Kept| kept.part.entries == part.entries && Arc::ptr_eq(&kept.part.history, &part.history);
        let last_begins = state.remove(agent).filter(same).and_then(|kept| kept.last_begins);
        state.insert(agent, part.clone(), (epoch, last_begins), self.budget);
    }

    /// The turn of the lease of `epoch` has completed and added `entry`, which is stored as `stored`.
    pub(super) fn committed(&self, agent: &AgentId, epoch: u64, entry: TranscriptEntry, stored: &[u8]) {
        let mut state = self.lock();
        // Given up for others meanwhile, or leased anew.
        if state.kept.get(agent).is_none_or(|kept| kept.epoch != epoch) {
            return;
        }
        let Some(Kept { mut part, .. }) = state.remove(agent) else { return };
        Arc::make_mut(&mut part.history).extend([entry]);
        part.entries += 1;
        let start = stored[..stored.len().min(MarkedEntry::START_BYTES)].to_vec();
        state.insert(agent, part, (epoch, Some(start)), self.budget);
    }

    /// Nothing is known of the agent any more.
    pub(super) fn forget(&self, agent: &AgentId) {
        self.lock().remove(agent);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What panics half way leaves a history out, or counted and gone.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, agent: &AgentId) -> Option<Kept> {
        let kept = self.kept.remove(agent)?;
        self.bytes -= kept.bytes;
        self.by_use.remove(&kept.used);
        Some(kept)
    }

    /// One over the whole budget is not kept.
    fn insert(
        &mut self,
        agent: &AgentId,
        part: Part,
        (epoch, last_begins): (u64, Option<Vec<u8>>),
        budget: usize,
    ) {
        let bytes = bytes_of(&part.history);
        while bytes <= budget
            && self.bytes + bytes > budget
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.remove(&oldest);
        }
        if bytes > budget {
            return;
        }
        self.uses += 1;
        self.bytes += bytes;
        self.by_use.insert(self.uses, agent.clone());
        self.kept.insert(agent.clone(), Kept { part, epoch, last_begins, bytes, used: self.uses });
    }
}

/// What a history takes, about.
fn bytes_of(history: &History) -> usize {
    let of_call =
        |call: &ToolCall| size_of_val(call) + call.id.len() + call.name.len() + call.arguments.len();
    let of_message = |message: &Message| {
        let calls: usize = message.tool_calls.iter().map(of_call).sum();
        let thoughts = message.reasoning.as_ref().map_or(0, String::len);
        size_of_val(message) + message.content.len() + thoughts + calls
    };
    let texts: usize = history.messages.iter().map(of_message).sum();
    BYTES_A_HISTORY + texts + size_of_val(&history.tokens[..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use turnmill_schema::{Role, TurnId};

    use super::*;

    fn agent(number: usize) -> AgentId {
        AgentId::from_wire(format!("t/{number}"))
    }

    fn entry(bytes: usize) -> TranscriptEntry {
        let messages = vec![Message::new(Role::User, "x".repeat(bytes))];
        TranscriptEntry { turn: TurnId::new(0), messages, keep: 0, tokens: vec![1], rendering: None }
    }

    /// A turn on what is known of the agent, or on nothing.
    fn run(histories: &Histories, agent: &AgentId, epoch: u64, bytes: usize) {
        let nothing = || Part { history: Arc::default(), entries: 0, seeding: String::new() };
        let part = histories.known(agent).map_or_else(nothing, |(_, part)| part);
        histories.leased(agent, epoch, &part);
        histories.committed(agent, epoch, entry(bytes), &epoch.to_le_bytes());
    }

    #[test]
    fn what_this_worker_stored_is_known_and_nothing_else() {
        let histories = Histories::default();
        let (a, lone) = (agent(1), AgentId::from_wire("t/~x".to_owned()));
        run(&histories, &a, 1, 10);
        run(&histories, &a, 2, 10);
        let (known, part) = histories.known(&a).expect("it is known");
        assert_eq!((known.entries, known.last_begins), (2, 2_u64.to_le_bytes().to_vec()));
        assert_eq!(part.history.messages.len(), 2);
        // A late answer about a lease that is over.
        histories.leased(&a, 3, &part);
        histories.committed(&a, 2, entry(10), b"late");
        assert_eq!(histories.known(&a).map(|(known, _)| known.entries), Some(2));
        // Somebody else's turn came after it.
        let longer = Part { history: Arc::new(History::clone(&part.history)), entries: 3, ..part };
        histories.leased(&a, 4, &longer);
        assert!(histories.known(&a).is_none(), "whose the last entry is, nobody knows");
        run(&histories, &lone, 1, 10);
        assert!(histories.known(&lone).is_none());
    }

    #[test]
    fn a_turn_that_adds_nothing_leaves_what_is_known() {
        let histories = Histories::default();
        run(&histories, &agent(1), 1, 10);
        for epoch in 2..4 {
            let (before, part) = histories.known(&agent(1)).expect("known");
            histories.leased(&agent(1), epoch, &part);
            assert_eq!(histories.known(&agent(1)).expect("still known").0, before);
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let histories = Histories::within(3 * (BYTES_A_HISTORY + 1000));
        (1..=3).for_each(|number| run(&histories, &agent(number), 1, 900));
        run(&histories, &agent(1), 2, 10);
        run(&histories, &agent(4), 1, 900);
        let known: Vec<usize> = (1..=4).filter(|number| histories.known(&agent(*number)).is_some()).collect();
        assert_eq!(known, [1, 3, 4]);
    }

    proptest! {
        /// Whatever comes, no more bytes are kept than may be, and they are counted right.
        #[test]
        fn the_books_balance(turns in prop::collection::vec((0_usize..6, 0_usize..3000), 1..60)) {
            let budget = 8000;
            let histories = Histories::within(budget);
            for (epoch, (number, bytes)) in turns.into_iter().enumerate() {
                run(&histories, &agent(number), epoch as u64, bytes);
                let state = histories.lock();
                let counted: usize = state.kept.values().map(|kept| bytes_of(&kept.part.history)).sum();
                prop_assert_eq!((state.bytes, state.by_use.len()), (counted, state.kept.len()));
                prop_assert!(counted <= budget, "{} bytes", counted);
            }
        }
    }
}
