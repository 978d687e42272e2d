//! What a seed's world consists of: turns to enqueue, the fleet, and how hostile everything is.

use std::fmt;

use turnmill_redis::steps::DepthLimits;
use turnmill_schema::{
    AgentId, AgentName, IdempotencyKey, Message, Priority, Role, Sampling, TenantName, Turn, TurnId,
};

use super::dice::Dice;
use super::words::{self, Asked, POISON, Said};
use crate::broker_conformance::WorkerLimits;

/// Longest system prompt and message, and most tokens of a reply.
const LONGEST_SYSTEM: u64 = 40;
const LONGEST_MESSAGE: u64 = 24;
const LONGEST_REPLY: u64 = 20;

/// One turn, as its producer wants it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Its place among all plans.
    pub(super) number: usize,
    /// Who enqueues it; all turns of an agent have one producer, so that their order is known.
    pub(super) producer: usize,
    pub(super) tenant: TenantName,
    pub(super) agent: Option<AgentName>,
    pub(super) asked: Vec<Asked>,
    pub(super) sampling: Sampling,
    pub(super) priority: Priority,
    /// Milliseconds after it is enqueued.
    pub(super) deadline_ms: Option<u64>,
    pub(super) not_before_ms: Option<u64>,
    pub(super) new_session: bool,
    /// No attempt at it makes a token.
    pub(super) is_poison: bool,
    /// Enqueued under an idempotency key.
    pub(super) is_keyed: bool,
}

impl Plan {
    fn throw(dice: &Dice, number: usize, agents: u64, is_first: impl Fn(u64) -> bool) -> Self {
        let agent = dice.below(agents + 1);
        let new_session = dice.chance(100);
        let is_poison = dice.chance(40);
        let mut asked = Vec::new();
        if is_first(agent) || new_session {
            // The same for all agents of a tenant: they share its blocks.
            let length = LONGEST_SYSTEM * (agent % 2 + 1) / 2;
            let text = (0..length).map(|at| letter(agent % 2 + 3 * at)).collect();
            asked.push(Asked { is_system: true, text });
        }
        let mut text: String = number.to_string();
        text.extend((0..dice.below(LONGEST_MESSAGE)).map(|_| letter(dice.below(16))));
        text.extend(is_poison.then_some(POISON));
        asked.push(Asked { is_system: false, text });
        Self {
            number,
            producer: (agent % 2) as usize,
            tenant: TenantName::new(format!("t{}", agent % 2)).expect("a name"),
            agent: (agent < agents).then(|| AgentName::new(format!("a{agent}")).expect("a name")),
            asked,
            sampling: sampling(dice, LONGEST_REPLY),
            priority: if dice.chance(300) { Priority::Batch } else { Priority::Interactive },
            deadline_ms: dice.chance(80).then(|| dice.between(1, 5000)),
            not_before_ms: dice.chance(80).then(|| dice.between(1, 3000)),
            new_session,
            is_poison,
            is_keyed: dice.chance(500),
        }
    }

    /// A turn of an agent that always has more of them.
    pub(super) fn hot(dice: &Dice, number: usize, agent: usize) -> Self {
        Self {
            number,
            producer: usize::MAX,
            tenant: TenantName::new("hot").expect("a name"),
            agent: Some(AgentName::new(format!("h{agent}")).expect("a name")),
            asked: vec![Asked { is_system: false, text: number.to_string() }],
            sampling: sampling(dice, 3),
            priority: Priority::Interactive,
            deadline_ms: None,
            not_before_ms: None,
            new_session: true,
            is_poison: false,
            is_keyed: false,
        }
    }

    /// The turn, enqueued at `now_ms` under `id`.
    pub(super) fn turn(&self, id: TurnId, now_ms: u64) -> Turn {
        let key = format!("k{}", self.number);
        let message = |asked: &Asked| {
            Message::new(if asked.is_system { Role::System } else { Role::User }, asked.text.clone())
        };
        let messages = self.asked.iter().map(message).collect();
        Turn {
            agent: self.agent.clone(),
            new_session: self.new_session,
            sampling: self.sampling.clone(),
            priority: self.priority,
            deadline_ms: self.deadline_ms.map(|ms| now_ms + ms),
            not_before_ms: self.not_before_ms.map(|ms| now_ms + ms),
            idempotency_key: self.is_keyed.then(|| IdempotencyKey::new(key).expect("a name")),
            ..Turn::new(id, self.tenant.clone(), messages)
        }
    }

    /// The agent, where it is not the turn's own.
    pub(super) fn agent_id(&self) -> Option<AgentId> {
        self.agent.as_ref().map(|agent| AgentId::named(&self.tenant, agent))
    }

    /// The whole reply after `history`: any token that was lost, doubled or computed from another history shows.
    pub(super) fn says(&self, history: &[u32], block_tokens: usize) -> Said {
        words::expected(history, &self.asked, &self.sampling, block_tokens)
    }

    /// Tokens that it adds to a conversation, at most.
    fn most_tokens(&self) -> usize {
        let asked = self.asked.iter().map(|asked| asked.text.len() + 2).sum::<usize>();
        asked + 2 + self.sampling.max_tokens.unwrap_or(0) as usize
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agent = self.agent.as_ref().map_or("a lone turn", AgentName::as_str);
        let asked: Vec<&str> = self.asked.iter().map(|asked| asked.text.as_str()).collect();
        let most = self.sampling.max_tokens.unwrap_or(0);
        write!(f, "plan {} of {agent}, {:?}: {asked:?}, at most {most} tokens", self.number, self.priority)?;
        write!(f, ", deadline {:?}, not before {:?}", self.deadline_ms, self.not_before_ms)?;
        let flags = [(self.new_session, "new session"), (self.is_poison, "poison"), (self.is_keyed, "keyed")];
        flags.iter().filter(|(is, _)| *is).try_for_each(|(_, flag)| write!(f, ", {flag}"))
    }
}

fn letter(number: u64) -> char {
    char::from(b'a' + (number % 16) as u8)
}

fn sampling(dice: &Dice, longest: u64) -> Sampling {
    let is_greedy = dice.chance(500);
    Sampling {
        temperature: if is_greedy { 0.0 } else { 1.0 },
        seed: Some(dice.below(1 << 40)),
        max_tokens: Some(dice.between(1, longest) as u32),
        ..Sampling::default()
    }
}

/// How often, in a thousand times, something goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// A call does not arrive, or its answer does not.
    pub(super) loss: u64,
    /// A call or an answer takes long.
    pub(super) delay: u64,
    /// A call arrives twice, at once or late.
    pub(super) repeat: u64,
    /// A call is refused for good.
    pub(super) refusal: u64,
    /// A worker's tasks go on so often before it dies; 0: it does not.
    pub(super) life: u64,
    /// So often before it stops for a while.
    pub(super) stop: u64,
    /// The engine hangs.
    pub(super) hang: u64,
    /// A step fails, or makes no numbers.
    pub(super) step: u64,
    /// Blocks cannot be copied.
    pub(super) copy: u64,
    pub(super) object_delay: u64,
    pub(super) object_loss: u64,
    /// An object is cut or changed.
    pub(super) damage: u64,
    /// Redis fails over, each time the operator could do something.
    pub(super) failover: u64,
    /// The queue's clock jumps.
    pub(super) jump: u64,
    /// Redis is full for a while.
    pub(super) full: u64,
    /// No script leases the agents with this number, until everything else is over.
    pub(super) unleasable: bool,
    /// They end after so long.
    pub(super) until_ms: u64,
}

impl Faults {
    fn throw(dice: &Dice) -> Self {
        // Some worlds are free of a kind of fault, so that what follows from the others alone is seen too.
        let some = |most: u64| if dice.chance(600) { dice.below(most) } else { 0 };
        if dice.chance(150) {
            return Self::none();
        }
        Self {
            loss: some(60),
            delay: some(50),
            repeat: some(50),
            refusal: some(10),
            life: if dice.chance(700) { dice.between(50, 2000) } else { 0 },
            stop: if dice.chance(500) { dice.between(100, 3000) } else { 0 },
            hang: some(4),
            step: some(15),
            copy: some(60),
            object_delay: some(100),
            object_loss: some(100),
            damage: some(80),
            failover: some(120),
            jump: some(80),
            full: some(100),
            unleasable: dice.chance(200),
            until_ms: dice.between(1500, 8000),
        }
    }

    /// A calm world, in which nobody has an excuse to wait.
    fn none() -> Self {
        Self {
            loss: 0,
            delay: 0,
            repeat: 0,
            refusal: 0,
            life: 0,
            stop: 0,
            hang: 0,
            step: 0,
            copy: 0,
            object_delay: 0,
            object_loss: 0,
            damage: 0,
            failover: 0,
            jump: 0,
            full: 0,
            unleasable: false,
            until_ms: 0,
        }
    }

    /// Whether nothing goes wrong.
    pub(super) fn is_none(&self) -> bool {
        self.until_ms == 0
    }
}

/// A seed's world.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) plans: Vec<Plan>,
    pub(super) producers: usize,
    pub(super) workers: usize,
    /// Turns that a worker computes at once, and those that it claims ahead.
    pub(super) sequences: usize,
    pub(super) ahead: usize,
    /// Agents that always have another turn.
    pub(super) hot_agents: usize,
    pub(super) lease_ms: u64,
    pub(super) block_tokens: usize,
    pub(super) context_tokens: usize,
    /// Of a worker's pool.
    pub(super) blocks: usize,
    pub(super) batch_tokens: usize,
    pub(super) speculates: bool,
    pub(super) offload_bytes: usize,
    pub(super) host_cache_bytes: usize,
    pub(super) transfer_bytes: usize,
    pub(super) save_queue_bytes: usize,
    pub(super) has_store: bool,
    /// Restore only what is expected to come sooner than it is computed.
    pub(super) chooses: bool,
    pub(super) persist_wait_ms: u64,
    /// What the object store may take.
    pub(super) object_ms: u64,
    /// A step, and each of its rows.
    pub(super) step_us: u64,
    pub(super) row_us: u64,
    pub(super) flush_ms: u64,
    pub(super) stall_ms: u64,
    pub(super) limits: WorkerLimits,
    pub(super) depth: DepthLimits,
    pub(super) faults: Faults,
}

impl World {
    /// The world of a throw of the dice; `size` 1 is small.
    pub(super) fn throw(dice: &Dice, size: u64) -> Self {
        let agents = dice.between(1, 3 * size);
        let turns = dice.between(6, 20) * size;
        let mut plans: Vec<Plan> = Vec::new();
        for number in 0..turns as usize {
            let name = |agent: u64| format!("a{agent}");
            let is_first = |agent| {
                plans.iter().all(|plan| plan.agent.as_ref().is_none_or(|id| id.as_str() != name(agent)))
            };
            let plan = Plan::throw(dice, number, agents, is_first);
            plans.push(plan);
        }
        let block_tokens = if dice.chance(500) { 4 } else { 8 };
        let context_tokens = longest(&plans) + 16;
        let faults = Faults::throw(dice);
        let (workers, sequences) = (dice.between(1, 2 + size), dice.between(1, 3));
        let ahead = u64::from(dice.chance(300));
        // As many as there are places, or more.
        let hot_agents = workers * (sequences + ahead) + dice.below(3);
        let is_hot = dice.chance(if faults.is_none() { 500 } else { 150 });
        // Turns that stay open for long would take all the room.
        let is_small = !is_hot && !faults.unleasable && dice.chance(200);
        let open = if is_small { dice.between(2, 6) } else { 1000 };
        let bytes = |least: u64, most: u64| (dice.between(least, most) * 16 * block_tokens as u64) as usize;
        Self {
            plans,
            producers: 2,
            workers: workers as usize,
            sequences: sequences as usize,
            ahead: ahead as usize,
            hot_agents: if is_hot { hot_agents as usize } else { 0 },
            lease_ms: dice.between(600, 2400),
            block_tokens,
            context_tokens,
            // The longest conversation fits; two at once may not.
            blocks: context_tokens.div_ceil(block_tokens) + dice.below(16) as usize,
            batch_tokens: dice.between(4, 64) as usize,
            speculates: dice.chance(500),
            offload_bytes: if dice.chance(500) { bytes(1, 40) } else { 0 },
            host_cache_bytes: if dice.chance(500) { bytes(10, 400) } else { 0 },
            transfer_bytes: bytes(1, 16),
            save_queue_bytes: bytes(20, 400),
            has_store: dice.chance(800),
            chooses: dice.chance(500),
            persist_wait_ms: dice.below(200),
            object_ms: dice.between(20, 600),
            step_us: dice.between(500, 12_000),
            row_us: dice.between(20, 500),
            flush_ms: dice.below(100),
            stall_ms: dice.between(1000, 4000),
            limits: WorkerLimits {
                max_attempts: dice.between(3, 5) as u32,
                tenant_max_running: if dice.chance(300) { dice.between(1, 2) } else { 0 },
                max_continues: dice.below(3) as u32,
            },
            depth: DepthLimits { queue: open, tenant: open },
            faults,
        }
    }

    /// The tenants whose turns are counted.
    pub(super) const TENANTS: [&str; 3] = ["t0", "t1", "hot"];
}

/// The longest conversation that there can be, in tokens.
fn longest(plans: &[Plan]) -> usize {
    let of_agent = |agent: &Option<AgentName>| {
        let of_it = plans.iter().filter(|plan| plan.agent == *agent);
        let tokens = of_it.map(Plan::most_tokens);
        if agent.is_some() { tokens.sum::<usize>() } else { tokens.max().unwrap_or(0) }
    };
    plans.iter().map(|plan| of_agent(&plan.agent)).max().unwrap_or(0)
}
