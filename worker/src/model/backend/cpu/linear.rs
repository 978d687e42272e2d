//! Products of the CPU backend: our own where the weights mode allows, candle's where it does not.

use bytemuck::Zeroable;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::ROWS_A_TASK;
use super::memory::{Memory, Rows};
use crate::config::WeightsMode;
use crate::model::matrix::CandleMatrix;
use crate::model::simd::q8::{BlockQ8_0, Epilogue, GROUP, PANEL, PackedQ8, QuantisedRows, multiply, round};
use crate::model::simd::tiles::Tiles;
use crate::model::simd::{Isa, rows};

/// Panels that a task takes at least: whole lines of output, and enough weights to be worth a hand-over.
const PANELS_A_TASK: usize = 4;
/// Rows that a task takes at most, so that long prefills keep every thread busy to the end.
const ROWS_A_TILE: usize = 128;

/// Blocks that a thread rounds at a time.
const BLOCKS_A_TASK: usize = 4096;

/// Stacked matrices that read the same rows.
pub struct Linear {
    outputs: usize,
    weights: Weights,
    bias: Option<Vec<f32>>,
}

enum Weights {
    Packed(PackedQ8),
    /// In the order of their outputs.
    Candle(Vec<CandleMatrix>),
}

/// Whether a matrix with `inputs` inputs can be packed.
pub fn packs(inputs: usize) -> bool {
    inputs.is_multiple_of(GROUP)
}

impl Linear {
    /// Takes matrices of the checkpoint into `mode`.
    pub fn new(isa: Isa, parts: Vec<QTensor>, bias: Option<Vec<f32>>, mode: WeightsMode) -> Result<Self> {
        let (mut outputs, mut inputs) = (0, 0);
        for part in &parts {
            let (part_outputs, part_inputs) = part.shape().dims2()?;
            outputs += part_outputs;
            inputs = part_inputs;
        }
        let weights = match mode == WeightsMode::Fast && packs(inputs) {
            true => Weights::Packed(pack(isa, &parts, outputs, inputs)?),
            // Shapes without whole groups keep their full precision.
            false => {
                let mode = if mode == WeightsMode::Fast { WeightsMode::F32 } else { mode };
                let parts = parts.into_iter().map(|part| CandleMatrix::new(part, mode));
                Weights::Candle(parts.collect::<Result<_>>()?)
            }
        };
        Ok(Self { outputs, weights, bias })
    }

    /// Elements of a row of results.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `x · Wᵀ + bias`, in place of what `out` holds or, for `add`, added to it.
    pub fn forward(&self, isa: Isa, x: &Rows, out: &mut Rows, memory: &mut Memory, add: bool) -> Result<()> {
        let epilogue = match &self.bias {
            _ if add => Epilogue::Add,
            Some(bias) => Epilogue::Bias(bias),
            None => Epilogue::Replace,
        };
        match &self.weights {
            Weights::Packed(weights) => {
                let mut quantised = std::mem::take(&mut memory.quantised);
                quantise(isa, x, &mut quantised);
                product(isa, weights, &quantised, out, epilogue);
                memory.quantised = quantised;
            }
            Weights::Candle(parts) => {
                let x = Tensor::from_slice(&x.values, (x.rows(), x.width), &Device::Cpu)?;
                let results: Vec<Tensor> =
                    parts.iter().map(|part| part.forward(&x)).collect::<Result<_>>()?;
                let result = Tensor::cat(&results, 1)?.flatten_all()?.to_vec1::<f32>()?;
                let rows = out.values.chunks_exact_mut(self.outputs).zip(result.chunks_exact(self.outputs));
                rows.for_each(|(out, result)| epilogue.store(result, 0, out));
            }
        }
        Ok(())
    }
}

fn quantise(isa: Isa, x: &Rows, quantised: &mut QuantisedRows) {
    quantised.resize(x.rows(), x.width);
    if x.rows() <= ROWS_A_TASK {
        quantised.chunks_mut(x.rows()).into_iter().for_each(|chunk| rows::quantise(isa, &x.values, chunk));
        return;
    }
    let chunks = quantised.chunks_mut(ROWS_A_TASK).into_par_iter();
    chunks
        .zip(x.values.par_chunks(ROWS_A_TASK * x.width))
        .for_each(|(chunk, x)| rows::quantise(isa, x, chunk));
}

/// Shares the product out by columns, and by rows where there are many.
fn product(isa: Isa, weights: &PackedQ8, x: &QuantisedRows, out: &mut Rows, epilogue: Epilogue<'_>) {
    let (rows, outputs) = (x.rows(), weights.outputs());
    let tasks = 2 * rayon::current_num_threads();
    let panels = outputs.div_ceil(PANEL).div_ceil(tasks).next_multiple_of(PANELS_A_TASK);
    let columns = panels * PANEL;
    let cuts = (0..rows).step_by(ROWS_A_TILE).flat_map(|row| {
        let rows = row..rows.min(row + ROWS_A_TILE);
        let cut = move |column| (rows.clone(), column..outputs.min(column + columns));
        (0..outputs).step_by(columns).map(cut)
    });
    let tiles = Tiles::new(&mut out.values, outputs).cut(cuts);
    tiles
        .into_par_iter()
        .with_max_len(1)
        .for_each(|mut tile| multiply(isa, weights, x, &mut tile, 0, epilogue));
}

/// Packs stacked matrices; what is not Q8_0 already is rounded to it.
fn pack(isa: Isa, parts: &[QTensor], outputs: usize, inputs: usize) -> Result<PackedQ8> {
    let mut blocks: Vec<BlockQ8_0> = Vec::with_capacity(outputs * inputs / GROUP);
    for part in parts {
        if part.dtype() == GgmlDType::Q8_0 {
            blocks.extend_from_slice(bytemuck::cast_slice(&part.data()?));
            continue;
        }
        let values = part.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let first = blocks.len();
        blocks.resize(first + values.len() / GROUP, BlockQ8_0::zeroed());
        let chunks =
            blocks[first..].par_chunks_mut(BLOCKS_A_TASK).zip(values.par_chunks(BLOCKS_A_TASK * GROUP));
        chunks.for_each(|(blocks, values)| round(isa, values, blocks));
    }
    let mut packed = PackedQ8::zeroed(outputs, inputs)?;
    let groups = inputs / GROUP;
    let panels: Vec<_> = packed.panels_mut().zip(blocks.chunks(PANEL * groups)).collect();
    panels.into_par_iter().for_each(|(mut panel, rows)| {
        rows.chunks_exact(groups).enumerate().for_each(|(column, row)| panel.set(column, row));
    });
    Ok(packed)
}
