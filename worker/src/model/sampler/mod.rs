//! Chooses a token from logits.
//!
//! Invariant: the choice depends on logits, the tokens before it, the sampling parameters, the mask and (seed, index in
//! the reply) alone. The generator is counter-based, so there is no state to save when a turn moves.

mod draw;
#[cfg(test)]
mod reference;
mod report;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use turnmill_schema::{Sampling, TokenLogprobs};

use super::mask::TokenMask;
use super::simd::{Isa, logits};
use draw::Filters;
pub use report::log_sum_exp;

/// One turn's sampling state, all of it derivable from its tokens.
pub struct Sampler {
    sampling: Sampling,
    generator: ChaCha8Rng,
    /// Tokens of prompt and reply, for the repetition penalty; empty where it is off.
    seen: HashSet<u32>,
    /// How often each token is in the reply, for the penalties that count; empty where they are off.
    counts: HashMap<u32, u32>,
    made: u32,
    /// The logits of the last row as the model gave them; empty unless log-probabilities are asked for.
    unchanged: Vec<f32>,
}

/// A weight or a logit, and whose it is.
type Candidate = (f32, u32);

/// Memory of a choice. It belongs to the thread, not to a turn, because a row without likely tokens has as many candidates as
/// the vocabulary has tokens.
#[derive(Default)]
struct Scratch {
    candidates: Vec<Candidate>,
    /// Some of them.
    members: Vec<Candidate>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which.
    pub token: u32,
    /// Log-probabilities, where the turn asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// There is no token to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLogits {
    /// The model gave no usable logits; another attempt may do better.
    #[error("the model's logits hold NaN or nothing finite; the turn cannot go on")]
    Unusable,
    /// What the turn asks for leaves no token, on any attempt.
    #[error(
        "every token is forbidden at this place of the reply; ask for less with min_tokens, stop tokens or the grammar"
    )]
    NothingAllowed,
}

impl Sampler {
    /// Starts after `prompt` and the tokens of `reply` that exist already.
    pub fn new(sampling: Sampling, prompt: &[u32], reply: &[u32]) -> Self {
        let generator = ChaCha8Rng::seed_from_u64(sampling.seed.unwrap_or_default());
        let penalises = sampling.repetition_penalty != 1.0;
        let seen = if penalises { prompt.iter().copied().collect() } else { HashSet::new() };
        let mut sampler =
            Self { sampling, generator, seen, counts: HashMap::new(), made: 0, unchanged: Vec::new() };
        reply.iter().for_each(|token| sampler.observe(*token));
        sampler
    }

    /// Whether it looks at a row's largest logit and no more, which takes a small part of a draw's time.
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0 && self.sampling.logprobs.is_none()
    }

    /// Chooses the next token and remembers it. Tokens that `mask` does not allow are never chosen. Afterwards `logits` hold
    /// nothing of use.
    ///
    /// The mask applies before temperature and filters. Reported log-probabilities are the model's own, before mask,
    /// penalties and temperature (vLLM's convention). A choice takes one draw.
    pub fn sample(&mut self, logits: &mut [f32], mask: Option<&TokenMask>) -> Result<Choice, NoLogits> {
        let mut survey = logits::survey(Isa::detect(), logits);
        if survey.has_nan {
            return Err(NoLogits::Unusable);
        }
        if self.sampling.logprobs.is_some() {
            self.unchanged.clear();
            self.unchanged.extend_from_slice(logits);
        }
        let adjusted = self.adjust(logits);
        mask.into_iter().for_each(|mask| mask.apply(logits));
        if adjusted || mask.is_some() {
            survey = logits::survey(Isa::detect(), logits);
        }
        let nothing = if mask.is_some() { NoLogits::NothingAllowed } else { NoLogits::Unusable };
        let likeliest = survey.first.ok_or(nothing)?;
        let token = if self.sampling.temperature == 0.0 {
            likeliest as u32
        } else {
            self.draw(logits, survey.largest).ok_or(nothing)?
        };
        self.observe(token);
        let logprobs = self.sampling.logprobs.map(|count| {
            SCRATCH.with_borrow_mut(|scratch| {
                report::of(&self.unchanged, token, usize::from(count), &mut scratch.candidates)
            })
        });
        Ok(Choice { token, logprobs })
    }

    fn observe(&mut self, token: u32) {
        if self.counts_tokens() {
            *self.counts.entry(token).or_default() += 1;
        }
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        self.made += 1;
    }

    fn counts_tokens(&self) -> bool {
        self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0
    }

    /// Bias and penalties, in vLLM's order. Returns whether there are any.
    fn adjust(&self, logits: &mut [f32]) -> bool {
        let sampling = &self.sampling;
        for (token, bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for token in &self.seen {
            if let Some(logit) = logits.get_mut(*token as usize) {
                let penalty = sampling.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * *count as f32;
            }
        }
        !(sampling.logit_bias.is_empty() && self.seen.is_empty() && self.counts.is_empty())
    }

    /// Draws from what temperature, min-p, top-k and top-p leave. `logits` become weights.
    fn draw(&mut self, logits: &mut [f32], largest: f32) -> Option<u32> {
        let uniform = self.uniform();
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        // Weights are relative to the likeliest token's, so min-p is a plain threshold.
        logits::weigh(Isa::detect(), logits, largest, temperature, min_p);
        let filters = Filters { top_k: top_k as usize, top_p: f64::from(top_p) };
        SCRATCH.with_borrow_mut(|scratch| draw::token(logits, filters, uniform, scratch))
    }

    /// The draw of this index in the reply, in [0, 1).
    fn uniform(&mut self) -> f64 {
        // A draw takes two of the generator's 32-bit words.
        self.generator.set_word_pos(u128::from(self.made) * 2);
        (self.generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The id of the largest logit, the lowest among equals; none where nothing is finite.
pub fn likeliest(logits: &[f32]) -> Option<u32> {
    logits::survey(Isa::detect(), logits).first.map(|token| token as u32)
}

/// More likely first; among equals the lower id.
fn by_weight(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The first `k` of a row by weight, in no particular order; all if there are fewer.
fn keep_top(row: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    // Each of the shares with the largest elements has one that goes before all elements of the other shares.
    logits::maxima(Isa::detect(), row, kept);
    cut(kept, k);
    for index in 0..kept.len() {
        let start = kept[index].1 as usize * logits::SHARE;
        let share = &row[start..row.len().min(start + logits::SHARE)];
        kept.extend(share.iter().copied().zip(start as u32..));
    }
    kept.drain(..k.min(row.len().div_ceil(logits::SHARE)));
    cut(kept, k);
}

/// Keeps the first `k` by weight.
fn cut(candidates: &mut Vec<Candidate>, k: usize) {
    if (1..candidates.len()).contains(&k) {
        candidates.select_nth_unstable_by(k - 1, by_weight);
    }
    candidates.truncate(k);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::reference::Reference;
    use super::*;

    fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
        let mut sampling = Sampling { seed: Some(7), ..Sampling::default() };
        change(&mut sampling);
        Sampler::new(sampling, &[], &[])
    }

    /// All tokens of a vocabulary but some.
    fn without(vocabulary: usize, forbidden: &[u32]) -> TokenMask {
        let mut mask = TokenMask::all(vocabulary);
        forbidden.iter().for_each(|token| mask.forbid(*token));
        mask
    }

    /// Which tokens 400 draws from `logits` give.
    fn drawn(logits: &[f32], change: impl Fn(&mut Sampling)) -> Vec<u32> {
        let mut sampler = sampler(change);
        let mut tokens: Vec<u32> = (0..400)
            .map(|_| sampler.sample(&mut logits.to_vec(), None).expect("finite logits").token)
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = [2.0, 1.9, 1.0, -1.0];
        assert_eq!(drawn(&logits, |_| ()), [0, 1, 2, 3]);
        assert_eq!(drawn(&logits, |s| s.temperature = 0.0), [0]);
        assert_eq!(drawn(&logits, |s| s.top_k = 2), [0, 1]);
        assert_eq!(drawn(&logits, |s| s.top_k = 1), [0]);
        assert_eq!(drawn(&logits, |s| s.min_p = 0.5), [0, 1]);
        assert_eq!(drawn(&logits, |s| s.top_p = 0.6), [0, 1]);
        assert_eq!(drawn(&logits, |s| s.top_p = 1e-6), [0]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let mut sampler = sampler(|s| s.frequency_penalty = 0.0);
        let logits = [0.0f32, 1.0, 2.0];
        let mut counts = [0u32; 3];
        for _ in 0..30_000 {
            counts[sampler.sample(&mut logits.to_vec(), None).expect("finite logits").token as usize] += 1;
        }
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (count, logit) in counts.iter().zip(logits) {
            let expected = f64::from(logit).exp() / total;
            assert!((f64::from(*count) / 30_000.0 - expected).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn penalties_bias_and_forbidden_tokens() {
        let mut greedy = sampler(|s| {
            s.temperature = 0.0;
            s.presence_penalty = 1.0;
            s.frequency_penalty = 0.5;
            s.logit_bias.insert(3, 5.0);
        });
        let mut next = |forbidden: &[u32]| {
            let mask = without(4, forbidden);
            greedy.sample(&mut [4.0, 3.5, 0.0, -2.0], Some(&mask)).expect("finite logits").token
        };
        assert_eq!(next(&[]), 0);
        assert_eq!(next(&[]), 1, "token 0 costs 1.5 now");
        assert_eq!(next(&[0]), 3, "biased to 3, and 0 is forbidden");
        let mut repeated = Sampler::new(
            Sampling { temperature: 0.0, repetition_penalty: 2.0, ..Sampling::default() },
            &[0],
            &[],
        );
        assert_eq!(repeated.sample(&mut [4.0, 2.5], None).expect("finite logits").token, 1);
    }

    #[test]
    fn a_resumed_sampler_draws_what_the_first_would_have() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
        let draw = |sampler: &mut Sampler| sampler.sample(&mut logits.clone(), None).expect("finite").token;
        let mut whole = sampler(|s| s.presence_penalty = 0.5);
        let tokens: Vec<u32> = (0..20).map(|_| draw(&mut whole)).collect();
        let sampling = whole.sampling.clone();
        let mut resumed = Sampler::new(sampling, &[], &tokens[..9]);
        let rest: Vec<u32> = (9..20).map(|_| draw(&mut resumed)).collect();
        assert_eq!(rest, tokens[9..]);
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let mut sampler = sampler(|s| {
            s.temperature = 0.0;
            s.logprobs = Some(2);
            s.logit_bias.insert(0, 100.0);
        });
        let choice = sampler.sample(&mut [0.0, 2.0, 1.0], None).expect("finite logits");
        let logprobs = choice.logprobs.expect("asked for");
        assert_eq!(choice.token, 0);
        assert!((logprobs.logprob - -2.407_606).abs() < 1e-5, "{logprobs:?}");
        assert_eq!(logprobs.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn nan_and_nothing_finite_are_errors() {
        let mut sampler = sampler(|_| ());
        assert_eq!(sampler.sample(&mut [0.0, f32::NAN], None), Err(NoLogits::Unusable));
        assert_eq!(sampler.sample(&mut [0.0], Some(&without(1, &[0]))), Err(NoLogits::NothingAllowed));
    }

    /// A row of each kind: near each other, with many ties, and with a few tokens far above the rest.
    fn any_row() -> impl Strategy<Value = Vec<f32>> {
        let tokens = prop_oneof![1usize..70, 900usize..4000];
        let row = |element: BoxedStrategy<f32>| {
            tokens.clone().prop_flat_map(move |tokens| prop::collection::vec(element.clone(), tokens))
        };
        prop_oneof![
            row((-12f32..12.0).boxed()),
            row((-6i8..6).prop_map(|half| f32::from(half) / 2.0).boxed()),
            row(prop_oneof![40 => -25f32..-5.0, 1 => 0f32..5.0, 5 => Just(f32::NEG_INFINITY)].boxed()),
            row(prop_oneof![Just(f32::NEG_INFINITY), -1f32..1.0].boxed()),
        ]
    }

    fn any_sampling() -> impl Strategy<Value = Sampling> {
        let temperature = prop_oneof![Just(0f32), Just(1.0), 0.05f32..3.0, 0.001f32..100.0];
        let top_k = prop_oneof![3 => Just(0u32), 2 => 1u32..60, 1 => 60u32..5000];
        let top_p = prop_oneof![2 => Just(1f32), 2 => 0.5f32..0.999, 1 => 0.0001f32..1.0];
        let min_p = prop_oneof![3 => Just(0f32), 1 => 0f32..0.3];
        let repetition_penalty = prop_oneof![2 => Just(1f32), 1 => 0.5f32..2.0];
        let penalties = prop_oneof![2 => Just((0f32, 0f32)), 1 => (-2f32..2.0, -2f32..2.0)];
        let logit_bias = prop::collection::btree_map(0u32..100, -10f32..10.0, 0..3);
        let rest = (any::<u64>(), prop::option::weighted(0.3, 0u8..20), logit_bias);
        (temperature, top_k, top_p, min_p, repetition_penalty, penalties, rest).prop_map(
            |(
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                penalties,
                (seed, logprobs, logit_bias),
            )| {
                Sampling {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repetition_penalty,
                    presence_penalty: penalties.0,
                    frequency_penalty: penalties.1,
                    seed: Some(seed),
                    logprobs,
                    logit_bias,
                    ..Sampling::default()
                }
            },
        )
    }

    proptest! {
        #[test]
        fn choices_are_those_of_the_reference(
            rows in prop::collection::vec(any_row(), 1..4),
            sampling in any_sampling(),
            forbidden in prop::collection::vec(0u32..70, 0..4),
        ) {
            let prompt = [1, 2, 3, 30];
            let mut reference = Reference::new(sampling.clone(), &prompt, &[5]);
            let mut sampler = Sampler::new(sampling, &prompt, &[5]);
            for row in rows.iter().cycle().take(12) {
                let mask = without(row.len(), &forbidden);
                let mask = (!forbidden.is_empty()).then_some(&mask);
                let expected = reference.sample(&mut row.clone(), &forbidden);
                let found = sampler.sample(&mut row.clone(), mask);
                prop_assert_eq!(found.is_ok(), expected.is_ok());
                let (Ok(found), Ok(expected)) = (found, expected) else { continue };
                prop_assert_eq!(found.token, expected.token);
                prop_assert_eq!(found.logprobs.is_some(), expected.logprobs.is_some());
                let (Some(found), Some(expected)) = (found.logprobs, expected.logprobs) else { continue };
                let ids = |top: &[(u32, f32)]| top.iter().map(|(token, _)| *token).collect::<Vec<_>>();
                prop_assert_eq!(ids(&found.top), ids(&expected.top));
                for (found, expected) in std::iter::once((found.logprob, expected.logprob))
                    .chain(found.top.iter().map(|top| top.1).zip(expected.top.iter().map(|top| top.1)))
                {
                    // The sums of the normaliser have another order.
                    prop_assert!(found == expected || (found - expected).abs() < 1e-5);
                }
            }
        }
    }
}
