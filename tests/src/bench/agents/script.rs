//! What the agents are told and asked: the same for every side.

/// What all of them are told first: some 800 tokens. Written for this measurement.
pub(super) const SYSTEM: &str = include_str!("../../../data/agents.txt");

/// Who they are.
const NAMES: [&str; super::AGENTS] = ["ada", "bruno", "clara", "david", "edith", "felix", "greta", "hugo"];

/// What the matter of each is; no two prompts are the same after the system prompt.
const MATTERS: [&str; super::AGENTS] = [
    "a bakery in Lund that wants wholemeal flour twice a week",
    "a farm that brings three tonnes of wet rye on Thursday",
    "a household that asks for spelt in bags of five kilograms",
    "a new customer from the islands who has never paid in advance",
    "a bakery that has two unpaid deliveries and needs a third",
    "a school that would like to see the stones being dressed",
    "a hotel that complains about oat flakes older than eight weeks",
    "a shop that sends forty empty sacks back and wants them counted",
];

/// What is asked about it, turn by turn.
const QUESTIONS: [&str; super::TURNS] = [
    "A letter came about {matter}. What should I answer first, and which book do I need?",
    "Reckon what it would cost for four hundred kilograms, delivered, step by step.",
    "They would rather have it a day earlier. What speaks against it?",
    "Write the last two sentences of my letter to them.",
];

/// The agent's name.
pub(super) fn name(agent: usize) -> &'static str {
    NAMES[agent]
}

/// What is asked of `agent` in its turn number `turn`.
pub(super) fn question(agent: usize, turn: usize) -> String {
    QUESTIONS[turn].replace("{matter}", MATTERS[agent])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_agents_begin_alike() {
        let first: HashSet<String> = (0..super::super::AGENTS).map(|agent| question(agent, 0)).collect();
        assert_eq!(first.len(), super::super::AGENTS);
        assert!(first.iter().all(|question| !question.contains('{')));
    }
}
