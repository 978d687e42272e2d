//! Chooses a token from logits.
//!
//! Invariant: the choice depends on logits, the tokens before it, the sampling parameters and (seed, index in
//! the reply) alone. The generator is counter-based, so there is no state to save when a turn moves.

use std::collections::{HashMap, HashSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use turnmill_schema::{Sampling, TokenLogprobs};

/// One turn's sampling state, all of it derivable from its tokens.
pub struct Sampler {
    sampling: Sampling,
    generator: ChaCha8Rng,
    /// Tokens of prompt and reply, for the repetition penalty; empty where it is off.
    seen: HashSet<u32>,
    /// How often each token is in the reply.
    counts: HashMap<u32, u32>,
    made: u32,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which.
    pub token: u32,
    /// Log-probabilities, where the turn asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// The model gave no usable logits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits hold NaN or nothing finite; the turn cannot go on")]
pub struct NoLogits;

impl Sampler {
    /// Starts after `prompt` and the tokens of `reply` that exist already.
    pub fn new(sampling: Sampling, prompt: &[u32], reply: &[u32]) -> Self {
        let generator = ChaCha8Rng::seed_from_u64(sampling.seed.unwrap_or_default());
        let penalises = sampling.repetition_penalty != 1.0;
        let seen = if penalises { prompt.iter().copied().collect() } else { HashSet::new() };
        let mut sampler = Self { sampling, generator, seen, counts: HashMap::new(), made: 0 };
        reply.iter().for_each(|token| sampler.observe(*token));
        sampler
    }

    /// Chooses the next token and remembers it. `forbidden` tokens are never chosen. Changes `logits`.
    pub fn sample(&mut self, logits: &mut [f32], forbidden: &[u32]) -> Result<Choice, NoLogits> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(NoLogits);
        }
        // Reported probabilities are the model's own, before penalties and temperature (vLLM's convention).
        let reported = self.sampling.logprobs.map(|count| Reported::new(logits, usize::from(count)));
        self.adjust(logits);
        for token in forbidden {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let token = if self.sampling.temperature == 0.0 { likeliest(logits) } else { self.draw(logits) };
        let token = token.ok_or(NoLogits)?;
        self.observe(token);
        Ok(Choice { token, logprobs: reported.map(|reported| reported.of(token)) })
    }

    fn observe(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        self.made += 1;
    }

    /// Bias and penalties, in vLLM's order.
    fn adjust(&self, logits: &mut [f32]) {
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
        if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
            for (token, count) in &self.counts {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit -= sampling.presence_penalty + sampling.frequency_penalty * *count as f32;
                }
            }
        }
    }

    /// Draws from what temperature, min-p, top-k and top-p leave.
    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let max = logits[likeliest(logits)? as usize];
        // Weights are relative to the likeliest token's, so min-p is a plain threshold.
        let weight = |logit: f32| ((logit - max) / self.sampling.temperature).exp();
        let weights = logits.iter().map(|logit| weight(*logit)).zip(0u32..);
        let mut candidates: Vec<(f32, u32)> =
            weights.filter(|(weight, _)| *weight > 0.0 && *weight >= self.sampling.min_p).collect();
        keep_top_k(&mut candidates, self.sampling.top_k as usize);
        keep_top_p(&mut candidates, self.sampling.top_p);
        let total: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let mut left = self.uniform() * total;
        for (weight, token) in &candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return Some(*token);
            }
        }
        // Rounding may leave a crumb: it belongs to the last candidate.
        candidates.last().map(|(_, token)| *token)
    }

    /// The draw of this index in the reply, in [0, 1).
    fn uniform(&mut self) -> f64 {
        // A draw takes two of the generator's 32-bit words.
        self.generator.set_word_pos(u128::from(self.made) * 2);
        (self.generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// More likely first; among equals the lower id.
fn by_weight(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

fn keep_top_k(candidates: &mut Vec<(f32, u32)>, k: usize) {
    if (1..candidates.len()).contains(&k) {
        candidates.select_nth_unstable_by(k - 1, by_weight);
        candidates.truncate(k);
        // Selection leaves no particular order; sums must not depend on one.
        candidates.sort_unstable_by_key(|(_, token)| *token);
    }
}

fn keep_top_p(candidates: &mut Vec<(f32, u32)>, p: f32) {
    if p >= 1.0 {
        return;
    }
    candidates.sort_unstable_by(by_weight);
    let total: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
    let mut reached = 0.0;
    let enough = candidates.iter().position(|(weight, _)| {
        reached += f64::from(*weight);
        reached >= total * f64::from(p)
    });
    if let Some(last) = enough {
        candidates.truncate(last + 1);
    }
}

/// The id of the largest logit, the lowest among equals; none where nothing is finite.
pub fn likeliest(logits: &[f32]) -> Option<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    for (logit, token) in logits.iter().zip(0u32..) {
        if *logit > best.0 {
            best = (*logit, Some(token));
        }
    }
    best.1
}

/// Natural logarithm of the sum of `exp(logit)`, in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// Log-probabilities to report, taken before the logits are changed.
struct Reported {
    unchanged: Vec<f32>,
    normaliser: f64,
    top: Vec<(u32, f32)>,
}

impl Reported {
    fn new(logits: &[f32], count: usize) -> Self {
        let normaliser = log_sum_exp(logits);
        let mut candidates: Vec<(f32, u32)> = logits.iter().copied().zip(0u32..).collect();
        keep_top_k(&mut candidates, count.max(1));
        candidates.sort_unstable_by(by_weight);
        candidates.truncate(count);
        let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
        let top = candidates.into_iter().map(|(logit, token)| (token, logprob(logit))).collect();
        Self { unchanged: logits.to_vec(), normaliser, top }
    }

    fn of(self, token: u32) -> TokenLogprobs {
        let logprob = (f64::from(self.unchanged[token as usize]) - self.normaliser) as f32;
        TokenLogprobs { logprob, top: self.top, bytes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
        let mut sampling = Sampling { seed: Some(7), ..Sampling::default() };
        change(&mut sampling);
        Sampler::new(sampling, &[], &[])
    }

    /// Which tokens 400 draws from `logits` give.
    fn drawn(logits: &[f32], change: impl Fn(&mut Sampling)) -> Vec<u32> {
        let mut sampler = sampler(change);
        let mut tokens: Vec<u32> = (0..400)
            .map(|_| sampler.sample(&mut logits.to_vec(), &[]).expect("finite logits").token)
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
            counts[sampler.sample(&mut logits.to_vec(), &[]).expect("finite logits").token as usize] += 1;
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
            greedy.sample(&mut [4.0, 3.5, 0.0, -2.0], forbidden).expect("finite logits").token
        };
        assert_eq!(next(&[]), 0);
        assert_eq!(next(&[]), 1, "token 0 costs 1.5 now");
        assert_eq!(next(&[0]), 3, "biased to 3, and 0 is forbidden");
        let mut repeated = Sampler::new(
            Sampling { temperature: 0.0, repetition_penalty: 2.0, ..Sampling::default() },
            &[0],
            &[],
        );
        assert_eq!(repeated.sample(&mut [4.0, 2.5], &[]).expect("finite logits").token, 1);
    }

    #[test]
    fn a_resumed_sampler_draws_what_the_first_would_have() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.37).sin()).collect();
        let draw = |sampler: &mut Sampler| sampler.sample(&mut logits.clone(), &[]).expect("finite").token;
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
        let choice = sampler.sample(&mut [0.0, 2.0, 1.0], &[]).expect("finite logits");
        let logprobs = choice.logprobs.expect("asked for");
        assert_eq!(choice.token, 0);
        assert!((logprobs.logprob - -2.407_606).abs() < 1e-5, "{logprobs:?}");
        assert_eq!(logprobs.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn nan_and_nothing_finite_are_errors() {
        let mut sampler = sampler(|_| ());
        assert_eq!(sampler.sample(&mut [0.0, f32::NAN], &[]), Err(NoLogits));
        assert_eq!(sampler.sample(&mut [0.0], &[0]), Err(NoLogits));
    }
}
