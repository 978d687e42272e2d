//! What [`super::Sampler`] must choose, said as directly as it can be: the platform's `exp`, a sort of the whole vocabulary, sums one
//! after the other.

use std::collections::{HashMap, HashSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use turnmill_schema::{Sampling, TokenLogprobs};

use super::{Choice, NoLogits};

/// As [`super::Sampler`].
pub struct Reference {
    sampling: Sampling,
    generator: ChaCha8Rng,
    /// Tokens of prompt and reply, for the repetition penalty; empty where it is off.
    seen: HashSet<u32>,
    /// How often each token is in the reply.
    counts: HashMap<u32, u32>,
    made: u32,
}

impl Reference {
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
            return Err(NoLogits::Unusable);
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
        let token = token.ok_or(NoLogits::Unusable)?;
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
fn likeliest(logits: &[f32]) -> Option<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    for (logit, token) in logits.iter().zip(0u32..) {
        if *logit > best.0 {
            best = (*logit, Some(token));
        }
    }
    best.1
}

/// Natural logarithm of the sum of `exp(logit)`, in f64.
fn log_sum_exp(logits: &[f32]) -> f64 {
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
