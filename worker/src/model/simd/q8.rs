//! The quantised product: Q8_0 weights, activations quantised in the same groups of 32, `y = x · Wᵀ`.
//!
//! The weights lie in panels of 16 outputs. A panel has, for each group of 32 inputs, eight lines of 64 bytes; a line holds 4
//! consecutive inputs of each of the 16 outputs, so that one byte dot product advances 16 results by 4 inputs with the
//! activations broadcast. Weights are kept as `w + 128`, unsigned, which is what x86 multiplies with signed
//! bytes; the surplus, 128 times the sum of a group's activations, is taken off by starting the group's integer sum below
//! zero.
//!
//! The canonical order: `y = fold over groups g of fma(int_g as f32 * weight_scale_g, activation_scale_g, y)`, from 0. The
//! integer dot products are exact, so every instruction set gives the same bits.

mod kernels;

use std::io;

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::pages::LargePages;
use super::tiles::Tile;
use super::{Isa, LANES, Lanes, Vector, for_each_isa};

/// Inputs that share a scale.
pub const GROUP: usize = 32;
/// Outputs in a panel.
pub const PANEL: usize = 16;
/// Lines in a group of a panel.
const GROUP_LINES: usize = GROUP / 4;

/// Four inputs of each of a panel's outputs.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u8; 64]);

/// The format of GGUF's `Q8_0`: `w = scale * value`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ8_0 {
    /// The scale, f16.
    pub scale: u16,
    /// The values.
    pub values: [i8; GROUP],
}

for_each_isa! {
    /// Rounds weights in groups of 32: the scale is a 127th of the largest magnitude, as in llama.cpp.
    pub fn round(weights: &[f32], out: &mut [BlockQ8_0]) = round_groups
}

#[inline(always)]
fn round_groups<V: Vector>(weights: &[f32], out: &mut [BlockQ8_0]) {
    for (weights, out) in weights.as_chunks::<GROUP>().0.iter().zip(out) {
        let halves: &[Lanes] = weights.as_chunks().0;
        let (low, high) = (V::load(&halves[0]), V::load(&halves[1]));
        let scale = low.abs().max(high.abs()).largest() / 127.0;
        let inverse = V::splat(if scale > 1e-30 { 1.0 / scale } else { 0.0 });
        out.values[..LANES].copy_from_slice(&low.mul(inverse).to_i8());
        out.values[LANES..].copy_from_slice(&high.mul(inverse).to_i8());
        out.scale = f16::from_f32(scale).to_bits();
    }
}

/// A packed weight matrix `[outputs, inputs]`.
pub struct PackedQ8 {
    outputs: usize,
    groups: usize,
    /// `[panels, groups, GROUP_LINES]`.
    lines: LargePages<Line>,
    /// `[panels, groups]`.
    scales: LargePages<[f16; PANEL]>,
}

impl PackedQ8 {
    /// Memory for `outputs` rows of `inputs` weights, all with the scale 0. `inputs` is a multiple of [`GROUP`]; the last panel is padded.
    /// Fails where the system has no room.
    pub fn zeroed(outputs: usize, inputs: usize) -> io::Result<Self> {
        assert!(inputs.is_multiple_of(GROUP), "groups are whole");
        let (panels, groups) = (outputs.div_ceil(PANEL), inputs / GROUP);
        Ok(Self {
            outputs,
            groups,
            lines: LargePages::zeroed(panels * groups * GROUP_LINES)?,
            scales: LargePages::zeroed(panels * groups)?,
        })
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The memory of each panel, to be filled by [`PanelMut::set`], also by several threads.
    pub fn panels_mut(&mut self) -> impl Iterator<Item = PanelMut<'_>> {
        let groups = self.groups;
        let lines = self.lines.chunks_exact_mut(groups * GROUP_LINES);
        lines.zip(self.scales.chunks_exact_mut(groups)).map(|(lines, scales)| PanelMut { lines, scales })
    }
}

/// One panel while it is filled.
pub struct PanelMut<'a> {
    lines: &'a mut [Line],
    scales: &'a mut [[f16; PANEL]],
}

impl PanelMut<'_> {
    /// Sets the weights of the panel's output number `column`, all groups.
    pub fn set(&mut self, column: usize, blocks: &[BlockQ8_0]) {
        assert!(column < PANEL && blocks.len() == self.scales.len(), "a row has as many groups as the panel");
        for (group, block) in blocks.iter().enumerate() {
            self.scales[group][column] = f16::from_bits(block.scale);
            let lines = &mut self.lines[group * GROUP_LINES..][..GROUP_LINES];
            for (line, values) in lines.iter_mut().zip(block.values.chunks_exact(4)) {
                for (byte, value) in line.0[column * 4..][..4].iter_mut().zip(values) {
                    *byte = (*value as u8) ^ 128;
                }
            }
        }
    }
}

/// Activations in groups of 32 signed bytes with one scale each.
#[derive(Default)]
pub struct QuantisedRows {
    groups: usize,
    /// `[rows, groups, GROUP]`.
    values: Vec<[i8; GROUP]>,
    /// `[rows, groups]`; not a number where an activation is not finite.
    scales: Vec<f32>,
    /// `[rows, groups]`: minus 128 times the sum of the values.
    starts: Vec<i32>,
}

/// Some consecutive rows of [`QuantisedRows`] while they are filled.
pub struct QuantisedRowsMut<'a> {
    /// `[rows, groups, GROUP]`.
    pub values: &'a mut [[i8; GROUP]],
    /// `[rows, groups]`.
    pub scales: &'a mut [f32],
    /// `[rows, groups]`.
    pub starts: &'a mut [i32],
}

impl QuantisedRows {
    /// Makes room for `rows` rows of `inputs` activations, keeping the memory it has.
    pub fn resize(&mut self, rows: usize, inputs: usize) {
        self.groups = inputs / GROUP;
        self.values.resize(rows * self.groups, [0; GROUP]);
        self.scales.resize(rows * self.groups, 0.0);
        self.starts.resize(rows * self.groups, 0);
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.scales.len() / self.groups.max(1)
    }

    /// Chunks of `rows` rows, to be filled side by side.
    pub fn chunks_mut(&mut self, rows: usize) -> Vec<QuantisedRowsMut<'_>> {
        let chunk = rows * self.groups;
        let values = self.values.chunks_mut(chunk);
        let (scales, starts) = (self.scales.chunks_mut(chunk), self.starts.chunks_mut(chunk));
        let zipped = values.zip(scales).zip(starts);
        zipped.map(|((values, scales), starts)| QuantisedRowsMut { values, scales, starts }).collect()
    }
}

/// What happens to a product's results.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// They replace what is there.
    Replace,
    /// They replace what is there, plus a bias of one element an output.
    Bias(&'a [f32]),
    /// They are added to what is there.
    Add,
}

impl Epilogue<'_> {
    /// Stores results of one row, of which the first is output number `first`.
    #[inline(always)]
    pub fn store(self, results: &[f32], first: usize, out: &mut [f32]) {
        match self {
            Self::Replace => out.copy_from_slice(results),
            Self::Bias(bias) => {
                for ((out, result), bias) in out.iter_mut().zip(results).zip(&bias[first..]) {
                    *out = result + bias;
                }
            }
            Self::Add => out.iter_mut().zip(results).for_each(|(out, result)| *out += result),
        }
    }
}

/// Rows and panels that a kernel computes at once.
#[derive(Clone, Copy)]
struct At {
    row: usize,
    panel: usize,
}

/// Computes the product of `x` and `weights` for the rows of `tile` and for its columns less `first_column`, which is where this
/// matrix's outputs begin in the tile's matrix.
///
/// # Panics
/// Where the tile does not begin at a panel, or has more rows or columns than the product.
pub fn multiply(
    isa: Isa,
    weights: &PackedQ8,
    x: &QuantisedRows,
    tile: &mut Tile<'_>,
    first_column: usize,
    epilogue: Epilogue<'_>,
) {
    assert_eq!(weights.groups, x.groups, "the product's inner dimensions agree");
    let columns = tile.columns().start - first_column..tile.columns().end - first_column;
    assert!(columns.start.is_multiple_of(PANEL) && columns.end <= weights.outputs, "tiles begin at panels");
    assert!(tile.rows().end <= x.rows(), "the product has the tile's rows");
    if columns.is_empty() {
        return;
    }
    let rows = tile.rows();
    let write = |at: At, sums: &[f32; PANEL]| {
        let first = at.panel * PANEL;
        let width = PANEL.min(columns.end - first);
        let out = &mut tile.row(at.row)[first - columns.start..][..width];
        epilogue.store(&sums[..width], first, out);
    };
    kernels::run(isa, weights, x, rows, columns.start / PANEL..columns.end.div_ceil(PANEL), write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::simd::testing::floats;

    #[test]
    fn rounded_weights_are_near_and_alike() {
        let mut weights = floats(8, 4 * GROUP);
        weights[GROUP..2 * GROUP].fill(0.0);
        let rounded = |isa| {
            let mut blocks = vec![BlockQ8_0::zeroed(); 4];
            round(isa, &weights, &mut blocks);
            blocks
        };
        let plain = rounded(Isa::Portable);
        for (block, weights) in plain.iter().zip(weights.chunks(GROUP)) {
            let scale = f16::from_bits(block.scale).to_f32();
            for (value, weight) in block.values.iter().zip(weights) {
                // Half a step, and what rounding the scale to f16 moves the largest value by.
                assert!(
                    (f32::from(*value) * scale - weight).abs() <= scale * 0.57,
                    "{value} {scale} {weight}"
                );
            }
        }
        for isa in Isa::all_here() {
            let bytes = |blocks: Vec<BlockQ8_0>| bytemuck::cast_slice::<_, u8>(&blocks).to_vec();
            assert_eq!(bytes(rounded(isa)), bytes(plain.clone()), "{isa:?}");
        }
    }
}
