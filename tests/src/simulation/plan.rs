//! What a seed's world consists of: turns to enqueue, and how hostile everything is.

use turnmill_redis::steps::DepthLimits;
use turnmill_schema::{
    AgentId, AgentName, IdempotencyKey, Message, Priority, Role, TenantName, Turn, TurnId,
};

use super::dice::Dice;
use crate::broker_conformance::WorkerLimits;

/// One turn, as its producer wants it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Its place among all plans; its message says it.
    pub(super) number: usize,
    /// Who enqueues it; all turns of an agent have one producer, so that their order is known.
    pub(super) producer: usize,
    pub(super) tenant: TenantName,
    pub(super) agent: Option<AgentName>,
    pub(super) tokens: usize,
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
    fn throw(dice: &Dice, number: usize, agents: u64) -> Self {
        let agent = dice.below(agents + 1);
        Self {
            number,
            producer: (agent % 2) as usize,
            tenant: TenantName::new(format!("t{}", agent % 2)).expect("a name"),
            agent: (agent < agents).then(|| AgentName::new(format!("a{agent}")).expect("a name")),
            tokens: dice.below(16) as usize,
            priority: if dice.chance(300) { Priority::Batch } else { Priority::Interactive },
            deadline_ms: dice.chance(80).then(|| dice.between(1, 2000)),
            not_before_ms: dice.chance(80).then(|| dice.between(1, 1500)),
            new_session: dice.chance(100),
            is_poison: dice.chance(40),
            is_keyed: dice.chance(500),
        }
    }

    /// The turn, enqueued at `now_ms` under `id`.
    pub(super) fn turn(&self, id: TurnId, now_ms: u64) -> Turn {
        let key = format!("k{}", self.number);
        Turn {
            id,
            tenant: self.tenant.clone(),
            agent: self.agent.clone(),
            messages: vec![Message::new(Role::User, self.number.to_string())],
            new_session: self.new_session,
            sampling: Default::default(),
            priority: self.priority,
            deadline_ms: self.deadline_ms.map(|ms| now_ms + ms),
            not_before_ms: self.not_before_ms.map(|ms| now_ms + ms),
            idempotency_key: self.is_keyed.then(|| IdempotencyKey::new(key).expect("a name")),
            replay_of: None,
            request_id: None,
            traceparent: None,
            tracestate: None,
        }
    }

    /// The agent, where it is not the turn's own.
    pub(super) fn agent_id(&self) -> Option<AgentId> {
        self.agent.as_ref().map(|agent| AgentId::named(&self.tenant, agent))
    }

    /// The whole reply after `history`: any token that was lost, doubled or computed from another history shows.
    pub(super) fn reply(&self, history: &[u32]) -> Vec<u32> {
        let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(23);
        let seen = history.iter().fold(self.number as u64, |hash, token| mix(hash, u64::from(*token)));
        (0..self.tokens as u64).map(|index| mix(seen, index + 1) as u32).collect()
    }

    /// What the turn adds to its agent's history.
    pub(super) fn adds(&self, history: &[u32]) -> Vec<u32> {
        let mut tokens = vec![self.number as u32];
        tokens.extend(self.reply(history));
        tokens
    }
}

/// How often, in a thousand times, something goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// A call does not arrive, or its answer does not.
    pub(super) loss: u64,
    /// A call or an answer takes long.
    pub(super) delay: u64,
    /// A call arrives twice.
    pub(super) repeat: u64,
    /// A worker dies, each time it could go on.
    pub(super) crash: u64,
    /// A worker stops for a while, each time it could go on.
    pub(super) stop: u64,
    /// They end after so long.
    pub(super) until_ms: u64,
}

/// A seed's world.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) plans: Vec<Plan>,
    pub(super) producers: usize,
    pub(super) workers: usize,
    /// Turns a worker runs at once.
    pub(super) slots: usize,
    pub(super) lease_ms: u64,
    pub(super) limits: WorkerLimits,
    pub(super) depth: DepthLimits,
    pub(super) faults: Faults,
}

impl World {
    /// The world of a throw of the dice; `size` 1 is small.
    pub(super) fn throw(dice: &Dice, size: u64) -> Self {
        let agents = dice.between(1, 3 * size);
        let turns = dice.between(6, 20) * size;
        let open = if dice.chance(200) { dice.between(2, 6) } else { 1000 };
        Self {
            plans: (0..turns as usize).map(|number| Plan::throw(dice, number, agents)).collect(),
            producers: 2,
            workers: dice.between(2, 2 + size) as usize,
            slots: dice.between(1, 2) as usize,
            lease_ms: dice.between(60, 300),
            limits: WorkerLimits {
                max_attempts: dice.between(3, 5) as u32,
                tenant_max_running: if dice.chance(300) { dice.between(1, 2) } else { 0 },
                max_continues: dice.below(3) as u32,
            },
            depth: DepthLimits { queue: open, tenant: open },
            faults: Faults {
                loss: dice.below(80),
                delay: dice.below(60),
                repeat: dice.below(60),
                crash: dice.below(15),
                stop: dice.below(25),
                until_ms: dice.between(500, 3000),
            },
        }
    }
}
