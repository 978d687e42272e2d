//! What producers ask for: sessions of a few turns of one agent, and turns that stand alone.
//!
//! Invariant: session `n` of a seed is always the same, so that what was asked for can be asked for again of an
//! undisturbed worker. Every turn has its own seed and its own idempotency key.

use std::str::FromStr;

use turnmill_client::NewTurn;
use turnmill_schema::{InvalidName, Priority, Sampling};

use super::dice::{Dice, Use};

/// What one producer asks for, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Turns of one agent, or one turn that stands alone.
    pub turns: Vec<SessionTurn>,
}

/// A turn of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionTurn {
    /// What is enqueued; it has an idempotency key.
    pub request: NewTurn,
    /// The producer waits for its end before it goes on; otherwise the next turn waits in the agent's backlog.
    pub waits: bool,
}

/// One session in this many is a turn that stands alone.
const LONE_EVERY: u32 = 4;

const TOPICS: [&str; 12] = [
    "water mills",
    "rivers",
    "bread",
    "gears",
    "owls",
    "rain",
    "clocks",
    "trains",
    "lighthouses",
    "honey",
    "chess",
    "tea",
];

const ASKING: [&str; 6] = [
    "Tell me about TOPIC.",
    "Write a short poem about TOPIC.",
    "Name three facts about TOPIC.",
    "And what of TOPIC?",
    "Explain TOPIC to a child.",
    "Why do people like TOPIC?",
];

/// Session `number` of a run with `seed`.
pub fn session(seed: u64, number: u32) -> Session {
    let mut dice = Dice::new(seed, Use::Session(number));
    let lone = number % LONE_EVERY == LONE_EVERY - 1;
    let turns = if lone { 1 } else { dice.between(2, 4) };
    let agent = (!lone).then(|| name(format!("agent-{number}")));
    let priority = if dice.between(0, 3) == 0 { Priority::Batch } else { Priority::Interactive };
    let turn = |index| SessionTurn {
        request: NewTurn {
            agent: agent.clone(),
            priority,
            idempotency_key: Some(name(format!("s{number}-t{index}"))),
            ..NewTurn::user(text(&mut dice)).sampling(sampling(&mut dice))
        },
        waits: dice.between(0, 1) == 0,
    };
    Session { turns: (0..turns).map(turn).collect() }
}

fn text(dice: &mut Dice) -> String {
    let topic = *dice.one_of(&TOPICS);
    dice.one_of(&ASKING).replace("TOPIC", topic)
}

/// Greedy and sampled; mostly long enough to be interrupted, some ending by themselves.
fn sampling(dice: &mut Dice) -> Sampling {
    let base = Sampling {
        temperature: 0.0,
        seed: Some(dice.any()),
        max_tokens: Some(dice.between(20, 60) as u32),
        ignore_eos: true,
        ..Sampling::default()
    };
    match dice.between(0, 7) {
        0..3 => base,
        3 => Sampling { repetition_penalty: 1.3, ..base },
        4 => Sampling { temperature: 0.9, top_p: 0.9, ..base },
        5 => Sampling { temperature: 0.8, top_k: 40, presence_penalty: 0.5, ..base },
        6 => Sampling { temperature: 0.7, ignore_eos: false, stop: vec![". ".to_owned()], ..base },
        _ => Sampling { temperature: 1.0, ignore_eos: false, ..base },
    }
}

fn name<T: FromStr<Err = InvalidName>>(text: String) -> T {
    text.parse().expect("letters, digits and dashes make a name")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_session_is_the_same_each_time_and_unlike_the_others() {
        assert_eq!(session(3, 5), session(3, 5));
        assert_ne!(session(3, 5), session(3, 6));
        assert_ne!(session(3, 5), session(4, 5));
    }

    #[test]
    fn keys_are_distinct_and_every_kind_of_turn_occurs() {
        let turns: Vec<SessionTurn> = (0..100).flat_map(|number| session(1, number).turns).collect();
        let keys: HashSet<_> = turns.iter().map(|turn| turn.request.idempotency_key.clone()).collect();
        assert_eq!(keys.len(), turns.len());
        let seeds: HashSet<_> = turns.iter().map(|turn| turn.request.sampling.seed).collect();
        assert_eq!(seeds.len(), turns.len());
        let share = |holds: fn(&SessionTurn) -> bool| turns.iter().filter(|turn| holds(turn)).count();
        let some = 5..turns.len() - 5;
        assert!(some.contains(&share(|turn| turn.request.agent.is_none())));
        assert!(some.contains(&share(|turn| turn.request.priority == Priority::Batch)));
        assert!(some.contains(&share(|turn| turn.request.sampling.temperature == 0.0)));
        assert!(some.contains(&share(|turn| turn.waits)));
        for turn in &turns {
            turn.request.sampling.validate().expect("producers would refuse it");
        }
    }
}
