//! The tokens that a step's rows give: turns side by side on the kernels' pool of threads, the rows of one turn in order.
//!
//! Invariant: a turn's tokens depend on its own rows and state, so who samples beside it, and on which thread, changes nothing.

use rayon::prelude::*;
use turnmill_schema::{TokenBytes, TokenLogprobs};

use super::{Added, Reply};
use crate::model::{Choice, NoLogits, Sampler};

/// Ask the pool from this many logits on: with fewer, one thread is done (0.1 ms) about when the others would have woken up. A
/// logit counts [`DRAWN`] times if it is drawn from, and [`MASKED`] times more if a grammar has a say.
const SHARED_LOGITS: usize = 1 << 18;

/// How much longer a draw takes than the search for the likeliest token.
const DRAWN: usize = 5;

/// How much longer a grammar takes to say which tokens may come than that search: about as long on the average, ten times as
/// long at the 99th percentile.
const MASKED: usize = 4;

/// The rows of one turn in a step.
pub struct Rows<'a> {
    /// Chooses its tokens.
    pub sampler: &'a mut Sampler,
    /// Takes them.
    pub reply: &'a mut Reply,
    /// Its last token, and those that were proposed to follow it.
    pub tokens: &'a [u32],
    /// The logits after each of `tokens`. They are changed.
    pub logits: Vec<&'a mut [f32]>,
}

/// A token that was sampled.
#[derive(Debug, PartialEq)]
pub struct Sample {
    /// Which.
    pub token: u32,
    /// What it added to the reply, which ended if it says so.
    pub added: Added,
    /// Log-probabilities, if the turn asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why a turn has no next token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsampled {
    /// There is none to choose.
    #[error(transparent)]
    Logits(#[from] NoLogits),
    /// Its grammar cannot be followed any further.
    #[error("{0}")]
    Stuck(String),
}

/// The next tokens of every turn. Nothing follows an error or the end of the reply.
pub fn sample(rows: Vec<Rows<'_>>) -> Vec<Vec<Result<Sample, Unsampled>>> {
    if rows.len() > 1 && rows.iter().map(Rows::cost).sum::<usize>() >= SHARED_LOGITS {
        rows.into_par_iter().with_max_len(1).map(Rows::sample).collect()
    } else {
        rows.into_iter().map(Rows::sample).collect()
    }
}

impl Rows<'_> {
    /// In logits that are only compared.
    fn cost(&self) -> usize {
        let logits: usize = self.logits.iter().map(|row| row.len()).sum();
        let chosen = if self.sampler.is_greedy() { 1 } else { DRAWN };
        logits * (chosen + if self.reply.is_guided() { MASKED } else { 0 })
    }

    /// A row counts if its token is what was sampled before it; so these are the tokens that the turn would make row by row.
    fn sample(self) -> Vec<Result<Sample, Unsampled>> {
        let Self { sampler, reply, tokens, logits } = self;
        let mut samples = Vec::with_capacity(1);
        for (row, logits) in logits.into_iter().enumerate() {
            let sample = next(sampler, reply, logits);
            let goes_on = sample.as_ref().is_ok_and(|sample| {
                sample.added.finish.is_none() && tokens.get(row + 1) == Some(&sample.token)
            });
            samples.push(sample);
            if !goes_on {
                break;
            }
        }
        samples
    }
}

/// The token that follows in `reply`.
fn next(sampler: &mut Sampler, reply: &mut Reply, logits: &mut [f32]) -> Result<Sample, Unsampled> {
    let mask = reply.mask().map_err(Unsampled::Stuck)?;
    let Choice { token, mut logprobs } = sampler.sample(logits, mask.as_ref())?;
    if let Some(TokenLogprobs { top, bytes, .. }) = &mut logprobs {
        let ids = std::iter::once(token).chain(top.iter().map(|(id, _)| *id));
        bytes.extend(ids.map(|id| TokenBytes(reply.spelling(id))));
    }
    Ok(Sample { token, added: reply.push(token), logprobs })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use turnmill_schema::Sampling;

    use super::*;
    use crate::engine::Form;
    use crate::model::Tokenizer;

    const VOCABULARY: usize = 40_000;

    fn turn(seed: u64, change: impl FnOnce(&mut Sampling)) -> (Sampler, Reply) {
        let mut sampling = Sampling { seed: Some(seed), ..Sampling::default() };
        change(&mut sampling);
        let bytes = (0..VOCABULARY).map(|token| vec![b'a' + (token % 26) as u8]).collect();
        let tokenizer = Arc::new(Tokenizer::of_bytes(bytes, vec![0]));
        let reply = Reply::new(tokenizer, &sampling, 100, Form::default());
        (Sampler::new(sampling, &[], &[]), reply)
    }

    /// A row in which `token` is the likeliest.
    fn row(token: u32) -> Vec<f32> {
        let mut row: Vec<f32> = (0..VOCABULARY).map(|i| (i as f32 * 0.37).sin()).collect();
        row[token as usize] = 30.0;
        row
    }

    fn sampled((sampler, reply): &mut (Sampler, Reply), tokens: &[u32], rows: &mut [Vec<f32>]) -> Vec<u32> {
        let logits = rows.iter_mut().map(Vec::as_mut_slice).collect();
        let mut samples = sample(vec![Rows { sampler, reply, tokens, logits }]);
        let samples = samples.pop().expect("one turn");
        samples.into_iter().map(|sample| sample.expect("finite logits").token).collect()
    }

    #[test]
    fn turns_sample_together_what_each_samples_alone() {
        let turns = || -> Vec<_> { (0..6).map(|seed| turn(seed, |s| s.top_p = 0.9)).collect() };
        let (mut alone, mut together) = (turns(), turns());
        // Nearly flat, so that each turn has a token of its own.
        let flat = |token| row(token).into_iter().map(|x| x / 9.0).collect::<Vec<_>>();
        for step in 0..3 {
            let mut rows: Vec<_> = (0..6).map(|turn| flat(turn + step)).collect();
            let expected =
                alone.iter_mut().zip(&rows).map(|(turn, row)| sampled(turn, &[7], &mut [row.clone()]));
            let expected: Vec<_> = expected.collect();
            let rows = together.iter_mut().zip(&mut rows);
            let rows =
                rows.map(|((sampler, reply), row)| Rows { sampler, reply, tokens: &[7], logits: vec![row] });
            let rows: Vec<_> = rows.collect();
            assert!(rows.iter().map(Rows::cost).sum::<usize>() >= SHARED_LOGITS, "the pool is asked");
            let found = sample(rows).into_iter().map(|samples| {
                samples.into_iter().map(|sample| sample.expect("finite logits").token).collect::<Vec<_>>()
            });
            assert_eq!(found.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn proposed_tokens_count_as_far_as_they_are_sampled() {
        let greedy = |s: &mut Sampling| s.temperature = 0.0;
        let rows = || [row(11), row(12), row(13)];
        assert_eq!(sampled(&mut turn(0, greedy), &[10, 11, 12], &mut rows()), [11, 12, 13]);
        assert_eq!(sampled(&mut turn(0, greedy), &[10, 11, 99], &mut rows()), [11, 12]);
        assert_eq!(sampled(&mut turn(0, greedy), &[10, 99, 12], &mut rows()), [11]);
        // Nothing follows the end.
        assert_eq!(sampled(&mut turn(0, greedy), &[10, 0, 12], &mut [row(0), row(12), row(13)]), [0]);
    }

    #[test]
    fn a_turn_does_not_end_before_it_may_and_bad_logits_are_its_own() {
        let mut short = turn(0, |s| (s.temperature, s.min_tokens) = (0.0, 1));
        let mut likes_the_end = row(0);
        likes_the_end[5] = 20.0;
        assert_eq!(sampled(&mut short, &[10], &mut [likes_the_end.clone()]), [5]);
        assert_eq!(sampled(&mut short, &[5], &mut [likes_the_end]), [0]);
        let (mut good, mut bad) = (turn(1, |_| ()), turn(2, |_| ()));
        let (mut good_row, mut bad_row) = (row(3), vec![f32::NAN; VOCABULARY]);
        let rows = [(&mut bad, &mut bad_row), (&mut good, &mut good_row)];
        let rows =
            rows.map(|((sampler, reply), row)| Rows { sampler, reply, tokens: &[7], logits: vec![row] });
        let samples = sample(rows.into());
        assert_eq!(samples[0], [Err(NoLogits::Unusable.into())]);
        assert_eq!(samples[1].len(), 1);
        assert!(samples[1][0].is_ok());
    }
}
