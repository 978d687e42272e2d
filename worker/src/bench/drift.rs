//! What a codec does to a model's words: next-token distributions over blocks that went through it.
//!
//! A text is computed in segments, once for each codec and once as the measure, where blocks are stored as f16.
//! After each segment its blocks are replaced by what decoding their encoded form gives, so that every later token
//! attends to what a worker that restores them would read. Counted are the tokens after the first segment: those in
//! it have nothing stored before them.

use std::ops::{AddAssign, Range};

use rayon::prelude::*;
use serde::Serialize;

use crate::config::KvCodec;
use crate::kv::codec::Coding;
use crate::kv::{BlockId, BlockShape, SEGMENT_TOKENS};
use crate::model::{
    Engine, EngineError, LoadOptions, Logits, Model, ModelChoice, ModelError, TextError, likeliest,
    log_sum_exp,
};
use crate::schedule::{PlannedSequence, SequenceId, StepPlan};

// Written for this measurement: prose, dialogue, a table, a program and numbers, some 2,400 tokens.
const TEXT: &str = include_str!("../../data/drift.txt");
/// Tokens in a block.
const BLOCK_TOKENS: usize = 16;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model file.
    pub model: ModelChoice,
    /// Codecs to compare with f16.
    pub codecs: Vec<KvCodec>,
}

/// How far one codec's distributions are from those over blocks stored as f16.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Which codec.
    pub codec: KvCodec,
    /// Tokens whose next-token distributions were compared.
    pub tokens: usize,
    /// Share of them, from 0 to 1, whose likeliest next token is the same.
    pub top1_agreement: f64,
    /// Mean KL divergence from the distributions over f16, in nats.
    pub mean_kl: f64,
    /// Perplexity of the text.
    pub perplexity: f64,
    /// Perplexity of the text over blocks stored as f16.
    pub perplexity_f16: f64,
    /// Bytes of K and V a token in the store.
    pub bytes_per_token: usize,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its vocabulary has no tokens for the text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A step failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Nothing would follow the first stored segment.
    #[error(
        "the model holds {0} tokens, and drift shows after {SEGMENT_TOKENS}; measure a model with a longer context"
    )]
    TooShort(usize),
}

/// Measures; `progress` is called with tokens done and tokens in all.
pub fn run(options: &Options, progress: &dyn Fn(usize, usize)) -> Result<Vec<Drift>, DriftError> {
    let mut bench = Bench::new(options)?;
    let end = bench.tokens.len();
    for start in (0..end).step_by(SEGMENT_TOKENS) {
        progress(start, end);
        bench.segment(start..end.min(start + SEGMENT_TOKENS))?;
    }
    Ok(bench.drifts())
}

/// One codec's copy of the text.
struct Lane {
    codec: KvCodec,
    coding: Coding,
    /// The blocks of its tokens start here.
    first_block: usize,
    sums: Sums,
}

struct Bench {
    model: Model,
    shape: BlockShape,
    tokens: Vec<u32>,
    /// The measure, then the codecs.
    lanes: Vec<Lane>,
}

impl Bench {
    fn new(options: &Options) -> Result<Self, DriftError> {
        let load = options.model.load_options();
        let mut load = LoadOptions { block_tokens: BLOCK_TOKENS, ..load };
        // No token has less than a byte, so that the text bounds each lane; memory that is not written is not taken.
        let lane_blocks = TEXT.len().div_ceil(BLOCK_TOKENS);
        let lanes = 1 + options.codecs.len();
        load.pool_bytes = lanes * lane_blocks * BLOCK_TOKENS * load.token_bytes(&options.model.path)?;
        let model = Model::load(&options.model.path, &load, &|_, _| ())?;
        let mut tokens = model.tokenizer.encode(TEXT)?;
        tokens.truncate(model.context_tokens);
        if tokens.len() <= SEGMENT_TOKENS + 1 {
            return Err(DriftError::TooShort(tokens.len()));
        }
        let shape = model.block_shape;
        let codecs = std::iter::once(KvCodec::F16).chain(options.codecs.iter().copied());
        let lane = |(index, codec)| Lane {
            codec,
            coding: Coding::new(codec, &shape),
            first_block: index * lane_blocks,
            sums: Sums::default(),
        };
        let lanes = codecs.enumerate().map(lane).collect();
        Ok(Self { model, shape, tokens, lanes })
    }

    /// Computes the tokens `rows` in every lane, compares, and stores their blocks.
    fn segment(&mut self, rows: Range<usize>) -> Result<(), DriftError> {
        let mut measure = None;
        for index in 0..self.lanes.len() {
            let plan = plan(&self.tokens, rows.clone(), self.lanes[index].first_block);
            let logits = self.model.engine.forward(&plan)?;
            let measure = measure.get_or_insert_with(|| logits.clone());
            if rows.start > 0 {
                self.lanes[index].sums += compare(measure, &logits, &self.tokens[rows.start + 1..]);
            }
            // What is left over does not fill a block, and ends the text.
            self.replace(index, rows.start / BLOCK_TOKENS..rows.end / BLOCK_TOKENS)?;
        }
        Ok(())
    }

    /// Sends blocks of a lane through its codec.
    fn replace(&mut self, lane: usize, blocks: Range<usize>) -> Result<(), DriftError> {
        let Lane { coding, first_block, .. } = &self.lanes[lane];
        let ids: Vec<BlockId> = blocks.map(|block| BlockId((first_block + block) as u32)).collect();
        let mut data = self.model.engine.read_blocks(&ids)?;
        let elements = data.len() / self.shape.element_bytes();
        let mut encoded = vec![0; coding.encoded_bytes(elements).expect("it is smaller than the pool")];
        coding.encode(&data, &mut encoded);
        coding.decode(&encoded, &mut data);
        Ok(self.model.engine.write_blocks(0, &ids, &data)?)
    }

    fn drifts(&self) -> Vec<Drift> {
        let token_elements = self.shape.block_bytes() / self.shape.element_bytes() / BLOCK_TOKENS;
        let drift = |lane: &Lane| {
            let count = lane.sums.count as f64;
            Drift {
                codec: lane.codec,
                tokens: lane.sums.count,
                top1_agreement: lane.sums.agreed as f64 / count,
                mean_kl: lane.sums.divergence / count,
                perplexity: (lane.sums.surprise / count).exp(),
                perplexity_f16: (lane.sums.surprise_f16 / count).exp(),
                bytes_per_token: lane.coding.encoded_bytes(token_elements).expect("a token is small"),
            }
        };
        self.lanes[1..].iter().map(drift).collect()
    }
}

/// A step that samples after every one of `rows`: each is a sequence of one row over the same blocks. K and V of all
/// rows are written before any is read, and positions decide what a row reads.
fn plan(tokens: &[u32], rows: Range<usize>, first_block: usize) -> StepPlan {
    let blocks =
        |row: usize| (first_block..=first_block + row / BLOCK_TOKENS).map(|block| BlockId(block as u32));
    let sequence = |row: usize| PlannedSequence {
        id: SequenceId(row as u64),
        query_tokens: 1,
        context_tokens: row as u32 + 1,
        blocks: blocks(row).collect(),
        samples: 1,
    };
    StepPlan {
        tokens: tokens[rows.clone()].to_vec(),
        positions: rows.clone().map(|row| row as u32).collect(),
        slots: rows.clone().map(|row| (first_block * BLOCK_TOKENS + row) as u32).collect(),
        sequences: rows.map(sequence).collect(),
    }
}

/// What is summed over tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    count: usize,
    agreed: usize,
    divergence: f64,
    surprise: f64,
    surprise_f16: f64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.agreed += other.agreed;
        self.divergence += other.divergence;
        self.surprise += other.surprise;
        self.surprise_f16 += other.surprise_f16;
    }
}

/// Compares distributions row by row; `next` are the tokens that follow, and the last row of the text has none.
fn compare(measure: &Logits, other: &Logits, next: &[u32]) -> Sums {
    let rows: Vec<(&[f32], &[f32])> = measure.rows().zip(other.rows()).collect();
    let each: Vec<Sums> = rows.par_iter().zip(next).map(|((p, q), next)| compare_row(p, q, *next)).collect();
    // In order, so that the sums are the same every time.
    each.into_iter().fold(Sums::default(), |mut sums, row| {
        sums += row;
        sums
    })
}

fn compare_row(measure: &[f32], other: &[f32], next: u32) -> Sums {
    let (p_normaliser, q_normaliser) = (log_sum_exp(measure), log_sum_exp(other));
    let divergence = measure.iter().zip(other).map(|(p, q)| {
        let (p, q) = (f64::from(*p) - p_normaliser, f64::from(*q) - q_normaliser);
        p.exp() * (p - q)
    });
    Sums {
        count: 1,
        agreed: usize::from(likeliest(measure) == likeliest(other)),
        divergence: divergence.sum(),
        surprise: q_normaliser - f64::from(other[next as usize]),
        surprise_f16: p_normaliser - f64::from(measure[next as usize]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_do_not_drift() {
        let logits = Logits::new(vec![1.0, 2.0, 3.0, 0.0, 0.0, 0.0], 3);
        let shifted = Logits::new(vec![2.0, 3.0, 4.0, 5.0, 5.0, 5.0], 3);
        let sums = compare(&logits, &shifted, &[2, 0]);
        assert_eq!((sums.count, sums.agreed), (2, 2));
        assert!(sums.divergence.abs() < 1e-6 && (sums.surprise - sums.surprise_f16).abs() < 1e-6, "{sums:?}");
        assert_eq!(compare(&logits, &shifted, &[2]).count, 1, "the last row has no next token");
    }

    #[test]
    fn drift_is_what_the_formulas_say() {
        // Probabilities 1/4, 3/4 against 1/2, 1/2.
        let (p, q) = ([0.0, 3.0f32.ln()], [0.0, 0.0]);
        let sums = compare_row(&p, &q, 1);
        assert_eq!(sums.agreed, usize::from(likeliest(&p) == likeliest(&q)));
        let expected = 0.25 * (0.5f64).ln() + 0.75 * (1.5f64).ln();
        assert!((sums.divergence - expected).abs() < 1e-6, "{sums:?}");
        assert!((sums.surprise - 2f64.ln()).abs() < 1e-6, "{sums:?}");
        assert!((sums.surprise_f16 - (4.0 / 3.0f64).ln()).abs() < 1e-6, "{sums:?}");
        assert_eq!(compare_row(&[0.0, 1.0], &[1.0, 0.0], 0).agreed, 0);
    }

    #[test]
    fn every_row_reads_up_to_itself_in_its_lane() {
        let plan = plan(&[5; 40], 16..33, 100);
        assert_eq!((plan.tokens.len(), plan.positions[0], plan.slots[0]), (17, 16, 1616));
        let last = plan.sequences.last().expect("rows");
        assert_eq!((last.context_tokens, last.query_tokens), (33, 1));
        assert_eq!(last.blocks, [BlockId(100), BlockId(101), BlockId(102)]);
        assert_eq!(plan.sequences[0].blocks, [BlockId(100), BlockId(101)]);
    }
}
