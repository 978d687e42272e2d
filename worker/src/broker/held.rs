//! What a worker has in its hands: tickets and leases, as values. There is no other list of them.
//!
//! Invariants:
//! * a [`Ticket`] and the [`Lease`] made of it stand for one entry of a ready stream; it is renewed for as long as either is
//!   alive, and left to others when both are dropped;
//! * a lease that was lost is never renewed again, and says so at once to every task that waits for it;
//! * while a lease is being ended, no renewal calls it lost: the answer to the ending says what became of it.
//!
//! An adapter says what the queue answered by the calls that are public here; a runner of turns needs none of them but
//! [`Lease::lost`], [`Lease::is_lost`] and [`Lease::fence`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio_util::sync::CancellationToken;
use turnmill_redis::steps::RenewItem;
use turnmill_schema::keys::BacklogEntry;
use turnmill_schema::{AgentId, Priority, TurnId};

/// Which entry of which ready stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TicketId {
    /// The shard whose keys hold it.
    pub shard: u16,
    /// The ready stream it came from.
    pub priority: Priority,
    /// Its entry id in that stream.
    pub entry: String,
}

/// A delivered ready-stream entry: "this agent is runnable". It means the agent, not a turn.
pub struct Ticket {
    /// Which.
    pub id: TicketId,
    /// Whose head of backlog may be leased.
    pub agent: AgentId,
    holding: Arc<Holding>,
}

/// The right to run one turn, until another worker takes it over.
pub struct Lease {
    /// The turn.
    pub turn: TurnId,
    /// Whose turn it is.
    pub agent: AgentId,
    /// Grows with every lease of the agent; the fence.
    pub epoch: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    pub(super) entry: BacklogEntry,
    lost: CancellationToken,
    holding: Arc<Holding>,
}

/// Which lease it was, for what is said of it when it may be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The agent.
    pub agent: AgentId,
    /// The shard whose keys hold it.
    pub shard: u16,
    /// The lease's epoch.
    pub epoch: u64,
}

/// One entry in this worker's hands.
struct Holding {
    id: TicketId,
    agent: AgentId,
    all: Arc<All>,
    state: Mutex<State>,
}

/// What an entry is held for.
enum Held {
    /// To be leased.
    Ticket,
    /// A lease. `ending`: its last call is under way.
    Lease { turn: TurnId, epoch: u64, lost: CancellationToken, ending: bool },
    /// Nothing any more.
    Lost,
}

struct State {
    held: Held,
    /// The head that the agent's backlog had when last heard of: scripts declare the keys they touch.
    head: Option<BacklogEntry>,
    /// The way on which the turn's last append is known to have become the top of its stream.
    top: Option<u64>,
}

#[derive(Default)]
struct All(Mutex<HashMap<TicketId, Weak<Holding>>>);

/// Everything that one worker has in its hands.
#[derive(Clone, Default)]
pub struct Holdings(Arc<All>);

/// An entry to be renewed; what it was held for when it was listed.
pub struct Renewable {
    holding: Arc<Holding>,
    /// Which.
    pub id: TicketId,
    /// Whose.
    pub agent: AgentId,
    /// The lease's, if it is leased.
    pub epoch: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is a single assignment or insert, so a panic elsewhere left nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holdings {
    /// Takes an entry into the worker's hands, with the head of its agent's backlog if that is known; none if it is there
    /// already.
    pub fn take(&self, id: TicketId, agent: AgentId, head: Option<BacklogEntry>) -> Option<Ticket> {
        let mut all = lock(&self.0.0);
        if all.get(&id).is_some_and(|known| known.strong_count() > 0) {
            return None;
        }
        let state = Mutex::new(State { held: Held::Ticket, head, top: None });
        let holding = Holding { id: id.clone(), agent: agent.clone(), all: Arc::clone(&self.0), state };
        let holding = Arc::new(holding);
        all.insert(id.clone(), Arc::downgrade(&holding));
        Some(Ticket { id, agent, holding })
    }

    /// Whether the entry is in the worker's hands.
    pub fn has(&self, id: &TicketId) -> bool {
        lock(&self.0.0).get(id).is_some_and(|known| known.strong_count() > 0)
    }

    /// How many tickets and leases are in the worker's hands.
    pub fn len(&self) -> usize {
        lock(&self.0.0).len()
    }

    /// Whether nothing is in the worker's hands.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many turns are leased.
    pub fn leases(&self) -> usize {
        self.all().iter().filter(|holding| matches!(lock(&holding.state).held, Held::Lease { .. })).count()
    }

    /// What is to be renewed now.
    pub fn renewable(&self) -> Vec<Renewable> {
        let listed = self.all().into_iter().filter_map(|holding| {
            let epoch = match lock(&holding.state).held {
                Held::Ticket => None,
                Held::Lease { epoch, .. } => Some(epoch),
                Held::Lost => return None,
            };
            Some(Renewable { id: holding.id.clone(), agent: holding.agent.clone(), epoch, holding })
        });
        let mut listed: Vec<Renewable> = listed.collect();
        listed.sort_by(|a, b| a.id.entry.cmp(&b.id.entry));
        listed
    }

    /// Says that the turn is not this worker's any more: somebody cancelled it.
    pub fn lose_turn(&self, cancelled: TurnId) {
        for holding in self.all() {
            holding.lose_if(
                |held| matches!(held, Held::Lease { turn, ending: false, .. } if *turn == cancelled),
            );
        }
    }

    fn all(&self) -> Vec<Arc<Holding>> {
        lock(&self.0.0).values().filter_map(Weak::upgrade).collect()
    }
}

impl Renewable {
    /// As the step takes it.
    pub(super) fn as_item(&self) -> RenewItem<'_> {
        RenewItem {
            agent: &self.agent,
            ticket: &self.id.entry,
            priority: self.id.priority,
            epoch: self.epoch,
        }
    }

    /// A renewal found the entry to be another's. A ticket that is not leased stays: its lease says what it is by then.
    pub fn is_lost(&self) {
        self.holding.lose_if(
            |held| matches!(held, Held::Lease { epoch, ending: false, .. } if Some(*epoch) == self.epoch),
        );
    }
}

impl Holding {
    /// The entry is not this worker's any more if it is held for what `is_it` says. It may come again, as another ticket.
    fn lose_if(&self, is_it: impl FnOnce(&Held) -> bool) {
        if let Some(Held::Lease { lost, .. }) = self.release_if(is_it) {
            lost.cancel();
        }
    }

    /// Holds the entry for nothing any more if it is held for what `is_it` says; what it was held for. One lock for the question
    /// and the change: between two, the worker could go on with the agent's next turn, and that would be released.
    fn release_if(&self, is_it: impl FnOnce(&Held) -> bool) -> Option<Held> {
        let mut state = lock(&self.state);
        let released = is_it(&state.held).then(|| std::mem::replace(&mut state.held, Held::Lost));
        drop(state);
        if released.is_some() {
            self.leave();
        }
        released
    }

    /// Takes it off the list, unless another ticket of the same entry stands there.
    fn leave(&self) {
        let mut all = lock(&self.all.0);
        if all.get(&self.id).is_some_and(|known| std::ptr::eq(known.as_ptr(), self)) {
            all.remove(&self.id);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Ticket {
    /// The head of its agent's backlog when last heard of.
    pub(super) fn head(&self) -> Option<BacklogEntry> {
        lock(&self.holding.state).head.clone()
    }

    /// The head of its agent is leased.
    pub fn leased(&self, entry: BacklogEntry, epoch: u64, attempt: u32) -> Lease {
        let (turn, lost) = (entry.turn, CancellationToken::new());
        let mut state = lock(&self.holding.state);
        if matches!(state.held, Held::Lost) {
            lost.cancel();
        } else {
            state.held = Held::Lease { turn, epoch, lost: lost.clone(), ending: false };
            state.head = Some(entry.clone());
            state.top = None;
        }
        drop(state);
        Lease {
            turn,
            agent: self.agent.clone(),
            epoch,
            attempt,
            entry,
            lost,
            holding: Arc::clone(&self.holding),
        }
    }

    /// It is not this worker's any more.
    pub fn forget(&self) {
        self.holding.lose_if(|_| true);
    }
}

impl Lease {
    /// A lease of nobody's, for tests of what is said about leases.
    #[cfg(test)]
    pub(crate) fn example(turn: TurnId, agent: AgentId, epoch: u64) -> Self {
        let entry = BacklogEntry {
            turn,
            priority: Priority::Interactive,
            enqueued_ms: 0,
            not_before_ms: 0,
            idempotency: None,
        };
        let id = TicketId { shard: 0, priority: Priority::Interactive, entry: "1-0".to_owned() };
        let ticket = Holdings::default().take(id, agent, None).expect("nothing is held yet");
        ticket.leased(entry, epoch, 1)
    }

    /// The ticket it was made of.
    pub fn ticket(&self) -> &TicketId {
        &self.holding.id
    }

    /// Which lease it is, for what is said of it later.
    pub fn fence(&self) -> Fence {
        Fence { agent: self.agent.clone(), shard: self.holding.id.shard, epoch: self.epoch }
    }

    /// Waits until the lease is lost: another worker took it over, or the turn was ended elsewhere.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether the lease is known to be lost.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Whether the turn's top was known on the way `generation`. It is not again until [`Self::know_top`].
    pub(super) fn forget_top(&self, generation: u64) -> bool {
        lock(&self.holding.state).top.take() == Some(generation)
    }

    /// The turn's last append landed.
    pub(super) fn know_top(&self, generation: u64) {
        lock(&self.holding.state).top = Some(generation);
    }

    /// Its last call is under way; from here on that call's answer says what became of it.
    pub fn begin_to_end(&self) {
        if let Held::Lease { epoch, ending, .. } = &mut lock(&self.holding.state).held
            && *epoch == self.epoch
        {
            *ending = true;
        }
    }

    /// The lease is over, and was not lost.
    pub fn over(&self) {
        self.holding.release_if(|held| self.is_this(held));
    }

    /// The lease is over, and its ticket stands for the agent's next turn, `head`. None if the worker lost the ticket
    /// meanwhile.
    pub fn continued(&self, head: Option<BacklogEntry>) -> Option<Ticket> {
        let mut state = lock(&self.holding.state);
        if !self.is_this(&state.held) {
            return None;
        }
        *state = State { held: Held::Ticket, head, top: None };
        drop(state);
        let (id, agent) = (self.holding.id.clone(), self.agent.clone());
        Some(Ticket { id, agent, holding: Arc::clone(&self.holding) })
    }

    /// Another worker has the turn, or it was ended elsewhere.
    pub fn lose(&self) {
        self.holding.lose_if(|held| self.is_this(held));
        self.lost.cancel();
    }

    /// Whether an entry is held for this lease.
    fn is_this(&self, held: &Held) -> bool {
        matches!(held, Held::Lease { epoch, .. } if *epoch == self.epoch)
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { turn, agent, epoch, attempt, .. } = self;
        let mut shown = f.debug_struct("Lease");
        shown.field("turn", turn).field("agent", agent).field("epoch", epoch).field("attempt", attempt);
        shown.finish_non_exhaustive()
    }
}

impl fmt::Debug for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Holdings").field(&self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(entry: &str) -> TicketId {
        TicketId { shard: 0, priority: Priority::Interactive, entry: entry.to_owned() }
    }

    fn agent() -> AgentId {
        AgentId::from_wire("t/a".to_owned())
    }

    fn head() -> BacklogEntry {
        BacklogEntry {
            turn: TurnId::new(0),
            priority: Priority::Interactive,
            enqueued_ms: 1,
            not_before_ms: 0,
            idempotency: None,
        }
    }

    fn take(holdings: &Holdings, entry: &str) -> Option<Ticket> {
        holdings.take(id(entry), agent(), None)
    }

    #[test]
    fn an_entry_is_held_once_for_as_long_as_its_ticket_or_lease_lives() {
        let holdings = Holdings::default();
        let ticket = take(&holdings, "1-1").expect("free");
        assert_eq!(take(&holdings, "1-1"), None);
        let lease = ticket.leased(head(), 7, 1);
        drop(ticket);
        assert_eq!(take(&holdings, "1-1"), None);
        assert_eq!((holdings.leases(), holdings.renewable().len()), (1, 1));
        let next = lease.continued(None).expect("ours");
        drop(lease);
        assert_eq!(take(&holdings, "1-1"), None);
        assert_eq!((holdings.leases(), holdings.renewable()[0].epoch), (0, None));
        drop(next);
        assert!(holdings.renewable().is_empty());
        assert!(take(&holdings, "1-1").is_some());
    }

    #[test]
    fn a_lost_lease_frees_its_entry_and_leaves_a_newer_one_alone() {
        let holdings = Holdings::default();
        let old = take(&holdings, "1-1").expect("free").leased(head(), 7, 1);
        let listed = holdings.renewable();
        listed.iter().for_each(Renewable::is_lost);
        assert!(old.is_lost() && holdings.renewable().is_empty());
        let new = take(&holdings, "1-1").expect("free again").leased(head(), 8, 2);
        old.lose();
        old.over();
        assert_eq!(old.continued(None), None);
        drop(old);
        // A late answer to an old renewal.
        listed.iter().for_each(Renewable::is_lost);
        assert!(!new.is_lost());
        assert_eq!(holdings.renewable()[0].epoch, Some(8));
    }

    #[test]
    fn what_an_entry_is_held_for_cannot_change_between_the_question_and_the_loss() {
        let holdings = Holdings::default();
        let lease = take(&holdings, "1-1").expect("free").leased(head(), 7, 1);
        let mut asked = false;
        lease.holding.lose_if(|_| {
            asked = true;
            assert!(
                lease.holding.state.try_lock().is_err(),
                "another thread could continue with the next turn"
            );
            false
        });
        assert!(asked && !lease.is_lost());
    }

    #[test]
    fn a_late_answer_about_a_lease_leaves_the_next_one_of_its_agent_alone() {
        let holdings = Holdings::default();
        let mut lease = take(&holdings, "1-1").expect("free").leased(head(), 0, 1);
        for epoch in 1..2000 {
            let listed = holdings.renewable();
            std::thread::scope(|scope| {
                // A renewal that does not know the lease any more is answered while the turn ends.
                scope.spawn(|| listed.iter().for_each(Renewable::is_lost));
                lease.begin_to_end();
                if let Some(next) = lease.continued(None) {
                    lease = next.leased(head(), epoch, 1);
                    return;
                }
                // The renewal came first: the entry is read again.
                lease = loop {
                    if let Some(ticket) = take(&holdings, "1-1") {
                        break ticket.leased(head(), epoch, 1);
                    }
                };
            });
            assert!(!lease.is_lost(), "lease {epoch}");
        }
    }

    #[test]
    fn a_lease_that_is_being_ended_is_not_called_lost() {
        let holdings = Holdings::default();
        let lease = take(&holdings, "1-1").expect("free").leased(head(), 7, 1);
        let listed = holdings.renewable();
        lease.begin_to_end();
        listed.iter().for_each(Renewable::is_lost);
        holdings.lose_turn(lease.turn);
        assert!(!lease.is_lost());
        assert!(lease.continued(None).is_some(), "the ticket is still ours");
    }
}
