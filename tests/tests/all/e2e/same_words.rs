//! Promise 3: a turn's tokens depend on model, seed, sampling and history alone, not on who else is in the batch.

use std::collections::BTreeMap;

use turnmill_client::NewTurn;
use turnmill_schema::{Event, Sampling};
use turnmill_tests::line::{Line, exactly};

const TOKENS: u32 = 20;

/// Sixteen turns, no two of which are sampled alike.
fn turns() -> Vec<NewTurn> {
    let topics = ["mills", "rivers", "bread", "gears", "owls", "rain", "clocks", "trains"];
    let turn = |i: usize| {
        let text = match i % 3 {
            0 => format!("Tell me about {}.", topics[i / 2]),
            1 => format!("Write a short poem about {}, and do not forget the wind.", topics[i / 2]),
            _ => format!("{}?", topics[i / 2]),
        };
        NewTurn::user(text).sampling(sampling(i))
    };
    (0..16).map(turn).collect()
}

fn sampling(i: usize) -> Sampling {
    let greedy = exactly(TOKENS);
    let sampled = Sampling { temperature: 0.9, seed: Some(1000 + i as u64), ..greedy.clone() };
    match i {
        0..4 => greedy,
        4 => Sampling { repetition_penalty: 1.3, ..greedy },
        5 => Sampling { presence_penalty: 0.7, frequency_penalty: 0.4, ..greedy },
        6 => Sampling { logit_bias: BTreeMap::from([(260, 4.0), (30, -100.0)]), ..greedy },
        7 => Sampling { logprobs: Some(3), ..greedy },
        8 => Sampling { top_k: 20, ..sampled },
        9 => Sampling { top_p: 0.8, ..sampled },
        10 => Sampling { min_p: 0.1, ..sampled },
        11 => Sampling { top_k: 40, top_p: 0.9, repetition_penalty: 1.1, ..sampled },
        12 => Sampling { temperature: 1.5, frequency_penalty: 0.5, ..sampled },
        13 => Sampling { ignore_eos: false, stop: vec![". ".to_owned()], ..sampled },
        14 => Sampling { ignore_eos: false, min_tokens: 8, ..sampled },
        _ => sampled,
    }
}

#[tokio::test]
async fn sixteen_turns_make_the_same_tokens_alone_and_together() {
    let mut alone = Vec::new();
    {
        let line = Line::start().await;
        let _worker = line.worker(&["--max-sequences", "1"]);
        for turn in turns() {
            let turn = line.enqueue(vec![turn]).await;
            alone.extend(line.told(&turn).await);
        }
    }

    let line = Line::start().await;
    let ids = line.enqueue(turns()).await;
    let _worker = line.worker(&["--max-sequences", "16"]);
    let together = line.told(&ids).await;
    for (i, (alone, together)) in alone.iter().zip(&together).enumerate() {
        assert_eq!(alone.words(), together.words(), "turn {i}");
        assert!(!alone.tokens.is_empty(), "turn {i} made nothing");
        assert_eq!(alone.lengths.len(), alone.tokens.len(), "turn {i} can be cut at any token");
    }
    let distinct: std::collections::BTreeSet<_> = alone.iter().map(|told| &told.tokens).collect();
    assert_eq!(distinct.len(), 16, "turns that all say the same show nothing");
    assert!(overlap(&line, &ids).await, "no two turns shared a step");
}

/// Whether every turn that makes [`TOKENS`] tokens had begun before the first of them ended. Epochs are the time of
/// the lease in milliseconds.
async fn overlap(line: &Line, ids: &[turnmill_schema::TurnId]) -> bool {
    let mut begun_last = 0;
    let mut first_end = u64::MAX;
    for id in ids {
        let events = line.events(*id).await;
        let (Some(Event::Begin(begin)), Some(Event::End(end))) = (events.first(), events.last()) else {
            panic!("a whole stream: {events:?}")
        };
        begun_last = begun_last.max(begin.epoch);
        if end.usage.completion_tokens == TOKENS {
            first_end = first_end.min(begin.epoch - end.timing.queued_ms + end.timing.total_ms);
        }
    }
    begun_last < first_end
}
