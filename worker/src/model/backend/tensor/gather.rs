//! Attention for every device: K and V of each sequence's context are gathered from their slots, then multiplied.
//!
//! Rows are attended in groups: as many rows of each of some sequences, whose contexts are padded to one length. A padded
//! place repeats a slot of the sequence's own that was written in this step, so nothing is gathered that holds nothing yet
//! and could be anything, NaN included.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::pool::TensorPool;
use crate::model::backend::AttentionShape;
use crate::schedule::StepPlan;

/// Scores of one head that a group computes at once, at most, unless it is a single row's.
const GROUP_SCORES: usize = 1 << 19;
/// Slots that a group gathers, at most, unless it is of one sequence.
const GROUP_SLOTS: usize = 1 << 15;

/// Some consecutive rows of one sequence and what they see.
#[derive(Clone, Debug)]
struct Piece {
    /// Its first row in the step.
    first_row: usize,
    rows: usize,
    /// Position of its first row.
    first_position: usize,
    /// First position that any of its rows sees.
    start: usize,
    /// Index of the sequence in the plan.
    sequence: usize,
}

impl Piece {
    /// Positions that its rows see.
    fn context(&self) -> usize {
        self.first_position + self.rows - self.start
    }
}

/// Rows that are attended together.
struct Group {
    /// Sequences in it, or pieces of them.
    pieces: usize,
    /// Rows of each.
    rows: usize,
    /// Positions gathered for each.
    context: usize,
    /// Which rows of the step, `[pieces * rows]`.
    row_index: Tensor,
    /// Which slots, `[pieces * context]`.
    slots: Tensor,
    /// 0 where a row sees a position and minus infinity elsewhere, `[pieces, 1, rows, context]`; none where all see all.
    mask: Option<Tensor>,
}

/// A step's groups for layers of one window.
pub struct Gathering {
    groups: Vec<Group>,
    /// Where each row of the step is among the groups' rows; none where they are in order.
    order: Option<Tensor>,
}

impl Gathering {
    /// Cuts the rows of `plan` into groups.
    pub fn new(plan: &StepPlan, block_tokens: usize, window: Option<usize>, device: &Device) -> Result<Self> {
        let mut pieces = pieces(plan, window);
        pieces.sort_by_key(|piece| (piece.rows, piece.context()));
        let groups: Vec<&[Piece]> = grouped(&pieces).collect();
        let rows: Vec<u32> = pieces.iter().flat_map(rows_of).collect();
        let mut order = vec![0u32; rows.len()];
        rows.iter().zip(0..).for_each(|(row, place)| order[*row as usize] = place);
        let in_order = order.is_sorted();
        Ok(Self {
            groups: groups
                .into_iter()
                .map(|group| Group::new(group, plan, block_tokens, window, device))
                .collect::<Result<_>>()?,
            order: if in_order { None } else { Some(Tensor::new(order, device)?) },
        })
    }

    /// Attention of all rows; `queries` `[T, heads * head_dim]` gives as much.
    pub fn attend(&self, queries: &Tensor, pool: &TensorPool, shape: &AttentionShape) -> Result<Tensor> {
        let parts = self.groups.iter().map(|group| group.attend(queries, pool, shape));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let rows = Tensor::cat(&parts, 0)?;
        match &self.order {
            Some(order) => rows.index_select(order, 0),
            None => Ok(rows),
        }
    }
}

fn rows_of(piece: &Piece) -> std::ops::Range<u32> {
    piece.first_row as u32..(piece.first_row + piece.rows) as u32
}

/// Every sequence in pieces whose scores fit [`GROUP_SCORES`].
fn pieces(plan: &StepPlan, window: Option<usize>) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(plan.sequences.len());
    let mut first_row = 0;
    for (sequence, planned) in plan.sequences.iter().enumerate() {
        let (rows, context) = (planned.query_tokens as usize, planned.context_tokens as usize);
        let most = (GROUP_SCORES / context).max(1);
        for done in (0..rows).step_by(most) {
            let first_position = context - rows + done;
            pieces.push(Piece {
                first_row: first_row + done,
                rows: most.min(rows - done),
                first_position,
                start: window.map_or(0, |window| (first_position + 1).saturating_sub(window)),
                sequence,
            });
        }
        first_row += rows;
    }
    pieces
}

/// Runs of pieces, sorted by rows and context, that have as many rows and not too different contexts.
fn grouped(pieces: &[Piece]) -> impl Iterator<Item = &[Piece]> {
    let mut rest = pieces;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let fits = |(index, piece): &(usize, &Piece)| {
            let slots = (index + 1) * piece.context();
            piece.rows == first.rows
                && piece.context() <= 2 * first.context()
                && slots <= GROUP_SLOTS
                && slots * piece.rows <= GROUP_SCORES
        };
        let count = 1 + rest.iter().enumerate().skip(1).take_while(fits).count();
        let (group, others) = rest.split_at(count);
        rest = others;
        Some(group)
    })
}

impl Group {
    fn new(
        pieces: &[Piece],
        plan: &StepPlan,
        block_tokens: usize,
        window: Option<usize>,
        device: &Device,
    ) -> Result<Self> {
        let rows = pieces[0].rows;
        let context = pieces.iter().map(Piece::context).max().expect("a group has pieces");
        let mut slots = Vec::with_capacity(pieces.len() * context);
        let mut mask = Vec::with_capacity(pieces.len() * rows * context);
        for piece in pieces {
            let blocks = &plan.sequences[piece.sequence].blocks;
            let slot = |position: usize| {
                blocks[position / block_tokens].0 * block_tokens as u32 + (position % block_tokens) as u32
            };
            let last = piece.first_position + rows - 1;
            slots.extend((piece.start..piece.start + context).map(|position| slot(position.min(last))));
            for row in piece.first_position..=last {
                let sees = |position| position <= row && window.is_none_or(|window| position + window > row);
                let score = |position| if sees(position) { 0.0 } else { f32::NEG_INFINITY };
                mask.extend((piece.start..piece.start + context).map(score));
            }
        }
        let masked = mask.iter().any(|score| *score != 0.0);
        Ok(Self {
            pieces: pieces.len(),
            rows,
            context,
            row_index: Tensor::new(pieces.iter().flat_map(rows_of).collect::<Vec<_>>(), device)?,
            slots: Tensor::new(slots, device)?,
            mask: masked
                .then(|| Tensor::from_vec(mask, (pieces.len(), 1, rows, context), device))
                .transpose()?,
        })
    }

    /// `[pieces * rows, heads * head_dim]`. Query heads of one KV head are multiplied together.
    fn attend(&self, queries: &Tensor, pool: &TensorPool, shape: &AttentionShape) -> Result<Tensor> {
        let Self { pieces, rows, context, .. } = *self;
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        let group = heads / kv_heads;
        let queries = (queries.index_select(&self.row_index, 0)? * f64::from(shape.scale))?
            .reshape((pieces, rows, kv_heads, group, head_dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((pieces, kv_heads, group * rows, head_dim))?;
        let (keys, values) = pool.gather(shape.layer, &self.slots)?;
        let by_head = |tensor: Tensor| {
            tensor.reshape((pieces, context, kv_heads, head_dim))?.transpose(1, 2)?.contiguous()
        };
        let scores = queries.matmul(&by_head(keys)?.t()?)?.reshape((pieces, heads, rows, context))?;
        let weights = softmax_last_dim(&self.masked(scores, shape.soft_cap)?)?;
        let weights = weights.reshape((pieces, kv_heads, group * rows, context))?;
        weights
            .matmul(&by_head(values)?)?
            .reshape((pieces, kv_heads, group, rows, head_dim))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((pieces * rows, heads * head_dim))
    }

    fn masked(&self, scores: Tensor, soft_cap: Option<f32>) -> Result<Tensor> {
        let scores = match soft_cap.map(f64::from) {
            Some(cap) => ((scores / cap)?.tanh()? * cap)?,
            None => scores,
        };
        match &self.mask {
            Some(mask) => scores.broadcast_add(mask),
            None => Ok(scores),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KvDtype;
    use crate::kv::BlockId;
    use crate::model::backend::KvShape;
    use crate::schedule::{PlannedSequence, SequenceId};

    const BLOCK_TOKENS: usize = 16;

    /// Floats in [-1, 1) that look random.
    fn noise(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// Sequences of (rows, context), whose blocks lie in reverse; and a pool with NaN wherever nobody wrote.
    struct Scene {
        plan: StepPlan,
        pool: TensorPool,
        keys: Vec<f32>,
        values: Vec<f32>,
    }

    impl Scene {
        fn new(sequences: &[(u32, u32)], shape: &AttentionShape) -> Self {
            let mut plan = StepPlan::default();
            let mut next = 1;
            for ((query_tokens, context_tokens), id) in sequences.iter().copied().zip(0..) {
                let count = context_tokens.div_ceil(BLOCK_TOKENS as u32);
                let blocks: Vec<BlockId> = (next..next + count).rev().map(BlockId).collect();
                next += count;
                let id = SequenceId(id);
                plan.sequences.push(PlannedSequence { id, query_tokens, context_tokens, blocks, samples: 1 });
            }
            let kv = KvShape {
                layers: 1,
                blocks: next as usize,
                block_tokens: BLOCK_TOKENS,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
                dtype: KvDtype::F32,
            };
            let slots: Vec<u32> = plan
                .sequences
                .iter()
                .flat_map(|s| (0..s.context_tokens).map(|position| slot(s, position as usize)))
                .collect();
            let pool = TensorPool::new(kv, &Device::Cpu).expect("room");
            let nowhere: Vec<u32> = (0..next * BLOCK_TOKENS as u32).collect();
            let width = kv.token_elements();
            let write = |slots: &[u32], keys: &[f32], values: &[f32]| {
                let rows = |x: &[f32]| Tensor::from_slice(x, (slots.len(), width), &Device::Cpu);
                let (keys, values) = (rows(keys).expect("rows"), rows(values).expect("rows"));
                let targets = pool.targets(slots).expect("targets");
                pool.write(0, &targets, &keys, &values).expect("written");
            };
            let nan = vec![f32::NAN; nowhere.len() * width];
            write(&nowhere, &nan, &nan);
            let (keys, values) = (noise(1, slots.len() * width), noise(2, slots.len() * width));
            write(&slots, &keys, &values);
            Self { plan, pool, keys, values }
        }

        fn rows(&self) -> usize {
            self.plan.sequences.iter().map(|s| s.query_tokens as usize).sum()
        }

        /// Attention by its definition, in f64.
        fn expected(&self, queries: &[f32], shape: &AttentionShape) -> Vec<f32> {
            let (width, query_width) = (shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim);
            let mut out = Vec::new();
            let (mut row, mut first_token) = (0, 0);
            for sequence in &self.plan.sequences {
                let (rows, context) = (sequence.query_tokens as usize, sequence.context_tokens as usize);
                for position in context - rows..context {
                    for head in 0..shape.heads {
                        let query = &queries[row * query_width + head * shape.head_dim..][..shape.head_dim];
                        let vector = |all: &[f32], seen: usize| {
                            let start = (first_token + seen) * width + head / shape.group() * shape.head_dim;
                            all[start..start + shape.head_dim].to_vec()
                        };
                        let sees = |seen: &usize| shape.window.is_none_or(|window| seen + window > position);
                        let seen: Vec<usize> = (0..=position).filter(sees).collect();
                        let weight = |seen: &usize| {
                            let key = vector(&self.keys, *seen);
                            let dot: f64 =
                                query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(k)).sum();
                            let score = dot * f64::from(shape.scale);
                            shape
                                .soft_cap
                                .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                                .exp()
                        };
                        let weights: Vec<f64> = seen.iter().map(weight).collect();
                        let sum: f64 = weights.iter().sum();
                        let mut value = vec![0.0f64; shape.head_dim];
                        for (seen, weight) in seen.iter().zip(&weights) {
                            let vector = vector(&self.values, *seen);
                            value
                                .iter_mut()
                                .zip(vector)
                                .for_each(|(to, v)| *to += weight / sum * f64::from(v));
                        }
                        out.extend(value.iter().map(|v| *v as f32));
                    }
                    row += 1;
                }
                first_token += context;
            }
            out
        }
    }

    fn slot(sequence: &PlannedSequence, position: usize) -> u32 {
        sequence.blocks[position / BLOCK_TOKENS].0 * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32
    }

    fn shape(heads: usize, kv_heads: usize, window: Option<usize>, soft_cap: Option<f32>) -> AttentionShape {
        let (head_dim, scale, norm_epsilon) = (16, 0.25, 0.0);
        AttentionShape { layer: 0, heads, kv_heads, head_dim, scale, window, soft_cap, norm_epsilon }
    }

    #[test]
    fn it_is_attention_by_definition_over_ragged_batches_windows_and_caps() {
        let batches: [&[(u32, u32)]; 4] = [
            &[(1, 1)],
            &[(1, 40), (7, 30), (1, 33), (20, 20), (1, 100), (7, 7)],
            &[(1, 17), (1, 16), (1, 15), (1, 300)],
            &[(33, 600)],
        ];
        for batch in batches {
            for (heads, kv_heads) in [(4, 4), (6, 2), (3, 1)] {
                for window in [None, Some(1), Some(5), Some(1000)] {
                    for soft_cap in [None, Some(0.7)] {
                        let shape = shape(heads, kv_heads, window, soft_cap);
                        let scene = Scene::new(batch, &shape);
                        let queries = noise(3, scene.rows() * shape.query_width());
                        let expected = scene.expected(&queries, &shape);
                        let queries = (queries, (scene.rows(), shape.query_width()));
                        let queries = Tensor::from_vec(queries.0, queries.1, &Device::Cpu).expect("rows");
                        let found: Vec<f32> = Gathering::new(&scene.plan, BLOCK_TOKENS, window, &Device::Cpu)
                            .and_then(|gathering| gathering.attend(&queries, &scene.pool, &shape))
                            .and_then(|found| found.flatten_all()?.to_vec1())
                            .expect("attention");
                        assert_eq!(found.len(), expected.len());
                        let far = found
                            .iter()
                            .zip(&expected)
                            .find(|(f, e)| (*f - *e).abs().is_nan() || (*f - *e).abs() > 1e-4);
                        assert_eq!(far, None, "{batch:?} {shape:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn groups_are_bounded_and_hold_every_row_once() {
        let shape = shape(1, 1, None, None);
        let mut batch = vec![(1, 5000); 20];
        batch.extend([(512, 3000), (1, 1), (2, 4)]);
        let scene = Scene::new(&batch, &shape);
        for window in [None, Some(64)] {
            let gathering = Gathering::new(&scene.plan, BLOCK_TOKENS, window, &Device::Cpu).expect("groups");
            let mut rows = Vec::new();
            for group in &gathering.groups {
                assert!(group.pieces == 1 || group.pieces * group.context <= GROUP_SLOTS);
                assert!(group.rows == 1 || group.pieces * group.rows * group.context <= GROUP_SCORES);
                rows.extend(group.row_index.to_vec1::<u32>().expect("rows"));
            }
            rows.sort_unstable();
            assert_eq!(rows, (0..scene.rows() as u32).collect::<Vec<_>>());
        }
    }
}
