//! Log-probabilities of a row of logits.

use turnmill_schema::TokenLogprobs;

use super::{Candidate, by_weight, keep_top};
use crate::model::simd::{Isa, logits};

/// Natural logarithm of the sum of `exp(logit)`, in f64; NaN if a logit is, or nothing is finite.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let survey = logits::survey(Isa::detect(), row);
    if survey.has_nan || !survey.largest.is_finite() {
        return f64::NAN;
    }
    f64::from(survey.largest) + logits::exp_sum(Isa::detect(), row, survey.largest).ln()
}

/// The log-probability of `token` among `row`, and those of the `count` likeliest.
pub fn of(row: &[f32], token: u32, count: usize, candidates: &mut Vec<Candidate>) -> TokenLogprobs {
    let normaliser = log_sum_exp(row);
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    keep_top(row, count, candidates);
    candidates.sort_unstable_by(by_weight);
    TokenLogprobs {
        logprob: logprob(row[token as usize]),
        top: candidates.iter().map(|(logit, token)| (*token, logprob(*logit))).collect(),
        bytes: Vec::new(),
    }
}
