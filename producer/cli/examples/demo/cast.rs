//! Who speaks, and about what.

/// An agent of the demo.
pub struct Agent {
    /// Its name in the queue.
    pub name: &'static str,
    /// One user message a turn.
    pub questions: [&'static str; 2],
}

/// What all three are told, long enough that holding it once instead of three times shows.
pub const SYSTEM: &str = "\
You are one of three colleagues who are opening a small bakery in a village by the sea. Ada plans the work, Bruno \
buys what is needed, and Clara writes to the customers. The bakery opens at seven in the morning and closes at two in \
the afternoon, every day but Monday. It sells bread, rolls, three kinds of cake, coffee and tea. The oven is old and \
takes an hour to get hot. The nearest mill is ten kilometres away and delivers flour on Tuesday and Friday. The village \
has four hundred people in winter and two thousand in summer, and most visitors come by ferry. Money is short, so every \
idea has to be cheap. Answer in two or three plain sentences. Do not repeat the question. Do not use lists. If you do \
not know something, say so and suggest who of the three might know it.";

/// Each asks something and then goes on from its own answer.
pub const AGENTS: [Agent; 3] = [
    Agent {
        name: "ada",
        questions: [
            "When should the oven be switched on, and why?",
            "What could be prepared the evening before?",
        ],
    },
    Agent {
        name: "bruno",
        questions: ["What should be bought for the first week?", "Which of these would go bad first?"],
    },
    Agent {
        name: "clara",
        questions: [
            "Write a short greeting for the door.",
            "Now make it friendlier for visitors from the ferry.",
        ],
    },
];
