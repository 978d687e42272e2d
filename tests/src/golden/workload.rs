//! What is asked: the same 300 turns on every machine and at every commit.
//!
//! Invariants: the turns depend on this file and on [`Dice`] alone. Lines use only keys that `turnmill submit` knew at
//! commit 83ace4f, as plain JSON and not through our own types, so programs of any later commit can be asked.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::chaos::dice::{Dice, Use};

const SEED: u64 = 14;
/// How many turns the agents of a group take. An agent with one turn is a turn that stands alone.
const GROUP: [u32; 5] = [1, 3, 5, 9, 12];
const GROUPS: u32 = 10;
/// The turn of an agent that forgets its history.
const NEW_SESSION: u32 = 6;

const TOPICS: [&str; 10] =
    ["water mills", "rivers", "bread", "gears", "owls", "rain", "clocks", "trains", "lighthouses", "honey"];

const ASKING: [&str; 8] = [
    "Tell me about TOPIC.",
    "Write a short poem about TOPIC.",
    "Name three facts about TOPIC, one a line.",
    "And what of TOPIC?",
    "Explain TOPIC to a child.",
    "Repeat after me: TOPIC and TOPIC and TOPIC and TOPIC.",
    "Write a JSON list of five words about TOPIC.",
    "Wer mag TOPIC? Ça va, naïve 东京 🦉?",
];

/// Every way to sample. Most seeds of greedy turns do nothing, which is a promise too. 28 and 30 are "," and ".", 260 is " the".
const SAMPLING: [&str; 14] = [
    r#"{"temperature": 0, "ignore_eos": true}"#,
    r#"{"temperature": 0, "repetition_penalty": 1.3}"#,
    r#"{"temperature": 0, "presence_penalty": 0.7, "frequency_penalty": 0.4}"#,
    r#"{"temperature": 0, "logit_bias": {"260": 4.0, "30": -100.0}}"#,
    r#"{"temperature": 0.8}"#,
    r#"{"temperature": 0.9, "top_p": 0.9}"#,
    r#"{"temperature": 0.8, "top_k": 40}"#,
    r#"{"min_p": 0.05}"#,
    r#"{"temperature": 1.2, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}"#,
    r#"{"temperature": 1.5, "frequency_penalty": 0.5, "ignore_eos": true, "logprobs": 2}"#,
    r#"{"temperature": 0.7, "stop": [". ", "\n"]}"#,
    r#"{"temperature": 0, "stop_token_ids": [28, 30], "min_tokens": 6}"#,
    r#"{"temperature": 0, "stop": ["the"], "repetition_penalty": 1.1}"#,
    r#"{"temperature": 0}"#,
];

/// A turn of the workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The agent and which of its turns this is, as in `a07.2`.
    pub name: String,
    /// What `turnmill submit FILE` reads. Sorted keys make the text the same in every build.
    pub line: BTreeMap<String, Value>,
}

impl Asked {
    /// The line as text.
    pub fn text(&self) -> String {
        serde_json::to_string(&self.line).expect("a map with text keys is JSON")
    }
}

/// Every turn: first the first turns of all agents, then all second turns, and so on.
pub fn turns() -> Vec<Asked> {
    let mut turns: Vec<(u32, Asked)> = (0..GROUPS * GROUP.len() as u32).flat_map(agent).collect();
    turns.sort_by_key(|(index, _)| *index);
    turns.into_iter().map(|(_, turn)| turn).collect()
}

/// The turns of one agent, each with its index.
fn agent(number: u32) -> impl Iterator<Item = (u32, Asked)> {
    let mut dice = Dice::new(SEED, Use::Session(number));
    let count = GROUP[number as usize % GROUP.len()];
    (0..count).map(move |index| {
        let mut line = sampling(number + index);
        let mut set = |key: &str, value: Value| line.insert(key.to_owned(), value);
        let asking = *dice.one_of(&ASKING);
        let topic = *dice.one_of(&TOPICS);
        set("message", asking.replace("TOPIC", topic).into());
        set("seed", dice.any().into());
        set("max_tokens", dice.between(8, 48).into());
        if count > 1 {
            set("agent", format!("a{number:02}").into());
        }
        if let Some(system) = system(number).filter(|_| index == 0) {
            set("system", system.into());
        }
        if index == NEW_SESSION {
            set("new_session", true.into());
        }
        if number.is_multiple_of(7) {
            set("priority", "batch".into());
        }
        (index, Asked { name: format!("a{number:02}.{index}"), line })
    })
}

/// Each agent starts at another way to sample and takes the next one with each turn.
fn sampling(number: u32) -> BTreeMap<String, Value> {
    let fields = SAMPLING[number as usize % SAMPLING.len()];
    serde_json::from_str(fields).expect("the table holds JSON objects")
}

/// Instructions of an agent's first turn. The long ones are shared and span several splits of attention (256 tokens).
fn system(number: u32) -> Option<String> {
    let topic = |n: usize| TOPICS[n % TOPICS.len()];
    let rule = |n| format!("Rule {n}: if you are asked about {}, be brief.", topic(n));
    match number % 4 {
        0 => None,
        1 => Some("You are a miller. Answer in one sentence.".to_owned()),
        2 => Some((0..50).map(rule).collect::<Vec<_>>().join(" ")),
        _ => Some(format!("You are agent {number}. You like {}.", topic(number as usize))),
    }
}
